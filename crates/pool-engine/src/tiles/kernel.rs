//! The products of tiles with rows of activations.

use std::array::from_fn;

use pulp::{cast, i16x16, i32x8, x86::V3};

use super::{
    STEP, TILE,
    format::{Format, Levels},
};
use crate::{simd, threads::Crew};

/// Columns that share an activation scale.
const RUN: usize = 32;
/// Rows of activations worked on together: as many as there are registers for. Nibbles need some for themselves.
const fn together(levels: Levels) -> usize {
    match levels {
        Levels::Bytes => 6,
        Levels::Nibbles(_) => 4,
    }
}
/// The largest rounded activation.
const LARGEST: f32 = 32767.0;

/// Rows of activations, rounded to 16 bits.
pub(crate) struct Activations {
    rows: usize,
    columns: usize,
    /// Two columns in one word, the first in the low half: `[rows, columns / 16, 8]`.
    pairs: Vec<[i32; STEP / 2]>,
    /// `[rows, columns / 32]`.
    scales: Vec<f32>,
    /// Sums of 16 columns, scaled: `[rows, columns / 16]`.
    sums: Vec<f32>,
}

impl Activations {
    /// Rounds `x`: `[rows, columns]`, columns a multiple of 32.
    pub(super) fn new(crew: Crew, x: &[f32], columns: usize) -> Self {
        let rows = x.len() / columns;
        let mut pairs = vec![[0i32; STEP / 2]; x.len() / STEP];
        let mut scales = vec![0f32; x.len() / RUN];
        let mut sums = vec![0f32; x.len() / STEP];
        // In runs of about a row for each thread; a single row is not worth sharing.
        let share = rows.div_ceil(crew.threads()).max(1) * columns;
        let parts = x
            .chunks(share)
            .zip(pairs.chunks_mut(share / STEP))
            .zip(scales.chunks_mut(share / RUN).zip(sums.chunks_mut(share / STEP)))
            .map(|((x, pairs), (scales, sums))| Part { x, pairs, scales, sums })
            .collect();
        crew.each(parts, |part: Part<'_>| {
            simd::vectorised!(round(part.x, part.pairs, part.scales, part.sums));
        });
        Self { rows, columns, pairs, scales, sums }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    fn row(&self, row: usize) -> Row<'_> {
        let (steps, runs) = (self.columns / STEP, self.columns / RUN);
        Row {
            pairs: &self.pairs[row * steps..(row + 1) * steps],
            scales: &self.scales[row * runs..(row + 1) * runs],
            sums: &self.sums[row * steps..(row + 1) * steps],
        }
    }
}

/// Rows to round, and where to.
struct Part<'a> {
    x: &'a [f32],
    pairs: &'a mut [[i32; STEP / 2]],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

#[derive(Clone, Copy)]
struct Row<'a> {
    pairs: &'a [[i32; STEP / 2]],
    scales: &'a [f32],
    sums: &'a [f32],
}

#[inline(always)]
fn round(x: &[f32], pairs: &mut [[i32; STEP / 2]], scales: &mut [f32], sums: &mut [f32]) {
    let runs = x.as_chunks::<RUN>().0.iter().zip(scales);
    for ((x, scale), (pairs, sums)) in runs.zip(pairs.chunks_exact_mut(2).zip(sums.chunks_exact_mut(2))) {
        let mut largest = 0f32;
        for v in x {
            largest = if v.abs() > largest { v.abs() } else { largest };
        }
        // What is not a number must not vanish in rounding.
        *scale = if simd::all_finite(x) { largest / LARGEST } else { f32::NAN };
        let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
        let mut rounded = [0i32; RUN];
        for (r, v) in rounded.iter_mut().zip(x) {
            // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
            let shifted = v * inverse + 12_582_912.0;
            *r = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000);
        }
        for half in 0..2 {
            let half_of = &rounded[half * STEP..(half + 1) * STEP];
            for (pair, two) in pairs[half].iter_mut().zip(half_of.as_chunks::<2>().0) {
                *pair = (two[0] & 0xffff) | two[1] << 16;
            }
            sums[half] = half_of.iter().fold(0i32, |sum, r| sum.wrapping_add(*r)) as f32 * *scale;
        }
    }
}

