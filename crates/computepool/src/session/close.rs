//! Ending a session: through its orchestrator, or straight on the chain with nobody's help.

use std::{process::ExitCode, time::Duration};

use alloy_primitives::{Address, B256};
use alloy_sol_types::SolValue;
use anyhow::{Context, Result, bail};
use pool_chain::{AddressBook, Call, Chain, Terms, calls, contracts};
use pool_types::Usdc;
use serde_json::json;

use super::{
    api::SessionView,
    receipt::{self, Receipt},
    record::{self, Record},
    show::client,
};
use crate::{
    arguments::SessionCloseArguments,
    network, serving,
    wallet::{Wallet, coin_text},
    when::utc,
};

/// How long a refund is waited for, beyond the orchestrator's own patience.
const CLOSING: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);
/// Something does not add up; everything was done as asked.
const NOT_AS_TOLD: u8 = 1;

/// `computepool session close`.
pub(super) fn run(arguments: &SessionCloseArguments) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        if arguments.direct { directly(arguments).await } else { through_its_orchestrator(arguments).await }
    })
}

async fn through_its_orchestrator(arguments: &SessionCloseArguments) -> Result<ExitCode> {
    let folder = &arguments.wallet.wallet;
    let mut record = record::get(folder, &arguments.id)?;
    let chain = network::chain(&arguments.chain).await?;
    if let Some(chain) = &chain {
        expect_network(&record, chain.book())?;
    }
    let view = close(&mut record, folder).await?;
    if arguments.json {
        println!("{}", json!({ "session": view }));
    } else {
        match (&view.receipt, &view.reason) {
            (Some(receipt), _) => print!("{}", receipt::words(receipt)),
            (None, Some(reason)) => println!("The session never opened, and nothing was charged: {reason}."),
            (None, None) => println!("The session never opened, and nothing was charged."),
        }
    }
    let Some(told) = &view.receipt else { return Ok(ExitCode::SUCCESS) };
    if let Some(chain) = &chain {
        let read = receipt::read(chain, record.vault, record.terms.pool).await?;
        if read != *told {
            eprintln!("The orchestrator's receipt is not what the chain says: {}.", receipt::one_line(&read));
            return Ok(ExitCode::from(NOT_AS_TOLD));
        }
    }
    Ok(verdict(told))
}

