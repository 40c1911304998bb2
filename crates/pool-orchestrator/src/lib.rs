//! The orchestrator: registers nodes, forms coalitions, relays signalling and answers OpenAI clients.
//! It never sees a hidden state: the gateway's links carry prompts and tokens only.

mod completion;
pub mod control;
mod dataplane;
pub mod gateway;
mod money;
mod payment;
mod server;

pub use completion::{CancelGuard, Completion, Completions, ServedModel, StartError};
pub use dataplane::{DataPlane, DataPlaneCounters, DataPlaneEvent, DataPlaneSettings, Tap};
pub use money::routes::router as session_router;
pub use money::{Money, MoneyConfig, MoneyError, SessionReceipt};
pub use payment::{Fare, Payer, PaymentRefusal, Payments, Price};
pub use server::{Orchestrator, OrchestratorConfig, OrchestratorError, run};
