//! Ending an epoch after its last request.

use pool_types::Epoch;

use super::{DataPlane, DataPlaneEvent, Term};

impl DataPlane {
    /// Begins nothing new in this epoch; what waits is turned away, what runs goes on.
    /// [`DataPlaneEvent::Drained`] follows when the last of it has ended, unless the epoch ends first.
    pub fn drain(&self, epoch: Epoch) {
        let mut state = self.state();
        let Some(term) = state.term.as_mut().filter(|term| term.assignment.epoch == epoch) else { return };
        term.draining = true;
        // Dropping a grant tells whoever waits for it that no coalition serves.
        term.waiting.clear();
        term.settle(self);
        let model = term.model.clone();
        if let Some(served) = state.models.get_mut(&model) {
            served.active = false;
        }
    }
}

impl Term {
    /// Says so when an epoch that drains has nothing left to do. Saying it twice does no harm.
    pub(super) fn settle(&self, plane: &DataPlane) {
        if self.draining && self.live.is_empty() && self.retrying == 0 {
            // A full queue means a control plane that stands still; then the drain's own deadline ends it.
            let _ = plane.0.registry.try_send(DataPlaneEvent::Drained { epoch: self.assignment.epoch });
        }
    }
}
