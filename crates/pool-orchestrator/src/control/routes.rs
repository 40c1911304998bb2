//! What the control plane answers over HTTP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use pool_wire::control::LinkReport;
use serde_json::json;

use super::{
    actor::ControlPlane,
    metrics, socket,
    view::{CoalitionView, LinkView, Stage},
};
use crate::{dataplane::DataPlane, gateway::ApiKey};

#[derive(Clone)]
struct Routes {
    control: ControlPlane,
    dataplane: DataPlane,
    api_key: Option<ApiKey>,
}

/// `/v1/nodes/ws` for nodes, `/healthz`, and with the API key where one is set `/metrics` and `/v1/coalition`.
pub fn router(control: ControlPlane, dataplane: DataPlane, api_key: Option<ApiKey>) -> Router {
    let nodes =
        Router::new().route("/v1/nodes/ws", any(socket::connect)).with_state(socket::Sockets::new(control.clone()));
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics_text))
        .route("/v1/coalition", get(coalition))
        .with_state(Routes { control, dataplane, api_key })
        .merge(nodes)
}

impl Routes {
    fn current(&self) -> Arc<CoalitionView> {
        self.control.view().borrow().clone()
    }

    /// The gateway's links, each with its peer's name.
    fn gateway_links(&self) -> Vec<(String, LinkReport)> {
        let roster = &self.control.shared.roster;
        let name = |report: &LinkReport| {
            roster.member(report.peer).map_or_else(|| report.peer.to_string(), |member| member.name.clone())
        };
        self.dataplane.links().into_iter().map(|report| (name(&report), report)).collect()
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.api_key else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|given| key.matches(given.trim()))
    }
}

async fn health(State(routes): State<Routes>) -> Response {
    let view = routes.current();
    let body = json!({ "status": view.state, "reason": view.reason, "epoch": view.epoch });
    let status = if view.state == Stage::Active { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn metrics_text(State(routes): State<Routes>, headers: HeaderMap) -> Response {
    if !routes.allows(&headers) {
        return unauthorised();
    }
    let text = metrics::render(&routes.current(), &routes.dataplane.counters(), &routes.gateway_links());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn coalition(State(routes): State<Routes>, headers: HeaderMap) -> Response {
    if !routes.allows(&headers) {
        return unauthorised();
    }
    let mut view = CoalitionView::clone(&routes.current());
    let gateway = "gateway".to_owned();
    let own = routes.gateway_links().into_iter();
    view.links.extend(own.map(|(peer, report)| LinkView::new(gateway.clone(), peer, &report)));
    Json(view).into_response()
}

fn unauthorised() -> Response {
    let error = json!({ "error": {
        "message": "A valid API key is needed: send `Authorization: Bearer <key>`.",
        "type": "invalid_request_error",
        "param": null,
        "code": "invalid_api_key",
    }});
    (StatusCode::UNAUTHORIZED, Json(error)).into_response()
}
