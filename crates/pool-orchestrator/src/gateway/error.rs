use std::fmt;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use pool_types::{Failure, ReasonCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{PaymentRefusal, StartError};

/// The body of every error, in OpenAI's form.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Error)]
struct ErrorDetail {
    /// One sentence for a person.
    message: String,
    /// The class of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field of the request that is at fault.
    #[schema(required)]
    param: Option<String>,
    /// What a program can act on, such as `context_length_exceeded`.
    #[schema(required)]
    code: Option<&'static str>,
}

/// An error on its way to a client: a status and OpenAI's body. Its message may quote the request, so it is never
/// logged; [`Self::code`] is.
#[derive(Clone, PartialEq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<u32>,
    /// The value of the header `PAYMENT-REQUIRED`.
    payment_required: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None, payment_required: None }
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// 400 that is the fault of the body as a whole.
    pub(crate) fn bad_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// 400 that is the fault of one field.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message).with_param(param)
    }

    /// 400: something OpenAI has and this server has not.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("unsupported_parameter"), message)
            .with_param(param)
    }

    /// 400: prompt, or prompt and answer, do not fit the context.
    pub(crate) fn too_long(param: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"), message)
            .with_param(param)
    }

    /// 401.
    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), message)
    }

    /// 402: what a session or a wallet paid for is used up.
    pub(crate) fn session_over(reason: &str) -> Self {
        Self::new(StatusCode::PAYMENT_REQUIRED, "payment_error", Some("session_spent"), sentence(reason))
    }

    /// 404: a model that nobody offers.
    pub(crate) fn unknown_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist. GET /v1/models lists those that do.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message).with_param("model")
    }

    /// 404: no session of this id, as far as whoever asks may know.
    pub(crate) fn unknown_session(id: &str) -> Self {
        let message = format!("There is no session `{id}` for this token. Send the session's token as a bearer token.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("session_not_found"), message)
    }

    /// 404: no run of this name.
    pub(crate) fn unknown_run(name: &str) -> Self {
        let message = format!("There is no run `{name}`.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("run_not_found"), message)
    }

    /// 404: sessions where nothing is charged.
    pub(crate) fn nothing_to_pay() -> Self {
        let message = "This server answers without payment: no session is needed.";
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("no_payment"), message)
    }

    /// 500: the database failed.
    pub(crate) fn store() -> Self {
        Self::internal("The server's database failed. Try again; if it stays so, its owner must look at the log.")
    }

    /// 404: no such route.
    pub(crate) fn unknown_route(method: &axum::http::Method, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}. GET /openapi.json lists the routes.");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    /// 405.
    pub(crate) fn wrong_method(method: &axum::http::Method, path: &str) -> Self {
        let message = format!("{method} is not allowed on {path}. GET /openapi.json lists the methods.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", Some("method_not_supported"), message)
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn slow_body() -> Self {
        let message = "The request's body did not arrive in time.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", None, message)
    }

    /// 413.
    pub(crate) fn large_body(limit: usize) -> Self {
        let message = format!("The request's body is larger than the limit of {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 415.
    pub(crate) fn not_json() -> Self {
        let message = "The body must be JSON, sent with the header Content-Type: application/json.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", Some("unsupported_media_type"), message)
    }

    /// 429: more requests at once than this server takes.
    pub(crate) fn too_many(limit: usize) -> Self {
        let message = format!("This server answers at most {limit} requests at once. Try again in a moment.");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"), message)
            .retry_after(1)
    }

    /// 500: a fault of ours.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), message)
    }

    /// The code, or the class where there is none: safe to log.
    pub(crate) fn code(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }

    /// The body, for a response or as the last event of a stream.
    pub(crate) fn body(&self) -> ErrorBody {
        let Self { kind, code, param, message, .. } = self.clone();
        ErrorBody { error: ErrorDetail { message, kind, param, code } }
    }
}

/// Without the message, which may quote a prompt.
impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError").field("status", &self.status).field("code", &self.code()).finish_non_exhaustive()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(value) = self.payment_required.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(HeaderName::from_static("payment-required"), value);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<PaymentRefusal> for ApiError {
    fn from(refusal: PaymentRefusal) -> Self {
        let message = sentence(&refusal.to_string());
        let paid = |code| Self::new(StatusCode::PAYMENT_REQUIRED, "payment_error", Some(code), message.clone());
        match refusal {
            PaymentRefusal::NoPayer => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("payer_missing"), message)
            }
            PaymentRefusal::Malformed(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("payment_malformed"), message)
            }
            PaymentRefusal::Required { header, code, .. } => Self { payment_required: Some(header), ..paid(code) },
            PaymentRefusal::Over { code, .. } => paid(code),
            PaymentRefusal::Busy(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("session_busy"), message)
                    .retry_after(1)
            }
            PaymentRefusal::Unavailable(_) => unavailable("chain_unavailable", message),
        }
    }
}

/// A phrase as a sentence: with a capital and a full stop.
fn sentence(phrase: &str) -> String {
    let mut letters = phrase.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let stop = if phrase.ends_with(['.', '?']) { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::UnknownModel(name) => Self::unknown_model(&name),
            StartError::NoCoalition(name) => unavailable(
                "no_coalition",
                format!("No coalition serves `{name}` right now; one may be forming. Try again in a moment."),
            ),
            StartError::Full { .. } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
                format!("The coalition is full: {error}. Try again in a moment."),
            )
            .retry_after(1),
            StartError::TooLong { .. } => Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                Some("context_length_exceeded"),
                format!("The request does not fit: {error}."),
            ),
            StartError::Failed(failure) => failure.into(),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.message;
        match failure.code {
            ReasonCode::ContextTooLong => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"), message)
            }
            ReasonCode::KvFull => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"), message)
                    .retry_after(1)
            }
            ReasonCode::PeerLost | ReasonCode::StandDown => unavailable("coalition_lost", message),
            ReasonCode::Timeout => unavailable("timeout", message),
            ReasonCode::Cancelled => unavailable("cancelled", message),
            ReasonCode::Engine | ReasonCode::Model | ReasonCode::Protocol | ReasonCode::Unauthorised => {
                Self::new(StatusCode::BAD_GATEWAY, "server_error", Some("engine_failed"), message)
            }
        }
    }
}

/// 503, worth another try soon.
fn unavailable(code: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message).retry_after(1)
}
