//! What the parity tests share: fixtures made by `transformers`, weights from a seed, checkpoints on disk, and a
//! pipeline of engines that hand hidden states to each other in one process.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

pub(crate) mod checkpoint;
pub(crate) mod deviation;
pub(crate) mod fixture;
pub(crate) mod pipeline;
pub(crate) mod ragged;
pub(crate) mod weights;
