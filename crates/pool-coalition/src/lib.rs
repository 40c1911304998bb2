//! Coalitions as pure functions of their inputs: who belongs to one ([`Roster`]) and which layers each
//! member holds ([`placement`]). No clock, no randomness, no I/O.

pub mod placement;
mod roster;

pub use roster::{Roster, RosterError, RosterMember, RosterRole};
