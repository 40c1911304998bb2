//! Rotary position embedding (arXiv 2104.09864): each pair of a head's elements is turned by the
//! row's position times the pair's frequency.

use candle_core::{Result, Tensor};
use pool_models::{RopeLayout, RopeScaling};

use crate::{ops, threads::Crew};

/// The frequencies of one model.
pub(crate) struct Rotary {
    /// Radians per position of each pair, `[head_dim / 2]`.
    frequencies: Vec<f32>,
    layout: RopeLayout,
}

/// Cosines and sines of a batch's rows, `[rows, head_dim / 2]` each: computed once, used by every layer.
pub(crate) struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// `factors` are the file's frequency divisors, `[head_dim / 2]`, for [`RopeScaling::Tensor`].
    pub(crate) fn new(head_dim: usize, rope: &pool_models::Rope, factors: Option<&[f32]>) -> Self {
        let half = head_dim / 2;
        let frequencies = (0..half)
            .map(|i| {
                let frequency = rope.theta.powf(-2.0 * i as f64 / head_dim as f64);
                (match rope.scaling {
                    RopeScaling::None => frequency,
                    RopeScaling::Linear { factor } => frequency / factor,
                    RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                        llama3(frequency, factor, low_frequency_factor, high_frequency_factor, original_positions)
                    }
                    RopeScaling::Tensor => frequency / factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f)),
                }) as f32
            })
            .collect();
        Self { frequencies, layout: rope.layout }
    }

    /// What each row, at its position, is turned by.
    pub(crate) fn turns(&self, positions: impl Iterator<Item = usize>) -> Turns {
        // The angle is rounded to f32 before cosine and sine, as the reference implementations do.
        let angles = positions.flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos(), a.sin())).unzip();
        Turns { cos, sin }
    }

    /// Turns every head of `x` in place: `[rows, heads * head_dim]`.
    pub(crate) fn apply(&self, crew: Crew, x: &Tensor, width: usize, turns: &Turns) -> Result<()> {
        let half = self.frequencies.len();
        let interleaved = self.layout == RopeLayout::Interleaved;
        ops::for_rows(
            crew,
            x,
            width,
            #[inline(always)]
            |row, elements| {
                let (cos, sin) = (&turns.cos[row * half..][..half], &turns.sin[row * half..][..half]);
                for head in elements.chunks_exact_mut(2 * half) {
                    if interleaved {
                        turn_interleaved(head, cos, sin);
                    } else {
                        turn_halves(head, cos, sin);
                    }
                }
            },
        )
    }
}

#[inline(always)]
fn turn_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        *pair = [pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c];
    }
}

#[inline(always)]
fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}

/// Llama 3.1's stretch: long wavelengths in full, short ones not at all, a ramp in between.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: usize) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    let original = original as f64;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use pool_models::Rope;

    use super::*;

    fn rope(layout: RopeLayout, scaling: RopeScaling) -> Rope {
        Rope { theta: 10_000.0, layout, scaling }
    }

    #[test]
    fn both_layouts_agree_with_candle_at_ragged_positions() {
        let (rows, heads, dim) = (5, 3, 8);
        let x = Tensor::arange(0f32, (rows * heads * dim) as f32, &Device::Cpu).unwrap();
        let x = (x * 0.01).unwrap().reshape((rows, heads * dim)).unwrap();
        let positions = [0usize, 7, 8, 100, 3];
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            let rotary = Rotary::new(dim, &rope(layout, RopeScaling::None), None);
            let turns = rotary.turns(positions.iter().copied());
            let ours = x.copy().unwrap();
            rotary.apply(Crew::new(1), &ours, heads * dim, &turns).unwrap();
            let cos = Tensor::from_vec(turns.cos, (rows, dim / 2), &Device::Cpu).unwrap();
            let sin = Tensor::from_vec(turns.sin, (rows, dim / 2), &Device::Cpu).unwrap();
            let by_head = x.reshape((1, rows, heads, dim)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
            let theirs = match layout {
                RopeLayout::HalfSplit => candle_nn::rotary_emb::rope(&by_head, &cos, &sin),
                RopeLayout::Interleaved => candle_nn::rotary_emb::rope_i(&by_head, &cos, &sin),
            };
            let theirs = theirs.unwrap().transpose(1, 2).unwrap().reshape((rows, heads * dim)).unwrap();
            let gap = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 1e-6, "{layout:?} differs by {gap}");
        }
    }

    #[test]
    fn scalings_stretch_what_they_should() {
        let plain = Rotary::new(64, &rope(RopeLayout::HalfSplit, RopeScaling::None), None).frequencies;
        let linear = Rotary::new(64, &rope(RopeLayout::HalfSplit, RopeScaling::Linear { factor: 4.0 }), None);
        assert!(plain.iter().zip(&linear.frequencies).all(|(p, l)| (p / l - 4.0).abs() < 1e-5));
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192,
        };
        let stretched = Rotary::new(64, &rope(RopeLayout::HalfSplit, scaling), None).frequencies;
        assert_eq!(stretched[0], plain[0], "the shortest wavelength is left alone");
        assert!((plain[31] / stretched[31] - 8.0).abs() < 1e-4, "the longest is stretched in full");
        assert!(plain.iter().zip(&stretched).all(|(p, s)| (1.0..=8.001).contains(&(p / s))));
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        let file = Rotary::new(64, &rope(RopeLayout::Interleaved, RopeScaling::Tensor), Some(&factors)).frequencies;
        assert!((plain[9] / file[9] - 10.0).abs() < 1e-4);
    }
}
