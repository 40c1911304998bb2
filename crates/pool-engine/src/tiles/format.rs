//! The forms of a tile, one for each GGUF type (their blocks: `ggml-common.h` of llama.cpp).

use super::{STEP, TILE};

/// How a step's levels lie in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Levels {
    /// Signed bytes.
    Bytes,
    /// Nibbles, and this many higher bits (0, 1 or 2) apart.
    Nibbles(usize),
}

impl Levels {
    /// Bytes of one step: 16 columns of 16 rows.
    pub(super) const fn step_bytes(self) -> usize {
        match self {
            Levels::Bytes => STEP * TILE,
            Levels::Nibbles(high) => STEP * TILE / 2 + high * STEP * TILE / 8,
        }
    }
}

/// One row's block of a GGUF tensor, opened: `value = scale * level - min`.
pub(super) struct Block {
    /// Halves as in the file.
    pub(super) d: u16,
    pub(super) dmin: u16,
    /// Of each sub-block.
    pub(super) scales: [i8; 16],
    pub(super) mins: [u8; 16],
    pub(super) levels: [i8; 256],
}

impl Block {
    fn empty() -> Self {
        Self { d: 0, dmin: 0, scales: [1; 16], mins: [0; 16], levels: [0; 256] }
    }
}

/// A GGUF type in tiles.
pub(super) trait Format {
    /// Columns that share a header; the columns of a GGUF block.
    const UNIT: usize;
    /// Bytes of a GGUF block.
    const BLOCK_BYTES: usize;
    /// Columns that share a scale.
    const SUB: usize;
    const LEVELS: Levels;
    /// Bytes of the header: scales of a unit's 16 rows.
    const HEADER: usize;
    /// Whether a multiple of the activations' sum is subtracted.
    const MINS: bool;

    const UNIT_BYTES: usize = Self::HEADER + Self::UNIT / STEP * Self::LEVELS.step_bytes();

    fn open(block: &[u8]) -> Block;

    /// Writes row `row`'s part of a header.
    fn write_header(header: &mut [u8], row: usize, block: &Block);

    /// The header's halves as floats: d and, where there is one, dmin of the unit's 16 rows.
    fn unit_scales(header: &[u8]) -> UnitScales;

    /// Scales and mins of a sub-block's 16 rows.
    fn scales(header: &[u8], unit: &UnitScales, sub: usize) -> UnitScales;
}

/// Two numbers for each row of a tile.
pub(super) type UnitScales = ([f32; TILE], [f32; TILE]);

