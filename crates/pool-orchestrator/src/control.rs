//! The control plane: who is connected, which coalition serves, and the relaying of signed link descriptions.
//!
//! `registry` decides and touches nothing; `actor` carries its decisions out; `socket` is one node's
//! WebSocket; `view` is what the outside may know, and `routes` and `metrics` show it.

mod actor;
mod metrics;
mod placing;
mod registry;
mod routes;
mod socket;
mod tap;
mod view;

pub(crate) use actor::unix_now;
pub use actor::{ControlPlane, ControlSettings};
pub use placing::{Offer, Serving, ServingError, ServingWishes};
pub use registry::{ConnectionId, Input, Output, Record, Registry, Timing};
pub use routes::router;
pub use tap::{ControlTap, Crossing};
pub use view::{CoalitionView, ConnectedNode, LinkView, MemberView, Stage};
