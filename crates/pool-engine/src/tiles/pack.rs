//! Blocks of a file to tiles, and a tile's row back to floats.

use half::f16;

use super::{
    STEP, TILE,
    format::{Format, Levels},
};

/// The tiles of a tensor's blocks; `None` when the shape is not whole tiles or a scale is not finite.
pub(super) fn pack<F: Format>(blocks: &[u8], rows: usize, columns: usize) -> Option<Vec<u8>> {
    if columns == 0 || !columns.is_multiple_of(F::UNIT) || blocks.len() != rows * columns / F::UNIT * F::BLOCK_BYTES {
        return None;
    }
    let units = columns / F::UNIT;
    let step_bytes = F::LEVELS.step_bytes();
    let mut tiles = vec![0u8; rows / TILE * units * F::UNIT_BYTES];
    let rows_of_blocks = blocks.chunks_exact(units * F::BLOCK_BYTES);
    for (row, blocks) in rows_of_blocks.enumerate() {
        let tile = &mut tiles[row / TILE * units * F::UNIT_BYTES..][..units * F::UNIT_BYTES];
        for (block, unit) in blocks.chunks_exact(F::BLOCK_BYTES).zip(tile.chunks_exact_mut(F::UNIT_BYTES)) {
            let block = F::open(block);
            if !f16::from_bits(block.d).is_finite() || !f16::from_bits(block.dmin).is_finite() {
                return None;
            }
            let (header, levels) = unit.split_at_mut(F::HEADER);
            F::write_header(header, row % TILE, &block);
            for (column, level) in block.levels[..F::UNIT].iter().enumerate() {
                let step = &mut levels[column / STEP * step_bytes..][..step_bytes];
                put_level(F::LEVELS, step, row % TILE, column % STEP, *level);
            }
        }
    }
    Some(tiles)
}

/// Row `row` of a tile as floats.
pub(super) fn unpack_row<F: Format>(tile: &[u8], row: usize, out: &mut Vec<f32>) {
    let step_bytes = F::LEVELS.step_bytes();
    for unit in tile.chunks_exact(F::UNIT_BYTES) {
        let (header, levels) = unit.split_at(F::HEADER);
        let unit_scales = F::unit_scales(header);
        for sub in 0..F::UNIT / F::SUB {
            let (scales, mins) = F::scales(header, &unit_scales, sub);
            out.extend((sub * F::SUB..(sub + 1) * F::SUB).map(|column| {
                let step = &levels[column / STEP * step_bytes..][..step_bytes];
                scales[row] * f32::from(level(F::LEVELS, step, row, column % STEP)) - mins[row]
            }));
        }
    }
}

/// Where a step keeps the level of a row and column: `(byte, shift)` of the byte or nibble, and of the
/// higher bits.
///
/// Two columns of 8 rows fill a vector of sixteen 16-bit lanes, lane `2 * row + column % 2`. Bytes: one
/// such pair of columns after another, rows 0-7 and rows 8-15. Nibbles: lane by lane 4 pairs of columns
/// in 16 bits. Higher bits: lane by lane all 8 pairs, in 8 or 16 bits.
fn place(levels: Levels, row: usize, column: usize) -> ((usize, usize), (usize, usize)) {
    let (pair, lane, side) = (column / 2, row % 8 * 2 + column % 2, row / 8);
    match levels {
        Levels::Bytes => ((pair * 32 + side * 16 + lane, 0), (0, 0)),
        Levels::Nibbles(high) => {
            let (quad, nibble) = (pair / 4, pair % 4);
            let low = (quad * 64 + side * 32 + lane * 2 + nibble / 2, nibble % 2 * 4);
            let bit = pair * high;
            (low, (128 + (side * 16 + lane) * high + bit / 8, bit % 8))
        }
    }
}

fn put_level(levels: Levels, step: &mut [u8], row: usize, column: usize, level: i8) {
    let ((byte, shift), (high_byte, high_shift)) = place(levels, row, column);
    match levels {
        Levels::Bytes => step[byte] = level as u8,
        Levels::Nibbles(high) => {
            step[byte] |= (level as u8 & 15) << shift;
            if high > 0 {
                step[high_byte] |= (level as u8 >> 4) << high_shift;
            }
        }
    }
}

fn level(levels: Levels, step: &[u8], row: usize, column: usize) -> i8 {
    let ((byte, shift), (high_byte, high_shift)) = place(levels, row, column);
    match levels {
        Levels::Bytes => step[byte] as i8,
        Levels::Nibbles(0) => (step[byte] >> shift & 15) as i8,
        Levels::Nibbles(high) => {
            let above = step[high_byte] >> high_shift & ((1 << high) - 1);
            ((step[byte] >> shift & 15) | above << 4) as i8
        }
    }
}
