//! Sends what the ledger wants: one run for each change of a stream, one for each session's end.

use std::time::Duration;

use serde_json::json;
use tracing::{debug, warn};

use super::{Money, Session, ledger::Due};
use crate::control::unix_now;

/// Expiries need no more than this.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure to store an intent.
const AGAIN: Duration = Duration::from_millis(250);

/// Runs until the shutdown.
pub(super) async fn run(money: Money) {
    loop {
        let due = money.ledger().due(money.now(), unix_now());
        let mut failed = false;
        for due in due {
            match money.send(&due).await {
                Ok(()) => money.ledger().sent(&due),
                Err(error) => {
                    warn!(%error, "a session's change could not be stored; it is tried again");
                    failed = true;
                }
            }
        }
        let wait = if failed { AGAIN } else { money.until_due() };
        tokio::select! {
            () = money.0.wake.notified(), if !failed => {}
            () = tokio::time::sleep(wait) => {}
            () = money.0.shutdown.cancelled() => return,
        }
    }
}

impl Money {
    fn until_due(&self) -> Duration {
        let (at, now) = (self.ledger().wake_at(), self.now());
        at.map_or(LOOK, |at| Duration::from_millis(at.saturating_sub(now))).min(LOOK)
    }

    /// Stores the intent; the journal does the rest.
    async fn send(&self, due: &Due) -> Result<(), anyhow::Error> {
        match due {
            Due::Rate(id, vault, rate) => {
                let number = self.0.store.next_rate_number(*id).await?;
                let input = json!({ "session": id, "vault": vault, "rate": rate, "number": number });
                debug!(session = %id, %rate, number, "a stream is set");
                self.0.journal.start("session-rate", &format!("session/{id}/rate/{number}"), input).await?;
            }
            Due::Close(id, _, why) => {
                let session: Option<Session> = self.0.store.session(*id).await?;
                let Some(session) = session else { return Ok(()) };
                debug!(session = %id, why, "a session is closed");
                self.start_closing(&session).await?;
            }
        }
        Ok(())
    }
}
