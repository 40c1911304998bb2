//! `GET /openapi.json`.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{chat, completion, models};
use crate::money::routes as sessions;

/// The gateway's routes as an OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "ComputePool",
        description = "OpenAI's completions, answered by a coalition of small GPUs. What ComputePool adds stands in fields named `computepool`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        models::list,
        models::one,
        chat::create,
        completion::create,
        sessions::open,
        sessions::show,
        sessions::close,
        sessions::workflow,
        sessions::audit,
        document
    ),
    tags(
        (name = "completions", description = "Text from a model."),
        (name = "models", description = "What can be asked."),
        (name = "sessions", description = "What is paid for: one voucher opens a session."),
        (name = "audit", description = "For the owner: what was done, and when."),
        (name = "about", description = "This document.")
    ),
    modifiers(&Bearer)
)]
struct Document;

/// The key, which a gateway on loopback may do without.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(scheme));
        let none: [String; 0] = [];
        document.security = Some(vec![SecurityRequirement::default(), SecurityRequirement::new("api_key", none)]);
    }
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "about",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/json", body = Object))
)]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
