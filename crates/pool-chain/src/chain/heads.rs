//! News of blocks: by WebSocket where there is one, and by the clock in any case.

use std::time::Duration;

use alloy::{
    providers::{Provider, RootProvider, WsConnect},
    rpc::client::ClientBuilder,
    transports::TransportError,
};
use futures::StreamExt as _;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

/// How long to wait before a lost connection is tried again, first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection on which nothing was heard for so long is made anew: it may be dead without knowing.
const SILENCE: Duration = Duration::from_secs(120);

/// Owned by a chain's handles. Its one task listens to the node and counts blocks; it ends when this is dropped.
pub(super) struct Heads {
    count: watch::Receiver<u64>,
    _stop: DropGuard,
}

impl Heads {
    pub(super) fn listen(websocket: Option<String>, deadline: Duration) -> Self {
        let (sender, count) = watch::channel(0);
        let stop = CancellationToken::new();
        if let Some(url) = websocket {
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = stay_connected(&url, deadline, &sender) => {}
                }
            });
        }
        Self { count, _stop: stop.drop_guard() }
    }

    pub(super) fn subscribe(&self, poll: Duration) -> NewHeads {
        NewHeads { count: self.count.clone(), poll }
    }
}

async fn stay_connected(url: &str, deadline: Duration, count: &watch::Sender<u64>) {
    let mut wait = RETRY.0;
    loop {
        match timeout(deadline, connect(url)).await {
            Ok(Ok((provider, mut blocks))) => {
                // What happened while there was no connection is news too.
                count.send_modify(|count| *count += 1);
                while let Ok(Some(_)) = timeout(SILENCE, blocks.next()).await {
                    wait = RETRY.0;
                    count.send_modify(|count| *count += 1);
                }
                drop(provider);
                debug!("lost the connection that brings news of blocks");
            }
            // The error's own text may hold the node's address.
            _ => debug!("no connection for news of blocks yet"),
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

type Blocks = alloy::pubsub::SubscriptionStream<alloy::rpc::types::Header>;

async fn connect(url: &str) -> Result<(RootProvider, Blocks), TransportError> {
    // Connecting anew is ours, with its own bounds; the library's would go on for half a minute.
    let client = ClientBuilder::default().pubsub(WsConnect::new(url).with_max_retries(0)).await?;
    let provider = RootProvider::new(client);
    let blocks = provider.subscribe_blocks().await?.into_stream();
    Ok((provider, blocks))
}

/// Wakes whoever waits for new blocks. It may wake for nothing, and it never sleeps longer than the polling interval:
/// news are a hint to look, not the news itself.
#[derive(Clone, Debug)]
pub struct NewHeads {
    count: watch::Receiver<u64>,
    poll: Duration,
}

impl NewHeads {
    /// Returns when there is probably a new block.
    pub async fn changed(&mut self) {
        let news = async {
            if self.count.changed().await.is_err() {
                // Nobody brings news; the clock does.
                std::future::pending::<()>().await;
            }
        };
        let _ = timeout(self.poll, news).await;
    }
}
