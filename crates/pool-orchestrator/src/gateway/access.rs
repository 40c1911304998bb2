//! Who may ask, and what the log says about each request.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::{Gateway, error::ApiError};

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

/// Refuses requests without the key, where there is one.
pub(super) async fn authorise(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let Some(key) = &gateway.state.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match bearer {
        Some((_, given)) if key.matches(given.trim()) => next.run(request).await,
        Some(_) => ApiError::unauthorized("The API key is not valid.").into_response(),
        None => {
            let message = "An API key is needed: send it in the header Authorization: Bearer <key>.";
            ApiError::unauthorized(message).into_response()
        }
    }
}

/// Gives each request an id and logs how it was answered: route, status and nothing that a client wrote.
pub(super) async fn tag(mut request: Request, next: Next) -> Response {
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
    super::PATHS.into_iter().find(is_it).unwrap_or("none")
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
