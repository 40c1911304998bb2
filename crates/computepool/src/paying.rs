//! What `up --pay` and `orchestrator --pay` need: a chain, an address book, the sentinel's key, and gas where the chain is a local one.

use std::path::{Path, PathBuf};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, Result, bail};
use pool_chain::{
    AddressBook, ChainConfig,
    devnet::{Devnet, DevnetOptions},
};
use pool_coalition::proposal::RegistryDomain;
use pool_node::identity::write_private;
use pool_orchestrator::MoneyConfig;
use pool_types::{FlowRate, Usdc};
use serde_json::json;

use crate::state::StateFolder;

/// The chain's coin for whoever sends transactions on a local chain: 100.
const LOCAL_GAS: u128 = 100_000_000_000_000_000_000;
/// In the state folder: the chain that requests are paid on.
const CHAIN_FILE: &str = "chain.json";
const ADDRESS_BOOKS: &str = "contracts/addresses";

/// How requests are paid.
#[derive(Clone, Debug)]
pub(crate) struct PayOptions {
    /// JSON-RPC of the chain's node; a local chain is started where there is none.
    pub(crate) rpc: Option<String>,
    pub(crate) websocket: Option<String>,
    pub(crate) network: String,
    pub(crate) address_book: Option<PathBuf>,
    pub(crate) rate: FlowRate,
    pub(crate) linger: u64,
    /// Whether a chain that is started here outlives this run, in the state folder.
    pub(crate) keep_chain: bool,
}

/// The chain that sessions are paid on.
pub(crate) struct PaidOn {
    pub(crate) config: MoneyConfig,
    /// The local chain, where it was started here; it ends with this value.
    pub(crate) devnet: Option<Devnet>,
}

impl PaidOn {
    /// Finds or starts the chain, and makes sure that the orchestrator, `gateway`, can send transactions on it.
    pub(crate) async fn prepare(
        folder: &StateFolder,
        options: &PayOptions,
        gateway: Address,
        sentinel: PrivateKeySigner,
    ) -> Result<Self> {
        let (chain, book, devnet) = match &options.rpc {
            Some(rpc) => {
                let chain = ChainConfig { websocket: options.websocket.clone(), ..ChainConfig::new(rpc) };
                let book = match &options.address_book {
                    Some(file) => AddressBook::read(file)?,
                    None => AddressBook::load(&address_books()?, &options.network)?,
                };
                (chain, book, None)
            }
            None if options.network == "local" => {
                let state = options.keep_chain.then(|| folder.path().join("devnet.json"));
                let devnet = Devnet::start(DevnetOptions { state, ..DevnetOptions::default() }).await?;
                for account in [gateway, sentinel.address()] {
                    devnet.control().fund(account, LOCAL_GAS, Usdc::ZERO).await?;
                }
                (devnet.chain_config(), devnet.book().clone(), Some(devnet))
            }
            None => bail!("--network {} needs the address of a node: give it with --rpc", options.network),
        };
        write_private(
            &folder.path().join(CHAIN_FILE),
            chain_file(&chain, &book, [gateway, sentinel.address()]).to_string().as_bytes(),
        )?;
        let config = MoneyConfig { linger: options.linger, ..MoneyConfig::new(chain, book, sentinel, options.rate) };
        Ok(Self { config, devnet })
    }

    /// The registry whose coalitions the nodes sign.
    pub(crate) fn registry(&self) -> RegistryDomain {
        let book = &self.config.book;
        RegistryDomain { chain: book.chain_id, registry: book.contracts.coalition_registry }
    }
}

/// What people on this machine need to know of the chain.
fn chain_file(chain: &ChainConfig, book: &AddressBook, senders: [Address; 2]) -> serde_json::Value {
    let [orchestrator, sentinel] = senders;
    json!({
        "rpc": chain.http,
        "websocket": chain.websocket,
        "network": book.network,
        "addressBook": book,
        // Both need the chain's coin for gas.
        "orchestrator": orchestrator,
        "sentinel": sentinel,
    })
}

/// `contracts/addresses` in this folder or one above it, or above this program.
pub(crate) fn address_books() -> Result<PathBuf> {
    let start = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let folders = start.iter().flatten().flat_map(|start| start.ancestors());
    let found = folders.map(|folder| folder.join(ADDRESS_BOOKS)).find(|folder| Path::is_dir(folder));
    found
        .with_context(|| format!("{ADDRESS_BOOKS} is not here; run this inside the repository, or give --address-book"))
}
