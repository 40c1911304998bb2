//! The data-plane process: engine and links.
pub mod schedule;
