//! A whole cluster on this machine: the orchestrator in this process, each node in a child process that starts its
//! own shard.
//!
//! Start: 1. the state folder is locked, 2. model and wishes are checked, 3. keys and roster, 4. the chain, where
//! requests are paid, 5. the address is taken, 6. nodes are started. Stop: 1. the orchestrator stops streams and lets the
//! members go, 2. nodes, 3. the chain; afterwards no process is left.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use pool_chain::devnet::Devnet;
use pool_coalition::proposal::RegistryDomain;
use pool_node::{ResourceLimits, find_shard_program, measure_capabilities};
use pool_orchestrator::{
    Money, Orchestrator, OrchestratorConfig,
    control::{CoalitionView, ControlTap, ServingWishes, Stage, Timing},
};
use pool_sense::{HostSense, Sense};
use pool_wire::control::Capabilities;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    arguments::CpuSet,
    paying::{PaidOn, PayOptions},
    serving,
    state::{Keys, StateFolder},
};

/// A node that was told to end may take this long; its shard has a second of it.
const NODE_GRACE: Duration = Duration::from_secs(3);
/// Waits before a node that died is started again.
const RESTART: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// A node that lived this long did not die of how it was started.
const LONG_LIFE: Duration = Duration::from_secs(20);
/// So many coalitions, or starts of one node, may fail before the first one serves.
const MOST_FAILURES: usize = 3;
/// Memory that is left to the rest of the machine.
const MEMORY_SHARE: f64 = 0.8;

/// What kind of cluster.
pub(crate) struct ClusterOptions {
    pub(crate) model: PathBuf,
    pub(crate) model_name: Option<String>,
    pub(crate) shards: u32,
    pub(crate) api: String,
    pub(crate) threads: Option<u32>,
    /// One entry a shard; used in turn when there are fewer.
    pub(crate) cpus: Vec<CpuSet>,
    pub(crate) wishes: ServingWishes,
    pub(crate) api_key: Option<String>,
    /// How requests are paid; `None` answers without payment.
    pub(crate) pay: Option<PayOptions>,
    pub(crate) verbose: u8,
}

/// A running cluster. [`Cluster::stop`] ends it; when it is dropped instead, children are killed.
pub(crate) struct Cluster {
    address: SocketAddr,
    view: watch::Receiver<Arc<CoalitionView>>,
    /// Ends the orchestrator.
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), pool_orchestrator::OrchestratorError>>,
    /// Ends the nodes.
    dismissal: CancellationToken,
    nodes: Vec<JoinHandle<()>>,
    /// Nodes that cannot run, with the reason.
    hopeless: mpsc::Receiver<String>,
    money: Option<Money>,
    devnet: Option<Devnet>,
}

impl Cluster {
    pub(crate) async fn start(folder: &mut StateFolder, options: ClusterOptions) -> Result<Self> {
        find_shard_program()?;
        check_cores(&options.cpus)?;
        let model = serving::open_model(&options.model)?;
        let Keys { roster, gateway, nodes } = folder.keys(options.shards)?;
        let quantise = options.wishes.quantise;
        let paid = match &options.pay {
            Some(pay) => Some(PaidOn::prepare(folder, pay, gateway.address(), folder.sentinel()?).await?),
            None => None,
        };
        let registry = paid.as_ref().map(PaidOn::registry);
        let (money, devnet) = paid.map_or((None, None), |paid| (Some(paid.config), paid.devnet));
        let orchestrator = Orchestrator::bind(OrchestratorConfig {
            api: options.api.clone(),
            database: folder.database(),
            wallet: gateway,
            roster,
            model_name: serving::model_name(options.model_name.as_deref(), &model),
            model,
            wishes: options.wishes,
            api_key: options.api_key.clone(),
            loopback_only: true,
            max_waiting: 256,
            queue_deadline: Duration::from_secs(60),
            timing: Timing::default(),
            control_tap: ControlTap::default(),
            data_tap: None,
            money,
        })
        .await?;
        let address = orchestrator.address();
        folder.write_holder(Some(address.to_string()))?;
        warn_when_open(address, options.api_key.as_deref());
        let (view, money) = (orchestrator.view(), orchestrator.money());
        let (shutdown, dismissal) = (CancellationToken::new(), CancellationToken::new());

        // Measured once: nodes that measure at the same time would see each other's load, not the machine.
        let capabilities =
            tokio::task::spawn_blocking(move || offer_of_each(options.shards, options.threads)).await??;
        let server = tokio::spawn(orchestrator.serve(shutdown.clone()));
        let (tell, hopeless) = mpsc::channel(nodes.len().max(1));
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let nodes = nodes
            .into_iter()
            .enumerate()
            .map(|(index, state)| {
                let node = NodeProcess {
                    name: format!("node-{}", index + 1),
                    program: program.clone(),
                    orchestrator: format!("ws://{}", reachable(address)),
                    roster: folder.roster(),
                    passphrase: folder.passphrase(),
                    model: std::path::absolute(&options.model).unwrap_or_else(|_| options.model.clone()),
                    state,
                    capabilities: capabilities.clone(),
                    cpus: options.cpus.get(index % options.cpus.len().max(1)).cloned(),
                    quantise,
                    registry,
                    verbose: options.verbose,
                };
                tokio::spawn(node.keep_running(dismissal.clone(), tell.clone()))
            })
            .collect();
        Ok(Self { address, view, shutdown, server, dismissal, nodes, hopeless, money, devnet })
    }

