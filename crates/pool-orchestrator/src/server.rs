//! The whole orchestrator: store, control plane, data plane and gateway behind one address.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use alloy_signer_local::PrivateKeySigner;
use axum::serve::ListenerExt as _;
use pool_coalition::Roster;
use pool_models::Model;
use pool_store::{Store, StoreError};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Completions, Money, MoneyConfig, MoneyError, Payments, ServedModel,
    control::{
        self, CoalitionView, ControlPlane, ControlSettings, ControlTap, Serving, ServingError, ServingWishes, Timing,
    },
    dataplane::{DataPlane, DataPlaneSettings, Tap},
    gateway::{self, ApiKey, GatewayState, Limits, Privacy},
    money::{self, MoneyTasks},
};

/// After a stop, answers that still run may take this long.
const DRAIN: Duration = Duration::from_secs(2);

/// What an orchestrator is told when it starts.
#[derive(Clone)]
pub struct OrchestratorConfig {
    /// Where to listen, like `127.0.0.1:8080`; port 0 takes a free one.
    pub api: String,
    /// Its database.
    pub database: PathBuf,
    /// The gateway's key: who it is on links.
    pub wallet: PrivateKeySigner,
    /// Who may take part; names the wallet as its gateway.
    pub roster: Roster,
    /// The model that is served.
    pub model: Arc<Model>,
    /// The model's name in the API.
    pub model_name: String,
    /// How it is served.
    pub wishes: ServingWishes,
    /// The key clients must send; `None` lets everybody in.
    pub api_key: Option<String>,
    /// Bind links to loopback only: every member is on this machine.
    pub loopback_only: bool,
    /// Requests that may wait for room in the KV cache.
    pub max_waiting: usize,
    /// How long they may wait.
    pub queue_deadline: Duration,
    /// How long forming a coalition may take.
    pub timing: Timing,
    /// Sees every control message.
    pub control_tap: ControlTap,
    /// Sees every frame on the gateway's links.
    pub data_tap: Option<Tap>,
    /// How requests are paid; `None` serves without payment.
    pub money: Option<MoneyConfig>,
}

/// Why an orchestrator cannot start or go on.
#[derive(Debug, Error)]
pub enum OrchestratorError {
    /// The address is taken, not ours, or not an address.
    #[error("cannot listen on {address}: {}", reason(source))]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The wallet is not the roster's gateway.
    #[error(
        "the roster names {expected} as its gateway, but this key is {found}; use the key that belongs to the roster"
    )]
    NotTheGateway {
        /// In the roster.
        expected: alloy_primitives::Address,
        /// Ours.
        found: alloy_primitives::Address,
    },
    /// The model cannot be served as asked.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Sessions cannot be sold.
    #[error("payment does not work: {0}")]
    Money(#[from] MoneyError),
    /// Accepting connections failed.
    #[error("the server failed: {0}")]
    Serve(io::Error),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses this port; choose another with --api".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not use this port; choose one above 1023".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have this address".to_owned(),
        _ => error.to_string(),
    }
}

/// An orchestrator that listens but does not answer yet.
pub struct Orchestrator {
    listener: TcpListener,
    address: SocketAddr,
    app: axum::Router,
    control: ControlPlane,
    control_task: JoinHandle<()>,
    dataplane: DataPlane,
    store: Store,
    money: Option<(Money, MoneyTasks)>,
}

