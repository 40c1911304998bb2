//! OpenAI's HTTP API in front of a [`Completions`].
//!
//! A request passes through the modules in this order: `access` (the key), `body` and `request` (JSON to types),
//! `settings` (parameters to sampling), `prompt` (template and tokens), `run` (the choices side by side), `answer` and
//! `stop` (tokens to text), `chat` or `completion` (text to OpenAI's form), `respond` (whole or as events).
//!
//! Nothing that a client says and nothing that a model answers is ever logged.

mod access;
mod answer;
pub(crate) mod body;
mod chat;
mod completion;
mod error;
mod models;
mod openapi;
mod prompt;
mod request;
mod respond;
mod response;
mod run;
mod settings;
mod stop;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::Request,
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub use access::ApiKey;
pub(crate) use access::{bearer, tag};
pub(crate) use error::{ApiError, ErrorBody};
pub use response::Privacy;

use crate::{Completions, Payer, PaymentRefusal, Payments, ServedModel};
use access::RequestTag;
use respond::Place;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What the gateway needs.
#[derive(Clone)]
pub struct GatewayState {
    /// Where prompts go.
    pub completions: Arc<dyn Completions>,
    /// The key clients must send; `None` lets everybody in, for loopback only. Who has it need not pay.
    pub api_key: Option<ApiKey>,
    /// Who keeps the accounts; `None` serves without payment.
    pub payments: Option<Arc<dyn Payments>>,
    /// Who may read what is said.
    pub privacy: Privacy,
    /// What clients may take.
    pub limits: Limits,
    /// For `created`, and for templates that tell the date.
    pub clock: Clock,
}

/// What clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Requests answered at once; more are refused with 429.
    pub max_concurrent: usize,
    /// Longest answer where the client sets no limit, in tokens.
    pub default_max_tokens: u32,
    /// How long a stream may be silent before a comment keeps it alive.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 2 << 20,
            body_timeout: Duration::from_secs(30),
            max_concurrent: 256,
            default_max_tokens: 1024,
            keep_alive: Duration::from_secs(10),
        }
    }
}

struct Gateway {
    state: GatewayState,
    places: Arc<Semaphore>,
}

impl Gateway {
    /// Takes a place, or says that there is none.
    fn admit(&self, request: &Request) -> Result<Place, ApiError> {
        let full = |_| ApiError::too_many(self.state.limits.max_concurrent);
        let permit = self.places.clone().try_acquire_owned().map_err(full)?;
        let id = request.extensions().get::<RequestTag>().map(|tag| tag.0.clone()).unwrap_or_default();
        let payer = request.extensions().get::<Payer>().cloned();
        let payer = match (&self.state.payments, payer) {
            (None, _) => Payer::Nobody,
            (Some(_), Some(payer)) => payer,
            (Some(_), None) => access::wallet(request)?.ok_or(PaymentRefusal::NoPayer)?,
        };
        Ok(Place { _permit: permit, id, since: tokio::time::Instant::now(), payer })
    }

    /// The bytes of a JSON object.
    async fn body(&self, request: Request) -> Result<Bytes, ApiError> {
        let limits = &self.state.limits;
        let (parts, body) = request.into_parts();
        let bytes = body::read(&parts.headers, body, limits.max_body, limits.body_timeout).await?;
        body::expect_object(&bytes)?;
        Ok(bytes)
    }

    /// The model a client names.
    fn model(&self, name: Option<&str>) -> Result<ServedModel, ApiError> {
        let missing = || ApiError::invalid("model", "`model` is missing. GET /v1/models lists the models.");
        let name = name.ok_or_else(missing)?;
        let found = self.state.completions.models().into_iter().find(|model| model.name == name);
        found.ok_or_else(|| ApiError::unknown_model(name))
    }
}

/// Every route. Names of models such as `maker/model` are sent with their slash by some clients.
const PATHS: [&str; 5] = ["/v1/models", "/v1/models/{*id}", "/v1/chat/completions", "/v1/completions", "/openapi.json"];

/// Routes that others serve beside these; the log knows them by name.
const OTHER_PATHS: [&str; 4] = ["/v1/sessions", "/v1/sessions/{*id}", "/v1/workflows/{*run}", "/v1/audit"];

/// Each route's handlers, in the order of [`PATHS`], and whether it needs the key.
fn handlers() -> [(MethodRouter<Arc<Gateway>>, bool); 5] {
    [
        (get(models::list), true),
        (get(models::one), true),
        (post(chat::create), true),
        (post(completion::create), true),
        (get(openapi::document), false),
    ]
}

/// The HTTP API: `/v1/*` and `/openapi.json`, with OpenAI's errors for everything else. It may be merged with other
/// routers that have no fallback of their own.
pub fn router(state: GatewayState) -> Router {
    let places = Arc::new(Semaphore::new(state.limits.max_concurrent));
    let gateway = Arc::new(Gateway { state, places });
    let (mut keyed, mut open) = (Router::new(), Router::new());
    for (path, (handlers, needs_key)) in PATHS.into_iter().zip(handlers()) {
        if needs_key {
            keyed = keyed.route(path, handlers);
        } else {
            open = open.route(path, handlers);
        }
    }
    let keyed = keyed.route_layer(middleware::from_fn_with_state(gateway.clone(), access::authorise));
    keyed
        .merge(open)
        .fallback(|request: Request| async move { ApiError::unknown_route(request.method(), request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method(), request.uri().path())
        })
        .with_state(gateway)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(access::tag))
}

/// The panic's message is for our log alone (the panic hook wrote it).
fn panicked(_message: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::internal("The server failed while it answered. This is a defect; please report it.").into_response()
}
