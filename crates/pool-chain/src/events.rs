//! What happened on the chain, in order, once, and taken back where the chain takes it back.
//!
//! [`Chain::follow`](crate::Chain::follow) reads the logs of our contracts, of the pools and of the sessions' vaults
//! block by block from a [`Cursor`] on, catches up after any pause, and follows re-organisations. Each [`Update`] holds
//! what is new together with the cursor behind it: whoever stores both in one transaction sees every event exactly
//! once, whatever ends which process.

mod cursor;
mod decode;
mod follow;
mod history;

use alloy::primitives::{Address, B256};
pub use cursor::{Cursor, SeenBlock};
pub use follow::{FollowOptions, Following, Sessions};
pub use history::{Stretch, VaultBooks};
use pool_coalition::proposal::Proposal;
use pool_types::{FlowRate, Usdc, Usdcx};

use crate::{PoolChange, Terms};

/// What is new since the last update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Every event of a block at or above this height is void: the chain re-organised. Take them back before booking
    /// [`Update::events`].
    pub removed_from: Option<u64>,
    /// What happened, in the chain's order.
    pub events: Vec<Logged>,
    /// Where to go on from.
    pub cursor: Cursor,
}

/// An event with its place on the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The block's height.
    pub block: u64,
    /// The block's time in Unix seconds: flows count from it.
    pub timestamp: u64,
    /// The log's place in the block; with the height it names the event for good.
    pub index: u64,
    /// The transaction that caused it.
    pub transaction: B256,
    /// What happened.
    pub event: Event,
}

/// What we listen to. Rates are the actual ones, in wei/s where Superfluid may round them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vault came to be. Says nothing about payment.
    VaultDeployed {
        /// Its address.
        vault: Address,
        /// What its payer agreed to.
        terms: Terms,
    },
    /// A session was paid and opened.
    SessionOpened {
        /// Its vault.
        vault: Address,
        /// Who paid.
        payer: Address,
        /// What tells it apart.
        session: B256,
        /// How much was paid.
        amount: Usdc,
        /// The rate it started at.
        rate: FlowRate,
    },
    /// USDC in a vault was wrapped.
    VaultFunded {
        /// Which vault.
        vault: Address,
        /// How much.
        amount: Usdc,
    },
    /// A vault's stream runs at another rate from this block on.
    VaultRate {
        /// Which vault.
        vault: Address,
        /// The rate read back; zero is stopped.
        rate: FlowRate,
    },
    /// A session was ended.
    VaultClosed {
        /// Its vault.
        vault: Address,
        /// Who ended it.
        by: Address,
    },
    /// A payer got money back.
    VaultRefunded {
        /// From which vault.
        vault: Address,
        /// How much.
        amount: Usdc,
    },
    /// A refund was not possible and can be repeated by anybody.
    RefundDeferred {
        /// In which vault.
        vault: Address,
    },
    /// A stream into one of our pools changed.
    Flow {
        /// Which pool.
        pool: Address,
        /// Whose stream; a vault's address.
        from: Address,
        /// What it was, wei/s.
        old: i128,
        /// What it is, wei/s.
        new: i128,
        /// What flows to all members together now, wei/s.
        total: i128,
        /// What flows to the pool's admin for rounding now, wei/s.
        adjustment: i128,
    },
    /// An amount was distributed to a pool's members at once.
    Distributed {
        /// Which pool.
        pool: Address,
        /// Who gave it.
        from: Address,
        /// How much arrived.
        amount: Usdcx,
    },
    /// A member's balance began or ceased to grow by itself.
    Connected {
        /// In which pool.
        pool: Address,
        /// Whose.
        member: Address,
        /// Whether it grows by itself now.
        connected: bool,
    },
    /// A member's share changed.
    Units {
        /// In which pool.
        pool: Address,
        /// Whose.
        member: Address,
        /// Before.
        old: u128,
        /// After.
        new: u128,
    },
    /// A member who is not connected was paid what the pool held for it.
    Claimed {
        /// In which pool.
        pool: Address,
        /// Who.
        member: Address,
        /// How much.
        amount: Usdcx,
    },
    /// An operator registered.
    Registered {
        /// Who.
        operator: Address,
    },
    /// A pool came to be.
    PoolCreated {
        /// Its id.
        pool: B256,
        /// Who owns it.
        owner: Address,
        /// Its owner's word for it.
        label: B256,
        /// Its Superfluid pool.
        gda_pool: Address,
    },
    /// A coalition was activated.
    Activated {
        /// The digest that all signed.
        digest: B256,
        /// The Superfluid pool.
        gda_pool: Address,
        /// What they signed.
        proposal: Box<Proposal>,
    },
    /// A standby took over a place.
    Swapped {
        /// In which pool.
        pool: B256,
        /// In which epoch.
        epoch: u64,
        /// Which place.
        place: u32,
        /// Who held it.
        from: Address,
        /// Who holds it.
        to: Address,
        /// The units that moved.
        units: u32,
    },
    /// A member could not be connected to its pool; its share waits to be claimed.
    NotConnected {
        /// Which pool.
        pool: B256,
        /// Who.
        operator: Address,
    },
    /// A coalition's end was announced.
    DrainAnnounced {
        /// Of which pool.
        pool: B256,
        /// Of which epoch.
        epoch: u64,
        /// By whom.
        by: Address,
        /// When it ends (Unix seconds).
        drained_at: u64,
    },
    /// A coalition is over.
    Dissolved {
        /// Of which pool.
        pool: B256,
        /// Of which epoch.
        epoch: u64,
    },
    /// What had come to the registry was distributed.
    PaidOut {
        /// To which pool.
        pool: B256,
        /// How much.
        amount: Usdcx,
    },
}

impl Event {
    /// What the event changes in the books of a GDA pool ([`PoolLedger`](crate::PoolLedger)), and of which one.
    pub fn pool_change(&self) -> Option<(Address, PoolChange)> {
        match *self {
            Event::Flow { pool, total, adjustment, .. } => Some((pool, PoolChange::Rate { total, adjustment })),
            Event::Units { pool, member, old, new } => Some((pool, PoolChange::Units { member, old, new })),
            Event::Distributed { pool, amount, .. } => Some((pool, PoolChange::Amount(amount.wei()))),
            _ => None,
        }
    }
}
