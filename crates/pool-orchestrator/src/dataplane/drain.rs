//! Ending an epoch after its last request.

use std::time::Duration;

use pool_types::Epoch;

use super::{DataPlane, DataPlaneEvent};

/// How often it is looked whether the last request has ended.
const LOOK: Duration = Duration::from_millis(20);

impl DataPlane {
    /// Begins nothing new in this epoch; what waits is turned away, what runs goes on.
    /// [`DataPlaneEvent::Drained`] follows when the last of it has ended, unless the epoch ends first.
    pub fn drain(&self, epoch: Epoch) {
        {
            let mut state = self.state();
            let Some(term) = state.term.as_mut().filter(|term| term.assignment.epoch == epoch) else { return };
            if std::mem::replace(&mut term.draining, true) {
                return;
            }
            // Dropping a grant tells whoever waits for it that no coalition serves.
            term.waiting.clear();
            let model = term.model.clone();
            if let Some(served) = state.models.get_mut(&model) {
                served.active = false;
            }
        }
        let plane = self.clone();
        tokio::spawn(async move {
            loop {
                match plane.runs(epoch) {
                    None => return,
                    Some(0) => return plane.tell(DataPlaneEvent::Drained { epoch }).await,
                    Some(_) => tokio::time::sleep(LOOK).await,
                }
            }
        });
    }

    /// How many requests of this epoch run, or `None` when it has ended.
    fn runs(&self, epoch: Epoch) -> Option<usize> {
        let state = self.state();
        let term = state.term.as_ref().filter(|term| term.assignment.epoch == epoch)?;
        Some(term.live.len())
    }
}
