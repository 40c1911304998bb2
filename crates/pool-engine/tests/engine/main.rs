//! The engine on small models of random weights: against a reference written from the definitions,
//! against itself in other splits, batches and chunks, and against bad input.

mod batches;
mod budget;
mod model;
mod quantised;
mod reference;
mod refusals;
mod sampling;
mod splits;
mod synthetic;
