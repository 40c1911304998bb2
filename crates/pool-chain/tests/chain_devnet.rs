//! The local chain itself: quick to start, gone with whoever started it, the same after a restart.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pool_chain::{
    AddressBook, Chain, ChainConfig, ChainError,
    devnet::{Devnet, DevnetOptions},
};
use pool_testkit::LocalChain;
use pool_types::Usdc;

const AS_PARENT: &str = "COMPUTEPOOL_TEST_DEVNET_PARENT";

fn runs(process: u32) -> bool {
    // A process that was killed and not yet reaped has no command line.
    std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn ends_within(process: u32, limit: Duration) -> bool {
    let begun = Instant::now();
    while runs(process) {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[tokio::test]
async fn a_cached_chain_is_ready_and_funded_in_about_a_second() -> anyhow::Result<()> {
    // The first makes the snapshot where there is none.
    drop(LocalChain::start().await?);
    let begun = Instant::now();
    let local = LocalChain::start().await?;
    let took = begun.elapsed();
    println!("started and funded in {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?} is not about a second, even on a busy machine");
    assert_eq!(local.chain().usdc(local.accounts().payers[3].address()).await?, "10000".parse::<Usdc>()?);
    let rules = local.chain().stream_rules().await?;
    assert_eq!(rules, local.book().stream_rules(), "governance says what the address book says");
    Ok(())
}

#[tokio::test]
async fn two_chains_do_not_meet_and_each_ends_with_its_value() -> anyhow::Result<()> {
    let one = Devnet::start(DevnetOptions::default()).await?;
    let other = Devnet::start(DevnetOptions::default()).await?;
    assert_ne!(one.http(), other.http());
    let account = alloy_primitives::Address::repeat_byte(0x12);
    one.control().fund(account, 7, "3".parse()?).await?;
    assert_eq!(one.chain().await?.usdc(account).await?, "3".parse()?);
    assert_eq!(one.chain().await?.native_balance(account).await?, 7);
    assert_eq!(other.chain().await?.usdc(account).await?, Usdc::ZERO);
    let process = one.process().expect("it runs");
    assert!(runs(process));
    drop(one);
    assert!(!runs(process), "when the value is gone its process is gone");
    Ok(())
}

#[tokio::test]
async fn a_chain_keeps_its_state_over_a_restart_and_its_own_file() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let options = DevnetOptions { state: Some(folder.path().join("chain.json")), ..DevnetOptions::default() };
    let account = alloy_primitives::Address::repeat_byte(0x12);
    let mut devnet = Devnet::start(options.clone()).await?;
    let chain = devnet.chain().await?;
    devnet.control().fund(account, 1, "3".parse()?).await?;
    devnet.control().advance(1_000).await?;
    let before = chain.head().await?;
    devnet.restart().await?;
    assert_eq!(chain.head().await?, before, "the same blocks, at the same address");
    assert_eq!(chain.usdc(account).await?, "3".parse()?);
    assert!(chain.time().await? >= before.timestamp, "its clock does not go back");
    devnet.stop().await?;
    assert_eq!(devnet.process(), None);
    drop(devnet);
    let again = Devnet::start(options).await?;
    assert_eq!(again.chain().await?.usdc(account).await?, "3".parse()?);
    Ok(())
}

#[tokio::test]
async fn time_and_blocks_obey() -> anyhow::Result<()> {
    let devnet = Devnet::start(DevnetOptions::default()).await?;
    let chain = devnet.chain().await?;
    let before = chain.time().await?;
    devnet.control().advance(3_600).await?;
    let after = chain.head().await?;
    assert!((before + 3_600..before + 3_620).contains(&after.timestamp));
    devnet.control().next_block_at(after.timestamp + 50).await?;
    devnet.control().mine(1).await?;
    assert_eq!(chain.head().await?.timestamp, after.timestamp + 50);
    let number = chain.head().await?.number;
    devnet.control().mine(5).await?;
    assert_eq!(chain.head().await?.number, number + 5);
    let picture = devnet.control().snapshot().await?;
    devnet.control().mine(5).await?;
    devnet.control().revert(picture).await?;
    assert_eq!(chain.head().await?.number, number + 5);
    Ok(())
}

#[tokio::test]
async fn a_node_of_another_chain_or_with_other_contracts_is_refused() -> anyhow::Result<()> {
    let devnet = Devnet::start(DevnetOptions::default()).await?;
    let with = async |change: fn(&mut AddressBook)| {
        let mut book = devnet.book().clone();
        change(&mut book);
        Chain::connect(devnet.chain_config(), book).await.expect_err("it is not this chain")
    };
    let other = with(|book| book.chain_id = 1).await;
    assert_eq!(other, ChainError::WrongChain { found: devnet.book().chain_id, wanted: 1 });
    let nothing_there =
        with(|book| book.contracts.coalition_registry = alloy_primitives::Address::repeat_byte(9)).await;
    assert!(nothing_there.to_string().contains("coalitionRegistry"), "{nothing_there}");
    let swapped = with(|book| std::mem::swap(&mut book.contracts.usdc, &mut book.contracts.gda)).await;
    assert!(matches!(swapped, ChainError::WrongContract { .. }));

    for (http, websocket) in [("ftp://x", None), ("nonsense", None), ("http://127.0.0.1:1", Some("http://127.0.0.1:1"))]
    {
        let config = ChainConfig { websocket: websocket.map(str::to_owned), ..ChainConfig::new(http) };
        let error = Chain::connect(config, devnet.book().clone()).await.expect_err("it is no address");
        assert!(matches!(error, ChainError::Address(_)), "{http}: {error}");
    }
    let nobody = ChainConfig::new("http://127.0.0.1:1/secret-key");
    let error = Chain::connect(nobody, devnet.book().clone()).await.expect_err("nobody listens");
    assert!(error.is_transient());
    assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_sentence() {
    let empty = tempfile::tempdir().expect("a folder");
    let elsewhere = DevnetOptions { repository: Some(empty.path().to_owned()), ..DevnetOptions::default() };
    let error = Devnet::start(elsewhere).await.expect_err("there is no checkout").to_string();
    assert!(error.contains("needs a checkout"), "{error}");
    let script = empty.path().join("contracts/deploy");
    std::fs::create_dir_all(&script).expect("a folder");
    std::fs::write(script.join("snapshot.mjs"), "").expect("a file");
    let bare = DevnetOptions { repository: Some(empty.path().to_owned()), ..DevnetOptions::default() };
    let error = Devnet::start(bare).await.expect_err("npm has not run").to_string();
    assert!(error.contains("run `npm ci`"), "{error}");
}

/// Not a test of its own: the parent that the next test kills.
#[tokio::test]
async fn a_parent_to_be_killed() -> anyhow::Result<()> {
    if std::env::var_os(AS_PARENT).is_none() {
        return Ok(());
    }
    let devnet = Devnet::start(DevnetOptions::default()).await?;
    println!("\nnode {}", devnet.process().expect("it runs"));
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

#[test]
fn a_parent_killed_outright_leaves_no_node() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let mut parent = Command::new(&program)
        .args(["--exact", "a_parent_to_be_killed", "--nocapture"])
        .env(AS_PARENT, "1")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = BufReader::new(parent.stdout.take().expect("it is piped"));
    let node = output.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("node ")?.parse::<u32>().ok());
    let Some(node) = node else {
        parent.kill()?;
        anyhow::bail!("the parent started no node");
    };
    assert!(runs(node));
    parent.kill()?;
    parent.wait()?;
    assert!(ends_within(node, Duration::from_secs(2)), "the node outlived its killed parent");
    Ok(())
}
