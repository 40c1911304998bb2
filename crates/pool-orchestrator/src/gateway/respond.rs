//! Answers: whole, or as server-sent events while they are made.

use std::{collections::VecDeque, convert::Infallible, marker::PhantomData, sync::Arc, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::{StreamExt, future, stream, stream::BoxStream};
use pool_models::Tokenizer;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{
    Gateway,
    error::ApiError,
    prompt::{self, Tokenised},
    response::{Collected, Format, Head, Usage},
    run::{self, Event, TextRules, What},
    settings::Settings,
};
use crate::{Fare, Payer, Payments, ServedModel, StartError};

/// A request that is let in: it holds one of the gateway's places until its answer ends or its client goes.
pub(super) struct Place {
    pub(super) _permit: OwnedSemaphorePermit,
    /// The request's id in logs and in the header `x-request-id`.
    pub(super) id: String,
    pub(super) since: Instant,
    pub(super) payer: Payer,
}

/// A request, understood.
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) model: ServedModel,
    pub(super) settings: Settings,
    pub(super) prompts: Vec<Tokenised>,
}

type Events = BoxStream<'static, Result<Event, ApiError>>;

/// Runs the job and answers in the format `F`. The first choice has been taken by the shards when the headers are
/// sent, so whatever refuses it has its own status; what fails later ends a stream with an error event.
///
/// Everything runs inside the response: when the client goes, it is dropped, and every choice is cancelled.
pub(super) async fn respond<F: Format>(gateway: &Gateway, job: Job) -> Result<Response, ApiError> {
    let Job { place, model, settings, prompts } = job;
    let budget = |prompt: &Tokenised| {
        let default = gateway.state.limits.default_max_tokens;
        prompt::budget(F::PROMPT, &model, prompt.tokens.len(), settings.max_tokens, default)
    };
    let budgets = prompts.iter().map(budget).collect::<Result<Vec<u32>, _>>()?;
    let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum();
    let choices = run::choices(prompts, &budgets, &settings);
    let count = choices.len();
    let tokenizer = prompt::tokenizer(&model)?;
    let logprobs = settings.sampling.logprobs.is_some();
    let rules =
        TextRules { tokenizer: tokenizer.clone(), continues: F::CONTINUES, stop: settings.stop.clone(), logprobs };

    let usage = Usage::of_prompts(prompt_tokens);
    let mut record = Record {
        place,
        model: model.name.clone(),
        choices: count,
        usage,
        first: None,
        outcome: "left",
        payments: gateway.state.payments.clone(),
        _fare: None,
    };
    let mut events = run::run(gateway.state.completions.clone(), model.name.clone(), choices, rules).boxed();
    let mut settlement = None;
    if let Some(payments) = &gateway.state.payments {
        // Nobody pays, or starts a stream, for an answer that cannot begin.
        if !model.active && record.place.payer != Payer::Nobody {
            return Err(record.fail(StartError::NoCoalition(model.name).into()));
        }
        let answers: u64 = budgets.iter().map(|&budget| u64::from(budget) * u64::from(settings.n)).sum();
        let boarded = payments.board(&record.place.payer, &model.name, prompt_tokens + answers).await;
        let mut fare = boarded.map_err(|refusal| record.fail(refusal.into()))?;
        settlement = fare.settlement.take();
        events = while_paid(events, fare.spent.clone());
        record._fare = Some(fare);
    }
    let first = match events.next().await {
        Some(Ok(event)) => event,
        Some(Err(error)) => return Err(record.fail(error)),
        None => return Err(record.fail(ApiError::internal("There was nothing to answer."))),
    };
    let head = Head::new(F::PREFIX, gateway, &model);
    let events = stream::once(future::ready(Ok(first))).chain(events).boxed();
    if settings.stream {
        let with_usage = settings.include_usage;
        let (queue, format) = (VecDeque::new(), PhantomData::<F>);
        let writer = Writer { events: Some(events), head, tokenizer, logprobs, with_usage, record, queue, format };
        let response = writer.into_response(gateway.state.limits.keep_alive);
        return Ok(with_settlement(response, settlement));
    }
    let choices = match collect(events, count, &mut record).await {
        Ok(choices) => choices,
        Err(error) => return Err(record.fail(error)),
    };
    record.answered();
    let response = Json(F::whole(&head, &tokenizer, logprobs, choices, record.usage)).into_response();
    Ok(with_settlement(response, settlement))
}

