//! Who wants to know when a run changes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::RunId;

/// One channel for each run that somebody follows. A channel without listeners is dropped at the next occasion.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    channels: Mutex<HashMap<RunId, watch::Sender<u64>>>,
}

impl Changes {
    /// From this many channels on, every new one is an occasion to drop those that nobody listens to.
    const TIDY_ABOVE: usize = 256;

    pub(crate) fn subscribe(&self, run: RunId) -> watch::Receiver<u64> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= Self::TIDY_ABOVE {
            channels.retain(|_, channel| channel.receiver_count() > 0);
        }
        channels.entry(run).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    pub(crate) fn tell(&self, run: RunId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&run) {
            if channel.receiver_count() == 0 {
                channels.remove(&run);
            } else {
                channel.send_modify(|count| *count += 1);
            }
        }
    }
}
