//! The interface over HTTP.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query, Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use pool_models::DownloadsOverview;
use pool_node::owner::{Ask, OwnerView, Wish};
use pool_policy::Settings;
use pool_store::Store;
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Access,
    wire::{DownloadView, ErrorAnswer, ErrorCode, OwnerCommand, OwnerState, PastDecision},
};

const LARGEST_BODY: usize = 64 << 10;
/// Decisions that are told at once.
const MOST_DECISIONS: u32 = 1000;
/// Interfaces that may listen to events at the same time.
const LISTENERS: usize = 16;
/// A listener that does not take an event for this long is let go.
const SLOW: Duration = Duration::from_secs(5);
/// The node does what it is asked within this, or something is wrong with it.
const EFFECT: Duration = Duration::from_secs(5);

/// Where the interface gets what it tells.
#[derive(Clone)]
pub struct Sources {
    /// What the node does.
    pub view: watch::Receiver<Option<OwnerView>>,
    /// What the owner asks goes here.
    pub asks: mpsc::Sender<Ask>,
    /// The decisions of the past.
    pub store: Store,
    /// Models on their way, where the node fetches any.
    pub downloads: Option<watch::Receiver<DownloadsOverview>>,
}

/// Why the interface cannot be offered.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is taken, or none.
    #[error("the interface cannot listen at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Anybody could reach it.
    #[error("the interface listens on this machine only; {0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// It broke.
    #[error("the interface broke: {0}")]
    Broke(#[source] io::Error),
}

/// The interface, listening.
pub struct Server {
    listener: TcpListener,
    access: Access,
}

struct Interface {
    sources: Sources,
    access: Access,
    listeners: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Server {
    /// Listens; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, ServerError> {
        if !address.ip().is_loopback() {
            return Err(ServerError::NotLoopback(address));
        }
        let wrap = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(wrap)?;
        let access = Access::new(listener.local_addr().map_err(wrap)?);
        Ok(Self { listener, access })
    }

    /// What a client needs.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Answers until `shutdown`.
    pub async fn serve(self, sources: Sources, shutdown: CancellationToken) -> Result<(), ServerError> {
        let listeners = Arc::new(Semaphore::new(LISTENERS));
        let interface = Arc::new(Interface { sources, access: self.access, listeners, shutdown: shutdown.clone() });
        let app = Router::new()
            .route("/v1/owner/state", get(state))
            .route("/v1/owner/decisions", get(decisions))
            .route("/v1/owner/downloads", get(downloads))
            .route("/v1/owner/settings", get(settings).put(set))
            .route("/v1/owner/commands", post(command))
            .route("/v1/owner/events", get(events))
            .fallback(|| async {
                failure(StatusCode::NOT_FOUND, ErrorCode::Other, "There is nothing at this address.", "")
            })
            .layer(middleware::from_fn_with_state(interface.clone(), admit))
            .layer(DefaultBodyLimit::max(LARGEST_BODY))
            .with_state(interface);
        let server = axum::serve(self.listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        server.await.map_err(ServerError::Broke)
    }
}

fn failure(status: StatusCode, code: ErrorCode, message: &str, next_action: &str) -> Response {
    let answer = ErrorAnswer { code, message: message.to_owned(), next_action: next_action.to_owned() };
    (status, Json(answer)).into_response()
}

/// Only who shows the token, and names this machine: a page that some name leads here has neither.
async fn admit(State(interface): State<Arc<Interface>>, request: Request, next: Next) -> Response {
    if !names_loopback(request.headers()) {
        let message = "The interface is for this machine only.";
        return failure(StatusCode::FORBIDDEN, ErrorCode::Other, message, "Use its address with 127.0.0.1.");
    }
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown.and_then(|value| value.strip_prefix("Bearer "));
    if !token.is_some_and(|token| interface.access.opens(token)) {
        let message = "The token of the interface is missing or wrong.";
        return failure(StatusCode::UNAUTHORIZED, ErrorCode::Token, message, "Read it from the state folder again.");
    }
    in_our_form(next.run(request).await)
}

/// What axum itself refuses (a method, a query, a body that is too long) in the form of every other error.
fn in_our_form(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let message = format!("This request cannot be answered: {}.", status.canonical_reason().unwrap_or("it is refused"));
    failure(status, ErrorCode::Other, &message, "Correct it; nothing was changed.")
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    host == "localhost"
        || host.starts_with("localhost:")
        || host.parse::<SocketAddr>().is_ok_and(|at| at.ip().is_loopback())
}

fn starting() -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Other, "The node is still starting.", "Try again in a moment.")
}

