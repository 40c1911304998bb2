//! The interface over HTTP.

use std::{env, future::pending, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

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
use jiff::tz::TimeZone;
use pool_models::{CacheError, DownloadError, DownloadId, Downloads};
use pool_node::{
    income::Income,
    owner::{Ask, Clock, OwnerView, Wish},
};
use pool_policy::Settings;
use pool_store::{Store, StoreError};
use pool_types::Usdcx;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Access,
    diagnostics::Diagnostics,
    earnings::Books,
    wire::{
        DownloadCommand, DownloadsView, ErrorAnswer, ErrorCode, ModelView, OwnerCommand, OwnerEvent, OwnerState,
        PastDecision, WalletView, found,
    },
};

const LARGEST_BODY: usize = 64 << 10;
/// Decisions or shifts that are told at once.
const MOST_TOLD: u32 = 1000;
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
    /// Models on their way, and those that are here, where the node fetches any.
    pub downloads: Option<Downloads>,
    /// What is earned, where the node follows a chain.
    pub income: Option<Income>,
    /// The time.
    pub clock: Clock,
    /// The owner's time of day.
    pub zone: TimeZone,
    /// The node's log.
    pub log: PathBuf,
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
            .route("/v1/owner/downloads/commands", post(download_command))
            .route("/v1/owner/models", get(models))
            .route("/v1/owner/earnings", get(earnings))
            .route("/v1/owner/shifts", get(shifts))
            .route("/v1/owner/wallet", get(wallet))
            .route("/v1/owner/diagnostics", get(diagnostics))
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
    #[serde(default = "some")]
    last: u32,
}

fn some() -> u32 {
    50
}

/// What was read from the books, or that they cannot be read.
fn told<T: Serialize>(what: &str, read: Result<T, StoreError>) -> Response {
    match read {
        Ok(told) => Json(told).into_response(),
        Err(error) => {
            tracing::error!(%error, what, "the books cannot be read");
            let message = format!("{what} cannot be read.");
            failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Other, &message, "Look into the log.")
        }
    }
}

/// The decisions, with what caused each: for `computepool log --json` and the diagnostics.
async fn decisions(State(interface): State<Arc<Interface>>, Query(Last { last }): Query<Last>) -> Response {
    let past = interface.sources.store.decisions(last.min(MOST_TOLD)).await;
    let past = past.map(|past| past.into_iter().map(PastDecision::from).collect::<Vec<_>>());
    told("The decisions of the past", past)
}

impl Sources {
    fn books(&self) -> Books<'_> {
        let counts_costs = self.view.borrow().as_ref().is_some_and(|view| view.settings.electricity_price.is_some());
        let (store, income, zone) = (&self.store, self.income.as_ref(), &self.zone);
        Books { store, income, zone, counts_costs, now: self.clock.now().wall }
    }

    fn downloads(&self) -> DownloadsView {
        let overview = self.downloads.as_ref().map(|downloads| downloads.watch().borrow().clone());
        DownloadsView::from(&overview.unwrap_or_default())
    }
}

async fn earnings(State(interface): State<Arc<Interface>>) -> Response {
    told("The earnings", interface.sources.books().earnings().await)
}

async fn shifts(State(interface): State<Arc<Interface>>, Query(Last { last }): Query<Last>) -> Response {
    told("The shifts", interface.sources.books().shifts(last.min(MOST_TOLD)).await)
}

async fn wallet(State(interface): State<Arc<Interface>>) -> Response {
    let Some(income) = &interface.sources.income else {
        let message = "This node follows no chain, so it cannot say what the wallet holds.";
        let action = "Start it with the address of a chain's node.";
        return failure(StatusCode::NOT_FOUND, ErrorCode::Other, message, action);
    };
    let book = income.chain().book();
    match timeout(EFFECT, income.account()).await {
        Ok(Ok(account)) => Json(WalletView {
            address: income.operator().to_string(),
            network: book.network.clone(),
            test_money: !book.real_money,
            usdc: account.usdc.to_string(),
            usdcx: account.usdcx.to_string(),
            claimable: account.claimable.to_string(),
            rate: Usdcx::from_wei(account.rate).to_string(),
            at: account.at,
        })
        .into_response(),
        Ok(Err(error)) => {
            let message = format!("What the wallet holds cannot be read: {error}.");
            failure(StatusCode::BAD_GATEWAY, ErrorCode::Other, &message, "Try again in a moment.")
        }
        Err(_) => {
            let message = "The chain does not say in time what the wallet holds.";
            failure(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Other, message, "Try again in a moment.")
        }
    }
}

/// Everything that somebody who helps needs, without secrets.
async fn diagnostics(State(interface): State<Arc<Interface>>) -> Response {
    let sources = &interface.sources;
    let json = |told: Result<Value, serde_json::Error>| told.unwrap_or(Value::Null);
    let mut running = Map::new();
    let view = sources.view.borrow().clone();
    running.insert("state".to_owned(), json(serde_json::to_value(view.as_ref().map(OwnerState::from))));
    running.insert("settings".to_owned(), json(serde_json::to_value(view.as_ref().map(|view| &view.settings))));
    running.insert("downloads".to_owned(), json(serde_json::to_value(sources.downloads())));
    let earnings = match sources.books().earnings().await {
        Ok(earnings) => json(serde_json::to_value(earnings)),
        Err(error) => Value::from(format!("(they cannot be read: {error})")),
    };
    running.insert("earnings".to_owned(), earnings);
    let home = env::home_dir();
    let secrets = [interface.access.token.as_str()];
    let parts =
        Diagnostics { store: &sources.store, log: &sources.log, home: home.as_deref(), running, secrets: &secrets };
    told("The diagnostics", parts.collect().await)
}

