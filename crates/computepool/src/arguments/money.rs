//! What a person can write about money: sessions, the payer's wallet, the local chain, the audit log.

use std::path::PathBuf;

use alloy_primitives::Address;
use clap::{Args, Subcommand};
use pool_types::{AmountError, Usdc};

/// Wei of the chain's coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coin(pub(crate) u128);

impl std::str::FromStr for Coin {
    type Err = AmountError;

    /// Up to six digits after the point are enough to pay for gas, and they read like those of USDC.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        Ok(Self(text.parse::<Usdc>()?.to_usdcx().wei().unsigned_abs()))
    }
}

/// Whose money is spent, and where what belongs to its sessions is kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct WalletArguments {
    /// Where the payer's key and the tokens of its sessions are kept
    #[arg(long, env = "COMPUTEPOOL_WALLET", default_value = ".state/payer", value_name = "FOLDER")]
    pub(crate) wallet: PathBuf,
    /// File with the passphrase of the key [default: COMPUTEPOOL_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Pay from account N of the local chain instead, whose key everybody knows
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(0..20),
        conflicts_with = "passphrase_file"
    )]
    pub(crate) development_account: Option<u32>,
}

/// Which chain, and how to reach it.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChainArguments {
    /// The chain's node, JSON-RPC over HTTP
    #[arg(long, env = "COMPUTEPOOL_RPC", hide_env_values = true, value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// Which chain: the name of an address book in contracts/addresses
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub(crate) network: String,
    /// Another address book
    #[arg(long, value_name = "FILE")]
    pub(crate) address_book: Option<PathBuf>,
}

/// `computepool wallet`.
#[derive(Clone, Debug, Args)]
pub(crate) struct WalletShowArguments {
    #[command(flatten)]
    pub(crate) wallet: WalletArguments,
    #[command(flatten)]
    pub(crate) chain: ChainArguments,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `computepool session`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Pay for a session and keep its token
    Open(Box<SessionOpenArguments>),
    /// Show what a session was paid, what streams and to whom
    Show(SessionShowArguments),
    /// End a session: its stream stops, the rest is refunded
    Close(Box<SessionCloseArguments>),
    /// List the sessions of this wallet
    List(SessionListArguments),
    /// Print a session's bearer token, for another client
    Token(SessionTokenArguments),
}

/// `computepool session open`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SessionOpenArguments {
    /// The endpoint
    #[arg(long, default_value = "http://127.0.0.1:8080/v1", value_name = "URL")]
    pub(crate) api: String,
    /// Which model [default: the first one served]
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// How many seconds of work to buy
    #[arg(long, value_name = "N", required_unless_present = "tokens", conflicts_with = "tokens")]
    pub(crate) seconds: Option<u64>,
    /// How many tokens of answers to buy, turned into seconds by the measured speed
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<u64>,
    /// The most to pay in, in USDC; what is not used comes back
    #[arg(long, default_value = "1", value_name = "USDC")]
    pub(crate) most: Usdc,
    #[command(flatten)]
    pub(crate) wallet: WalletArguments,
    #[command(flatten)]
    pub(crate) chain: ChainArguments,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which of the wallet's sessions.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeptSession {
    /// The session's id, or its first digits
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Where the tokens of sessions are kept
    #[arg(long, env = "COMPUTEPOOL_WALLET", default_value = ".state/payer", value_name = "FOLDER")]
    pub(crate) wallet: PathBuf,
}

