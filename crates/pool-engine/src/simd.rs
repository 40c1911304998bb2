//! Kernels over plain slices. They are written so that the compiler turns them into vector code, and
//! run through pulp, which picks the widest instruction set of the machine at run time.

use pulp::{Arch, NullaryFnOnce};

/// `vectorised!(expression)`: the expression compiled for this machine's vector instructions. What it calls must be
/// `#[inline(always)]`, as must the closure that the macro makes of it: only code inside the function
/// that pulp marks with the instruction set is compiled for it.
macro_rules! vectorised {
    ($kernel:expr) => {
        $crate::simd::run_vectorised(
            #[inline(always)]
            || $kernel,
        )
    };
}
pub(crate) use vectorised;

/// See [`vectorised!`].
#[inline]
pub(crate) fn run_vectorised<R>(kernel: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Kernel(kernel))
}

/// Calls a closure by reference: calling it by value would go through a function that is not inlined.
pub(crate) struct Kernel<K>(pub(crate) K);

impl<R, K: FnMut() -> R> NullaryFnOnce for Kernel<K> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

const LANES: usize = 16;

#[inline(always)]
fn fold(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of products of two slices of one length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_runs, a_rest) = a.as_chunks::<LANES>();
    let (b_runs, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_runs.iter().zip(b_runs) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    fold(lanes, |x, y| x + y) + rest
}

/// `acc += weight * row`.
#[inline(always)]
pub(crate) fn add_scaled(acc: &mut [f32], row: &[f32], weight: f32) {
    for (a, r) in acc.iter_mut().zip(row) {
        *a += weight * r;
    }
}

/// The largest value; negative infinity when empty.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (runs, rest) = values.as_chunks::<LANES>();
    for run in runs {
        for i in 0..LANES {
            lanes[i] = if run[i] > lanes[i] { run[i] } else { lanes[i] };
        }
    }
    rest.iter().fold(fold(lanes, f32::max), |a, &b| a.max(b))
}

/// Whether every value is a number: neither NaN nor infinite.
#[inline(always)]
pub(crate) fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.iter().fold(0u32, |bad, v| bad | u32::from(v.to_bits() & EXPONENT == EXPONENT)) == 0
}

/// `e^x` within 2 units in the last place; 0 below -87.3, and no more than `e^88` above.
/// (Cody-Waite reduction and the polynomial of Cephes' `expf`.)
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = clamped - power * LN2_HIGH - power * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let value = p * r * r + r + 1.0;
    // The low bits of `shifted` hold the integer power.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.3 { 0.0 } else { value * scale }
}

/// Replaces each value `v` with `e^(v - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_shifted(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (runs, rest) = values.as_chunks_mut::<LANES>();
    for run in runs {
        for i in 0..LANES {
            run[i] = exp(run[i] - shift);
            lanes[i] += run[i];
        }
    }
    let mut sum = 0.0;
    for v in rest {
        *v = exp(*v - shift);
        sum += *v;
    }
    fold(lanes, |x, y| x + y) + sum
}

/// Softmax in place.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) {
    let largest = max(scores);
    let sum = exp_shifted(scores, largest);
    let inverse = 1.0 / sum;
    scores.iter_mut().for_each(|s| *s *= inverse);
}

/// `out = row * weight / sqrt(mean(row^2) + epsilon)` (RMSNorm, arXiv 1910.07467). A row too large to be
/// squared becomes NaN, so that it is noticed at the end, instead of a row of zeros.
#[inline(always)]
pub(crate) fn rms_norm(out: &mut [f32], row: &[f32], weight: &[f32], epsilon: f32) {
    let squares = dot(row, row);
    let scale = if squares.is_finite() { 1.0 / (squares / row.len() as f32 + epsilon).sqrt() } else { f32::NAN };
    for ((o, x), w) in out.iter_mut().zip(row).zip(weight) {
        *o = x * scale * w;
    }
}

/// `gate = silu(gate) * up`.
#[inline(always)]
pub(crate) fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_last_place_over_its_range() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max(((got - want) / want).abs());
        }
        assert!(worst < 2.5e-7, "largest relative error {worst}");
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(1000.0).is_finite());
    }

    #[test]
    fn lanes_and_leftovers_are_both_counted() {
        for n in [0usize, 1, 15, 16, 17, 63] {
            let a: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| 1.0 - i as f32 * 0.25).collect();
            let want: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(x * y)).sum();
            let got = vectorised!(dot(&a, &b));
            assert!((f64::from(got) - want).abs() < 1e-3, "dot of {n}: {got} instead of {want}");
            let want = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(vectorised!(max(&a)), want);
        }
    }

    #[test]
    fn softmax_sums_to_one_and_masks_infinite_scores() {
        let mut scores = vec![1.0, f32::NEG_INFINITY, 3.0, -50.0];
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(scores[1], 0.0);
    }

    #[test]
    fn infinities_and_nan_are_found_anywhere() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 16, 20] {
                let mut values = vec![1.0; 21];
                assert!(vectorised!(all_finite(&values)));
                values[at] = bad;
                assert!(!vectorised!(all_finite(&values)), "{bad} at {at}");
            }
        }
    }
}