async fn downloads(State(interface): State<Arc<Interface>>) -> Json<DownloadsView> {
    Json(interface.sources.downloads())
}

fn fetches_nothing() -> Response {
    let message = "This node fetches no models: it serves one from a folder of yours.";
    failure(StatusCode::NOT_FOUND, ErrorCode::Other, message, "Start it with a model's manifest.")
}

/// Changes the list of downloads; answers with the list as it is then.
async fn download_command(State(interface): State<Arc<Interface>>, body: Bytes) -> Response {
    let Some(downloads) = &interface.sources.downloads else { return fetches_nothing() };
    let command = match serde_json::from_slice::<DownloadCommand>(&body) {
        Ok(command) => command,
        Err(error) => {
            let message = format!("This is no command: {error}.");
            return failure(StatusCode::BAD_REQUEST, ErrorCode::Other, &message, "Nothing was changed.");
        }
    };
    let nothing = |()| None;
    let obeyed = match command {
        DownloadCommand::Pause { id } => downloads.pause(DownloadId(id)).await.map(nothing),
        DownloadCommand::Resume { id } => downloads.resume(DownloadId(id)).await.map(nothing),
        DownloadCommand::First { id } => downloads.move_to_front(DownloadId(id)).await.map(nothing),
        DownloadCommand::Priority { id, priority } => {
            downloads.set_priority(DownloadId(id), priority).await.map(nothing)
        }
        DownloadCommand::Cancel { id } => downloads.cancel(DownloadId(id)).await.map(nothing),
        DownloadCommand::Verify { model } => downloads.verify(model).await.map(|check| Some(found(&check))),
        DownloadCommand::Remove { model } => {
            downloads.remove(model).await.map(|freed| Some(format!("That gave {freed} of space.")))
        }
    };
    match obeyed {
        Ok(found) => Json(DownloadsView { found, ..interface.sources.downloads() }).into_response(),
        Err(error) => {
            let status = match &error {
                DownloadError::Unknown | DownloadError::Cache(CacheError::NotHere(_)) => StatusCode::NOT_FOUND,
                DownloadError::Stopped | DownloadError::Broken => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::CONFLICT,
            };
            let message = format!("This cannot be done: {error}.");
            failure(status, ErrorCode::Other, &message, "Nothing was changed.")
        }
    }
}

async fn models(State(interface): State<Arc<Interface>>) -> Response {
    let Some(downloads) = &interface.sources.downloads else { return Json(Vec::<ModelView>::new()).into_response() };
    let cache = downloads.cache().clone();
    match spawn_blocking(move || cache.list()).await {
        Ok(Ok(models)) => Json(models.iter().map(ModelView::from).collect::<Vec<_>>()).into_response(),
        Ok(Err(error)) => {
            let message = format!("The models that are here cannot be read: {error}.");
            failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Other, &message, "Look at the disk.")
        }
        Err(_) => {
            let message = "The models that are here cannot be read.";
            failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Other, message, "Look into the log.")
        }
    }
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

/// A change of what is told under this; never where there is nothing to tell.
async fn changes<T>(told: &mut Option<watch::Receiver<T>>) {
    match told {
        Some(told) => {
            if told.changed().await.is_err() {
                pending().await
            }
        }
        None => pending().await,
    }
}

async fn tell(mut socket: WebSocket, interface: Arc<Interface>) {
    let sources = &interface.sources;
    let mut view = sources.view.clone();
    let mut downloads = sources.downloads.as_ref().map(Downloads::watch);
    let mut income = sources.income.as_ref().map(Income::view);
    view.mark_changed();
    downloads.iter_mut().for_each(watch::Receiver::mark_changed);
    income.iter_mut().for_each(watch::Receiver::mark_changed);
    loop {
        let event = tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    break;
                }
                let state = view.borrow_and_update().as_ref().map(OwnerState::from);
                state.map(|state| OwnerEvent::State(Box::new(state)))
            }
            () = changes(&mut downloads) => Some(OwnerEvent::Downloads(Box::new(sources.downloads()))),
            () = changes(&mut income) => {
                let earnings = sources.books().earnings().await;
                let earnings = earnings.inspect_err(|error| tracing::error!(%error, "the earnings cannot be read"));
                earnings.map(|earnings| OwnerEvent::Earnings(Box::new(earnings))).ok()
            }
            message = socket.recv() => match message {
                // A listener has nothing to say.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => None,
                _ => return,
            },
            () = interface.shutdown.cancelled() => break,
        };
        let Some(text) = event.and_then(|event| serde_json::to_string(&event).ok()) else { continue };
        if !matches!(timeout(SLOW, socket.send(Message::text(text))).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = timeout(SLOW, socket.send(Message::Close(None))).await;
}