/// Products of the tiles in `tiles` with all rows of `x`, into `out`: `[x.rows, tiles * 16]`.
pub(super) fn run<F: Format>(v3: V3, tiles: &[u8], tile_bytes: usize, x: &Activations, out: &mut [f32]) {
    let width = out.len() / x.rows;
    // Evenly: 8 rows are 4 and 4, not 6 and 2.
    let share = x.rows.div_ceil(x.rows.div_ceil(together(F::LEVELS)));
    v3.vectorize(simd::Kernel(
        #[inline(always)]
        || {
            for (index, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
                let mut first = 0;
                while first < x.rows {
                    let rows = share.min(x.rows - first);
                    macro_rules! of_rows {
                        ($($m:literal)*) => {
                            match rows {
                                $($m if $m <= together(F::LEVELS) => {
                                    let rows: [Row<'_>; $m] = from_fn(|i| x.row(first + i));
                                    put(one_tile::<F, $m>(v3, tile, rows), first, index * TILE, width, out);
                                })*
                                _ => {}
                            }
                        };
                    }
                    of_rows!(1 2 3 4 5 6);
                    first += rows;
                }
            }
        },
    ));
}

#[inline(always)]
fn put<const M: usize>(results: [[f32; TILE]; M], first: usize, at: usize, width: usize, out: &mut [f32]) {
    for (i, result) in results.iter().enumerate() {
        out[(first + i) * width + at..][..TILE].copy_from_slice(result);
    }
}

/// One tile times `M` rows.
#[inline(always)]
fn one_tile<F: Format, const M: usize>(simd: V3, tile: &[u8], rows: [Row<'_>; M]) -> [[f32; TILE]; M] {
    let step_bytes = F::LEVELS.step_bytes();
    let steps = F::SUB / STEP;
    let mut totals = [[0f32; TILE]; M];
    for (index, unit) in tile.chunks_exact(F::UNIT_BYTES).enumerate() {
        let (header, levels) = unit.split_at(F::HEADER);
        let unit_scales = F::unit_scales(header);
        for sub in 0..F::UNIT / F::SUB {
            let first = (index * F::UNIT + sub * F::SUB) / STEP;
            let mut products: [[i32x8; 2]; M] = [[cast([0i32; 8]); 2]; M];
            for step in 0..steps {
                let levels = &levels[(sub * steps + step) * step_bytes..][..step_bytes];
                let pairs: [&[i32; STEP / 2]; M] = from_fn(|m| &rows[m].pairs[first + step]);
                match F::LEVELS {
                    Levels::Bytes => bytes_step(simd, levels, pairs, &mut products),
                    Levels::Nibbles(0) => nibbles_step::<0, M>(simd, levels, pairs, &mut products),
                    Levels::Nibbles(1) => nibbles_step::<1, M>(simd, levels, pairs, &mut products),
                    Levels::Nibbles(_) => nibbles_step::<2, M>(simd, levels, pairs, &mut products),
                }
            }
            let (scales, mins) = F::scales(header, &unit_scales, sub);
            for m in 0..M {
                let scale = rows[m].scales[first * STEP / RUN];
                let whole: [i32; TILE] = cast(products[m]);
                for lane in 0..TILE {
                    totals[m][lane] += whole[lane] as f32 * (scales[lane] * scale);
                }
                if F::MINS {
                    let sum: f32 = rows[m].sums[first..first + steps].iter().sum();
                    for lane in 0..TILE {
                        totals[m][lane] -= mins[lane] * sum;
                    }
                }
            }
        }
    }
    totals
}

/// `products += weights * pair`, for both halves of a tile: `weights` are two columns of 8 rows each.
#[inline(always)]
fn accumulate<const M: usize>(
    simd: V3,
    weights: [i16x16; 2],
    pairs: [&[i32; STEP / 2]; M],
    pair: usize,
    products: &mut [[i32x8; 2]; M],
) {
    for m in 0..M {
        let both: i16x16 = cast(simd.splat_i32x8(pairs[m][pair]));
        for side in 0..2 {
            let product = simd.multiply_wrapping_add_adjacent_i16x16(weights[side], both);
            products[m][side] = simd.wrapping_add_i32x8(products[m][side], product);
        }
    }
}

#[inline(always)]
fn bytes_step<const M: usize>(simd: V3, levels: &[u8], pairs: [&[i32; STEP / 2]; M], products: &mut [[i32x8; 2]; M]) {
    for (pair, columns) in levels.as_chunks::<32>().0.iter().enumerate() {
        let [first, second]: [[i8; 16]; 2] = cast(*columns);
        let first = cast(simd.avx2._mm256_cvtepi8_epi16(cast(first)));
        let second = cast(simd.avx2._mm256_cvtepi8_epi16(cast(second)));
        accumulate(simd, [first, second], pairs, pair, products);
    }
}

/// `HIGH` is how many bits stand apart from the nibbles.
#[inline(always)]
fn nibbles_step<const HIGH: usize, const M: usize>(
    simd: V3,
    levels: &[u8],
    pairs: [&[i32; STEP / 2]; M],
    products: &mut [[i32x8; 2]; M],
) {
    let (low, above) = levels.split_at(STEP * TILE / 2);
    // The higher bits of all 8 pairs, in 16-bit lanes.
    let above: [i16x16; 2] = match HIGH {
        1 => {
            let (sides, _) = above.as_chunks::<16>();
            let first = simd.avx2._mm256_cvtepu8_epi16(cast(sides[0]));
            [cast(first), cast(simd.avx2._mm256_cvtepu8_epi16(cast(sides[1])))]
        }
        2 => {
            let (sides, _) = above.as_chunks::<32>();
            [cast(sides[0]), cast(sides[1])]
        }
        _ => [cast([0i16; 16]); 2],
    };
    let (quads, _) = low.as_chunks::<64>();
    let first: [i16x16; 2] = cast(quads[0]);
    nibble_pair::<HIGH, 0, M>(simd, first, above, pairs, products);
    nibble_pair::<HIGH, 1, M>(simd, first, above, pairs, products);
    nibble_pair::<HIGH, 2, M>(simd, first, above, pairs, products);
    nibble_pair::<HIGH, 3, M>(simd, first, above, pairs, products);
    let second: [i16x16; 2] = cast(quads[1]);
    nibble_pair::<HIGH, 4, M>(simd, second, above, pairs, products);
    nibble_pair::<HIGH, 5, M>(simd, second, above, pairs, products);
    nibble_pair::<HIGH, 6, M>(simd, second, above, pairs, products);
    nibble_pair::<HIGH, 7, M>(simd, second, above, pairs, products);
}

/// The pair of columns `PAIR` of a step: `lanes` are the nibbles of its four pairs.
#[inline(always)]
fn nibble_pair<const HIGH: usize, const PAIR: usize, const M: usize>(
    simd: V3,
    lanes: [i16x16; 2],
    above: [i16x16; 2],
    pairs: [&[i32; STEP / 2]; M],
    products: &mut [[i32x8; 2]; M],
) {
    let first = nibble::<HIGH, PAIR>(simd, lanes[0], above[0]);
    let second = nibble::<HIGH, PAIR>(simd, lanes[1], above[1]);
    accumulate(simd, [first, second], pairs, PAIR, products);
}

#[inline(always)]
fn nibble<const HIGH: usize, const PAIR: usize>(simd: V3, lanes: i16x16, above: i16x16) -> i16x16 {
    let low = simd.and_i16x16(shifted_right(simd, lanes, PAIR % 4 * 4), simd.splat_i16x16(15));
    if HIGH == 0 {
        return low;
    }
    // Brought to bits 4 and up, wherever they stand.
    let at = PAIR * HIGH;
    let high = if at >= 4 { shifted_right(simd, above, at - 4) } else { shifted_left(simd, above, 4 - at) };
    simd.or_i16x16(low, simd.and_i16x16(high, simd.splat_i16x16(((1 << HIGH) - 1) << 4)))
}

#[inline(always)]
fn shifted_right(simd: V3, lanes: i16x16, by: usize) -> i16x16 {
    cast(simd.shr_u16x16(cast(lanes), cast([by as u64, 0])))
}

#[inline(always)]
fn shifted_left(simd: V3, lanes: i16x16, by: usize) -> i16x16 {
    cast(simd.shl_u16x16(cast(lanes), cast([by as u64, 0])))
}
