//! `GET /v1/models`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Gateway,
    error::{ApiError, ErrorBody},
    response::{Privacy, ServedBy, served_by},
};
use crate::{Price, ServedModel};

/// The models that can be asked for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListModelsResponse)]
pub(super) struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<ModelEntry>,
}

/// A model that can be asked for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub(super) struct ModelEntry {
    /// Its name.
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// When it was first served, Unix seconds.
    created: u64,
    #[schema(example = "computepool")]
    owned_by: &'static str,
    computepool: ModelMetadata,
}

/// What ComputePool adds to a model's entry.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ComputePoolModel)]
struct ModelMetadata {
    /// Whether a coalition serves it now.
    active: bool,
    /// Longest prompt and answer together, in tokens.
    max_context: u32,
    /// Who may read what is said to it.
    privacy: Privacy,
    /// The same as a sentence.
    privacy_notice: &'static str,
    /// Who holds which layers now, entry first.
    served_by: Vec<ServedBy>,
    /// What it costs; absent where nothing is charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    price: Option<ModelPrice>,
}

/// What a model costs. Amounts are whole units of 10^-6 USDC, as text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ComputePoolPrice)]
struct ModelPrice {
    /// A second, while any request of a session runs.
    #[schema(example = "100")]
    per_second: String,
    /// Seconds that a session's stream goes on after its last request; they are charged.
    linger_seconds: u64,
    /// A million tokens of answer at the measured speed, one request at a time; null before any was measured.
    #[schema(required, example = "5000000")]
    per_million_tokens: Option<String>,
}

impl ModelPrice {
    fn new(price: Price) -> Self {
        Self {
            per_second: price.rate.units_per_second().to_string(),
            linger_seconds: price.linger,
            per_million_tokens: price.per_million_tokens.map(|price| price.units().to_string()),
        }
    }
}

impl ModelEntry {
    fn new(model: &ServedModel, gateway: &Gateway) -> Self {
        let privacy = gateway.state.privacy;
        let price = gateway.state.payments.as_ref().and_then(|payments| payments.price(&model.name));
        Self {
            id: model.name.clone(),
            object: "model",
            created: model.created,
            owned_by: "computepool",
            computepool: ModelMetadata {
                active: model.active,
                max_context: model.max_context,
                privacy,
                privacy_notice: privacy.sentence(),
                served_by: served_by(model),
                price: price.map(ModelPrice::new),
            },
        }
    }
}

/// Lists the models.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "models",
    responses(
        (status = 200, description = "Every model, served now or not.", body = ModelList, example = json!({
            "object": "list",
            "data": [{
                "id": "tiny", "object": "model", "created": 1_800_000_000, "owned_by": "computepool",
                "computepool": {
                    "active": true, "max_context": 512,
                    "privacy": "own_machines", "privacy_notice": "Own machines: only paired keys serve it.",
                    "served_by": [{"member": "node-1", "layers": "0-5"}]
                }
            }]
        })),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorBody),
    )
)]
pub(super) async fn list(State(gateway): State<Arc<Gateway>>) -> Json<ModelList> {
    let models = gateway.state.completions.models();
    let data = models.iter().map(|model| ModelEntry::new(model, &gateway)).collect();
    Json(ModelList { object: "list", data })
}

/// Describes one model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "retrieveModel",
    tag = "models",
    params(("id" = String, Path, description = "The model's name; it may contain slashes.")),
    responses(
        (status = 200, description = "The model.", body = ModelEntry, example = json!({
            "id": "tiny", "object": "model", "created": 1_800_000_000, "owned_by": "computepool",
            "computepool": {
                "active": false, "max_context": 512,
                "privacy": "public_pool", "privacy_notice": "Public pool: operators could read this.",
                "served_by": []
            }
        })),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorBody),
        (status = 404, description = "There is no such model.", body = ErrorBody, example = json!({"error": {
            "message": "The model `huge` does not exist. GET /v1/models lists those that do.",
            "type": "invalid_request_error", "param": "model", "code": "model_not_found"
        }})),
    )
)]
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<Json<ModelEntry>, ApiError> {
    let model = gateway.model(Some(&id))?;
    Ok(Json(ModelEntry::new(&model, &gateway)))
}
