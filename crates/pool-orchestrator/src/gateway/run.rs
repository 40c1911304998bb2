//! Runs the choices of a request side by side and merges what they produce.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use pool_models::Tokenizer;
use pool_types::{FinishReason, RequestId};
use pool_wire::Prompt;

use super::{
    answer::{Answer, Piece},
    error::ApiError,
    prompt::Tokenised,
    settings::Settings,
};
use crate::{Completion, Completions};

/// Choices of one request that run at the same time; more wait for their turn.
const SIDE_BY_SIDE: usize = 8;

/// What happens to one choice, in this order: it starts, has pieces, and is finished.
#[derive(Debug)]
pub(super) struct Event {
    /// Which choice, as the client counts them.
    pub(super) index: u32,
    /// What happened.
    pub(super) what: What,
}

/// What happened to a choice.
#[derive(Debug)]
pub(super) enum What {
    /// The shards took it.
    Started(RequestId),
    /// More text.
    Piece(Piece),
    /// The answer is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens sampled.
        tokens: u32,
    },
}

/// One choice to be run.
#[derive(Debug)]
pub(super) struct Choice {
    index: u32,
    prompt: Prompt,
    echo: Option<String>,
}

/// The choices of a request: `n` for each prompt, the first prompt's first. `budgets` holds each prompt's most tokens.
pub(super) fn choices(prompts: Vec<Tokenised>, budgets: &[u32], settings: &Settings) -> Vec<Choice> {
    let each = prompts.into_iter().zip(budgets).enumerate();
    each.flat_map(|(place, (tokenised, budget))| {
        (0..settings.n).map(move |choice| {
            let mut sampling = settings.sampling.clone();
            sampling.choice = choice;
            Choice {
                index: place as u32 * settings.n + choice,
                prompt: Prompt {
                    tokens: tokenised.tokens.clone(),
                    sampling,
                    max_new_tokens: *budget,
                    stop_tokens: settings.stop_tokens.clone(),
                },
                echo: (settings.echo && !tokenised.text.is_empty()).then(|| tokenised.text.clone()),
            }
        })
    })
    .collect()
}

/// How tokens become text.
#[derive(Clone)]
pub(super) struct TextRules {
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Whether answers go on from their prompt's text.
    pub(super) continues: bool,
    pub(super) stop: Vec<String>,
    pub(super) logprobs: bool,
}

/// Runs the choices. The first error ends the stream; dropping the stream cancels whatever still runs.
pub(super) fn run(
    completions: Arc<dyn Completions>,
    model: String,
    choices: Vec<Choice>,
    rules: TextRules,
) -> impl Stream<Item = Result<Event, ApiError>> + Send + 'static {
    let each = stream::iter(choices).map(move |choice| {
        let start = Running {
            index: choice.index,
            completions: completions.clone(),
            model: model.clone(),
            rules: rules.clone(),
            stage: Stage::Waiting(Box::new(choice)),
        };
        stream::unfold(start, |mut running| async move {
            let what = running.next().await?;
            let index = running.index;
            if what.is_err() {
                running.stage = Stage::Over;
            }
            Some((what.map(|what| Event { index, what }), running))
        })
        .boxed()
    });
    each.flatten_unordered(SIDE_BY_SIDE)
}

struct Running {
    index: u32,
    completions: Arc<dyn Completions>,
    model: String,
    rules: TextRules,
    stage: Stage,
}

enum Stage {
    /// Not yet asked for.
    Waiting(Box<Choice>),
    /// Its prompt comes first.
    Echo(String, Completion, Box<Answer>),
    /// Tokens come.
    Live(Completion, Box<Answer>),
    /// The last token came; this is still to be told.
    Ending(FinishReason, u32),
    Over,
}

impl Running {
    /// What happens next. Not to be asked again after an error.
    async fn next(&mut self) -> Option<Result<What, ApiError>> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Over => None,
            Stage::Ending(reason, tokens) => Some(Ok(What::Finished { reason, tokens })),
            Stage::Echo(text, completion, answer) => {
                self.stage = Stage::Live(completion, answer);
                Some(Ok(What::Piece(Piece { text, tokens: Vec::new() })))
            }
            Stage::Waiting(choice) => Some(self.start(*choice).await),
            Stage::Live(completion, answer) => Some(self.live(completion, answer).await),
        }
    }

    async fn start(&mut self, choice: Choice) -> Result<What, ApiError> {
        let stop_tokens = choice.prompt.stop_tokens.clone();
        let completion = self.completions.start(&self.model, choice.prompt).await?;
        let request = completion.request;
        let TextRules { tokenizer, continues, stop, logprobs } = &self.rules;
        let answer = Box::new(Answer::new(tokenizer, *continues, stop.clone(), stop_tokens, *logprobs));
        self.stage = match choice.echo {
            Some(text) => Stage::Echo(text, completion, answer),
            None => Stage::Live(completion, answer),
        };
        Ok(What::Started(request))
    }

    /// Waits for the next piece. When the answer is complete the completion is dropped at once, which frees its cache
    /// on every shard.
    async fn live(&mut self, mut completion: Completion, mut answer: Box<Answer>) -> Result<What, ApiError> {
        loop {
            let token = match completion.tokens.recv().await {
                Some(token) => token?,
                None => return Err(ApiError::internal("The answer broke off without a reason.")),
            };
            let progress = answer.push(token);
            let Some(reason) = progress.finish else {
                let Some(piece) = progress.piece else { continue };
                self.stage = Stage::Live(completion, answer);
                return Ok(What::Piece(piece));
            };
            drop(completion);
            let tokens = answer.tokens();
            return Ok(match progress.piece {
                Some(piece) => {
                    self.stage = Stage::Ending(reason, tokens);
                    What::Piece(piece)
                }
                None => What::Finished { reason, tokens },
            });
        }
    }
}
