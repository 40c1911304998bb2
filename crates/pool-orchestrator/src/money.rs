//! Who is paid, by whom and for how long: sessions, their streams, and the coalition that receives them.
//!
//! `offer` makes and recognises offers, `opening` takes payments, `ledger` decides when each stream runs and `driver`
//! sends what it wants; `session_steps` and `coalition_steps` are the code behind the workflows in `workflows/`;
//! `coalition` keeps the registry's coalition equal to the one that serves, `sentinel` guards the runway with a key of
//! its own, `receipt` reads back what a session came to, and `routes` is the HTTP side.
//!
//! Every effect on the chain goes through the journal: the intent is stored before anything is sent, under a key that
//! makes sending it again harmless. What is kept here in memory can be rebuilt from the store and the chain.

mod coalition;
mod coalition_steps;
mod driver;
mod ledger;
mod offer;
mod opening;
mod receipt;
pub(crate) mod routes;
mod sentinel;
mod session_steps;
mod view;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use async_trait::async_trait;
use pool_chain::{AddressBook, Chain, ChainConfig, ChainError, LocalTransactionSigner, SignedVoucher, Terms};
use pool_coalition::{
    proposal::{RegistryDomain, pool_id},
    session::{Allowance, Ended, Meter, MeterSettings, Quote, Tariff},
};
use pool_journal::{
    Actions, ChainAccess, Graphs, Journal, JournalError, OutboxSettings, Runner, RunnerSetup, SystemClock,
    TransactionSigner,
};
use pool_store::{SessionRecord, SessionState, Store, StoreError};
use pool_types::{FlowRate, SessionId, Usdc};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{sync::Notify, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::receipt::SessionReceipt;
pub(crate) use self::view::SessionView;
use self::{
    ledger::{Ledger, OpenVault},
    offer::OfferKey,
};
use crate::{
    CancelGuard, Completions, Fare, Payer, PaymentRefusal, Payments, Price,
    control::{ControlPlane, unix_now},
};

/// The name under which the store keeps the secret of offers.
const OFFER_SECRET: &str = "offer_secret";
/// How long a stop waits for streams to stand still.
const STAND_STILL: Duration = Duration::from_secs(8);

/// How a pool is paid.
#[derive(Clone, Debug)]
pub struct MoneyConfig {
    /// The chain's node.
    pub chain: ChainConfig,
    /// Where everything is on that chain.
    pub book: AddressBook,
    /// The sentinel's key: it stops streams that run short and can do nothing else.
    pub sentinel: PrivateKeySigner,
    /// What a session costs while its requests run.
    pub rate: FlowRate,
    /// Seconds that a stream goes on after the last request.
    pub linger: u64,
    /// The shortest session sold.
    pub least_seconds: u64,
    /// The longest session sold.
    pub most_seconds: u64,
    /// How much later a stop may be included than a start, in seconds; paid in and refunded.
    pub chain_delay: u64,
    /// How long a session may be kept open, in seconds.
    pub lifetime: u64,
    /// Requests of one session at once.
    pub requests_per_session: u32,
    /// Blocks that make a transaction's outcome.
    pub confirmations: u64,
}

impl MoneyConfig {
    /// The usual terms on a chain, at this rate.
    pub fn new(chain: ChainConfig, book: AddressBook, sentinel: PrivateKeySigner, rate: FlowRate) -> Self {
        Self {
            chain,
            book,
            sentinel,
            rate,
            linger: 5,
            least_seconds: 10,
            most_seconds: 24 * 3600,
            chain_delay: 30,
            lifetime: 24 * 3600,
            requests_per_session: 8,
            confirmations: 1,
        }
    }
}

/// Why sessions cannot be sold.
#[derive(Debug, Error)]
pub enum MoneyError {
    /// The chain does not answer, or is another.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The graphs, the actions or the settings do not fit together.
    #[error("the workflows cannot run: {0}")]
    Workflows(String),
}

/// A session as it is stored.
pub(crate) type Session = SessionRecord<Terms, Quote, SignedVoucher, SessionReceipt>;

/// Sessions and their payment. Clones share one state.
#[derive(Clone)]
pub struct Money(Arc<Inner>);

struct Inner {
    config: MoneyConfig,
    chain: Chain,
    store: Store,
    journal: Journal,
    control: ControlPlane,
    completions: Arc<dyn Completions>,
    /// The orchestrator's key: pool owner, and sender of every transaction but the sentinel's.
    wallet: PrivateKeySigner,
    model: String,
    tariff: Tariff,
    offers: OfferKey,
    ledger: Mutex<Ledger>,
    /// Rates are submitted one at a time, so that none overtakes a newer one.
    rates: tokio::sync::Mutex<()>,
    /// Something may be due in the ledger.
    wake: Notify,
    /// The pool that sessions pay into, once its coalition on the chain is the one that serves.
    pool: watch::Sender<Option<Address>>,
    /// Tokens a second of one request, as measured.
    speed: Mutex<Option<f64>>,
    began: Instant,
    shutdown: CancellationToken,
}

/// The tasks of a [`Money`]; they end with its shutdown.
pub(crate) struct MoneyTasks {
    money: Money,
    runner: Runner,
    tasks: JoinSet<()>,
}

impl Money {
    /// Connects to the chain, takes up every session that an earlier run left, and starts to work.
    pub(crate) async fn start(
        config: MoneyConfig,
        wallet: PrivateKeySigner,
        store: Store,
        control: ControlPlane,
        completions: Arc<dyn Completions>,
        model: String,
    ) -> Result<(Self, MoneyTasks), MoneyError> {
        let chain = Chain::connect(config.chain.clone(), config.book.clone()).await?;
        let rules = chain.stream_rules().await?;
        let graphs = Graphs::built_in().map_err(|error| MoneyError::Workflows(error.to_string()))?;
        let journal = Journal::open(&store, graphs, Arc::new(SystemClock)).await?;
        let tariff = Tariff {
            rate: config.rate,
            linger: config.linger,
            least_seconds: config.least_seconds,
            most_seconds: config.most_seconds,
            allowance: Allowance {
                liquidation_period: rules.liquidation_period,
                guard: rules.guard,
                chain_delay: config.chain_delay,
            },
        };
        let offers = offer_key(&store).await?;
        let money = Self(Arc::new(Inner {
            chain,
            store,
            journal,
            control,
            completions,
            wallet,
            model,
            tariff,
            offers,
            ledger: Mutex::default(),
            rates: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            pool: watch::channel(None).0,
            speed: Mutex::default(),
            began: Instant::now(),
            shutdown: CancellationToken::new(),
            config,
        }));
        money.take_up().await?;
        let runner = money.start_runner().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver::run(money.clone()));
        tasks.spawn(sentinel::run(money.clone()));
        tasks.spawn(coalition::run(money.clone()));
        Ok((money.clone(), MoneyTasks { money, runner, tasks }))
    }

    /// Starts what drives the workflows and sends their transactions.
    async fn start_runner(&self) -> Result<Runner, MoneyError> {
        let inner = &self.0;
        let chain_id = inner.config.book.chain_id;
        let signers = [&inner.wallet, &inner.config.sentinel]
            .map(|key| Arc::new(LocalTransactionSigner::new(key.clone(), chain_id)) as Arc<dyn TransactionSigner>);
        let settings = OutboxSettings { confirmations: inner.config.confirmations, ..OutboxSettings::default() };
        let setup = RunnerSetup {
            actions: coalition_steps::register(session_steps::register(Actions::new(), self), self),
            chains: vec![ChainAccess { port: Arc::new(inner.chain.clone()), signers: signers.into(), settings }],
            ..RunnerSetup::default()
        };
        Runner::start(&inner.journal, setup).await.map_err(|error| MoneyError::Workflows(error.to_string()))
    }

    /// Puts every session that is not over back into the ledger, with what the chain says is left of it.
    async fn take_up(&self) -> Result<(), MoneyError> {
        let sessions: Vec<Session> = self.0.store.live_sessions().await?;
        let count = sessions.len();
        for session in sessions {
            match session.state {
                SessionState::Opening => {
                    if session.one_request {
                        // Whoever asked is gone. Once it is open it is closed, which refunds it.
                        let gone = Some("its request was cut off");
                        self.0.store.session_moved(session.id, SessionState::Closing, gone, unix_now()).await?;
                    }
                    self.start_opening(&session).await?;
                }
                SessionState::Open => {
                    self.opened(&session).await?;
                    if session.one_request {
                        self.ledger().close(session.id, self.now(), "its request was cut off");
                    }
                }
                SessionState::Closing if session.opened_at.is_some() => {
                    // Until it is closed the sentinel keeps an eye on it.
                    self.opened(&session).await?;
                    self.ledger().close(session.id, self.now(), "it was being closed");
                }
                SessionState::Closing => drop(self.start_opening(&session).await?),
                SessionState::Closed | SessionState::Failed => {}
            }
        }
        if count > 0 {
            info!(count, "sessions of an earlier run were taken up");
        }
        Ok(())
    }

    /// A session's vault is open: it may be served with what the vault has left.
    pub(crate) async fn opened(&self, session: &Session) -> Result<(), ChainError> {
        let vault = self.0.chain.vault(session.vault).await?;
        // A stream that runs holds its buffer back; what comes free when it stops is left as well.
        let left = vault.available.checked_add(vault.deposit).unwrap_or(vault.available);
        let seconds = self.0.tariff.seconds_left(left).min(session.quote.seconds);
        let meter = Meter::new(MeterSettings {
            rate: session.quote.rate,
            sold: seconds.saturating_mul(1000),
            linger: if session.one_request { 0 } else { self.0.tariff.linger * 1000 },
            most_requests: self.0.config.requests_per_session,
        });
        let open = OpenVault {
            vault: session.vault,
            token: session.token_hash,
            one_request: session.one_request,
            expiry: session.terms.expiry,
            rate: vault.rate,
        };
        let (mut ledger, now) = (self.ledger(), self.now());
        ledger.opened(session.id, open, meter, now);
        if vault.closed {
            ledger.close(session.id, now, "its payer closed it");
        }
        drop(ledger);
        self.0.wake.notify_one();
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since this process began to sell sessions: the clock of meters.
    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where coalitions are activated.
    pub(crate) fn domain(&self) -> RegistryDomain {
        let book = &self.0.config.book;
        RegistryDomain { chain: book.chain_id, registry: book.contracts.coalition_registry }
    }

    /// The pool's name at the registry: one for each model of this orchestrator.
    fn pool_label(&self) -> B256 {
        alloy_primitives::keccak256(self.0.model.as_bytes())
    }

    fn pool_id(&self) -> B256 {
        pool_id(self.0.wallet.address(), self.pool_label())
    }

    /// Whether sessions can be opened now.
    pub fn pool(&self) -> watch::Receiver<Option<Address>> {
        self.0.pool.subscribe()
    }

    /// What the pool charges.
    pub fn tariff(&self) -> Tariff {
        self.0.tariff
    }

    /// The durable workflows behind it.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    fn speed(&self) -> Option<f64> {
        *self.0.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a measured speed into the running average.
    fn measured(&self, tokens_per_second: f64) {
        if tokens_per_second.is_finite() && tokens_per_second > 0.0 {
            let mut speed = self.0.speed.lock().unwrap_or_else(PoisonError::into_inner);
            *speed = Some(speed.map_or(tokens_per_second, |before| 0.8 * before + 0.2 * tokens_per_second));
        }
    }

    /// Begins to charge an open session.
    fn charge(&self, id: SessionId, settlement: Option<String>) -> Result<Fare, PaymentRefusal> {
        let spent = self.ledger().begin(id, self.now()).map_err(refusal)?;
        self.0.wake.notify_one();
        let money = self.clone();
        let guard = CancelGuard::new(move || {
            money.ledger().end(id, money.now());
            money.0.wake.notify_one();
        });
        Ok(Fare { spent, settlement, guard })
    }
}

fn refusal(ended: Ended) -> PaymentRefusal {
    match ended {
        Ended::Spent => PaymentRefusal::Over { message: ledger::USED_UP, code: "session_spent" },
        Ended::Closed => PaymentRefusal::Over { message: ledger::OVER, code: "session_closed" },
        Ended::Busy => {
            PaymentRefusal::Busy("the session already runs as many requests as it may at once; wait for one to end")
        }
    }
}

#[async_trait]
impl Payments for Money {
    fn session_of(&self, token: &str) -> Option<SessionId> {
        self.ledger().by_token(&token_hash(token))
    }

    fn price(&self, model: &str) -> Option<Price> {
        let Tariff { rate, linger, .. } = self.0.tariff;
        let per_million_tokens = self.speed().and_then(|speed| self.0.tariff.per_million_tokens(speed));
        (model == self.0.model).then_some(Price { rate, linger, per_million_tokens })
    }

    async fn board(&self, payer: &Payer, model: &str, tokens: u64) -> Result<Fare, PaymentRefusal> {
        match payer {
            Payer::Nobody => {
                Ok(Fare { spent: watch::channel(None).1, settlement: None, guard: CancelGuard::new(|| ()) })
            }
            Payer::Session(id) => self.charge(*id, None),
            Payer::Wallet { address, payment, resource } => {
                let paid = self.pay_for_one(*address, payment.as_deref(), resource, model, tokens).await?;
                self.charge(paid.session, Some(paid.settlement))
            }
        }
    }

    fn answered(&self, tokens: u64, decoding: Duration) {
        // Short answers say little about speed.
        if tokens >= 8 {
            self.measured((tokens - 1) as f64 / decoding.as_secs_f64());
        }
    }
}

impl MoneyTasks {
    /// Ends every request that runs, stops every stream, waits a little for that, and ends the tasks. Sessions stay
    /// open: the next run takes them up, and their payers can close them without us.
    pub(crate) async fn stop(mut self) {
        let money = &self.money;
        money.ledger().stand_still(money.now());
        money.0.wake.notify_one();
        let still = async {
            while !money.ledger().streaming().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(STAND_STILL, still).await.is_err() {
            warn!("some streams were not seen to stop; the sentinel of the next run, or anybody, can stop them");
        }
        money.0.shutdown.cancel();
        if let Err(error) = self.runner.stop().await {
            warn!(%error, "the workflows did not stop in order");
        }
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), ended).await.is_err() {
            warn!("some of the payment tasks did not end in time");
        }
    }
}

/// SHA-256 of a bearer token: all that is kept of it.
fn token_hash(token: &str) -> B256 {
    B256::from(<[u8; 32]>::from(Sha256::digest(token.as_bytes())))
}

async fn offer_key(store: &Store) -> Result<OfferKey, StoreError> {
    if let Some(secret) = store.setting(OFFER_SECRET).await?.and_then(|secret| secret.parse().ok()) {
        return Ok(OfferKey::new(secret));
    }
    let secret = B256::from(rand::random::<[u8; 32]>());
    store.set_setting(OFFER_SECRET, &secret.to_string()).await?;
    Ok(OfferKey::new(secret))
}

/// How much of a session's money has streamed by now, from what its vault still holds.
fn streamed(paid: Usdc, vault: &pool_chain::VaultState) -> pool_types::Usdcx {
    let held = vault.available.checked_add(vault.deposit).and_then(|held| held.checked_add(vault.unwrapped.to_usdcx()));
    held.and_then(|held| paid.to_usdcx().checked_sub(held)).unwrap_or_default()
}
