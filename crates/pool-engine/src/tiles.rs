//! Quantised matrices for x86-64 machines with AVX2: the file's levels and scales, re-ordered in tiles of
//! 16 rows so that one vector instruction works on a pair of columns of 8 rows. They take the room that
//! they take in the file, and there is no second copy.
//!
//! Activations are rounded to 16 bits (15 and a sign) with a scale for each 32 elements, so the products
//! are exact to about 1e-5 of a block's largest element: closer to the dequantised weights than the
//! 8-bit activations of ggml's and candle's kernels, and as fast, for `vpmaddwd` works on 16 bits anyway.
//!
//! A tile holds, for each run of columns (`Format::UNIT`), the run's scales and then the levels of each
//! 16 columns (a *step*): two columns of 16 rows after another, as bytes or as nibbles with the higher
//! bits apart.

mod format;
mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use pool_models::TensorType;
use pulp::x86::V3;

pub(crate) use kernel::Activations;

use crate::threads::Crew;

/// Rows in a tile.
const TILE: usize = 16;
/// Columns in a step.
const STEP: usize = 16;

/// A quantised matrix `[rows, columns]` in tiles.
pub(crate) struct Tiles {
    simd: V3,
    kind: TensorType,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

/// Runs `$body` with `$format` as the format of `$kind`; `$other` for kinds that have none.
macro_rules! with_format {
    ($kind:expr, $format:ident => $body:expr, else $other:expr) => {
        match $kind {
            TensorType::Q8_0 => {
                type $format = format::Q8_0;
                $body
            }
            TensorType::Q4_0 => {
                type $format = format::Q4_0;
                $body
            }
            TensorType::Q4K => {
                type $format = format::Q4K;
                $body
            }
            TensorType::Q5K => {
                type $format = format::Q5K;
                $body
            }
            TensorType::Q6K => {
                type $format = format::Q6K;
                $body
            }
            _ => $other,
        }
    };
}

impl Tiles {
    /// Takes in the blocks of a GGUF tensor. `None` where candle's own kernels serve: other types,
    /// shapes that are not whole tiles, machines without AVX2, and those whose wider instructions
    /// (AVX-VNNI, AVX-512 VNNI) candle has kernels for. Also for a scale that is not a number.
    pub(crate) fn pack(kind: TensorType, blocks: &[u8], rows: usize, columns: usize) -> Option<Self> {
        let simd = V3::try_new()?;
        let candle_is_faster = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
        if candle_is_faster && matches!(kind, TensorType::Q8_0 | TensorType::Q4K | TensorType::Q6K) {
            return None;
        }
        Self::pack_with(simd, kind, blocks, rows, columns)
    }

    fn pack_with(simd: V3, kind: TensorType, blocks: &[u8], rows: usize, columns: usize) -> Option<Self> {
        if !rows.is_multiple_of(TILE) {
            return None;
        }
        let bytes = with_format!(kind, F => pack::pack::<F>(blocks, rows, columns)?, else return None);
        Some(Self { simd, kind, rows, columns, bytes })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Row `row` as floats, appended to `out`.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut Vec<f32>) {
        let tile = &self.bytes[row / TILE * self.tile_bytes()..][..self.tile_bytes()];
        with_format!(self.kind, F => pack::unpack_row::<F>(tile, row % TILE, out), else ());
    }

    /// `x W^T` for the rows of `x`: `[x.rows, self.rows]`.
    pub(crate) fn multiply(&self, crew: Crew, x: &Activations) -> Vec<f32> {
        let mut out = vec![0f32; x.rows() * self.rows];
        if out.is_empty() {
            return out;
        }
        let tiles = self.rows / TILE;
        let threads = if self.bytes.len() * x.rows() < 256 * 1024 { 1 } else { crew.threads().min(tiles) };
        if threads == 1 {
            self.run(x, 0, &mut out);
            return out;
        }
        // Several parts a thread, so that one that is held up does not hold up all.
        let share = tiles.div_ceil(threads * 4);
        if x.rows() == 1 {
            let parts = out.chunks_mut(share * TILE).enumerate().collect();
            crew.each(parts, |(i, part): (usize, &mut [f32])| self.run(x, i * share, part));
            return out;
        }
        let mut parts: Vec<(usize, Vec<f32>)> = (0..tiles)
            .step_by(share)
            .map(|first| (first, vec![0f32; x.rows() * share.min(tiles - first) * TILE]))
            .collect();
        crew.each(parts.iter_mut().collect(), |(first, part): &mut (usize, Vec<f32>)| self.run(x, *first, part));
        for (first, part) in &parts {
            let width = part.len() / x.rows();
            for (row, part) in part.chunks_exact(width).enumerate() {
                out[row * self.rows + first * TILE..][..width].copy_from_slice(part);
            }
        }
        out
    }

    /// The products with the tiles from `first` on: as many as fill `out`, `[x.rows, tiles * 16]`.
    fn run(&self, x: &Activations, first: usize, out: &mut [f32]) {
        let tile_bytes = self.tile_bytes();
        let tiles = &self.bytes[first * tile_bytes..][..out.len() / x.rows() / TILE * tile_bytes];
        with_format!(self.kind, F => kernel::run::<F>(self.simd, tiles, tile_bytes, x, out), else ());
    }

    fn tile_bytes(&self) -> usize {
        self.bytes.len() / (self.rows / TILE)
    }

    /// What [`multiply`](Self::multiply) takes, of the rows `x`.
    pub(crate) fn activations(&self, crew: Crew, x: &[f32]) -> Activations {
        Activations::new(crew, x, self.columns)
    }
}