/// Closes a session through its orchestrator and waits for the refund.
pub(crate) async fn close(record: &mut Record, folder: &std::path::Path) -> Result<SessionView> {
    let id = record.session;
    let without = || still_closing(record);
    let api = client(record)?;
    let mut view = api.close_session(id).await.with_context(without)?;
    let wait = async {
        while !view.state.is_over() {
            tokio::time::sleep(LOOK).await;
            view = api.session(id).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    match tokio::time::timeout(CLOSING, wait).await {
        Ok(ended) => ended.with_context(without)?,
        Err(_) => bail!("{}", still_closing(record)),
    }
    record.close(folder)?;
    Ok(view)
}

/// What to do about a session that the orchestrator did not close.
pub(crate) fn still_closing(record: &Record) -> String {
    let id = record.session;
    format!(
        "the session {id} is not closed yet; try `computepool session close {id}` again, or with --direct and --rpc, \
         which need no orchestrator"
    )
}

fn verdict(receipt: &Receipt) -> ExitCode {
    if receipt.adds_up() { ExitCode::SUCCESS } else { ExitCode::from(NOT_AS_TOLD) }
}

fn expect_network(record: &Record, book: &AddressBook) -> Result<()> {
    if record.network != book.network {
        bail!("the session is on the network {0}: say --network {0}", record.network);
    }
    Ok(())
}

/// A vault that is to be closed.
struct Subject {
    vault: Address,
    terms: Terms,
    record: Option<Record>,
}

/// What closing a vault took.
#[derive(Default)]
struct Sent {
    transactions: Vec<B256>,
    /// What was paid for gas, in wei of the chain's coin.
    fees: u128,
}

async fn directly(arguments: &SessionCloseArguments) -> Result<ExitCode> {
    let chain = network::chain(&arguments.chain).await?;
    let chain = chain.context("--direct needs the chain's node: name it with --rpc, like http://127.0.0.1:8545")?;
    let wallet = Wallet::open(&arguments.wallet, &arguments.chain.network)?;
    let mut subject = find(&chain, &wallet, &arguments.id).await?;
    let Subject { vault, terms, .. } = subject;
    let state = chain.vault(vault).await?;
    let holds = state.unwrapped > Usdc::ZERO || state.available.whole_usdc() > Usdc::ZERO;
    if !state.deployed && !holds {
        return nothing_there(&wallet, &mut subject, state.at, arguments.json);
    }
    if terms.payer != wallet.address() && state.at < terms.expiry {
        bail!(
            "the session's payer is {}, and this wallet is {}: name the payer's with --wallet or --development-account",
            terms.payer,
            wallet.address()
        );
    }
    let mut sent = Sent::default();
    if !state.deployed {
        sent.send(&chain, &wallet, &calls::deploy(chain.book(), &terms)).await?;
    }
    if !state.closed {
        sent.send(&chain, &wallet, &calls::close(vault)).await?;
    } else if holds {
        sent.send(&chain, &wallet, &calls::refund(vault)).await?;
    }
    if let Some(record) = &mut subject.record {
        record.close(&wallet.folder)?;
    }
    let receipt = receipt::read(&chain, vault, terms.pool).await?;
    let Sent { transactions, fees } = &sent;
    if arguments.json {
        let fees = fees.to_string();
        println!("{}", json!({ "vault": vault, "receipt": receipt, "sent": transactions, "fees": fees }));
    } else {
        print!("{}", receipt::words(&receipt));
        match transactions.len() {
            0 => println!("It was closed before; nothing was sent."),
            count => println!("{count} of them sent from here, for {} of the chain's coin", coin_text(*fees)),
        }
    }
    if receipt.dust.whole_usdc() > Usdc::ZERO {
        eprintln!(
            "{} USDC are still in the vault: the token did not let them go. They can go nowhere but to the payer; run \
             this again later.",
            receipt.dust.whole_usdc()
        );
        return Ok(ExitCode::from(NOT_AS_TOLD));
    }
    Ok(verdict(&receipt))
}

impl Sent {
    async fn send(&mut self, chain: &Chain, wallet: &Wallet, call: &Call) -> Result<()> {
        let receipt = chain.send_and_wait(&wallet.key, call).await?;
        self.transactions.push(receipt.transaction);
        self.fees = self.fees.saturating_add(receipt.gas_price.saturating_mul(u128::from(receipt.gas_used)));
        Ok(())
    }
}

/// The vault that is meant: of a session that this wallet keeps, or any other by its address.
async fn find(chain: &Chain, wallet: &Wallet, wanted: &str) -> Result<Subject> {
    let book = chain.book();
    if let Some(record) = record::find(&wallet.folder, wanted)? {
        expect_network(&record, book)?;
        let (vault, terms) = (record.vault, record.terms);
        if terms.vault_in(book) != vault {
            bail!(
                "the session was paid on another chain than that of this address book; name its own with --address-book"
            );
        }
        return Ok(Subject { vault, terms, record: Some(record) });
    }
    let Ok(vault) = wanted.parse::<Address>() else {
        bail!(
            "{} holds no session {wanted}. A vault can also be closed by its address, once it is on the chain",
            wallet.folder.display()
        );
    };
    let terms = terms_of(&chain.code(vault).await?).filter(|terms| terms.vault_in(book) == vault);
    let terms = terms.with_context(|| {
        format!("{vault} is no vault of a session on this chain. If it was paid but never opened, the wallet that paid it knows its terms")
    })?;
    Ok(Subject { vault, terms, record: None })
}

/// A vault's code ends in its terms: six words.
fn terms_of(code: &[u8]) -> Option<Terms> {
    let encoded = code.get(code.len().checked_sub(6 * 32)?..)?;
    contracts::Terms::abi_decode(encoded).ok()?.try_into().ok()
}

/// Nothing was settled: there is nothing to bring back, unless somebody settles the voucher later.
fn nothing_there(wallet: &Wallet, subject: &mut Subject, now: u64, as_json: bool) -> Result<ExitCode> {
    let vault = subject.vault;
    let until = subject.record.as_ref().map(|record| record.valid_before).filter(|until| *until > now);
    if let (None, Some(record)) = (until, &mut subject.record) {
        record.close(&wallet.folder)?;
    }
    if as_json {
        println!("{}", json!({ "vault": vault, "receipt": null, "sent": [], "fees": "0", "voucher_until": until }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("Nothing was paid into {vault}: there is nothing to bring back.");
    if let Some(until) = until {
        println!("The voucher can be settled until {}; run this again then.", utc(until));
    }
    Ok(ExitCode::SUCCESS)
}
