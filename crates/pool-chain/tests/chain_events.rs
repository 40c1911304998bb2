//! Events through everything that happens to a node: pauses, restarts, re-organisations. Whoever stores each update
//! with its cursor has at any time what a reader from the first block on would have.

use std::time::Duration;

use pool_chain::{
    Chain, calls,
    events::{Cursor, Event, FollowOptions, Following, Logged, Sessions, Update},
};
use pool_testkit::LocalChain;
use pool_types::{FlowRate, Usdc};
use tokio::time::timeout;

const EVERY_BLOCK: FollowOptions =
    FollowOptions { sessions: Sessions::All, confirmations: 0, blocks_at_once: 1_000, waiting: 16, idle_blocks: 1 };
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn rate(units: u64) -> FlowRate {
    FlowRate::from_units_per_second(units)
}

/// Someone who books events and stores the cursor with them, as text.
#[derive(Default)]
struct Books {
    events: Vec<Logged>,
    cursor: Option<String>,
    removals: usize,
}

impl Books {
    fn apply(&mut self, update: Update) {
        if let Some(from) = update.removed_from {
            self.events.retain(|logged| logged.block < from);
            self.removals += 1;
        }
        self.events.extend(update.events);
        self.cursor = Some(serde_json::to_string(&update.cursor).expect("a cursor has a text"));
    }

    fn cursor(&self) -> Cursor {
        self.cursor.as_ref().map_or(Cursor::at(0), |text| serde_json::from_str(text).expect("its text is a cursor"))
    }

    /// Books until the cursor is past `block`.
    async fn follow_until(&mut self, following: &mut Following, block: u64) -> anyhow::Result<()> {
        while self.cursor().next() <= block {
            let update = timeout(PATIENCE, following.next()).await?;
            self.apply(update.expect("a follower never gives up"));
        }
        Ok(())
    }

    fn rates(&self) -> Vec<u64> {
        let rate = |logged: &Logged| match logged.event {
            Event::VaultRate { rate, .. } => Some(rate.units_per_second()),
            _ => None,
        };
        self.events.iter().filter_map(rate).collect()
    }
}

/// What a reader finds who begins now.
async fn from_the_beginning(chain: &Chain, options: FollowOptions) -> anyhow::Result<Vec<Logged>> {
    let mut books = Books::default();
    let head = chain.head().await?.number;
    books.follow_until(&mut chain.follow(Cursor::at(0), options), head).await?;
    Ok(books.events)
}

fn assert_each_once(events: &[Logged]) {
    let places: Vec<(u64, u64)> = events.iter().map(|logged| (logged.block, logged.index)).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(places, sorted, "in the chain's order, and each once");
}

