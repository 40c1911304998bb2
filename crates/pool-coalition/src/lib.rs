//! Coalitions as pure functions of their inputs: who belongs to one ([`Roster`]), which layers each
//! member holds ([`placement`]), what its members vote on ([`proposal`]), what a session with it costs and when it streams ([`session`]). No clock,
//! no randomness, no I/O.

pub mod placement;
pub mod proposal;
mod roster;
pub mod session;

pub use roster::{Roster, RosterError, RosterMember, RosterRole};
