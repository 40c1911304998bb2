//! What a person can write on the command line.

mod money;
mod owner;

use std::{fmt, path::PathBuf, str::FromStr};

use alloy_primitives::Address;
use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind,
    parser::ValueSource,
};
use pool_coalition::proposal::RegistryDomain;
use pool_orchestrator::control::ServingWishes;
use pool_types::{Activation, FlowRate};

pub(crate) use self::{money::*, owner::*};
use crate::paying::PayOptions;

/// One large model over several computers, answered through an OpenAI endpoint.
#[derive(Debug, Parser)]
#[command(name = "computepool", version, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model from this machine: an orchestrator and as many nodes as wished
    Up(Box<UpArguments>),
    /// Stop what `up` started
    Down(DownArguments),
    /// Run one node that offers this machine to an orchestrator
    Node(Box<NodeArguments>),
    /// Show what an owner's node does, and why
    Status(OwnerStateArguments),
    /// Give the machine back and share nothing for a while
    Pause(OwnerPauseArguments),
    /// Share by the settings again, or now
    Resume(OwnerResumeArguments),
    /// Show or change what an owner's node fetches, and which models are on its disk
    Downloads(OwnerDownloadsArguments),
    /// Show what an owner's node decided lately, and why
    Log(OwnerLogArguments),
    /// What a node of `node --policy` earned, used, and did in its shifts
    Earnings(OwnerEarningsArguments),
    /// Write what somebody who helps needs to know of a node, without secrets
    Diagnostics(OwnerDiagnosticsArguments),
    /// Run an orchestrator that nodes on other machines register with
    Orchestrator(Box<OrchestratorArguments>),
    /// Talk to a model
    Chat(Box<ChatArguments>),
    /// Pay for a session, look at it, close it
    #[command(subcommand)]
    Session(SessionCommand),
    /// Show the address that pays, and what it has
    Wallet(WalletShowArguments),
    /// Run a local chain with the real contracts
    #[command(subcommand)]
    Devnet(DevnetCommand),
    /// Check what an orchestrator says of itself
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Write down what a model consists of, with hashes, so that nodes can fetch and verify their layers of it
    Manifest(ManifestArguments),
    /// Show what a model is: architecture, layers, bytes
    Inspect(InspectArguments),
    /// Show how a model would be split over given cards
    Plan(PlanArguments),
    /// Serve the bundled model with two shards, ask it three questions and show what crossed between them
    Demo(DemoArguments),
    /// Measure what splitting a model over shards costs and gains on this machine
    Bench(BenchArguments),
    /// Print completions for a shell
    Completions(CompletionsArguments),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wire {
    F32,
    F16,
    Bf16,
}

impl From<Wire> for Activation {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::F32 => Activation::F32,
            Wire::F16 => Activation::F16,
            Wire::Bf16 => Activation::Bf16,
        }
    }
}

/// One core, or a run of them like `0-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuSet {
    first: usize,
    last: usize,
}

impl CpuSet {
    pub(crate) fn single(core: usize) -> Self {
        Self { first: core, last: core }
    }