/// `computepool session show`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SessionShowArguments {
    #[command(flatten)]
    pub(crate) session: KeptSession,
    /// A line each second until it is closed
    #[arg(long)]
    pub(crate) watch: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `computepool session close`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SessionCloseArguments {
    /// The session's id or its first digits; with --direct also its vault
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Without the orchestrator: with the payer's key, straight on the chain
    #[arg(long)]
    pub(crate) direct: bool,
    #[command(flatten)]
    pub(crate) wallet: WalletArguments,
    #[command(flatten)]
    pub(crate) chain: ChainArguments,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `computepool session list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SessionListArguments {
    /// Where the tokens of sessions are kept
    #[arg(long, env = "COMPUTEPOOL_WALLET", default_value = ".state/payer", value_name = "FOLDER")]
    pub(crate) wallet: PathBuf,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `computepool session token`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SessionTokenArguments {
    #[command(flatten)]
    pub(crate) session: KeptSession,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a conversation is paid.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChatPayArguments {
    /// Pay: open a session, and close it at the end
    #[arg(long)]
    pub(crate) pay: bool,
    /// Use a session that is open, by its id or its first digits, and leave it open
    #[arg(long, value_name = "ID", conflicts_with_all = ["pay", "seconds", "tokens"])]
    pub(crate) session: Option<String>,
    /// How many seconds of work to buy [default: 300]
    #[arg(long, value_name = "N", requires = "pay", conflicts_with = "tokens")]
    pub(crate) seconds: Option<u64>,
    /// How many tokens of answers to buy, turned into seconds by the measured speed
    #[arg(long, value_name = "N", requires = "pay")]
    pub(crate) tokens: Option<u64>,
    /// The most to pay in, in USDC; what is not used comes back
    #[arg(long, default_value = "1", value_name = "USDC")]
    pub(crate) most: Usdc,
    #[command(flatten)]
    pub(crate) wallet: WalletArguments,
    #[command(flatten)]
    pub(crate) chain: ChainArguments,
}

/// `computepool devnet`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DevnetCommand {
    /// Run a local chain with the real contracts
    Up(DevnetUpArguments),
    /// Stop the local chain and keep what is on it
    Down(DevnetDownArguments),
    /// Give an account test USDC and coin for gas
    Fund(DevnetFundArguments),
    /// The chain's clock
    #[command(subcommand)]
    Time(DevnetTimeCommand),
}

/// `computepool devnet up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevnetUpArguments {
    /// Where the node listens on this machine; 0 takes a free port
    #[arg(long, default_value_t = 8545)]
    pub(crate) port: u16,
    /// Where the chain is kept
    #[arg(long, default_value = ".state/devnet", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Seconds between blocks [default: a block for each transaction at once]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) block_time: Option<u64>,
    /// Forget the chain that is kept in the folder and begin anew
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Return as soon as the node answers; stop with `computepool devnet down`
    #[arg(long)]
    pub(crate) detach: bool,
    /// The line as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Set on the process that --detach starts
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

/// `computepool devnet down`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevnetDownArguments {
    /// The folder given to `devnet up`
    #[arg(long, default_value = ".state/devnet", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which local chain.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevnetTarget {
    /// The folder given to `devnet up`
    #[arg(long, default_value = ".state/devnet", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// The node's address, where it was started otherwise
    #[arg(long, env = "COMPUTEPOOL_RPC", hide_env_values = true, value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `computepool devnet fund`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevnetFundArguments {
    /// Whom
    pub(crate) address: Address,
    /// How many USDC
    #[arg(long, default_value = "10")]
    pub(crate) usdc: Usdc,
    /// How much of the chain's coin
    #[arg(long, default_value = "1")]
    pub(crate) coin: Coin,
    #[command(flatten)]
    pub(crate) target: DevnetTarget,
}

/// `computepool devnet time`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DevnetTimeCommand {
    /// Let so many seconds pass at once
    Advance(DevnetAdvanceArguments),
    /// Show what time it is on the chain
    Show(DevnetTarget),
}

/// `computepool devnet time advance`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevnetAdvanceArguments {
    /// How many
    #[arg(value_parser = clap::value_parser!(u64).range(1..=315_360_000))]
    pub(crate) seconds: u64,
    #[command(flatten)]
    pub(crate) target: DevnetTarget,
}

/// `computepool verify`.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    /// Check that nothing in an orchestrator's audit log was changed, left out or put in another order
    Audit(AuditArguments),
}

/// `computepool verify audit`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditArguments {
    /// An exported log; `-` reads it from standard input
    #[arg(value_name = "FILE", required_unless_present = "from", conflicts_with = "from")]
    pub(crate) file: Option<PathBuf>,
    /// Fetch the log from this endpoint first
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// The endpoint's key
    #[arg(long, env = "COMPUTEPOOL_API_KEY", hide_env_values = true, value_name = "KEY", requires = "from")]
    pub(crate) api_key: Option<String>,
    /// Keep what was fetched
    #[arg(long, value_name = "FILE", requires = "from")]
    pub(crate) save: Option<PathBuf>,
    /// A head noted earlier: the log must still hold it, or it was written anew
    #[arg(long, value_name = "HASH")]
    pub(crate) noted: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}
