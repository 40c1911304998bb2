//! Work and money, in the words of the interface. Amounts are text with all their decimals, in USDCx unless said
//! otherwise; no number here is a float.

use serde::{Deserialize, Serialize};
use ts_rs::TS;

/// What the operator earns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct EarningsView {
    /// Whether the node follows a chain at all, and which; without one it serves without payment.
    pub network: Option<String>,
    /// Whether it is play money: show it as such.
    pub test_money: bool,
    /// Earned in all.
    pub earned: String,
    /// What streams in now, a second.
    pub rate: String,
    /// Unix seconds at which `earned` holds.
    #[ts(type = "number")]
    pub at: u64,
    /// Since midnight, by the owner's clock.
    pub today: Period,
    /// The last 7 days.
    pub week: Period,
    /// The last 30 days.
    pub month: Period,
    /// Unix seconds until which the chain's own books agree to the wei; absent before the first comparison.
    #[ts(type = "number | null")]
    pub reconciled_until: Option<u64>,
    /// What the chain says less what was booked, where they do not agree.
    pub differs: Option<String>,
    /// Why the chain cannot be read now: what is shown is what was known before.
    pub trouble: Option<String>,
}

/// What some time brought, and what it used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct Period {
    /// Unix seconds at which it begins.
    #[ts(type = "number")]
    pub from: u64,
    /// Streamed to the operator.
    pub gross: String,
    /// Seconds of serving.
    #[ts(type = "number")]
    pub served: u64,
    /// Tokens that went through the layers.
    #[ts(type = "number")]
    pub tokens: u64,
    /// Watt hours, as far as they were measured.
    #[ts(type = "number")]
    pub watt_hours: u64,
    /// Seconds of the serving whose energy was measured: all of it, or the costs are incomplete.
    #[ts(type = "number")]
    pub measured: u64,
    /// What the energy cost; absent while no price of electricity is set.
    pub cost: Option<String>,
    /// `gross` less `cost`; absent as that is.
    pub net: Option<String>,
}

/// Where the money of a shift stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
pub enum ShiftStatus {
    /// It runs, and is paid.
    Streaming,
    /// It runs, and nothing streams: no request, or nobody pays.
    Idle,
    /// It is over, and was not compared with the chain's books yet.
    Stopped,
    /// The chain's books agree to the wei.
    Reconciled,
    /// They do not.
    Unreconciled,
    /// The node follows no chain: it serves without payment.
    Unpaid,
}

/// A spell of serving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct ShiftView {
    /// Which; they grow.
    #[ts(type = "number")]
    pub id: i64,
    /// Unix milliseconds.
    #[ts(type = "number")]
    pub began: u64,
    /// Unix milliseconds; absent while it runs.
    #[ts(type = "number | null")]
    pub ended: Option<u64>,
    /// The model's name.
    pub model: String,
    /// As text like `0-15`.
    pub layers: String,
    /// Members of its coalition, the node itself included.
    pub members: u32,
    /// What it brought and used. All that streams until the next shift begins is this one's.
    pub books: Period,
    /// How much longer than the work the stream ran, in seconds, once both have ended.
    #[ts(type = "number | null")]
    pub stream_ran_on: Option<u64>,
    /// Where its money stands.
    pub status: ShiftStatus,
}

/// What the operator's account holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
pub struct WalletView {
    /// Its address.
    pub address: String,
    /// On which chain.
    pub network: String,
    /// Whether it is play money: show it as such.
    pub test_money: bool,
    /// USDC.
    pub usdc: String,
    /// USDCx that can be moved.
    pub usdcx: String,
    /// USDCx that pools hold for it; anybody can have it paid out.
    pub claimable: String,
    /// What streams in, USDCx a second.
    pub rate: String,
    /// Unix seconds of the block at which that holds.
    #[ts(type = "number")]
    pub at: u64,
}
