//! How the work of a download is ended, so that whoever ends it knows when it has: connections are dropped at once, but
//! a thread that reads or writes the disk comes to a stop only between two pieces.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cache::StopFlag;

/// What the owner of some work holds.
#[derive(Debug)]
pub(crate) struct Leash {
    held: Held,
    ended: watch::Receiver<()>,
}

/// What every part of the work holds for as long as it is under way.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    stop: StopFlag,
    /// Closed when the last part has dropped it.
    _alive: Arc<watch::Sender<()>>,
}

/// Work that was told to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended(Vec<watch::Receiver<()>>);

impl Leash {
    pub(crate) fn new() -> Self {
        let (alive, ended) = watch::channel(());
        Self { held: Held { stop: StopFlag::default(), _alive: Arc::new(alive) }, ended }
    }

    /// For a part of the work.
    pub(crate) fn hold(&self) -> Held {
        self.held.clone()
    }

    /// Tells the work to end. What was told before and goes on still is waited for too.
    pub(crate) fn end(self, before: &Ended) -> Ended {
        self.held.stop.stop();
        let going_on = before.0.iter().filter(|receiver| receiver.has_changed().is_ok());
        Ended(going_on.cloned().chain([self.ended]).collect())
    }
}

impl Held {
    pub(crate) fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }
}

impl Ended {
    /// Waits until nothing of the work goes on.
    pub(crate) async fn wait(self) {
        for mut receiver in self.0 {
            while receiver.changed().await.is_ok() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_has_ended_when_its_last_part_has() {
        let leash = Leash::new();
        let (first, second) = (leash.hold(), leash.hold());
        let ended = leash.end(&Ended::default());
        assert!(matches!(first.stop_flag().check(), Err(crate::CacheError::Stopped)));
        let goes_on = |ended: &Ended| timeout(Duration::from_millis(10), ended.clone().wait());
        assert!(goes_on(&ended).await.is_err());
        drop(first);
        let later = Leash::new().end(&ended);
        assert!(goes_on(&later).await.is_err(), "what was told to end earlier is waited for too");
        drop(second);
        assert!(goes_on(&later).await.is_ok());
        assert_eq!(Leash::new().end(&later).0.len(), 1, "what has ended is forgotten");
    }
}
