//! The engine on small models of random weights: against a reference written from the definitions,
//! against itself in other splits, batches and chunks, and against bad input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod batches;
mod budget;
mod canary;
mod model;
mod quantised;
mod reference;
mod refusals;
mod sampling;
mod splits;
mod synthetic;