    /// Where the endpoint listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The coalition as it is now, and its changes.
    pub(crate) fn view(&self) -> watch::Receiver<Arc<CoalitionView>> {
        self.view.clone()
    }

    /// Returns when the first request can be answered, or with the reason why that will not happen.
    pub(crate) async fn ready(&mut self, deadline: Duration) -> Result<()> {
        let mut view = self.view.clone();
        let shards = self.nodes.len();
        let settled = view.wait_for(|view| {
            let stuck = view.obstacle.is_some() && view.connected.len() >= shards;
            view.state == Stage::Active || stuck || view.failures >= MOST_FAILURES
        });
        let view = tokio::select! {
            view = timeout(deadline, settled) => match view {
                Ok(Ok(view)) => Arc::clone(&view),
                Ok(Err(_)) => bail!("the orchestrator ended while it was starting"),
                Err(_) => {
                    let view = self.view.borrow().clone();
                    let why = view.last_failure.as_ref().map(|failure| format!("; last failure: {failure}"));
                    let reason = view.reason.clone().unwrap_or_default();
                    bail!("not ready after {} s: {reason}{}", deadline.as_secs(), why.unwrap_or_default());
                }
            },
            Some(reason) = self.hopeless.recv() => bail!("{reason}"),
            ended = &mut self.server => {
                ended??;
                bail!("the orchestrator ended while it was starting");
            }
        };
        match (&view.state, &view.obstacle, &view.last_failure) {
            (Stage::Active, ..) => self.paid_for(deadline).await,
            (_, Some(obstacle), _) => Err(anyhow!("{obstacle}")),
            (_, None, Some(failure)) => Err(anyhow!("{failure}")),
            (_, None, None) => Err(anyhow!("no coalition could be formed")),
        }
    }

    /// Returns when sessions can be opened, where requests are paid.
    async fn paid_for(&self, deadline: Duration) -> Result<()> {
        let Some(money) = &self.money else { return Ok(()) };
        let mut pool = money.pool();
        match timeout(deadline, pool.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the orchestrator ended while it was starting"),
            Err(_) => {
                bail!("the coalition was not activated on the chain after {} s; the log says why", deadline.as_secs())
            }
        }
    }

    /// The local chain that was started with the cluster.
    pub(crate) fn devnet(&self) -> Option<&Devnet> {
        self.devnet.as_ref()
    }

    /// Runs until `stop`; an error when the endpoint failed before.
    pub(crate) async fn run_until(&mut self, stop: &CancellationToken) -> Result<()> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = &mut self.server => {
                ended??;
                bail!("the orchestrator ended by itself");
            }
        }
    }

    /// Ends everything. When this returns, no process of the cluster is left.
    pub(crate) async fn stop(self) {
        // The orchestrator first: it stops the streams and lets the members go in order, by its own deadlines.
        self.shutdown.cancel();
        if !self.server.is_finished() {
            match self.server.await {
                Ok(Err(error)) => error!(%error, "the orchestrator failed while it ended"),
                Ok(Ok(())) => {}
                Err(error) => error!(%error, "the orchestrator broke"),
            }
        }
        self.dismissal.cancel();
        for node in self.nodes {
            let _ = node.await;
        }
        // The chain goes last: streams were stopped on it.
        if let Some(mut devnet) = self.devnet
            && let Err(error) = devnet.stop().await
        {
            error!(%error, "the local chain failed while it ended");
        }
    }
}

