//! A place from which a test sees everything that nodes and orchestrator say to each other.

use std::{fmt, sync::Arc};

use alloy_primitives::Address;

/// One control message on its way, as the text that crosses the WebSocket.
#[derive(Clone, Copy, Debug)]
pub struct Crossing<'a> {
    /// The node; unknown until it has registered.
    pub node: Option<Address>,
    /// Whether it came from the node.
    pub from_node: bool,
    /// The message.
    pub text: &'a str,
}

/// Called with every control message; off by default.
#[derive(Clone, Default)]
pub struct ControlTap(Option<Arc<Watcher>>);

type Watcher = dyn Fn(Crossing<'_>) + Send + Sync;

impl ControlTap {
    /// Calls `watcher` with every message. It must not block.
    pub fn new(watcher: impl Fn(Crossing<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watcher)))
    }

    pub(crate) fn show(&self, node: Option<Address>, from_node: bool, text: &str) {
        if let Some(watcher) = &self.0 {
            watcher(Crossing { node, from_node, text });
        }
    }
}

impl fmt::Debug for ControlTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ControlTap(on)" } else { "ControlTap(off)" })
    }
}
