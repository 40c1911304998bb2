//! The journal on a real SQLite file, with real processes, against a simulated chain that judges strictly.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod chain;
mod chaos;
mod crash;
mod lanes;
mod log;
mod outbox;
mod workflows;
mod world;