    pub(crate) fn cores(&self) -> impl Iterator<Item = usize> {
        self.first..=self.last
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last && last < 4096 => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is not a core or a run of cores; write 0, or 0-3")),
        }
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How a model is served.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServingArguments {
    /// Type of the hidden states between shards [default: what the model was trained in]
    #[arg(long, value_enum)]
    pub(crate) wire: Option<Wire>,
    /// Quantise unquantised matrices to Q8_0 when loading: faster and half the memory on a CPU
    #[arg(long)]
    pub(crate) quantise: bool,
    /// Longest prompt and answer together, in tokens [default: the model's, at most 4096]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<u32>,
    /// Tokens of KV cache each shard reserves [default: four contexts]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) kv_tokens: Option<u64>,
    /// Rows of a prompt computed at a time [default: 64]
    #[arg(long, value_name = "ROWS")]
    pub(crate) prefill_chunk: Option<u32>,
}

impl ServingArguments {
    pub(crate) fn wishes(&self, shards: Option<u32>) -> ServingWishes {
        ServingWishes {
            shards,
            wire: self.wire.map(Activation::from),
            context: self.context,
            kv_tokens: self.kv_tokens,
            prefill_chunk: self.prefill_chunk,
            quantise: self.quantise,
        }
    }
}

/// How requests are paid.
#[derive(Clone, Debug, Args)]
pub(crate) struct PayArguments {
    /// Requests are paid: by sessions on the chain, one voucher each
    #[arg(long)]
    pub(crate) pay: bool,
    /// The chain's node, JSON-RPC over HTTP [default: a local chain is started with the cluster]
    #[arg(long, env = "COMPUTEPOOL_RPC", hide_env_values = true, value_name = "URL")]
    pub(crate) rpc: Option<String>,
    /// The same node over WebSocket, for news of blocks as they come
    #[arg(long, env = "COMPUTEPOOL_RPC_WS", hide_env_values = true, value_name = "URL")]
    pub(crate) rpc_ws: Option<String>,
    /// Which chain: the name of an address book in contracts/addresses
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub(crate) network: String,
    /// Another address book
    #[arg(long, value_name = "FILE", requires = "pay")]
    pub(crate) address_book: Option<PathBuf>,
    /// Price of a second while a session's requests run, in units of 10^-6 USDC
    #[arg(long, default_value_t = 100, value_name = "UNITS", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) rate: u64,
    /// Seconds that a session's stream goes on after its last request; they are charged
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) linger: u64,
}

impl Arguments {
    /// The command line; ends the program where it cannot be.
    pub(crate) fn of_command_line() -> Self {
        let mut command = Self::command();
        let matches = command.get_matches_mut();
        let arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit());
        let pay = match &arguments.command {
            Command::Up(arguments) => Some(&arguments.pay),
            Command::Orchestrator(arguments) => Some(&arguments.pay),
            _ => None,
        };
        if let (Some(pay), Some((name, given))) = (pay, matches.subcommand())
            && let Some(missing) = pay.missing(given)
            && let Some(subcommand) = command.find_subcommand_mut(name)
        {
            subcommand.error(ErrorKind::MissingRequiredArgument, missing).exit();
        }
        arguments
    }
}

