use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context as _, Result, bail, ensure};
use pool_chain::{
    AddressBook, Authorization, Call, Chain, LocalTransactionSigner, SignedVoucher, Terms, calls,
    devnet::{Devnet, DevnetControl, DevnetOptions},
};
use pool_coalition::proposal::{Proposal, Seat, pool_id};
use pool_journal::{BroadcastError, ChainPort as _, CountAt, Receipt, TransactionSigner as _, UnsignedTransaction};
use pool_types::{FlowRate, LayerRange, Usdc};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::Accounts;

/// Wei of the chain's coin that everybody gets who sends transactions: 1000 coins.
const COIN: u128 = 1_000 * 1_000_000_000_000_000_000;
/// What every payer has: 10,000 USDC.
const POCKET: u128 = 10_000_000_000;
/// How long a transaction may take to be included.
const INCLUSION: Duration = Duration::from_secs(30);
/// How long a test's vouchers and proposals are good for, in seconds of the chain's time.
const A_LONG_TIME: u64 = 30 * 24 * 3600;

/// A local chain with the real contracts, and people on it. Ends when it is dropped.
pub struct LocalChain {
    devnet: Devnet,
    chain: Chain,
    accounts: Accounts,
    /// One transaction at a time, so that no two take the same nonce.
    sending: Mutex<()>,
}

/// A coalition that serves.
#[derive(Clone, Debug)]
pub struct ActiveCoalition {
    /// What everybody signed.
    pub proposal: Proposal,
    /// The Superfluid pool that sessions stream to.
    pub gda_pool: Address,
    /// Those who serve, in the proposal's order.
    pub operators: Vec<PrivateKeySigner>,
    /// How the activation was included.
    pub receipt: Receipt,
}

/// A session that is paid and open.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// What its payer agreed to.
    pub terms: Terms,
    /// Its vault.
    pub vault: Address,
    /// How it was paid.
    pub voucher: SignedVoucher,
    /// How the opening was included.
    pub receipt: Receipt,
}

impl LocalChain {
    /// Starts one that makes a block for each transaction at once.
    pub async fn start() -> Result<Self> {
        Self::start_with(DevnetOptions::default()).await
    }

    /// Starts one in another way.
    pub async fn start_with(options: DevnetOptions) -> Result<Self> {
        let devnet = Devnet::start(options).await?;
        let chain = devnet.chain().await?;
        let accounts = Accounts::new();
        let local = Self { devnet, chain, accounts, sending: Mutex::new(()) };
        let Accounts { orchestrator, sentinel, stranger, payers, .. } = &local.accounts;
        for sender in [orchestrator, sentinel, stranger] {
            local.control().fund(sender.address(), COIN, Usdc::ZERO).await?;
        }
        for payer in payers {
            local.control().fund(payer.address(), COIN, Usdc::from_units(POCKET)?).await?;
        }
        Ok(local)
    }

    /// The node, to be stopped and started.
    pub fn devnet(&mut self) -> &mut Devnet {
        &mut self.devnet
    }

    /// A handle to the chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Where everything is.
    pub fn book(&self) -> &AddressBook {
        self.devnet.book()
    }

    /// What only a local chain can do.
    pub fn control(&self) -> &DevnetControl {
        self.devnet.control()
    }

    /// How to reach the chain from another handle or process.
    pub fn chain_config(&self) -> pool_chain::ChainConfig {
        self.devnet.chain_config()
    }

    /// The people.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Signs and sends a transaction, and waits for its receipt; an error where it was reverted, with the reason.
    pub async fn send(&self, sender: &PrivateKeySigner, call: &Call) -> Result<Receipt> {
        let receipt = self.try_send(sender, call).await?;
        if !receipt.succeeded {
            let why = self.chain.why_reverted(sender.address(), call, receipt.block.number).await?;
            let why = why.map_or_else(|| "for a reason that has passed".to_owned(), |revert| revert.to_string());
            bail!("the chain refused to {}: {why}", call.what);
        }
        Ok(receipt)
    }

    /// The same, with the receipt of a transaction that was reverted.
    pub async fn try_send(&self, sender: &PrivateKeySigner, call: &Call) -> Result<Receipt> {
        let signer = LocalTransactionSigner::new(sender.clone(), self.book().chain_id);
        let _one_at_a_time = self.sending.lock().await;
        let fees = self.chain.fees().await?;
        let nonce = self.chain.transaction_count(sender.address(), CountAt::Pending).await?;
        let unsigned = UnsignedTransaction {
            chain_id: self.book().chain_id,
            nonce,
            max_fee_per_gas: fees.base_fee * 2 + fees.priority_fee,
            max_priority_fee_per_gas: fees.priority_fee,
            gas_limit: call.gas_limit,
            to: call.to,
            value: U256::ZERO,
            data: call.data.clone(),
        };
        let signed = signer.sign(&unsigned).await?;
        match self.chain.broadcast(&signed.raw).await {
            Ok(()) | Err(BroadcastError::AlreadyKnown) => {}
            Err(error) => return Err(error).context(call.what),
        }
        let begun = Instant::now();
        while begun.elapsed() < INCLUSION {
            if let Some(receipt) = self.chain.receipt(signed.hash).await? {
                return Ok(receipt);
            }
            sleep(Duration::from_millis(5)).await;
        }
        bail!("no block took the transaction that was to {}", call.what)
    }

