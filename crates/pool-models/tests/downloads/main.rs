//! Downloads against a real HTTP server on this machine, which throttles, stalls, cuts, lies, redirects and changes its
//! files; and against kills, full disks and other processes.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod control;
mod fetch;
mod hosts;
mod kill;
mod models;
mod queue;
mod room;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod unhashed;

use std::{path::Path, sync::Arc, time::Duration};

use pool_models::{
    Budget, Cache, Download, DownloadOptions, DownloadState, DownloadStatus, Downloads, Manifest, Mirror, Model, Space,
    TensorError, TensorName, Wanted,
};
use server::Server;
use tokio::time::timeout;

/// Options that lose no time.
fn options() -> DownloadOptions {
    DownloadOptions {
        connections: 4,
        bandwidth: None,
        stall: Duration::from_millis(800),
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        budget: Budget::default(),
        paused: false,
    }
}

/// A disk that is never full.
fn plenty() -> Arc<dyn Space> {
    Arc::new(|_: &Path| Ok(u64::MAX / 4))
}

fn start(cache: &Cache) -> Downloads {
    Downloads::start(cache.clone(), options(), plenty()).unwrap()
}

fn mirrors(servers: &[&Server]) -> Vec<Mirror> {
    servers.iter().map(|server| Mirror::new(&server.url()).unwrap()).collect()
}

fn download(manifest: &Manifest, wanted: Wanted, servers: &[&Server]) -> Download {
    Download {
        manifest: Arc::new(manifest.clone()),
        signature: None,
        owner: None,
        wanted,
        mirrors: mirrors(servers),
        priority: 0,
    }
}

/// Downloads, and returns how it ended.
async fn fetch(cache: &Cache, manifest: &Manifest, wanted: Wanted, servers: &[&Server]) -> DownloadStatus {
    let downloads = start(cache);
    let id = downloads.add(download(manifest, wanted, servers)).await.unwrap();
    let ended = timeout(Duration::from_secs(60), downloads.ended(id)).await.expect("it ends within a minute").unwrap();
    downloads.stop().await;
    ended
}

/// As [`fetch`], where nothing can prevent it.
async fn fetched(cache: &Cache, manifest: &Manifest, wanted: Wanted, servers: &[&Server]) -> DownloadStatus {
    let ended = fetch(cache, manifest, wanted, servers).await;
    assert_eq!(ended.state, DownloadState::Done, "{ended}");
    assert_eq!(ended.done, ended.total, "done means all of it");
    ended
}

/// Waits until the list says something of the first download.
async fn until(downloads: &Downloads, what: &str, holds: impl Fn(&DownloadStatus) -> bool) -> DownloadStatus {
    let mut list = downloads.watch();
    let waited = timeout(Duration::from_secs(30), async {
        loop {
            if let Some(status) = list.borrow_and_update().downloads.iter().find(|status| holds(status)) {
                return status.clone();
            }
            list.changed().await.unwrap();
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} within 30 seconds, but the list is {:?}", list.borrow()))
}

/// Waits until more than so many bytes of the only model are on the disk to stay; how many are.
async fn until_kept(cache: &Cache, more_than: u64) -> u64 {
    let waited = timeout(Duration::from_secs(30), async {
        loop {
            match cache.list().unwrap().first() {
                Some(model) if model.cached.0 > more_than => return model.cached.0,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("more than {more_than} bytes within 30 seconds"))
}

/// Whether a part loads the tensor of that name.
fn loads(wanted: Wanted, name: TensorName) -> bool {
    match name {
        TensorName::TokenEmbedding => wanted.entry,
        TensorName::OutputNorm | TensorName::Output => wanted.exit,
        TensorName::RopeFrequencies => true,
        TensorName::Layer(layer, _) => wanted.layers.is_some_and(|layers| layers.contains(layer)),
    }
}

/// What was downloaded equals the original to the byte, and nothing else is there. Returns the bytes compared.
fn assert_same(original: &Model, cached: &Model, wanted: Wanted) -> u64 {
    assert_eq!(cached.id, original.id, "the same tensors in the same places are the same model");
    assert_eq!(cached.config, original.config);
    assert_eq!(cached.source.names(), original.source.names());
    let mut compared = 0;
    for name in original.source.names() {
        assert_eq!(cached.source.info(name), original.source.info(name));
        if loads(wanted, name) {
            let (ours, theirs) = (cached.source.bytes(name).unwrap(), original.source.bytes(name).unwrap());
            assert!(ours == theirs, "{name:?} differs from the original");
            compared += ours.len() as u64;
        } else {
            let error = cached.source.bytes(name).unwrap_err();
            assert!(matches!(error, TensorError::NotDownloaded(_)), "{name:?} was not asked for: {error}");
        }
    }
    assert_eq!(cached.source.bytes_read(), compared);
    compared
}
