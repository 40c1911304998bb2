//! Who may ask, and what the log says about each request.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::{Gateway, GatewayState, error::ApiError};
use crate::{Payer, PaymentRefusal};

/// The key that clients send as `Authorization: Bearer <key>`. Only its hash is kept.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// The key `key`.
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Whether `key` is this key. Takes the same time whatever is wrong with it.
    pub fn matches(&self, key: &str) -> bool {
        let other = Self::new(key);
        let difference = self.0.iter().zip(other.0).fold(0, |difference, (a, b)| difference | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// A request's id, made here, for the log and the header `x-request-id`.
#[derive(Clone)]
pub(super) struct RequestTag(pub(super) String);

/// The token of `Authorization: Bearer <token>`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = given.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Refuses requests without the key, where there is one. Where requests are paid for, the token of a session does as
/// well, and whoever shows neither may still pay for one request; [`Gateway::admit`] sees to that.
pub(super) async fn authorise(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let GatewayState { api_key, payments, .. } = &gateway.state;
    if api_key.is_none() && payments.is_none() {
        return next.run(request).await;
    }
    let bearer = bearer(request.headers());
    if let (Some(key), Some(token)) = (api_key, bearer)
        && key.matches(token)
    {
        request.extensions_mut().insert(Payer::Nobody);
        return next.run(request).await;
    }
    match (payments, bearer) {
        (Some(payments), Some(token)) => match payments.session_of(token) {
            Some(session) => {
                request.extensions_mut().insert(Payer::Session(session));
                next.run(request).await
            }
            None => ApiError::unauthorized("The token is of no session that is known here.").into_response(),
        },
        (Some(_), None) => next.run(request).await,
        (None, Some(_)) => ApiError::unauthorized("The API key is not valid.").into_response(),
        (None, None) => {
            let message = "An API key is needed: send it in the header Authorization: Bearer <key>.";
            ApiError::unauthorized(message).into_response()
        }
    }
}

/// The wallet that pays for this one request, if the headers name one.
pub(super) fn wallet(request: &Request) -> Result<Option<Payer>, PaymentRefusal> {
    let Some(named) = request.headers().get("x-payer") else { return Ok(None) };
    let address = named.to_str().ok().and_then(|text| text.trim().parse().ok());
    let malformed =
        || PaymentRefusal::Malformed("the header X-Payer must hold a wallet's address, like 0x0123...".to_owned());
    let address = address.ok_or_else(malformed)?;
    let payment = request.headers().get("payment-signature").map(|value| value.as_bytes().to_vec());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let resource = format!("http://{host}{}", request.uri().path());
    Ok(Some(Payer::Wallet { address, payment, resource }))
}

/// Gives each request an id and logs how it was answered: route, status and nothing that a client wrote.
pub(crate) async fn tag(mut request: Request, next: Next) -> Response {
    let id = format!("req_{:016x}", rand::random::<u64>());
    let route = known_route(request.uri().path());
    let method = request.method().clone();
    request.extensions_mut().insert(RequestTag(id.clone()));
    let mut response = next.run(request).await;
    tracing::debug!(request = id, %method, route, status = response.status().as_u16(), "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
    }
    response
}

/// The route's own name: a path that a client made up stays out of the log.
fn known_route(path: &str) -> &'static str {
    let is_it = |route: &&str| match route.split_once("{*") {
        Some((prefix, _)) => path.starts_with(prefix),
        None => path == *route,
    };
    super::PATHS.into_iter().chain(super::OTHER_PATHS).find(is_it).unwrap_or("none")
}

#[cfg(test)]
mod tests {
    use super::ApiKey;

    #[test]
    fn a_key_matches_itself_alone_and_is_never_shown() {
        let key = ApiKey::new("cp-secret");
        assert!(key.matches("cp-secret"));
        for wrong in ["", "cp-secre", "cp-secret ", "CP-SECRET"] {
            assert!(!key.matches(wrong), "{wrong:?} is another key");
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