    /// A proposal for the first `operators` of the test's operators: layers and units as equal as can be, one swap to
    /// the operator after them, a rate of up to 1000 units of USDC a second, good for a month.
    pub async fn proposal(&self, operators: usize, label: B256, epoch: u64) -> Result<Proposal> {
        ensure!((1..=16).contains(&operators), "a coalition has 1 to 16 members");
        let shares = LayerRange::new(0, 1_000_000)?.split_evenly(operators as u32);
        let layers = LayerRange::new(0, 48)?.split_evenly(operators as u32);
        let seat = |((key, layers), share): ((&PrivateKeySigner, LayerRange), &LayerRange)| Seat {
            operator: key.address(),
            layers,
            units: share.len(),
        };
        let orchestrator = self.accounts.orchestrator.address();
        Ok(Proposal {
            pool: pool_id(orchestrator, label),
            epoch,
            manifest: keccak256("the manifest of a test's model"),
            orchestrator,
            seats: self.accounts.operators.iter().zip(layers).zip(&shares).map(seat).collect(),
            swaps: vec![pool_coalition::proposal::Swap {
                place: operators as u32 - 1,
                standby: self.accounts.operators[operators].address(),
            }],
            rate: FlowRate::from_units_per_second(1_000),
            expiry: self.chain.time().await? + A_LONG_TIME,
        })
    }

    /// Registers the first `operators` operators and their standby by signature, creates a pool of the orchestrator's,
    /// and activates its first coalition with everybody's signature.
    pub async fn activate_coalition(&self, operators: usize) -> Result<ActiveCoalition> {
        let label = keccak256("a test's pool");
        let proposal = self.proposal(operators, label, 1).await?;
        let orchestrator = &self.accounts.orchestrator;
        let registry = self.book().registry();
        for operator in &self.accounts.operators[..=operators] {
            let deadline = proposal.expiry;
            let signature = operator.sign_hash_sync(&registry.registration_digest(operator.address(), deadline))?;
            let call = calls::register_for(self.book(), operator.address(), deadline, &signature.as_bytes())?;
            self.send(orchestrator, &call).await?;
        }
        self.send(orchestrator, &calls::create_pool(self.book(), orchestrator.address(), label)).await?;
        self.activate(proposal).await
    }

    /// Has everybody sign whose signature the registry wants, and activates the proposal.
    pub async fn activate(&self, proposal: Proposal) -> Result<ActiveCoalition> {
        let digest = proposal.digest(&self.book().registry());
        let mut signatures = Vec::new();
        for signer in self.chain.signers_of(&proposal).await? {
            let known = [&self.accounts.orchestrator].into_iter().chain(&self.accounts.operators);
            let key = known.into_iter().find(|key| key.address() == signer);
            let key = key.with_context(|| format!("{signer} is nobody of this test"))?;
            signatures.push(key.sign_hash_sync(&digest)?.as_bytes().into());
        }
        let call = calls::activate(self.book(), &proposal, &signatures)?;
        let receipt = self.send(&self.accounts.orchestrator, &call).await?;
        let state = self.chain.coalition(proposal.pool).await?.context("the pool was created")?;
        ensure!(state.proposal == digest, "the registry activated another proposal");
        let operators = self.accounts.operators[..proposal.seats.len()].to_vec();
        Ok(ActiveCoalition { gda_pool: state.gda_pool, proposal, operators, receipt })
    }

    /// Terms of a session of one of the payers with the orchestrator, for a day, up to the pool's highest rate.
    pub async fn terms(&self, coalition: &ActiveCoalition, payer: usize) -> Result<Terms> {
        Ok(Terms {
            payer: self.accounts.payers[payer].address(),
            orchestrator: self.accounts.orchestrator.address(),
            pool: coalition.gda_pool,
            max_rate: coalition.proposal.rate,
            expiry: self.chain.time().await? + 24 * 3600,
            session: B256::random(),
        })
    }

    /// A payer's voucher for the vault of these terms.
    pub async fn voucher(&self, terms: &Terms, payer: usize, amount: Usdc) -> Result<SignedVoucher> {
        let authorization = Authorization {
            from: self.accounts.payers[payer].address(),
            to: terms.vault_in(self.book()),
            value: amount,
            valid_after: 0,
            valid_before: self.chain.time().await? + A_LONG_TIME,
            nonce: B256::random(),
        };
        Ok(authorization.sign(&self.book().token(), &self.accounts.payers[payer])?)
    }

    /// Pays and opens a session, as the orchestrator does it; for a `rate` above zero its stream runs at once.
    pub async fn open_session(
        &self,
        coalition: &ActiveCoalition,
        payer: usize,
        amount: Usdc,
        rate: FlowRate,
    ) -> Result<OpenSession> {
        let terms = self.terms(coalition, payer).await?;
        let voucher = self.voucher(&terms, payer, amount).await?;
        let call = calls::open(self.book(), &terms, &voucher, rate)?;
        let receipt = self.send(&self.accounts.orchestrator, &call).await?;
        Ok(OpenSession { terms, vault: terms.vault_in(self.book()), voucher, receipt })
    }
}