/// f16 bits to f32 without the hardware's conversion, which pulp's AVX2 level does not include: moves the bits
/// into place and corrects the exponent. Infinities and NaN do not occur (packing refuses them).
#[inline(always)]
fn half(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[inline(always)]
fn halves(header: &[u8], at: usize) -> [f32; TILE] {
    let bytes = header[at..at + 2 * TILE].as_chunks::<2>().0;
    let mut out = [0f32; TILE];
    for (out, bytes) in out.iter_mut().zip(bytes) {
        *out = half(u16::from_le_bytes(*bytes));
    }
    out
}

fn put_half(header: &mut [u8], at: usize, row: usize, bits: u16) {
    header[at + 2 * row..at + 2 * row + 2].copy_from_slice(&bits.to_le_bytes());
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Blocks of 32 signed bytes.
pub(super) struct Q8_0;

impl Format for Q8_0 {
    const UNIT: usize = 32;
    const BLOCK_BYTES: usize = 34;
    const SUB: usize = 32;
    const LEVELS: Levels = Levels::Bytes;
    const HEADER: usize = 32;
    const MINS: bool = false;

    fn open(bytes: &[u8]) -> Block {
        let mut block = Block { d: u16_at(bytes, 0), ..Block::empty() };
        block.levels.iter_mut().zip(&bytes[2..]).for_each(|(level, byte)| *level = *byte as i8);
        block
    }

    fn write_header(header: &mut [u8], row: usize, block: &Block) {
        put_half(header, 0, row, block.d);
    }

    #[inline(always)]
    fn unit_scales(header: &[u8]) -> UnitScales {
        (halves(header, 0), [0.0; TILE])
    }

    #[inline(always)]
    fn scales(_header: &[u8], unit: &UnitScales, _sub: usize) -> UnitScales {
        *unit
    }
}

/// Blocks of 32 nibbles around 8.
pub(super) struct Q4_0;

impl Format for Q4_0 {
    const UNIT: usize = 32;
    const BLOCK_BYTES: usize = 18;
    const SUB: usize = 32;
    const LEVELS: Levels = Levels::Nibbles(0);
    const HEADER: usize = 32;
    const MINS: bool = true;

    fn open(bytes: &[u8]) -> Block {
        let mut block = Block { d: u16_at(bytes, 0), ..Block::empty() };
        for (i, byte) in bytes[2..].iter().enumerate() {
            block.levels[i] = (byte & 15) as i8;
            block.levels[i + 16] = (byte >> 4) as i8;
        }
        block
    }

    fn write_header(header: &mut [u8], row: usize, block: &Block) {
        put_half(header, 0, row, block.d);
    }

    #[inline(always)]
    fn unit_scales(header: &[u8]) -> UnitScales {
        let scales = halves(header, 0);
        (scales, scales.map(|s| s * 8.0))
    }

    #[inline(always)]
    fn scales(_header: &[u8], unit: &UnitScales, _sub: usize) -> UnitScales {
        *unit
    }
}

/// The header of Q4_K and Q5_K: d, dmin, 8 x 16 scales, 8 x 16 mins.
const K_HEADER: usize = 4 * TILE + 16 * TILE;

fn write_k_header(header: &mut [u8], row: usize, block: &Block) {
    put_half(header, 0, row, block.d);
    put_half(header, 2 * TILE, row, block.dmin);
    for sub in 0..8 {
        header[4 * TILE + sub * TILE + row] = block.scales[sub] as u8;
        header[12 * TILE + sub * TILE + row] = block.mins[sub];
    }
}

#[inline(always)]
fn k_unit_scales(header: &[u8]) -> UnitScales {
    (halves(header, 0), halves(header, 2 * TILE))
}

#[inline(always)]
fn k_scales(header: &[u8], unit: &UnitScales, sub: usize) -> UnitScales {
    let (mut scales, mut mins) = *unit;
    for (scale, byte) in scales.iter_mut().zip(&header[4 * TILE + sub * TILE..][..TILE]) {
        *scale *= f32::from(*byte);
    }
    for (min, byte) in mins.iter_mut().zip(&header[12 * TILE + sub * TILE..][..TILE]) {
        *min *= f32::from(*byte);
    }
    (scales, mins)
}

/// d, dmin and the eight 6-bit scales and mins of a Q4_K or Q5_K block.
fn open_k(bytes: &[u8]) -> Block {
    let mut block = Block { d: u16_at(bytes, 0), dmin: u16_at(bytes, 2), ..Block::empty() };
    let packed = &bytes[4..16];
    for j in 0..4 {
        block.scales[j] = (packed[j] & 63) as i8;
        block.mins[j] = packed[j + 4] & 63;
        block.scales[j + 4] = ((packed[j + 8] & 15) | (packed[j] >> 6) << 4) as i8;
        block.mins[j + 4] = (packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4;
    }
    block
}

/// Super-blocks of 8 x 32 nibbles with 6-bit scales and mins.
pub(super) struct Q4K;

impl Format for Q4K {
    const UNIT: usize = 256;
    const BLOCK_BYTES: usize = 144;
    const SUB: usize = 32;
    const LEVELS: Levels = Levels::Nibbles(0);
    const HEADER: usize = K_HEADER;
    const MINS: bool = true;

    fn open(bytes: &[u8]) -> Block {
        let mut block = open_k(bytes);
        for (i, byte) in bytes[16..].iter().enumerate() {
            let at = i / 32 * 64 + i % 32;
            block.levels[at] = (byte & 15) as i8;
            block.levels[at + 32] = (byte >> 4) as i8;
        }
        block
    }

    fn write_header(header: &mut [u8], row: usize, block: &Block) {
        write_k_header(header, row, block);
    }

    #[inline(always)]
    fn unit_scales(header: &[u8]) -> UnitScales {
        k_unit_scales(header)
    }

    #[inline(always)]
    fn scales(header: &[u8], unit: &UnitScales, sub: usize) -> UnitScales {
        k_scales(header, unit, sub)
    }
}

/// As Q4_K with a fifth bit.
pub(super) struct Q5K;

impl Format for Q5K {
    const UNIT: usize = 256;
    const BLOCK_BYTES: usize = 176;
    const SUB: usize = 32;
    const LEVELS: Levels = Levels::Nibbles(1);
    const HEADER: usize = K_HEADER;
    const MINS: bool = true;

    fn open(bytes: &[u8]) -> Block {
        let mut block = open_k(bytes);
        let (high, low) = bytes[16..].split_at(32);
        for (i, byte) in low.iter().enumerate() {
            let (chunk, at) = (i / 32, i / 32 * 64 + i % 32);
            let high = high[i % 32] >> (2 * chunk);
            block.levels[at] = ((byte & 15) | (high & 1) << 4) as i8;
            block.levels[at + 32] = ((byte >> 4) | (high >> 1 & 1) << 4) as i8;
        }
        block
    }

    fn write_header(header: &mut [u8], row: usize, block: &Block) {
        write_k_header(header, row, block);
    }

    #[inline(always)]
    fn unit_scales(header: &[u8]) -> UnitScales {
        k_unit_scales(header)
    }

    #[inline(always)]
    fn scales(header: &[u8], unit: &UnitScales, sub: usize) -> UnitScales {
        k_scales(header, unit, sub)
    }
}

/// Super-blocks of 16 x 16 levels of 6 bits around 32, with 8-bit scales.
pub(super) struct Q6K;

impl Format for Q6K {
    const UNIT: usize = 256;
    const BLOCK_BYTES: usize = 210;
    const SUB: usize = 16;
    const LEVELS: Levels = Levels::Nibbles(2);
    const HEADER: usize = 2 * TILE + 16 * TILE;
    const MINS: bool = true;

    fn open(bytes: &[u8]) -> Block {
        let mut block = Block { d: u16_at(bytes, 208), ..Block::empty() };
        let (low, rest) = bytes.split_at(128);
        let (high, scales) = rest.split_at(64);
        block.scales.iter_mut().zip(scales).for_each(|(scale, byte)| *scale = *byte as i8);
        for half in 0..2 {
            for i in 0..32 {
                let (a, b, high) = (low[half * 64 + i], low[half * 64 + 32 + i], high[half * 32 + i]);
                let level = |nibble: u8, shift: u8| (nibble | (high >> shift & 3) << 4) as i8;
                let at = half * 128 + i;
                block.levels[at] = level(a & 15, 0);
                block.levels[at + 32] = level(b & 15, 2);
                block.levels[at + 64] = level(a >> 4, 4);
                block.levels[at + 96] = level(b >> 4, 6);
            }
        }
        block
    }

    fn write_header(header: &mut [u8], row: usize, block: &Block) {
        put_half(header, 0, row, block.d);
        for (sub, scale) in block.scales.iter().enumerate() {
            header[2 * TILE + sub * TILE + row] = *scale as u8;
        }
    }

    #[inline(always)]
    fn unit_scales(header: &[u8]) -> UnitScales {
        (halves(header, 0), [0.0; TILE])
    }

    #[inline(always)]
    fn scales(header: &[u8], unit: &UnitScales, sub: usize) -> UnitScales {
        let mut scales = unit.0;
        for (scale, byte) in scales.iter_mut().zip(&header[2 * TILE + sub * TILE..][..TILE]) {
            *scale *= f32::from(*byte as i8);
        }
        (scales, scales.map(|s| s * 32.0))
    }
}