/// The events until the payer's time is used up, then an error. What still ran is dropped, which ends it on every
/// shard.
fn while_paid(events: Events, mut spent: watch::Receiver<Option<&'static str>>) -> Events {
    let used_up = async move {
        let reason = spent.wait_for(Option::is_some).await.map(|reason| *reason);
        match reason {
            Ok(reason) => ApiError::session_over(reason.unwrap_or_default()),
            // The accounts are gone: the server is shutting down, and the answer ends with it.
            Err(_) => future::pending().await,
        }
    };
    let paid = stream::unfold((Some(events), Box::pin(used_up)), |(events, mut used_up)| async move {
        let mut events = events?;
        tokio::select! {
            biased;
            error = &mut used_up => Some((Err(error), (None, used_up))),
            event = events.next() => event.map(|event| (event, (Some(events), used_up))),
        }
    });
    paid.boxed()
}

fn with_settlement(mut response: Response, settlement: Option<String>) -> Response {
    if let Some(value) = settlement.and_then(|value| HeaderValue::try_from(value).ok()) {
        response.headers_mut().insert(HeaderName::from_static("payment-response"), value);
    }
    response
}

async fn collect(mut events: Events, count: usize, record: &mut Record) -> Result<Vec<Collected>, ApiError> {
    let mut choices: Vec<Collected> = (0..count).map(|_| Collected::default()).collect();
    while let Some(event) = events.next().await {
        let Event { index, what } = event?;
        record.note(&what);
        let Some(choice) = choices.get_mut(index as usize) else { continue };
        match what {
            What::Started(request) => choice.request = request,
            What::Piece(piece) => {
                choice.text.push_str(&piece.text);
                choice.tokens.extend(piece.tokens);
            }
            What::Finished { reason, .. } => choice.finish = Some(reason),
        }
    }
    Ok(choices)
}

/// Turns events into server-sent events.
struct Writer<F> {
    events: Option<Events>,
    head: Head,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    with_usage: bool,
    record: Record,
    queue: VecDeque<sse::Event>,
    format: PhantomData<F>,
}

impl<F: Format> Writer<F> {
    fn into_response(self, keep_alive: Duration) -> Response {
        let events = stream::unfold(self, |mut writer| async move {
            let event = writer.next().await?;
            Some((Ok::<_, Infallible>(event), writer))
        });
        let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
        let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
        // Proxies such as nginx would collect the events otherwise.
        let buffering = HeaderName::from_static("x-accel-buffering");
        response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
        response
    }

    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match self.events.as_mut()?.next().await {
                Some(Ok(event)) => {
                    self.record.note(&event.what);
                    let mut chunk = F::chunk(&self.head, &self.tokenizer, self.logprobs, event);
                    if self.with_usage {
                        F::set_usage(&mut chunk, None);
                    }
                    self.write(&chunk);
                }
                Some(Err(error)) => {
                    self.events = None;
                    let error = self.record.fail(error);
                    self.write(&error.body());
                }
                None => {
                    self.events = None;
                    self.record.answered();
                    if self.with_usage {
                        self.write(&F::usage_chunk(&self.head, self.record.usage));
                    }
                    self.queue.push_back(sse::Event::default().data("[DONE]"));
                }
            }
        }
    }

    fn write(&mut self, chunk: &impl Serialize) {
        match sse::Event::default().json_data(chunk) {
            Ok(event) => self.queue.push_back(event),
            // Numbers are finite and keys are strings: what remains cannot fail, and a client notices a lost chunk.
            Err(_) => self.events = None,
        }
    }
}

/// What the log says about a request when it is over, however that comes about. Numbers only: no text.
struct Record {
    place: Place,
    model: String,
    choices: usize,
    usage: Usage,
    first: Option<Duration>,
    outcome: &'static str,
    payments: Option<Arc<dyn Payments>>,
    /// Charged until the record is dropped, with the answer.
    _fare: Option<Fare>,
}

impl Record {
    fn note(&mut self, what: &What) {
        match what {
            What::Started(_) => {}
            What::Piece(_) => {
                self.first.get_or_insert_with(|| self.place.since.elapsed());
            }
            What::Finished { tokens, .. } => self.usage.add(*tokens),
        }
    }

    fn answered(&mut self) {
        self.outcome = "answered";
        // Choices side by side are slower each, and faster together, than one alone.
        if let (Some(payments), Some(first), 1) = (&self.payments, self.first, self.choices) {
            payments.answered(self.usage.completion_tokens, self.place.since.elapsed().saturating_sub(first));
        }
    }

    fn fail(&mut self, error: ApiError) -> ApiError {
        self.outcome = error.code();
        error
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        tracing::info!(
            request = self.place.id,
            model = self.model,
            outcome = self.outcome,
            choices = self.choices,
            prompt_tokens = self.usage.prompt_tokens,
            completion_tokens = self.usage.completion_tokens,
            first_ms = self.first.map(|first| first.as_millis() as u64),
            total_ms = self.place.since.elapsed().as_millis() as u64,
            "completion"
        );
    }
}
