//! Coalitions as pure functions of their inputs: who belongs to one ([`Roster`]), which layers each
//! member holds ([`placement`]), what its members vote on ([`proposal`]), what a session with it costs and when it streams ([`session`]),
//! how a member leaves ([`stand_down`]). No clock,
//! no randomness, no I/O.

pub mod placement;
pub mod proposal;
mod roster;
pub mod session;
pub mod stand_down;

pub use roster::{Roster, RosterError, RosterMember, RosterRole};
