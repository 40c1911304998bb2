//! The gateway as clients meet it: over TCP, with a scripted coalition behind it and a real tokenizer between.

#![allow(clippy::unwrap_used, reason = "tests")]

mod answers;
mod client;
mod logs;
mod model;
mod payments;
mod refusals;
mod schema;
mod script;
mod streams;
