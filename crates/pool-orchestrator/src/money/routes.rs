//! `/v1/sessions`, `/v1/workflows/{run}` and `/v1/audit`.

use std::{sync::Arc, time::Duration};

use alloy_primitives::Address;
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use pool_journal::RunId;
use pool_store::SessionState;
use pool_types::SessionId;
use serde::Deserialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use super::{
    Money, Session, SessionView,
    opening::{NotOpened, Opened, Wish},
    token_hash,
};
use crate::{
    PaymentRefusal,
    control::unix_now,
    gateway::{self, ApiError, ApiKey, ErrorBody, bearer, body},
};

/// A request for a session is small.
const MAX_BODY: usize = 16 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions that are being opened at once; more are refused with 429.
const MOST_OPENING: usize = 256;
/// How long a client is kept waiting for its refund.
const CLOSING: Duration = Duration::from_secs(45);
const SESSIONS: &str = "/v1/sessions";

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Routes {
    money: Option<Money>,
    api_key: Option<ApiKey>,
    places: Arc<Semaphore>,
}

/// The routes; without `money` they say that nothing needs to be paid.
pub fn router(money: Option<Money>, api_key: Option<ApiKey>) -> Router {
    let routes = Routes { money, api_key, places: Arc::new(Semaphore::new(MOST_OPENING)) };
    Router::new()
        .route(SESSIONS, post(open))
        .route("/v1/sessions/{id}", get(show).delete(close))
        .route("/v1/workflows/{run}", get(workflow))
        .route("/v1/audit", get(audit))
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method(), request.uri().path())
        })
        .with_state(routes)
        .layer(middleware::from_fn(gateway::tag))
}

impl Routes {
    fn money(&self) -> Result<&Money, ApiError> {
        self.money.as_ref().ok_or_else(ApiError::nothing_to_pay)
    }

    /// Whether the owner's key was shown; where there is none, whoever reaches the address is the owner.
    fn is_owner(&self, headers: &HeaderMap) -> bool {
        match &self.api_key {
            None => true,
            Some(key) => bearer(headers).is_some_and(|given| key.matches(given)),
        }
    }

    fn owner(&self, headers: &HeaderMap) -> Result<&Money, ApiError> {
        if self.is_owner(headers) {
            self.money()
        } else {
            Err(ApiError::unauthorized("This is for the owner: send the API key."))
        }
    }

    /// The session whose token was shown.
    async fn session(&self, id: &str, headers: &HeaderMap) -> Result<(&Money, Session), ApiError> {
        let money = self.money()?;
        let unknown = || ApiError::unknown_session(id);
        let id: SessionId = id.parse().map_err(|_| unknown())?;
        let found: Option<Session> = money.0.store.session(id).await.map_err(|_| ApiError::store())?;
        let given = bearer(headers).map(token_hash);
        // Who does not have the token learns nothing, not even that there is such a session.
        let session = found.filter(|session| {
            let with_token = given.is_some() && session.token_hash == given;
            with_token || (self.api_key.is_some() && self.is_owner(headers))
        });
        session.map(|session| (money, session)).ok_or_else(unknown)
    }
}

/// What to buy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionRequest {
    /// The model it is for.
    model: String,
    /// The wallet that pays; every refund goes there.
    #[schema(value_type = String, example = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8")]
    payer: Address,
    /// Seconds of work. Either this or `tokens`.
    seconds: Option<u64>,
    /// Tokens of answers, turned into seconds by the measured speed.
    tokens: Option<u64>,
}

/// Opens a session, or says what one costs.
#[utoipa::path(
    post,
    path = "/v1/sessions",
    operation_id = "createSession",
    tag = "sessions",
    request_body(content = SessionRequest, example = json!({
        "model": "tiny", "payer": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "seconds": 300
    })),
    params(("PAYMENT-SIGNATURE" = Option<String>, Header, description = "The payment of an offer (x402 version 2, scheme `exact`).")),
    responses(
        (status = 201, description = "The session is open. The header PAYMENT-RESPONSE names the transaction.", body = SessionView),
        (status = 202, description = "It was paid and is being opened; its token is good once its state is `open`.", body = SessionView),
        (status = 400, description = "The request is at fault.", body = ErrorBody),
        (status = 402, description = "What it costs stands in the header PAYMENT-REQUIRED, with the reason where a payment was not taken; nothing was charged then.", body = ErrorBody),
        (status = 404, description = "There is no such model, or nothing needs to be paid here.", body = ErrorBody),
        (status = 429, description = "Too many sessions are being opened.", body = ErrorBody),
        (status = 503, description = "The chain or the coalition is not ready.", body = ErrorBody),
    )
)]
pub(crate) async fn open(State(routes): State<Routes>, request: Request) -> Result<Response, ApiError> {
    let money = routes.money()?;
    let _place = routes.places.clone().try_acquire_owned().map_err(|_| ApiError::too_many(MOST_OPENING))?;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let resource = format!("http://{host}{SESSIONS}");
    let payment = request.headers().get("payment-signature").map(|value| value.as_bytes().to_vec());
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, MAX_BODY, BODY_TIMEOUT).await?;
    body::expect_object(&bytes)?;
    let wanted: SessionRequest = body::parse(&bytes)?;
    if wanted.model != money.0.model {
        return Err(ApiError::unknown_model(&wanted.model));
    }
    if wanted.payer == Address::ZERO {
        return Err(ApiError::invalid("payer", "`payer` must be the wallet that pays."));
    }
    let seconds = seconds(money, &wanted)?;
    let wish = Wish {
        payer: wanted.payer,
        model: &wanted.model,
        seconds,
        exactly: wanted.seconds.is_some(),
        one_request: false,
        resource: &resource,
    };
    match money.open(&wish, payment.as_deref()).await {
        Ok(Opened { session, settlement, token }) => {
            let view = view_of(money, session, token).await?;
            let mut response = (StatusCode::CREATED, Json(view)).into_response();
            if let Ok(value) = HeaderValue::try_from(settlement) {
                response.headers_mut().insert(HeaderName::from_static("payment-response"), value);
            }
            Ok(response)
        }
        Err(NotOpened::Pending(session, token)) => {
            Ok((StatusCode::ACCEPTED, Json(view_of(money, session, Some(token)).await?)).into_response())
        }
        Err(NotOpened::Refused(refusal)) => Err(refusal.into()),
    }
}

