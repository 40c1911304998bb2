//! Hidden states on the wire: f32 in memory, little-endian f32, f16 or bf16 between shards.
//!
//! A value the wire type cannot hold (f16 ends at 65,504) is an **error**, never an infinity and never
//! clamped: the caller must choose a wider type. Values that are not finite are refused on arrival.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use pool_models::Activation;
use thiserror::Error;

use crate::simd;

/// Hidden states that cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HiddenError {
    /// A value is infinite, not a number, or too large for the wire type.
    #[error("a hidden state holds a value that {0:?} cannot carry")]
    NotFinite(Activation),
    /// The bytes are not whole rows.
    #[error("expected {expected} bytes of hidden states, got {got}")]
    Length {
        /// Bytes that the rows need.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

/// Bytes of one element.
pub(crate) const fn element_bytes(dtype: Activation) -> usize {
    match dtype {
        Activation::F32 => 4,
        Activation::F16 | Activation::Bf16 => 2,
    }
}

/// Bytes of `elements` hidden-state elements on the wire.
pub const fn hidden_bytes(elements: usize, dtype: Activation) -> usize {
    elements * element_bytes(dtype)
}

/// The wire form of `values`.
pub fn encode_hidden(values: &[f32], dtype: Activation) -> Result<Vec<u8>, HiddenError> {
    let mut bytes = vec![0u8; hidden_bytes(values.len(), dtype)];
    let finite = match dtype {
        Activation::F32 => simd::vectorised!({
            bytes.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes());
            simd::all_finite(values)
        }),
        Activation::F16 => {
            let mut narrow = vec![f16::ZERO; values.len()];
            narrow.convert_from_f32_slice(values);
            write_halves(&mut bytes, narrow.reinterpret_cast(), 0x7c00)
        }
        Activation::Bf16 => {
            let mut narrow = vec![bf16::ZERO; values.len()];
            narrow.convert_from_f32_slice(values);
            write_halves(&mut bytes, narrow.reinterpret_cast(), 0x7f80)
        }
    };
    if finite { Ok(bytes) } else { Err(HiddenError::NotFinite(dtype)) }
}

/// Appends the `elements` values of `bytes` to `out`.
pub fn decode_hidden(bytes: &[u8], elements: usize, dtype: Activation, out: &mut Vec<f32>) -> Result<(), HiddenError> {
    let expected = hidden_bytes(elements, dtype);
    if bytes.len() != expected {
        return Err(HiddenError::Length { expected, got: bytes.len() });
    }
    let start = out.len();
    out.resize(start + elements, 0.0);
    let values = &mut out[start..];
    match dtype {
        Activation::F32 => simd::vectorised!({
            values.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }),
        Activation::F16 => read_halves(bytes).reinterpret_cast_f16().convert_to_f32_slice(values),
        Activation::Bf16 => simd::vectorised!({
            values
                .iter_mut()
                .zip(bytes.as_chunks::<2>().0)
                .for_each(|(v, b)| *v = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
        }),
    }
    if simd::vectorised!(simd::all_finite(values)) {
        Ok(())
    } else {
        out.truncate(start);
        Err(HiddenError::NotFinite(dtype))
    }
}

/// Writes 16-bit values; false when one has all exponent bits set (infinite or not a number).
fn write_halves(bytes: &mut [u8], halves: &[u16], exponent: u16) -> bool {
    simd::vectorised!({
        let mut bad = 0u16;
        for (b, h) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *b = h.to_le_bytes();
            bad |= u16::from(h & exponent == exponent);
        }
        bad == 0
    })
}

fn read_halves(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

trait ReinterpretF16 {
    fn reinterpret_cast_f16(&self) -> &[f16];
}

impl ReinterpretF16 for Vec<u16> {
    fn reinterpret_cast_f16(&self) -> &[f16] {
        half::slice::HalfBitsSliceExt::reinterpret_cast(self.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(values: &[f32], dtype: Activation) -> Result<Vec<f32>, HiddenError> {
        let bytes = encode_hidden(values, dtype)?;
        assert_eq!(bytes.len(), hidden_bytes(values.len(), dtype));
        let mut back = vec![9.0];
        decode_hidden(&bytes, values.len(), dtype, &mut back)?;
        assert_eq!(back.remove(0), 9.0, "what was there stays");
        Ok(back)
    }

    #[test]
    fn values_survive_within_the_precision_of_each_type() {
        let values: Vec<f32> = (0..77).map(|i| (i as f32 - 38.0) * 1.37).collect();
        for (dtype, precision) in [(Activation::F32, 0.0), (Activation::F16, 1e-3), (Activation::Bf16, 8e-3)] {
            let back = round_trip(&values, dtype).unwrap();
            for (v, b) in values.iter().zip(&back) {
                assert!((v - b).abs() <= v.abs() * precision, "{v} became {b} in {dtype:?}");
            }
        }
    }

    #[test]
    fn f16_refuses_what_it_cannot_hold_and_bf16_carries_it() {
        assert_eq!(round_trip(&[1.0, 7e4], Activation::F16), Err(HiddenError::NotFinite(Activation::F16)));
        assert_eq!(round_trip(&[65504.0], Activation::F16).unwrap(), [65504.0]);
        assert!(round_trip(&[1.0, 7e4], Activation::Bf16).is_ok());
    }

    #[test]
    fn garbage_from_a_peer_is_refused() {
        let mut out = vec![];
        assert_eq!(
            decode_hidden(&[0; 7], 4, Activation::F16, &mut out),
            Err(HiddenError::Length { expected: 8, got: 7 })
        );
        for dtype in [Activation::F32, Activation::F16, Activation::Bf16] {
            let bytes = vec![0xff; hidden_bytes(3, dtype)];
            assert_eq!(decode_hidden(&bytes, 3, dtype, &mut out), Err(HiddenError::NotFinite(dtype)));
            assert!(encode_hidden(&[f32::NAN], dtype).is_err());
        }
        assert!(out.is_empty(), "nothing of a refused state is kept");
    }
}
