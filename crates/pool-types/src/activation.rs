use serde::{Deserialize, Serialize};

/// The element type of hidden states between shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// 32-bit float: parity tests.
    F32,
    /// 16-bit float: models whose activations stay inside its range.
    F16,
    /// bfloat16: models whose activations may not.
    Bf16,
}

impl Activation {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Activation::F32 => 4,
            Activation::F16 | Activation::Bf16 => 2,
        }
    }
}