/// How long a session is wanted.
fn seconds(money: &Money, wanted: &SessionRequest) -> Result<u64, ApiError> {
    match (wanted.seconds, wanted.tokens) {
        (Some(seconds), None) => Ok(seconds),
        (None, Some(tokens)) => {
            let unmeasured = || {
                let message = "the speed has not been measured yet; ask for `seconds`, or try again in a moment";
                PaymentRefusal::Unavailable(message.to_owned())
            };
            let speed = money.speed().ok_or_else(unmeasured)?;
            Ok(money.0.tariff.seconds_for(tokens, speed).ok_or_else(unmeasured)?)
        }
        _ => Err(ApiError::invalid("seconds", "Say how long the session is wanted: either `seconds` or `tokens`.")),
    }
}

async fn view_of(money: &Money, id: SessionId, token: Option<String>) -> Result<SessionView, ApiError> {
    let session: Option<Session> = money.0.store.session(id).await.map_err(|_| ApiError::store())?;
    let session = session.ok_or_else(|| ApiError::unknown_session(&id.to_string()))?;
    Ok(money.session_view(session, token).await)
}

/// Shows a session: what was paid, what streams, what is left.
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}",
    operation_id = "retrieveSession",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's id.")),
    responses(
        (status = 200, description = "The session.", body = SessionView),
        (status = 404, description = "There is no such session, or its token was not shown.", body = ErrorBody),
    )
)]
pub(crate) async fn show(
    State(routes): State<Routes>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<SessionView>, ApiError> {
    let (money, session) = routes.session(&id, &headers).await?;
    Ok(Json(money.session_view(session, None).await))
}

/// Closes a session: its requests end, its stream stops, the rest is refunded.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    operation_id = "closeSession",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's id.")),
    responses(
        (status = 200, description = "The session is closed; its receipt says what it came to.", body = SessionView),
        (status = 202, description = "It is being closed.", body = SessionView),
        (status = 404, description = "There is no such session, or its token was not shown.", body = ErrorBody),
    )
)]
pub(crate) async fn close(
    State(routes): State<Routes>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (money, session) = routes.session(&id, &headers).await?;
    let id = session.id;
    if session.state == SessionState::Opening {
        // Once it is open it is closed, which refunds it.
        let why = Some("its payer asked for it");
        let moved = money.0.store.session_moved(id, SessionState::Closing, why, unix_now()).await;
        moved.map_err(|_| ApiError::store())?;
    }
    money.ledger().close(id, money.now(), "its payer asked for it");
    money.0.wake.notify_one();
    let closed = async {
        loop {
            let session: Option<Session> = money.0.store.session(id).await.map_err(|_| ApiError::store())?;
            match session {
                Some(session) if matches!(session.state, SessionState::Closed | SessionState::Failed) => {
                    return Ok::<Session, ApiError>(session);
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                None => return Err(ApiError::unknown_session(&id.to_string())),
            }
        }
    };
    match tokio::time::timeout(CLOSING, closed).await {
        Ok(session) => Ok(Json(money.session_view(session?, None).await).into_response()),
        Err(_) => Ok((StatusCode::ACCEPTED, Json(view_of(money, id, None).await?)).into_response()),
    }
}

/// Shows one run of a workflow: its steps and transactions. Secrets are taken out.
#[utoipa::path(
    get,
    path = "/v1/workflows/{run}",
    operation_id = "retrieveWorkflow",
    tag = "audit",
    params(("run" = String, Path, description = "The run's name: 32 hexadecimal digits.")),
    responses(
        (status = 200, description = "The run.", content_type = "application/json", body = Object),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorBody),
        (status = 404, description = "There is no such run.", body = ErrorBody),
    )
)]
pub(crate) async fn workflow(
    State(routes): State<Routes>,
    Path(run): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let money = routes.owner(&headers)?;
    let unknown = || ApiError::unknown_run(&run);
    let id: RunId = run.parse().map_err(|_| unknown())?;
    let view = money.0.journal.view(id).await.map_err(|_| ApiError::store())?.ok_or_else(unknown)?;
    Ok(Json(view).into_response())
}

/// The whole log as JSON lines, for `computepool verify audit`.
#[utoipa::path(
    get,
    path = "/v1/audit",
    operation_id = "exportAudit",
    tag = "audit",
    responses(
        (status = 200, description = "Every change of every run, step and transaction, chained by hashes.", content_type = "application/x-ndjson", body = String),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorBody),
    )
)]
pub(crate) async fn audit(State(routes): State<Routes>, headers: HeaderMap) -> Result<Response, ApiError> {
    let money = routes.owner(&headers)?;
    let mut lines = Vec::new();
    money.0.journal.export(&mut lines).await.map_err(|_| ApiError::store())?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}
