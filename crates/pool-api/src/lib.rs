//! What an owner's interface may ask of the node, and what it is told: declared once, here, and generated as TypeScript
//! (`bindings/owner.ts`).
//!
//! Served over HTTP on loopback only, to whoever knows the token that lies in the state folder, readable for its owner
//! alone ([`Access`]). A browser's page cannot use it: a request must show the token and name a loopback host, and no
//! answer allows another origin.
//!
//! | | |
//! |---|---|
//! | `GET /v1/owner/state` | [`OwnerState`] |
//! | `GET /v1/owner/decisions?last=50` | a list of [`PastDecision`], the newest first |
//! | `GET /v1/owner/downloads` | a [`DownloadsView`] |
//! | `POST /v1/owner/downloads/commands` | a [`DownloadCommand`]; answers with the [`DownloadsView`] that follows |
//! | `GET /v1/owner/models` | a list of [`ModelView`]: what is on the disk |
//! | `GET /v1/owner/earnings` | an [`EarningsView`] |
//! | `GET /v1/owner/shifts?last=50` | a list of [`ShiftView`], the newest first |
//! | `GET /v1/owner/wallet` | a [`WalletView`], asked of the chain at that moment |
//! | `GET /v1/owner/diagnostics` | the bundle, as JSON ([`Diagnostics`]) |
//! | `GET /v1/owner/settings` | the settings (`pool_policy::Settings`) |
//! | `PUT /v1/owner/settings` | checks and takes them; [`ErrorCode::Settings`] says what is wrong |
//! | `POST /v1/owner/commands` | an [`OwnerCommand`]; answers with the [`OwnerState`] that follows |
//! | `GET /v1/owner/events` | a WebSocket: [`OwnerEvent`]s, each kind once at first and then at its changes |
//!
//! ```
//! use pool_api::{OwnerCommand, Until};
//!
//! let pause = OwnerCommand::Pause { until: Until::For { seconds: 1800 } };
//! let json = r#"{"command":"pause","until":{"kind":"for","seconds":1800}}"#;
//! assert_eq!(serde_json::to_string(&pause)?, json);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod access;
mod diagnostics;
mod earnings;
mod server;
mod wire;

pub use access::{Access, AccessError};
pub use diagnostics::{Diagnostics, without_secrets};
pub use server::{Server, ServerError, Sources};
pub use wire::{
    CheckingView, DiskView, DownloadCommand, DownloadStage, DownloadView, DownloadsView, EarningsView, ErrorAnswer,
    ErrorCode, GivenBack, GpuState, ModelView, OwnerCommand, OwnerEvent, OwnerState, PastDecision, Period, ShiftStatus,
    ShiftView, Stage, StrandedView, UnavailableSensor, Until, WalletView, typescript,
};