async fn state(State(interface): State<Arc<Interface>>) -> Response {
    let view = interface.sources.view.borrow().as_ref().map(OwnerState::from);
    view.map_or_else(starting, |view| Json(view).into_response())
}

#[derive(Deserialize)]
struct Last {
    #[serde(default = "some_decisions")]
    last: u32,
}

fn some_decisions() -> u32 {
    50
}

/// The decisions, with what caused each: for `computepool log --json` and the diagnostics.
async fn decisions(State(interface): State<Arc<Interface>>, Query(Last { last }): Query<Last>) -> Response {
    match interface.sources.store.decisions(last.min(MOST_DECISIONS)).await {
        Ok(past) => Json(past.into_iter().map(PastDecision::from).collect::<Vec<_>>()).into_response(),
        Err(error) => {
            tracing::error!(%error, "the decisions cannot be read");
            let message = "The decisions of the past cannot be read.";
            failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Other, message, "Look into the log.")
        }
    }
}

async fn downloads(State(interface): State<Arc<Interface>>) -> Json<Vec<DownloadView>> {
    let list = interface
        .sources
        .downloads
        .as_ref()
        .map(|list| list.borrow().downloads.iter().map(DownloadView::from).collect());
    Json(list.unwrap_or_default())
}

async fn settings(State(interface): State<Arc<Interface>>) -> Response {
    let settings = interface.sources.view.borrow().as_ref().map(|view| view.settings.clone());
    settings.map_or_else(starting, |settings| Json(settings).into_response())
}

async fn set(State(interface): State<Arc<Interface>>, body: Bytes) -> Response {
    let settings: Settings = match serde_json::from_slice(&body) {
        Ok(settings) => settings,
        Err(error) => {
            let message = error.to_string();
            return failure(StatusCode::BAD_REQUEST, ErrorCode::Settings, &message, "Correct it; nothing was changed.");
        }
    };
    ask(&interface, Wish::Settings(Box::new(settings))).await
}

async fn command(State(interface): State<Arc<Interface>>, body: Bytes) -> Response {
    match serde_json::from_slice::<OwnerCommand>(&body) {
        Ok(command) => ask(&interface, Wish::Command(command.into())).await,
        Err(error) => {
            let message = format!("This is no command: {error}.");
            failure(StatusCode::BAD_REQUEST, ErrorCode::Other, &message, "Nothing was changed.")
        }
    }
}

/// Asks the node, and answers with what it does then.
async fn ask(interface: &Interface, wish: Wish) -> Response {
    let (answer, answered) = oneshot::channel();
    if interface.sources.asks.try_send(Ask { wish, answer }).is_err() {
        let message = "The node does not take commands now.";
        return failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Other, message, "Try again in a moment.");
    }
    match timeout(EFFECT, answered).await {
        Ok(Ok(view)) => Json(OwnerState::from(&view)).into_response(),
        Ok(Err(_)) => {
            let message = "The node ended before it could obey.";
            failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Other, message, "Start it again.")
        }
        Err(_) => {
            let message = "The node has not obeyed in time; it may still.";
            failure(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Other, message, "Look at its state.")
        }
    }
}

async fn events(State(interface): State<Arc<Interface>>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(place) = interface.listeners.clone().try_acquire_owned() else {
        let message = "Too many interfaces listen already.";
        return failure(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Other, message, "Close one of them.");
    };
    upgrade.max_message_size(1 << 10).on_upgrade(move |socket| async move {
        tell(socket, interface).await;
        drop(place);
    })
}

async fn tell(mut socket: WebSocket, interface: Arc<Interface>) {
    let mut view = interface.sources.view.clone();
    view.mark_changed();
    loop {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    break;
                }
                let state = view.borrow_and_update().as_ref().map(OwnerState::from);
                let Some(text) = state.and_then(|state| serde_json::to_string(&state).ok()) else { continue };
                if !matches!(timeout(SLOW, socket.send(Message::text(text))).await, Ok(Ok(()))) {
                    return;
                }
            }
            message = socket.recv() => match message {
                // A listener has nothing to say.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return,
            },
            () = interface.shutdown.cancelled() => break,
        }
    }
    let _ = timeout(SLOW, socket.send(Message::Close(None))).await;
}
