//! What ComputePool's processes say to each other: [`frame`]s of the data plane (between shards, and
//! between the gateway and the entry and exit shards) and [`control`] messages (node with orchestrator,
//! node with shard). Versioned, bounded before anything is allocated, no I/O.
//!
//! ```
//! use pool_types::{Activation, Epoch, RequestId};
//! use pool_wire::frame::{self, Frame, Hidden};
//!
//! let step = Hidden { request: RequestId(7), step: 0, position: 0, tokens: 2, hidden: 4, dtype: Activation::F16, sample: true, ..Hidden::default() };
//! let frames = step.frames(Epoch(1), &[0u8; 16]);
//! let message = frame::message(&frames);
//! let back: Vec<Frame> = frame::parse(message).collect::<Result<_, _>>()?;
//! assert_eq!(back, frames);
//! # Ok::<(), frame::FrameError>(())
//! ```
//!
//! ```
//! use pool_wire::control::{decode, encode, ToShard};
//!
//! let line = encode(&ToShard::Shutdown)?;
//! assert!(matches!(decode::<ToShard>(&line[4..])?, ToShard::Shutdown));
//! # Ok::<(), pool_wire::control::ControlError>(())
//! ```

mod assembly;
mod body;
pub mod control;
pub mod frame;

pub use assembly::{Assembled, Assembler, AssemblyError};
pub use body::{BodyError, Prompt, Token};
