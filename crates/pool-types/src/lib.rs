//! The words every ComputePool crate shares: identifiers, layer ranges, byte sizes, money, sampling
//! parameters and reason codes. No I/O and no async; everything here is plain data.
//!
//! ```
//! use pool_types::LayerRange;
//!
//! let parts = LayerRange::new(0, 32)?.split_evenly(3);
//! assert_eq!(parts.iter().map(|p| p.len()).sum::<u32>(), 32);
//! assert_eq!(parts[0].to_string(), "0-9");
//! # Ok::<(), pool_types::LayerRangeError>(())
//! ```
//!
//! ```
//! use pool_types::ByteSize;
//!
//! assert_eq!(ByteSize(3 << 20).to_string(), "3.0 MiB");
//! ```

mod activation;
mod bytes;
mod energy;
mod ids;
mod layers;
mod money;
mod reading;
mod reason;
mod sampling;
mod signature;

pub use activation::Activation;
pub use bytes::ByteSize;
pub use energy::{Energy, EnergyPrice};
pub use ids::{Attempt, CoalitionId, Epoch, ModelId, RequestId, SessionId};
pub use layers::{Holdings, LayerRange, LayerRangeError};
pub use money::{AmountError, FlowRate, Usdc, Usdcx};
pub use reading::Reading;
pub use reason::{Failure, ReasonCode};
pub use sampling::{FinishReason, Sampling, SamplingError, TokenChoice};
pub use signature::signer_of;
