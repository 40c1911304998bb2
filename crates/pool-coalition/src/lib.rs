//! Coalitions as pure functions of their inputs: who belongs to one ([`Roster`]), which layers each
//! member holds ([`placement`]), what a session with it costs and when it streams ([`session`]). No clock,
//! no randomness, no I/O.

pub mod placement;
mod roster;
pub mod session;

pub use roster::{Roster, RosterError, RosterMember, RosterRole};
