//! Weights from a seed: the other side of `scripts/parity/weights.py`, where the formula is written down.

use half::{bf16, f16};

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The type a checkpoint keeps its weights in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    F32,
    F16,
    Bf16,
}

impl Storage {
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "f32" => Storage::F32,
            "f16" => Storage::F16,
            "bf16" => Storage::Bf16,
            other => panic!("a fixture names the storage type `{other}`"),
        }
    }

    /// The element in this type, little endian.
    fn append(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            Storage::F32 => bytes.extend(value.to_le_bytes()),
            Storage::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            Storage::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// SplitMix64's finaliser.
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// The 64-bit numbers of the stream called `name`.
pub(crate) fn stream(seed: u64, name: &str) -> impl Iterator<Item = u64> {
    let start = mix(seed.wrapping_add(fnv1a(name)));
    (1u64..).map(move |step| mix(start.wrapping_add(step.wrapping_mul(GOLDEN))))
}

/// Half the width and the middle of a tensor's uniform distribution.
fn spread_and_centre(name: &str, shape: &[usize]) -> (f64, f64) {
    if name.ends_with("norm.weight") {
        return (0.3, 1.0);
    }
    if name.ends_with(".bias") {
        return (0.3, 0.0);
    }
    let gain = if matches!(name, "model.embed_tokens.weight" | "lm_head.weight") { 3.0 } else { 1.5 };
    let columns = *shape.last().expect("a tensor has at least one dimension");
    (gain * (3.0 / columns as f64).sqrt(), 0.0)
}

/// The tensor's bytes in `storage`, row major, little endian.
pub(crate) fn tensor(seed: u64, name: &str, shape: &[usize], storage: Storage) -> Vec<u8> {
    let (spread, centre) = spread_and_centre(name, shape);
    let elements: usize = shape.iter().product();
    let mut bytes = Vec::with_capacity(elements * 4);
    for word in stream(seed, name).take(elements) {
        let bits = (word >> 40) as i64 - (1 << 23);
        let unit = bits as f64 / f64::from(1 << 23);
        storage.append((unit * spread + centre) as f32, &mut bytes);
    }
    bytes
}

/// Of f32 bits in order: the wrapping sum of `mix(bits + (i + 1) * GOLDEN)`.
pub(crate) fn checksum(values: &[f32]) -> String {
    let terms = (1u64..)
        .zip(values)
        .map(|(step, value)| mix(u64::from(value.to_bits()).wrapping_add(step.wrapping_mul(GOLDEN))));
    format!("{:016x}", terms.fold(0u64, u64::wrapping_add))
}