#[tokio::test]
async fn a_reader_catches_up_after_its_own_pause_and_the_nodes_restart() -> anyhow::Result<()> {
    let mut local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let orchestrator = local.accounts().orchestrator.clone();
    let chain = local.chain().clone();
    let mut books = Books::default();

    // Live.
    let mut following = chain.follow(books.cursor(), EVERY_BLOCK);
    let session = local.open_session(&coalition, 0, "1".parse()?, rate(100)).await?;
    books.follow_until(&mut following, session.receipt.block.number).await?;
    assert_eq!(books.rates(), [100]);
    assert!(
        books
            .events
            .iter()
            .any(|l| matches!(&l.event, Event::Activated { proposal, .. } if **proposal == coalition.proposal))
    );
    let opened = books.events.iter().find_map(|logged| match logged.event {
        Event::SessionOpened { vault, payer, amount, .. } => Some((vault, payer, amount)),
        _ => None,
    });
    assert_eq!(opened, Some((session.vault, session.terms.payer, "1".parse::<Usdc>()?)));

    // The reader is away; the world goes on; the node restarts; the reader comes back with its stored cursor.
    drop(following);
    local.send(&orchestrator, &calls::set_rate(session.vault, rate(200))).await?;
    let other = local.open_session(&coalition, 1, "2".parse()?, rate(300)).await?;
    local.control().mine(300).await?;
    local.devnet().restart().await?;
    let stop = local.send(&orchestrator, &calls::set_rate(session.vault, FlowRate::ZERO)).await?;
    let mut following = chain.follow(books.cursor(), EVERY_BLOCK);
    books.follow_until(&mut following, stop.block.number).await?;
    assert_eq!(books.rates(), [100, 200, 300, 0], "nothing was lost over the pause");

    // The node goes away under a reader that stays.
    local.devnet().stop().await?;
    let trouble = async {
        while following.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, trouble).await?;
    let said = following.trouble().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("cannot be reached") && !said.contains("127.0.0.1"), "{said}");
    local.devnet().restart().await?;
    let close = local.send(&orchestrator, &calls::close(other.vault)).await?;
    books.follow_until(&mut following, close.block.number).await?;
    assert_eq!(books.rates(), [100, 200, 300, 0, 0]);
    assert_eq!(following.trouble(), None);
    assert_each_once(&books.events);
    assert_eq!(books.removals, 0, "a restart takes nothing back");
    for blocks_at_once in [1_000, 7] {
        let again = from_the_beginning(&chain, FollowOptions { blocks_at_once, ..EVERY_BLOCK }).await?;
        assert_eq!(books.events, again, "{blocks_at_once} blocks at once");
    }
    Ok(())
}

#[tokio::test]
async fn three_blocks_are_taken_back_and_read_anew() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let orchestrator = &local.accounts().orchestrator;
    let chain = local.chain();
    let mut books = Books::default();
    let mut following = chain.follow(Cursor::at(0), EVERY_BLOCK);

    let session = local.open_session(&coalition, 0, "1".parse()?, FlowRate::ZERO).await?;
    // Three blocks: a start, a second session, a change. All three are lost.
    local.send(orchestrator, &calls::set_rate(session.vault, rate(100))).await?;
    let lost = local.open_session(&coalition, 1, "1".parse()?, rate(300)).await?;
    let change = local.send(orchestrator, &calls::set_rate(session.vault, rate(200))).await?;
    books.follow_until(&mut following, change.block.number).await?;
    assert_eq!(books.rates(), [100, 300, 200]);
    assert!(books.cursor().vaults().any(|vault| vault == lost.vault));

    local.control().reorganise(3, Vec::new()).await?;
    local.control().mine(1).await?;
    while books.removals == 0 {
        books.apply(timeout(PATIENCE, following.next()).await?.expect("a follower never gives up"));
    }
    let head = chain.head().await?.number;
    books.follow_until(&mut following, head).await?;
    assert_eq!(books.rates(), Vec::<u64>::new(), "what the chain took back is taken back");
    assert!(!books.cursor().vaults().any(|vault| vault == lost.vault), "the lost vault is not listened to");
    assert_eq!(chain.vault(session.vault).await?.rate, FlowRate::ZERO);

    // Life goes on, on the new chain.
    let again = local.send(orchestrator, &calls::set_rate(session.vault, rate(400))).await?;
    books.follow_until(&mut following, again.block.number).await?;
    assert_eq!(books.rates(), [400]);
    assert_each_once(&books.events);
    assert_eq!(books.events, from_the_beginning(chain, EVERY_BLOCK).await?);
    Ok(())
}