/// Refuses cores that this process may not use.
fn check_cores(cpus: &[CpuSet]) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::{sched::sched_getaffinity, unistd::Pid};
        let own = sched_getaffinity(Pid::from_raw(0)).context("cannot read which cores may be used")?;
        for core in cpus.iter().flat_map(CpuSet::cores) {
            if !own.is_set(core).unwrap_or(false) {
                bail!("core {core} of --cpus is not one that this process may use");
            }
        }
    }
    Ok(())
}

/// What a person should know before others reach the endpoint.
pub(crate) fn warn_when_open(address: SocketAddr, api_key: Option<&str>) {
    if !address.ip().is_loopback() && api_key.is_none() {
        warn!("anybody who can reach {address} may ask the model; set --api-key to let in only those who have it");
    }
}

/// An equal part of the machine for each shard.
fn offer_of_each(shards: u32, threads: Option<u32>) -> Result<Capabilities> {
    let facts = HostSense.facts()?;
    let part = facts.physical_cores / shards.max(1) as usize;
    let limits = ResourceLimits {
        threads: Some(threads.map_or(part, |threads| threads as usize).max(1)),
        memory_share: MEMORY_SHARE / f64::from(shards.max(1)),
        memory_bytes: None,
    };
    Ok(measure_capabilities(&HostSense, limits)?)
}

/// The address at which children reach a server that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

struct NodeProcess {
    name: String,
    program: PathBuf,
    orchestrator: String,
    roster: PathBuf,
    passphrase: PathBuf,
    model: PathBuf,
    state: PathBuf,
    capabilities: Capabilities,
    cpus: Option<CpuSet>,
    quantise: bool,
    registry: Option<RegistryDomain>,
    verbose: u8,
}

impl NodeProcess {
    fn start(&self) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("node").args(["--orchestrator", &self.orchestrator]);
        command.arg("--roster").arg(&self.roster);
        command.arg("--state").arg(&self.state);
        command.arg("--model").arg(&self.model);
        command.arg("--passphrase-file").arg(&self.passphrase);
        command.args(["--capabilities", &serde_json::to_string(&self.capabilities)?]);
        command.args(["--loopback-only", "--with-parent"]);
        if let Some(cpus) = &self.cpus {
            command.args(["--cpus", &cpus.to_string()]);
        }
        if self.quantise {
            command.arg("--quantise");
        }
        if let Some(registry) = &self.registry {
            command.args(["--registry", &registry.to_string()]);
        }
        command.args(std::iter::repeat_n("-v", usize::from(self.verbose)));
        // Its input stays open as long as this process lives; Ctrl-C in the terminal is for this process alone,
        // which then ends the nodes in order.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        command.spawn().with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Starts the node again whenever it ends, until `shutdown`.
    async fn keep_running(self, shutdown: CancellationToken, hopeless: mpsc::Sender<String>) {
        let mut failures = 0;
        loop {
            let started = tokio::time::Instant::now();
            let how = match self.start() {
                Ok(mut child) => {
                    // Waiting would close the input, which tells the node to end.
                    let input = child.stdin.take();
                    info!(node = %self.name, process = child.id(), "started a node");
                    tokio::select! {
                        status = child.wait() => match status {
                            Ok(status) => status.to_string(),
                            Err(error) => error.to_string(),
                        },
                        () = shutdown.cancelled() => {
                            drop(input);
                            return end(&self.name, child).await;
                        }
                    }
                }
                Err(error) => format!("{error:#}"),
            };
            if started.elapsed() >= LONG_LIFE {
                failures = 0;
            }
            warn!(node = %self.name, how, "the node ended and is started again");
            let wait = RESTART[failures.min(RESTART.len() - 1)];
            failures += 1;
            if failures >= MOST_FAILURES {
                let reason =
                    format!("{} does not run ({how}); see {}", self.name, self.state.join("log.jsonl").display());
                let _ = hopeless.try_send(reason);
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// Waits for a node whose input was closed, which tells it to end; one that does not is killed.
async fn end(name: &str, mut child: Child) {
    if timeout(NODE_GRACE, child.wait()).await.is_err() {
        warn!(node = name, "the node did not end in time and is killed");
        let _ = child.kill().await;
    }
}
