//! The decoder's element-wise operations on tensors `[rows, width]` of f32.
//!
//! They run in place where the result takes an operand's place, and on the host: what another
//! device needs is the same handful of functions.

use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Result, Storage, Tensor, bail};

use crate::{simd, threads::Crew};

/// The elements of a contiguous f32 tensor on the host.
pub(crate) fn with_elements<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    if !tensor.is_contiguous() {
        bail!("expected a contiguous tensor, got {:?}", tensor.layout());
    }
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(read(elements(cpu, layout)?)),
        _ => bail!("expected a tensor on the host"),
    }
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(all)) => Ok(&mut all[start..end]),
        _ => bail!("expected a contiguous f32 tensor, got {layout:?}"),
    }
}

/// A root-mean-square norm over the last `weight.len()` elements.
pub(crate) struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl RmsNorm {
    pub(crate) fn new(weight: Vec<f32>, epsilon: f64) -> Self {
        Self { weight, epsilon: epsilon as f32 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.weight.len() * size_of::<f32>()) as u64
    }

    /// The norm of every row of `x`: `[rows, width]`.
    pub(crate) fn forward(&self, crew: Crew, x: &Tensor) -> Result<Tensor> {
        let width = self.weight.len();
        let mut out = vec![0f32; x.elem_count()];
        with_elements(x, |x| {
            crew.rows(&mut out, width, |first, out| {
                simd::vectorised!({
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        let at = (first + i) * width;
                        simd::rms_norm(out, &x[at..at + width], &self.weight, self.epsilon);
                    }
                });
            });
        })?;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    /// The norm of every head in place: `x` is `[rows, heads * weight.len()]`.
    pub(crate) fn forward_heads(&self, crew: Crew, x: &Tensor) -> Result<()> {
        struct Heads<'a>(&'a RmsNorm, Crew);
        impl InplaceOp1 for Heads<'_> {
            fn name(&self) -> &'static str {
                "rms-norm-heads"
            }
            fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
                let width = self.0.weight.len();
                let mut copy = Vec::new();
                let x = elements_mut(storage, layout)?;
                copy.extend_from_slice(x);
                self.1.rows(x, width, |first, out| {
                    simd::vectorised!({
                        for (i, out) in out.chunks_exact_mut(width).enumerate() {
                            let at = (first + i) * width;
                            simd::rms_norm(out, &copy[at..at + width], &self.0.weight, self.0.epsilon);
                        }
                    });
                });
                Ok(())
            }
        }
        x.inplace_op1(&Heads(self, crew))
    }
}

/// `x += y`, both `[rows, width]`.
pub(crate) fn add_in_place(x: &Tensor, y: &Tensor) -> Result<()> {
    struct Add;
    impl InplaceOp2 for Add {
        fn name(&self) -> &'static str {
            "add-in-place"
        }
        fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
            let (x, y) = (elements_mut(s1, l1)?, elements(s2, l2)?);
            simd::vectorised!(simd::add_scaled(x, y, 1.0));
            Ok(())
        }
    }
    x.inplace_op2(y, &Add)
}

/// `x += bias` for every row of `x`: `[rows, bias.len()]`.
pub(crate) fn add_bias(x: &Tensor, bias: &[f32]) -> Result<()> {
    struct Bias<'a>(&'a [f32]);
    impl InplaceOp1 for Bias<'_> {
        fn name(&self) -> &'static str {
            "add-bias"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            for row in elements_mut(storage, layout)?.chunks_exact_mut(self.0.len()) {
                simd::vectorised!(simd::add_scaled(row, self.0, 1.0));
            }
            Ok(())
        }
    }
    x.inplace_op1(&Bias(bias))
}

/// `gate = silu(gate) * up`, both `[rows, width]`.
pub(crate) fn silu_times(crew: Crew, gate: &Tensor, up: &Tensor) -> Result<()> {
    struct SiluTimes(Crew);
    impl InplaceOp2 for SiluTimes {
        fn name(&self) -> &'static str {
            "silu-times"
        }
        fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
            let (gate, up) = (elements_mut(s1, l1)?, elements(s2, l2)?);
            self.0.rows(gate, 1, |first, gate| {
                simd::vectorised!(simd::silu_times(gate, &up[first..first + gate.len()]));
            });
            Ok(())
        }
    }
    gate.inplace_op2(up, &SiluTimes(crew))
}

/// Runs `work(row, elements)` on every row of `x`: `[rows, width]`, in place. (Vectorised when `work` is
/// `#[inline(always)]`.)
pub(crate) fn for_rows(crew: Crew, x: &Tensor, width: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Result<()> {
    struct Rows<F>(Crew, usize, F);
    impl<F: Fn(usize, &mut [f32]) + Sync> InplaceOp1 for Rows<F> {
        fn name(&self) -> &'static str {
            "for-rows"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let width = self.1;
            self.0.rows(elements_mut(storage, layout)?, width, |first, run| {
                simd::vectorised!({
                    for (i, row) in run.chunks_exact_mut(width).enumerate() {
                        self.2(first + i, row);
                    }
                });
            });
            Ok(())
        }
    }
    x.inplace_op1(&Rows(crew, width, work))
}
