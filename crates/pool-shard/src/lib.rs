//! The data-plane process. A node starts it, tells it over its standard input which layers to load and whom
//! to link with, and hears over its standard output what became of it; hidden states and tokens cross its own
//! WebRTC links. It holds model memory and a short-lived link key, nothing of value: killing it gives the
//! machine back.
//!
//! Three parts: [`schedule`] decides, purely, which step of which request comes next; [`worker`] is the engine
//! thread that computes and sends; [`service`] is the node's end of the pipe and the start of the links.

pub mod process;
pub mod schedule;
pub mod service;
pub mod worker;
