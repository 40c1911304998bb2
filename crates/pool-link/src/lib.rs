//! Links between members of a coalition: authenticated WebRTC data channels behind one [`Transport`]
//! trait, with an in-memory and a lossy variant for tests.
//!
//! A link has three [`Lane`]s. A message is 2 to [`MAX_MESSAGE`] bytes and means nothing to this crate:
//! frames are parsed elsewhere. Everything is bounded: what waits to be sent, what waits to be received,
//! and how long either may take.
//!
//! ```
//! use alloy_primitives::Address;
//! use bytes::Bytes;
//! use pool_link::{Lane, Transport, memory};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let (entry, exit) = memory::pair(Address::repeat_byte(1), Address::repeat_byte(2));
//! entry.send(Lane::Act, Bytes::from_static(b"hidden states")).await?;
//! assert_eq!(exit.receive().await?, (Lane::Act, Bytes::from_static(b"hidden states")));
//! # Ok::<(), pool_link::LinkError>(())
//! # }).unwrap();
//! ```
//!
//! A WebRTC link begins with an exchange of signed descriptions over a channel that nobody needs to trust:
//!
//! ```no_run
//! use pool_link::{Description, LinkIdentity, SignalError, VerifyContext};
//! use pool_link::webrtc::{LinkSettings, WebRtcLink};
//! # use alloy_primitives::Address;
//! # async fn relay(_: &Description) -> Description { unimplemented!() }
//! # async fn f(identity: &LinkIdentity, peer: Address, context: &VerifyContext) -> Result<(), Box<dyn std::error::Error>> {
//! let (pending, offer) = WebRtcLink::offer(identity, peer, context, LinkSettings::loopback()).await?;
//! let answer = relay(&offer).await;
//! let link = pending.accept(&answer, context.now + 1).await?;
//! # Ok(()) }
//! ```

mod identity;
mod signal;
mod stats;
mod transport;

pub mod lossy;
pub mod memory;
pub mod mesh;
pub mod turns;
pub mod webrtc;

pub use identity::{Delegation, LinkIdentity, LinkKey};
pub use signal::{
    Description, DescriptionRole, MAX_DELEGATION_LIFETIME, MAX_DESCRIPTION_LIFETIME, MAX_SDP, ReplayGuard, SignalError,
    VerifyContext, verify, verify_answer, verify_offer,
};
pub use stats::{LaneStats, LinkPath, LinkStats, RoundTrip};
pub use transport::{CloseReason, Lane, LinkError, MAX_MESSAGE, Transport};