impl Orchestrator {
    /// Checks everything, takes the address, opens the database and starts the control plane.
    pub async fn bind(config: OrchestratorConfig) -> Result<Self, OrchestratorError> {
        let found = config.wallet.address();
        if config.roster.gateway != found {
            return Err(OrchestratorError::NotTheGateway { expected: config.roster.gateway, found });
        }
        let serving = Serving::new(&config.model, config.wishes)?;
        let wrap = |source| OrchestratorError::Listen { address: config.api.clone(), source };
        let listener = TcpListener::bind(&config.api).await.map_err(wrap)?;
        let address = listener.local_addr().map_err(wrap)?;
        let store = Store::open(&config.database).await?;
        if let Some(aside) = store.set_aside() {
            warn!(kept = %aside.display(), "the database was damaged; it was kept aside and a new one begun");
        }

        let settings = DataPlaneSettings {
            loopback_only: config.loopback_only,
            max_waiting: config.max_waiting,
            queue_deadline: config.queue_deadline,
            tap: config.data_tap,
        };
        let wallet = config.wallet.clone();
        let (dataplane, events) = DataPlane::new(config.wallet, settings);
        dataplane.offer_model(ServedModel {
            name: config.model_name.clone(),
            model: config.model.clone(),
            max_context: serving.context,
            created: control::unix_now(),
            active: false,
            members: Vec::new(),
        });
        let settings = ControlSettings {
            roster: config.roster,
            model: config.model,
            model_name: config.model_name.clone(),
            serving,
            timing: config.timing,
            tap: config.control_tap,
        };
        let (control, control_task) = ControlPlane::start(settings, store.clone(), dataplane.clone(), events).await?;
        let completions: Arc<dyn Completions> = Arc::new(dataplane.clone());
        let money = match config.money {
            Some(money) => {
                let name = config.model_name.clone();
                Some(Money::start(money, wallet, store.clone(), control.clone(), completions.clone(), name).await?)
            }
            None => None,
        };
        let api_key = config.api_key.as_deref().map(ApiKey::new);
        let gateway = gateway::router(GatewayState {
            completions,
            api_key: api_key.clone(),
            payments: money.as_ref().map(|(money, _)| Arc::new(money.clone()) as Arc<dyn Payments>),
            privacy: Privacy::OwnMachines,
            limits: Limits::default(),
            clock: Arc::new(SystemTime::now),
        });
        let sessions = money::routes::router(money.as_ref().map(|(money, _)| money.clone()), api_key.clone());
        let app = gateway.merge(sessions).merge(control::router(control.clone(), dataplane.clone(), api_key));
        Ok(Self { listener, address, app, control, control_task, dataplane, store, money })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The coalition as it is now, and its changes.
    pub fn view(&self) -> watch::Receiver<Arc<CoalitionView>> {
        self.control.view()
    }

    /// Sessions and their payment, where they are sold.
    pub fn money(&self) -> Option<Money> {
        self.money.as_ref().map(|(money, _)| money.clone())
    }

    /// The gateway's end of the data plane.
    pub fn dataplane(&self) -> DataPlane {
        self.dataplane.clone()
    }

    /// Answers until `shutdown`: then 1. no new connections, 2. members are let go and running answers end with an
    /// error, 3. connections may finish for two seconds, 4. the database is closed.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), OrchestratorError> {
        info!(address = %self.address, "listening");
        let stop = shutdown.clone();
        // A token must not wait for the acknowledgement of the one before it.
        let listener = self.listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection keeps Nagle's algorithm");
            }
        });
        let server = axum::serve(listener, self.app).with_graceful_shutdown(stop.cancelled_owned());
        let server = tokio::spawn(server.into_future());
        let abort = server.abort_handle();
        tokio::pin!(server);
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut server => Some(ended),
        };
        // Streams stop first: nobody pays for what is not served.
        if let Some((_, tasks)) = self.money {
            tasks.stop().await;
        }
        self.control.stop().await;
        let _ = self.control_task.await;
        let outcome = match early {
            Some(ended) => Some(ended),
            None => tokio::time::timeout(DRAIN, &mut server).await.ok(),
        };
        abort.abort();
        self.store.close().await;
        match outcome {
            Some(Ok(Err(error))) => Err(OrchestratorError::Serve(error)),
            _ => Ok(()),
        }
    }
}

/// Runs an orchestrator until `shutdown`.
pub async fn run(config: OrchestratorConfig, shutdown: CancellationToken) -> Result<(), OrchestratorError> {
    Orchestrator::bind(config).await?.serve(shutdown).await
}