impl PayArguments {
    /// What is missing for what was given on the command line. A chain that only the environment names may be there for
    /// other commands.
    fn missing(&self, given: &ArgMatches) -> Option<&'static str> {
        let named = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        match self.pay {
            true if self.rpc_ws.is_some() && self.rpc.is_none() => Some("--rpc-ws needs --rpc"),
            false if named("rpc") => Some("--rpc needs --pay"),
            false if named("rpc_ws") => Some("--rpc-ws needs --pay"),
            _ => None,
        }
    }

    pub(crate) fn options(&self, keep_chain: bool) -> Option<PayOptions> {
        self.pay.then(|| PayOptions {
            rpc: self.rpc.clone(),
            websocket: self.rpc_ws.clone(),
            network: self.network.clone(),
            address_book: self.address_book.clone(),
            rate: FlowRate::from_units_per_second(self.rate),
            linger: self.linger,
            keep_chain,
        })
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct UpArguments {
    /// A folder with config.json and safetensors, or a GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// How many shards, each a process of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) shards: u32,
    /// Where the OpenAI endpoint listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub(crate) api: String,
    /// Where keys, roster, database and logs are kept
    #[arg(long, default_value = ".state", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Threads of each shard [default: the machine's cores, shared evenly]
    #[arg(long)]
    pub(crate) threads: Option<u32>,
    /// Cores to pin shards to, one entry a shard: 0,1 or 0-1,2-3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) cpus: Vec<CpuSet>,
    #[command(flatten)]
    pub(crate) serving: ServingArguments,
    #[command(flatten)]
    pub(crate) pay: PayArguments,
    /// The key that clients must send [default: none, everybody who reaches the address may ask]
    #[arg(long, env = "COMPUTEPOOL_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The model's name in the API [default: the model's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Give up when no request can be answered after this long
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(crate) startup_seconds: u64,
    /// Return as soon as the endpoint is ready; stop with `computepool down`
    #[arg(long)]
    pub(crate) detach: bool,
    /// More of the log on standard error (twice for all of it)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Set on the process that --detach starts
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DownArguments {
    /// The state folder given to `up`
    #[arg(long, default_value = ".state", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArguments {
    /// The orchestrator, like wss://pool.example or ws://192.168.1.10:8080
    #[arg(long, value_name = "URL")]
    pub(crate) orchestrator: String,
    /// The roster file: who may link with whom
    #[arg(long, value_name = "FILE")]
    pub(crate) roster: PathBuf,
    /// Where the key and the log are kept
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// A folder with config.json and safetensors, or a GGUF file: the same model as the orchestrator's
    #[arg(long, value_name = "PATH", required_unless_present = "manifest")]
    pub(crate) model: Option<PathBuf>,
    /// Instead of a model that is here: the manifest of one that is fetched, as far as this node serves it
    #[arg(long, value_name = "FILE", conflicts_with = "model", requires = "mirror")]
    pub(crate) manifest: Option<PathBuf>,
    /// Who has that model's files: an address such as https://huggingface.co/maker/model/resolve/main (several: the next is asked when one fails; HF_TOKEN is shown to huggingface.co alone)
    #[arg(long, value_name = "URL", requires = "manifest")]
    pub(crate) mirror: Vec<String>,
    /// The pool's owner: take no manifest that this address has not signed
    #[arg(long, value_name = "ADDRESS", requires = "manifest")]
    pub(crate) pool_owner: Option<Address>,
    /// Where fetched layers are kept [default: the folder `models` in --state]
    #[arg(long, value_name = "FOLDER", requires = "manifest")]
    pub(crate) cache: Option<PathBuf>,
    /// File with the passphrase of the key [default: COMPUTEPOOL_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Most threads a shard computes with [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Cores to pin the shard to, like 0,1 or 0-3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) cpus: Vec<CpuSet>,
    /// The part of the available memory to offer
    #[arg(long, default_value_t = 0.8, value_name = "PART")]
    pub(crate) memory_share: f64,
    /// Quantise unquantised matrices to Q8_0 when loading
    #[arg(long)]
    pub(crate) quantise: bool,
    /// Links on this machine only
    #[arg(long)]
    pub(crate) loopback_only: bool,
    /// Sign coalitions for this registry, and be paid by their sessions [default: serve without payment]
    #[arg(long, value_name = "CHAIN:ADDRESS")]
    pub(crate) registry: Option<RegistryDomain>,
    /// The least income to serve for while a session runs, in units of 10^-6 USDC a second
    #[arg(long, default_value_t = 0, value_name = "UNITS", requires = "registry")]
    pub(crate) least_income: u64,
    #[command(flatten)]
    pub(crate) chain: ChainArguments,
    /// Serve only when the owner does not need the machine, and give it back at once [default: serve always]
    #[arg(long)]
    pub(crate) policy: bool,
    /// When to share, as JSON: {"start_after": 300, "share_cpu": false, ...} [default: when nobody has touched the machine for 5 minutes]
    #[arg(long, value_name = "FILE", requires = "policy")]
    pub(crate) settings: Option<PathBuf>,
    /// Share the processor: a machine without a GPU shares nothing otherwise
    #[arg(long, requires = "policy")]
    pub(crate) share_cpu: bool,
    /// More of the log on standard error (twice for all of it)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print the address of the key (made when missing) and stop: what a roster needs to know
    #[arg(long)]
    pub(crate) show_address: bool,
    /// End when standard input closes: the parent is gone
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
    /// What the parent measured, as JSON
    #[arg(long, hide = true)]
    pub(crate) capabilities: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ManifestArguments {
    /// A folder with config.json and safetensors, or a GGUF file
    pub(crate) model: PathBuf,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Sign it with the key in this folder, as the pool's owner; the signature goes into FILE.signature
    #[arg(long, value_name = "FOLDER")]
    pub(crate) key: Option<PathBuf>,
    /// The chain of the pool, where it has one
    #[arg(long, default_value_t = 0, value_name = "ID")]
    pub(crate) chain: u64,
    /// File with the passphrase of the key [default: COMPUTEPOOL_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OrchestratorArguments {
    /// The roster file; it names this orchestrator's key as its gateway
    #[arg(long, value_name = "FILE")]
    pub(crate) roster: PathBuf,
    /// A folder with config.json and safetensors, or a GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Where nodes and clients connect
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub(crate) api: String,
    /// Where the key, the database and the log are kept
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// File with the passphrase of the key [default: COMPUTEPOOL_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Exactly this many shards [default: as few as answer fastest]
    #[arg(long)]
    pub(crate) shards: Option<u32>,
    #[command(flatten)]
    pub(crate) serving: ServingArguments,
    #[command(flatten)]
    pub(crate) pay: PayArguments,
    /// The key that clients must send
    #[arg(long, env = "COMPUTEPOOL_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The model's name in the API [default: the model's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Every node is on this machine
    #[arg(long)]
    pub(crate) loopback_only: bool,
    /// More of the log on standard error (twice for all of it)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print the address of the key (made when missing) and stop: what a roster needs to know
    #[arg(long)]
    pub(crate) show_address: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ChatArguments {
    /// The endpoint
    #[arg(long, default_value = "http://127.0.0.1:8080/v1", value_name = "URL")]
    pub(crate) api: String,
    /// Which model [default: the first one served]
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// The endpoint's key
    #[arg(long, env = "COMPUTEPOOL_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// 0 always takes the most likely word
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Longest answer in tokens
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_tokens: Option<u32>,
    /// Makes a sampled answer repeatable
    #[arg(long)]
    pub(crate) seed: Option<i64>,
    #[command(flatten)]
    pub(crate) payment: ChatPayArguments,
    /// One JSON object per answer instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// What to ask; without it, a conversation begins
    pub(crate) prompt: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArguments {
    /// A folder with config.json and safetensors, or a GGUF file
    pub(crate) model: PathBuf,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArguments {
    /// A model, or a config.json alone
    #[arg(required_unless_present = "shape", conflicts_with = "shape", value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// A well-known model, from its configuration alone
    #[arg(long, value_enum)]
    pub(crate) shape: Option<crate::shapes::Shape>,
    /// The cards: memory and memory bandwidth, like 8GiB@300GB/s,24GiB@900GB/s
    #[arg(long, required = true, value_delimiter = ',', value_name = "LIST")]
    pub(crate) cards: Vec<crate::plan::CardArgument>,
    /// How weights are stored, where only the configuration is known
    #[arg(long, default_value = "q4_k", value_name = "TYPE")]
    pub(crate) quant: String,
    /// Tokens of context to reserve on every card
    #[arg(long, default_value_t = 8192, value_name = "TOKENS")]
    pub(crate) context: u64,
    /// Exactly this many shards
    #[arg(long)]
    pub(crate) shards: Option<u32>,
    /// Tokens per second with many requests instead of the time of one
    #[arg(long)]
    pub(crate) throughput: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArguments {
    /// Another model than the bundled one
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// How many shards
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) shards: u32,
    /// Without a chain: nothing is paid
    #[arg(long)]
    pub(crate) free: bool,
    /// The table as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// More of the log on standard error (twice for all of it)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArguments {
    /// Write every figure to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub(crate) only: Vec<crate::bench::Kind>,
    /// Pairs of each row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) repeats: u32,
    /// Where models are kept once made [default: the user's cache]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) model_cache: Option<PathBuf>,
    /// How large a model, of random weights
    #[arg(long, value_enum, default_value = "0.5b")]
    pub(crate) size: crate::bench::Size,
    /// How its weights are stored
    #[arg(long, value_enum, value_delimiter = ',', default_value = "q8_0,q4_k", value_name = "LIST")]
    pub(crate) quant: Vec<crate::bench::Quant>,
    /// Length of the long prompt
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    pub(crate) prompt: usize,
    /// Length of each answer
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    pub(crate) answer: u32,
    /// A row ends after this long, with the pairs it has
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub(crate) row_seconds: u64,
    /// More of the log on standard error (twice for all of it)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_stable_form_parses() {
        Arguments::command().debug_assert();
        let line = "computepool up --model m --shards 3 --api 127.0.0.1:0 --state s --cpus 0,1 --wire f32";
        let Command::Up(up) = Arguments::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("`up` is not up")
        };
        assert_eq!((up.shards, up.cpus.len(), up.serving.wire), (3, 2, Some(Wire::F32)));
        assert_eq!("0-3".parse::<CpuSet>().unwrap().cores().collect::<Vec<_>>(), [0, 1, 2, 3]);
        for wrong in ["--shards=0", "--cpus=x", "--cpus=3-1", "--cpus=0-99999", "--wire=f8"] {
            assert!(Arguments::try_parse_from(["computepool", "up", "--model", "m", wrong]).is_err(), "{wrong}");
        }
    }
}
