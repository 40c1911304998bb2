use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use super::*;

const KINDS: [(TensorType, GgmlDType); 5] = [
    (TensorType::Q8_0, GgmlDType::Q8_0),
    (TensorType::Q4_0, GgmlDType::Q4_0),
    (TensorType::Q4K, GgmlDType::Q4K),
    (TensorType::Q5K, GgmlDType::Q5K),
    (TensorType::Q6K, GgmlDType::Q6K),
];

/// A seeded stream of values in (-1, 1).
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn quantised(dtype: GgmlDType, rows: usize, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let weights = Tensor::from_vec(noise(7, rows * columns), (rows, columns), &Device::Cpu).unwrap();
    let blocks = QTensor::quantize(&weights, dtype).unwrap();
    let floats = blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (blocks.data().unwrap().to_vec(), floats)
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    let Some(simd) = V3::try_new() else { return };
    for (kind, dtype) in KINDS {
        for (rows, columns, m) in [(16, 256, 1), (48, 512, 2), (32, 768, 3), (64, 256, 4), (160, 512, 70)] {
            let (blocks, floats) = quantised(dtype, rows, columns);
            let tiles = Tiles::pack_with(simd, kind, &blocks, rows, columns).unwrap();
            // One activation far larger than the others, as models have them.
            let mut x = noise(3, m * columns);
            x[5] = 300.0;
            for threads in [1, 2] {
                let crew = Crew::new(threads);
                let got = tiles.multiply(crew, &tiles.activations(crew, &x));
                for (i, got) in got.iter().enumerate() {
                    let (x, w) = (&x[i / rows * columns..][..columns], &floats[i % rows * columns..][..columns]);
                    let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    // Each activation is off by at most half a step of its run of 32.
                    let size: f64 = x
                        .chunks(32)
                        .zip(w.chunks(32))
                        .map(|(x, w)| {
                            f64::from(
                                x.iter().fold(0f32, |m, x| m.max(x.abs())) * w.iter().map(|w| w.abs()).sum::<f32>(),
                            )
                        })
                        .sum();
                    assert!(
                        (f64::from(*got) - want).abs() < 2e-5 * size,
                        "{kind:?} {rows}x{columns}, {m} rows, {threads} threads: {got} instead of {want} at {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_come_back_as_the_file_has_them_and_memory_is_the_files() {
    let Some(simd) = V3::try_new() else { return };
    for (kind, dtype) in KINDS {
        let (rows, columns) = (32, 512);
        let (blocks, floats) = quantised(dtype, rows, columns);
        let tiles = Tiles::pack_with(simd, kind, &blocks, rows, columns).unwrap();
        let growth = tiles.bytes() as f64 / blocks.len() as f64;
        assert!((1.0..1.03).contains(&growth), "{kind:?} grows by {growth}: only unpacked 6-bit scales may be added");
        for row in 0..rows {
            let mut got = Vec::new();
            tiles.dequantise_row(row, &mut got);
            for (got, want) in got.iter().zip(&floats[row * columns..][..columns]) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{kind:?} row {row}: {got} for {want}");
            }
        }
    }
}

#[test]
fn broken_activations_and_scales_do_not_pass_unnoticed() {
    let Some(simd) = V3::try_new() else { return };
    let (mut blocks, _) = quantised(GgmlDType::Q8_0, 16, 64);
    let tiles = Tiles::pack_with(simd, TensorType::Q8_0, &blocks, 16, 64).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(1, 128);
        x[70] = bad;
        let got = tiles.multiply(Crew::new(1), &tiles.activations(Crew::new(1), &x));
        assert!(got[..16].iter().all(|v| v.is_finite()), "the other row is not touched");
        assert!(got[16..].iter().all(|v| !v.is_finite()), "{bad} is passed on");
    }
    blocks[0..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    assert!(Tiles::pack_with(simd, TensorType::Q8_0, &blocks, 16, 64).is_none());
    assert!(Tiles::pack_with(simd, TensorType::Q8_0, &blocks[1..], 16, 64).is_none(), "too few bytes");
    assert!(Tiles::pack_with(simd, TensorType::Q2K, &blocks, 16, 64).is_none(), "no tiles for this type");
}
