//! The demo's money: a payer with test USDC, one voucher, a live line of what each operator has earned, a receipt.

use std::{
    io::{IsTerminal, Write, stdout},
    path::Path,
    time::Duration,
};

use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, Result, bail};
use pool_chain::{Chain, devnet::Devnet};
use pool_orchestrator::control::CoalitionView;
use pool_types::{FlowRate, Usdc, Usdcx};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    api_client::ApiClient,
    session::{self, Length, Record, SessionView, Wish},
    table::Table,
    wallet::Wallet,
};

/// What the payer has: one USDC of the local chain, which is worth nothing.
const PURSE: u128 = 1_000_000;
/// Seconds of work that the demo buys.
const SECONDS: u64 = 120;
const LOOK: Duration = Duration::from_millis(250);
/// A stream stops a linger and a block after its last request.
const STILL: Duration = Duration::from_secs(30);

/// A payer whose session is open.
pub(super) struct Payer {
    wallet: Wallet,
    record: Record,
    chain: Chain,
    /// What each operator had received before, by seat.
    before: Vec<Usdcx>,
}

impl Payer {
    /// Makes a wallet, fills it, and opens a session with one voucher.
    pub(super) async fn open(api: &ApiClient, devnet: &Devnet, folder: &Path, model: &str) -> Result<Self> {
        let wallet = Wallet { folder: folder.join("payer"), key: PrivateKeySigner::random() };
        let purse = Usdc::from_units(PURSE)?;
        devnet.control().fund(wallet.address(), 0, purse).await?;
        let chain = devnet.chain().await?;
        let wish = Wish { model: model.to_owned(), length: Length::Seconds(SECONDS), most: purse };
        let opened = session::open(api, &wallet, devnet.book(), Some(&chain), &wish).await?;
        let mut payer = Self { wallet, record: opened.record, chain, before: Vec::new() };
        payer.before = payer.received(&opened.view).await?;
        Ok(payer)
    }

    /// The session's own client.
    pub(super) fn client(&self) -> Result<ApiClient> {
        ApiClient::new(&self.record.api, Some(self.record.token()?.to_owned()))
    }

    pub(super) async fn view(&self) -> Result<SessionView> {
        self.client()?.session(self.record.session).await
    }

    /// What each operator has received by now, as the pool on the chain says.
    async fn received(&self, view: &SessionView) -> Result<Vec<Usdcx>> {
        let head = self.chain.head().await?.number;
        let mut received = Vec::new();
        for part in view.stream.iter().flat_map(|stream| &stream.operators) {
            received.push(self.chain.received(self.record.terms.pool, part.operator, head).await?);
        }
        Ok(received)
    }

    /// Shows the stream until it has stopped.
    pub(super) async fn watch(&self, coalition: &CoalitionView, quiet: bool) -> Result<()> {
        let (begun, live) = (Instant::now(), stdout().is_terminal());
        let mut shown = Instant::now() - Duration::from_secs(1);
        loop {
            let view = self.view().await?;
            let stream = view.stream.as_ref().context("the chain does not answer")?;
            // A line that is drawn over itself, or where it cannot be, one each second.
            if !quiet && (live || shown.elapsed() >= Duration::from_secs(1) || stream.rate == FlowRate::ZERO) {
                let end = if live { "\r" } else { "\n" };
                print!("{}{end}", line(&view, coalition));
                stdout().flush().context("cannot print")?;
                shown = Instant::now();
            }
            if stream.rate == FlowRate::ZERO && stream.streamed > Usdcx::ZERO {
                break;
            }
            if begun.elapsed() > STILL {
                bail!("the stream did not stop within {} s of the last answer", STILL.as_secs());
            }
            sleep(LOOK).await;
        }
        if live && !quiet {
            println!();
        }
        Ok(())
    }

    /// Closes the session and reads back what it came to.
    pub(super) async fn close(mut self) -> Result<Closed> {
        let last = self.view().await?;
        let view = session::close(&mut self.record, &self.wallet.folder).await?;
        let received = self.received(&last).await?;
        let operators = last.stream.iter().flat_map(|stream| &stream.operators);
        let earned = operators.zip(received.iter().zip(&self.before)).map(|(part, (after, before))| {
            let earned = after.checked_sub(*before).unwrap_or_default();
            (part.operator.to_string(), earned)
        });
        let earned: Vec<(String, Usdcx)> = earned.collect();
        let purse = self.chain.usdc(self.wallet.address()).await?;
        Ok(Closed { view, earned, purse })
    }
}

/// A closed session.
pub(super) struct Closed {
    view: SessionView,
    /// Each operator and what reached it, by the pool's own books.
    earned: Vec<(String, Usdcx)>,
    /// What the payer has in the end.
    purse: Usdc,
}

impl Closed {
    /// Checks every figure against the chain's, then shows them.
    pub(super) fn show(&self, coalition: &CoalitionView, quiet: bool) -> Result<()> {
        let receipt = self.view.receipt.as_ref().context("the session was closed without a receipt")?;
        let sum = self.earned.iter().try_fold(Usdcx::ZERO, |sum, (_, earned)| sum.checked_add(*earned));
        let left =
            Usdc::from_units(PURSE)?.checked_sub(receipt.paid).and_then(|left| left.checked_add(receipt.refunded));
        if !receipt.adds_up() || sum != Some(receipt.streamed) || left != Some(self.purse) {
            bail!("the receipt is not what the chain says: {}", session::one_line(receipt));
        }
        if quiet {
            return Ok(());
        }
        println!("\nWhat it came to, read back from the chain");
        let mut table = Table::new(&["", ">USDC"]);
        table.row(["paid in by one voucher".to_owned(), receipt.paid.to_string()]);
        for (address, earned) in &self.earned {
            table.row([format!("streamed to {}", name(address, coalition)), earned.whole_usdc().to_string()]);
        }
        table.row(["refunded".to_owned(), receipt.refunded.to_string()]);
        print!("{table}");
        let seconds: u64 = receipt.stretches.iter().map(|stretch| stretch.to.saturating_sub(stretch.from)).sum();
        println!("{}", session::one_line(receipt));
        println!(
            "The stream ran {seconds} s in {} and stands still; {} transactions on the chain {}.",
            if receipt.stretches.len() == 1 {
                "one stretch".to_owned()
            } else {
                format!("{} stretches", receipt.stretches.len())
            },
            receipt.transactions.len(),
            receipt.network
        );
        Ok(())
    }

    pub(super) fn json(&self) -> Value {
        json!({ "session": self.view, "earned": self.earned })
    }
}

/// What each operator has earned so far.
fn line(view: &SessionView, coalition: &CoalitionView) -> String {
    let Some(stream) = &view.stream else { return String::new() };
    let parts: Vec<String> = stream
        .operators
        .iter()
        .map(|part| format!("{} {}", name(&part.operator.to_string(), coalition), part.received.whole_usdc()))
        .collect();
    let rate = Usdc::from_units(stream.rate.units_per_second().into()).unwrap_or_default();
    format!("earned so far: {} USDC; streaming {rate} USDC a second", parts.join(", "))
}

fn name(address: &str, coalition: &CoalitionView) -> String {
    let member = coalition.members.iter().find(|member| member.address.to_string() == address);
    member.map_or_else(|| address.to_owned(), |member| member.name.clone())
}