#[tokio::test]
async fn what_was_taken_back_while_the_reader_was_away_is_found_out() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(1).await?;
    let orchestrator = &local.accounts().orchestrator;
    let chain = local.chain();
    let session = local.open_session(&coalition, 0, "1".parse()?, FlowRate::ZERO).await?;
    let picture = local.control().snapshot().await?;
    let mut books = Books::default();
    for units in [100, 200, 300] {
        local.send(orchestrator, &calls::set_rate(session.vault, rate(units))).await?;
    }
    // Longer than the window of kept hashes.
    local.control().mine(400).await?;
    let head = chain.head().await?.number;
    books.follow_until(&mut chain.follow(Cursor::at(0), EVERY_BLOCK), head).await?;
    assert_eq!(books.rates(), [100, 200, 300]);

    // The chain is set back by hundreds of blocks and grows again, differently.
    local.control().revert(picture).await?;
    let only = local.send(orchestrator, &calls::set_rate(session.vault, rate(500))).await?;
    local.control().mine(2).await?;
    let mut following = chain.follow(books.cursor(), EVERY_BLOCK);
    let behind = async {
        while following.trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, behind).await?;
    let said = following.trouble().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("before block"), "a chain that is behind may be a node that lags: {said}");
    local.control().mine(500).await?;
    while books.removals == 0 {
        books.apply(timeout(PATIENCE, following.next()).await?.expect("a follower never gives up"));
    }
    books.follow_until(&mut following, only.block.number).await?;
    assert_eq!(books.rates(), [500]);
    assert_eq!(books.events, from_the_beginning(chain, EVERY_BLOCK).await?);
    Ok(())
}

#[tokio::test]
async fn unconfirmed_blocks_are_left_alone_and_strangers_contracts_are_nobody() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(1).await?;
    let session = local.open_session(&coalition, 0, "1".parse()?, rate(100)).await?;
    let chain = local.chain();
    let patient = FollowOptions { confirmations: 3, ..EVERY_BLOCK };
    let mut books = Books::default();
    let mut following = chain.follow(Cursor::at(0), patient);
    let opened = session.receipt.block.number;
    assert!(timeout(Duration::from_secs(1), books.follow_until(&mut following, opened)).await.is_err());
    assert_eq!(books.rates(), Vec::<u64>::new());
    local.control().mine(3).await?;
    books.follow_until(&mut following, opened).await?;
    assert_eq!(books.rates(), [100]);

    // Who listens to another orchestrator's sessions hears of the coalition, and nothing of these.
    let other = FollowOptions { sessions: Sessions::Of(local.accounts().stranger.address()), ..EVERY_BLOCK };
    let heard = from_the_beginning(chain, other).await?;
    assert!(heard.iter().any(|logged| matches!(logged.event, Event::Activated { .. })));
    let of_sessions = |logged: &&Logged| {
        matches!(logged.event, Event::SessionOpened { .. } | Event::VaultRate { .. } | Event::VaultDeployed { .. })
    };
    assert_eq!(heard.iter().find(of_sessions), None);
    let nobodys = FollowOptions { sessions: Sessions::Nobodys, ..EVERY_BLOCK };
    let heard = from_the_beginning(chain, nobodys).await?;
    assert_eq!(heard.iter().find(of_sessions), None);
    assert!(heard.iter().any(|logged| matches!(logged.event, Event::Flow { .. })), "what flows into pools is heard");
    let ours = FollowOptions { sessions: Sessions::Of(session.terms.orchestrator), ..EVERY_BLOCK };
    assert_eq!(from_the_beginning(chain, ours).await?, from_the_beginning(chain, EVERY_BLOCK).await?);

    // A contract that says `Closed(address)` of itself is no vault of ours: LOG2 of the event's name and an address.
    let topic = <pool_chain::contracts::ISessionVault::Closed as alloy_sol_types::SolEvent>::SIGNATURE_HASH;
    let code = [&[0x33, 0x7f][..], topic.as_slice(), &[0x5f, 0x5f, 0xa2]].concat();
    let liar = alloy_primitives::Address::repeat_byte(0x99);
    local.control().set_code(liar, &code.into()).await?;
    let told = local.send(&local.accounts().stranger, &calls::stop(liar)).await?;
    local.control().mine(3).await?;
    books.follow_until(&mut following, told.block.number).await?;
    assert!(!books.events.iter().any(|logged| matches!(logged.event, Event::VaultClosed { .. })));
    Ok(())
}
