//! From the bytes of a request to its typed parts, with an error that names the place.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::error::ApiError;

/// A client that sends too much is read to the end, so that it sees the answer, but only so far.
const MAX_DISCARDED: usize = 16 << 20;

/// Reads a JSON body of at most `limit` bytes within `timeout`.
///
/// The content type is demanded, not guessed: a web page of another origin can send anything but
/// `application/json` to this server without asking first.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let read = tokio::time::timeout(timeout, collect(body, limit)).await;
    let bytes = read.map_err(|_elapsed| ApiError::slow_body())??;
    if media_type.eq_ignore_ascii_case("application/json") { Ok(bytes) } else { Err(ApiError::not_json()) }
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut total) = (Vec::new(), 0usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_cut| ApiError::bad_body("The request's body was cut short."))?;
        total = total.saturating_add(chunk.len());
        if total <= limit {
            bytes.extend_from_slice(&chunk);
        } else if total > MAX_DISCARDED.max(limit) {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if total > limit { Err(ApiError::large_body(limit)) } else { Ok(bytes.into()) }
}

/// Reads the fields of `T` from a JSON object and passes over all others, so that one body can be read as several
/// types, each for its own fields.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| refused(&error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| refused(".", &error))?;
    Ok(value)
}

/// What serde says, with the place in OpenAI's form.
fn refused(path: &str, error: &serde_json::Error) -> ApiError {
    let place = format!("line {} column {}", error.line(), error.column());
    let message = error.to_string();
    let message = message.strip_suffix(&format!(" at {place}")).unwrap_or(&message);
    match error.classify() {
        Category::Data if path == "." => ApiError::bad_body(format!("The body is not as expected: {message}.")),
        Category::Data => ApiError::invalid(path, format!("`{path}`: {message}.")),
        Category::Syntax | Category::Eof | Category::Io => {
            ApiError::bad_body(format!("The body is not valid JSON at {place}: {message}."))
        }
    }
}

/// Refuses what is JSON but not an object, which serde would read by position.
pub(crate) fn expect_object(bytes: &[u8]) -> Result<(), ApiError> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(()),
        Some(_) if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() => {
            Err(ApiError::bad_body("The body must be a JSON object."))
        }
        _ => parse::<serde::de::IgnoredAny>(bytes).map(|_| ()),
    }
}
