//! The journal's outbox on a real chain: every transaction happens once, whatever the fees do.

use std::{sync::Arc, time::Duration};

use pool_chain::{Chain, LocalTransactionSigner, calls};
use pool_journal::{
    BlockRef, BroadcastError, ChainAccess, ChainPort, CountAt, Graphs, Intent, Journal, OutboxSettings, Outcome,
    Runner, RunnerSetup, SystemClock, TransactionSigner, UnsignedTransaction,
};
use pool_store::Store;
use pool_testkit::LocalChain;
use pool_types::{FlowRate, Usdc};

const LANES: usize = 5;
const EACH: usize = 10;

async fn journal(folder: &std::path::Path) -> anyhow::Result<Journal> {
    let store = Store::open(folder.join("state.db")).await?;
    Ok(Journal::open(&store, Graphs::new([])?, Arc::new(SystemClock)).await?)
}

fn access(local: &LocalChain, chain: &Chain) -> ChainAccess {
    let key = local.accounts().orchestrator.clone();
    let signer: Arc<dyn TransactionSigner> = Arc::new(LocalTransactionSigner::new(key, local.book().chain_id));
    let settings = OutboxSettings {
        bump_after: Duration::from_millis(1_200),
        rebroadcast_after: Duration::from_millis(700),
        look_after: Duration::from_millis(200),
        ..OutboxSettings::default()
    };
    ChainAccess { port: Arc::new(chain.clone()), signers: vec![signer], settings }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_transactions_over_five_lanes_happen_once_each_through_a_rise_of_fees() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let mut vaults = Vec::new();
    for payer in [0, 1, 2, 3, 0] {
        vaults.push(local.open_session(&coalition, payer, "2".parse()?, FlowRate::ZERO).await?);
    }
    let folder = tempfile::tempdir()?;
    let journal = journal(folder.path()).await?;
    let signer = local.accounts().orchestrator.address();
    let before = local.chain().transaction_count(signer, CountAt::Latest).await?;

    // Nothing is mined for now, and the price of gas rises above what was offered.
    local.control().automine(false).await?;
    let setup = RunnerSetup { chains: vec![access(&local, local.chain())], ..RunnerSetup::default() };
    let runner = Runner::start(&journal, setup).await?;
    let mut keys = Vec::new();
    for number in 0..EACH {
        for (lane, session) in vaults.iter().enumerate() {
            // Rates go up and down; the last of each lane is the lane's number.
            let units = if number + 1 == EACH { lane as u64 + 1 } else { 100 + number as u64 };
            let call = calls::set_rate(session.vault, FlowRate::from_units_per_second(units));
            let key = format!("test/{lane}/{number}");
            let intent = Intent {
                key: key.clone(),
                chain: local.book().chain_id,
                signer,
                lane: format!("vault/{}", session.vault),
                supersedable: false,
                to: call.to,
                value: Default::default(),
                data: call.data,
                gas_limit: call.gas_limit,
                deadline: None,
            };
            journal.submit(intent).await?;
            keys.push(key);
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let fees = local.chain().fees().await?;
    local.control().next_base_fee(fees.base_fee * 5).await?;
    // Long enough that the first is bid for again.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    local.control().mine(1).await?;
    local.control().automine(true).await?;
    local.control().mine(1).await?;
    local.control().block_time(1).await?;

    let deadline = journal.clock().now().after(Duration::from_secs(90));
    let mut bumped = 0;
    let mut nonces = Vec::new();
    for key in &keys {
        let view = journal.wait_transaction(key, deadline).await?.expect("it was submitted");
        assert!(matches!(view.outcome, Some(Outcome::Confirmed { .. })), "{key}: {view:?}");
        bumped += usize::from(view.variants.len() > 1);
        nonces.push(view.nonce.expect("it was signed"));
    }
    runner.stop().await?;
    nonces.sort_unstable();
    let expected: Vec<u64> = (before..before + (LANES * EACH) as u64).collect();
    assert_eq!(nonces, expected, "one nonce each, and none left over");
    assert!(bumped > 0, "the rise of fees made nobody bid again; the test shows nothing");
    println!("{bumped} of {} were bid for again", keys.len());
    for (lane, session) in vaults.iter().enumerate() {
        let vault = local.chain().vault(session.vault).await?;
        assert_eq!(vault.rate.units_per_second(), lane as u64 + 1, "the last of a lane is the last on the chain");
    }
    Ok(())
}

#[tokio::test]
async fn the_port_answers_as_the_outbox_expects() -> anyhow::Result<()> {
    let mut local = LocalChain::start().await?;
    let key = local.accounts().orchestrator.clone();
    let signer = LocalTransactionSigner::new(key.clone(), local.book().chain_id);
    let chain = local.chain().clone();
    let fees = chain.fees().await?;
    let count = chain.transaction_count(key.address(), CountAt::Latest).await?;
    let mint = calls::mint(local.book(), key.address(), Usdc::from_units(5)?);
    let unsigned = UnsignedTransaction {
        chain_id: local.book().chain_id,
        nonce: count,
        max_fee_per_gas: fees.base_fee * 2 + fees.priority_fee,
        max_priority_fee_per_gas: fees.priority_fee,
        gas_limit: mint.gas_limit,
        to: mint.to,
        value: Default::default(),
        data: mint.data.clone(),
    };

    local.control().automine(false).await?;
    let known: BlockRef = ChainPort::head(&chain).await?;
    let signed = signer.sign(&unsigned).await?;
    chain.broadcast(&signed.raw).await?;
    assert!(matches!(chain.broadcast(&signed.raw).await, Err(BroadcastError::AlreadyKnown)));
    assert_eq!(chain.receipt(signed.hash).await?, None, "no block holds it");
    assert_eq!(chain.transaction_count(key.address(), CountAt::Pending).await?, count + 1);
    assert_eq!(chain.transaction_count(key.address(), CountAt::Latest).await?, count);
    let other =
        signer.sign(&UnsignedTransaction { value: alloy_primitives::U256::from(1), ..unsigned.clone() }).await?;
    assert!(matches!(chain.broadcast(&other.raw).await, Err(BroadcastError::Underpriced)), "it does not outbid");
    let higher = UnsignedTransaction {
        max_fee_per_gas: unsigned.max_fee_per_gas * 2,
        max_priority_fee_per_gas: unsigned.max_priority_fee_per_gas * 2,
        ..unsigned.clone()
    };
    let higher = signer.sign(&higher).await?;
    chain.broadcast(&higher.raw).await?;

    let waiting = tokio::spawn({
        let chain = chain.clone();
        async move { chain.next_head(known).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = tokio::time::Instant::now();
    local.control().mine(1).await?;
    let head = waiting.await??;
    assert!(begun.elapsed() < Duration::from_millis(500), "news of a block come at once: {:?}", begun.elapsed());
    assert_ne!(head, known);
    let receipt = chain.receipt(higher.hash).await?.expect("the block holds it");
    assert!(receipt.succeeded && receipt.gas_price <= unsigned.max_fee_per_gas * 2);
    assert_eq!(receipt.block, head);
    assert_eq!(chain.receipt(signed.hash).await?, None, "its other variant was included");
    assert_eq!(chain.block_hash(head.number).await?, Some(head.hash));
    assert_eq!(chain.block_hash(head.number + 1).await?, None);
    assert_eq!(chain.transaction_count(key.address(), CountAt::Block(known.number)).await?, count);
    assert!(matches!(chain.broadcast(&signed.raw).await, Err(BroadcastError::NonceTooLow)));

    let greedy = UnsignedTransaction { nonce: count + 1, gas_limit: 1 << 40, ..unsigned.clone() };
    let greedy = signer.sign(&greedy).await?;
    let refused = chain.broadcast(&greedy.raw).await.expect_err("no block has so much gas");
    assert!(matches!(refused, BroadcastError::Refused(_) | BroadcastError::InsufficientFunds), "{refused:?}");
    let poor = LocalTransactionSigner::new(local.accounts().operators[19].clone(), local.book().chain_id);
    let poor = poor.sign(&UnsignedTransaction { nonce: 0, ..unsigned }).await?;
    assert!(matches!(chain.broadcast(&poor.raw).await, Err(BroadcastError::InsufficientFunds)));
    assert!(matches!(chain.broadcast(&vec![1, 2, 3].into()).await, Err(BroadcastError::Refused(_))));

    local.devnet().stop().await?;
    let gone = ChainPort::head(&chain).await.expect_err("the node is away").to_string();
    assert!(!gone.contains("127.0.0.1"), "a node's address can hold a key: {gone}");
    assert!(matches!(chain.broadcast(&signed.raw).await, Err(BroadcastError::Unreachable(_))));
    Ok(())
}
