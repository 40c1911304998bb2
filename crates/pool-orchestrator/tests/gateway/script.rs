//! A [`Completions`] that says what a test tells it to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pool_models::Tokenizer;
use pool_orchestrator::{CancelGuard, Completion, Completions, ServedModel, StartError};
use pool_types::{Failure, FinishReason, RequestId, TokenChoice};
use pool_wire::{Prompt, Token};
use tokio::sync::mpsc;

use super::model::END;

/// What happens after a start.
pub(crate) enum Step {
    Token(Token),
    Fail(Failure),
    Wait(Duration),
    /// The stream ends without a last token.
    Break,
}

type Behaviour = Box<dyn Fn(&Prompt) -> Result<Vec<Step>, StartError> + Send + Sync>;

pub(crate) struct Script {
    pub(crate) models: Vec<ServedModel>,
    behaviour: Behaviour,
    /// Every prompt that was started, in order.
    pub(crate) prompts: Mutex<Vec<Prompt>>,
    /// Completions whose guard has not been dropped.
    pub(crate) live: Arc<AtomicUsize>,
    /// The most that were live at once.
    pub(crate) most: AtomicUsize,
    next: AtomicU64,
}

impl Script {
    pub(crate) fn new(
        models: Vec<ServedModel>,
        behaviour: impl Fn(&Prompt) -> Result<Vec<Step>, StartError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            models,
            behaviour: Box::new(behaviour),
            prompts: Mutex::default(),
            live: Arc::default(),
            most: AtomicUsize::new(0),
            next: AtomicU64::new(1),
        })
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    pub(crate) fn prompts(&self) -> Vec<Prompt> {
        self.prompts.lock().unwrap().clone()
    }
}

#[async_trait]
impl Completions for Script {
    fn models(&self) -> Vec<ServedModel> {
        self.models.clone()
    }

    async fn start(&self, model: &str, prompt: Prompt) -> Result<Completion, StartError> {
        if !self.models.iter().any(|known| known.name == model) {
            return Err(StartError::UnknownModel(model.to_owned()));
        }
        self.prompts.lock().unwrap().push(prompt.clone());
        let steps = (self.behaviour)(&prompt)?;
        let (sender, tokens) = mpsc::channel(1);
        let live = self.live.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(live, Ordering::SeqCst);
        let task = tokio::spawn(async move {
            for step in steps {
                let sent = match step {
                    Step::Token(token) => sender.send(Ok(token)).await,
                    Step::Fail(failure) => sender.send(Err(failure)).await,
                    Step::Wait(time) => {
                        tokio::time::sleep(time).await;
                        Ok(())
                    }
                    Step::Break => return,
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        let live = self.live.clone();
        let guard = CancelGuard::new(move || {
            task.abort();
            live.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Completion { request: RequestId(self.next.fetch_add(1, Ordering::SeqCst)), tokens, guard })
    }
}

fn choice(prompt: &Prompt, token: u32) -> TokenChoice {
    match prompt.sampling.logprobs {
        None => TokenChoice { token, logprob: f32::NAN, top: Vec::new() },
        Some(count) => {
            let likely = [(token, -0.5), (0x78, -1.5), (0x79, f32::NEG_INFINITY)];
            TokenChoice { token, logprob: -0.5, top: likely.into_iter().take(usize::from(count)).collect() }
        }
    }
}

/// These tokens as the exit shard would give them: up to the prompt's limit, then its end token.
pub(crate) fn say_tokens(prompt: &Prompt, tokens: &[u32]) -> Vec<Step> {
    let most = prompt.max_new_tokens as usize;
    let ending = prompt.stop_tokens.contains(&END).then_some(END);
    let all: Vec<u32> = tokens.iter().copied().chain(ending).take(most).collect();
    let last = all.len().saturating_sub(1);
    let step = |(place, token): (usize, &u32)| {
        let finish = match (place == last, *token) {
            (true, END) if ending.is_some() => Some(FinishReason::Stop),
            (true, _) => Some(FinishReason::Length),
            (false, _) => None,
        };
        Step::Token(Token { choice: choice(prompt, *token), finish })
    };
    all.iter().enumerate().map(step).collect()
}

/// This text, token by token.
pub(crate) fn say(tokenizer: &Tokenizer, prompt: &Prompt, text: &str) -> Vec<Step> {
    say_tokens(prompt, &tokenizer.encode(text, false).unwrap())
}
