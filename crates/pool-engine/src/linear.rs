//! Matrices times rows: dense f32, or quantised blocks that stay quantised.

use std::sync::Arc;

use candle_core::{
    DType, Device, Result, Tensor,
    quantized::{GgmlDType, QTensor},
};

#[cfg(target_arch = "x86_64")]
use crate::tiles::{Activations, Tiles};
use crate::{ops, threads::Crew};

/// A weight matrix `[out, in]`.
#[derive(Clone)]
pub(crate) enum Matrix {
    /// f32.
    Dense(Tensor),
    /// Blocks of a GGUF type.
    Quantised(Arc<QTensor>),
    /// The same blocks re-ordered for our own kernels.
    #[cfg(target_arch = "x86_64")]
    Tiled(Arc<Tiles>),
}

/// Rows that a matrix multiplies with, prepared once for all that share them.
pub(crate) struct Rows<'a> {
    tensor: &'a Tensor,
    #[cfg(target_arch = "x86_64")]
    rounded: Option<Activations>,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        Self {
            tensor,
            #[cfg(target_arch = "x86_64")]
            rounded: None,
        }
    }
}

impl Matrix {
    /// Bytes in memory, with the second, re-ordered copy that candle makes of some types at first use.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Matrix::Dense(tensor) => (tensor.elem_count() * size_of::<f32>()) as u64,
            Matrix::Quantised(blocks) => {
                blocks.storage_size_in_bytes() as u64 + repacked_bytes(blocks.dtype(), blocks.shape().dims())
            }
            #[cfg(target_arch = "x86_64")]
            Matrix::Tiled(tiles) => tiles.bytes(),
        }
    }

    /// `x W^T`: `[rows, in]` to `[rows, out]`.
    fn forward(&self, crew: Crew, x: &mut Rows<'_>) -> Result<Tensor> {
        match self {
            Matrix::Dense(weight) => x.tensor.matmul(&weight.t()?),
            Matrix::Quantised(blocks) => x.tensor.apply_op1_no_bwd(blocks.as_ref()),
            #[cfg(target_arch = "x86_64")]
            Matrix::Tiled(tiles) => {
                let rounded = match &x.rounded {
                    Some(rounded) => rounded,
                    None => x.rounded.insert(ops::with_elements(x.tensor, |x| tiles.activations(crew, x))?),
                };
                Tensor::from_vec(tiles.multiply(crew, rounded), (rounded.rows(), tiles.rows()), &Device::Cpu)
            }
        }
    }
}

/// A matrix with an optional bias.
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn bytes(&self) -> u64 {
        self.matrix.bytes() + self.bias.as_ref().map_or(0, |b| (b.len() * size_of::<f32>()) as u64)
    }

    /// `x W^T + b`: `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, crew: Crew, x: &Tensor) -> Result<Tensor> {
        self.forward_rows(crew, &mut Rows::new(x))
    }

    fn forward_rows(&self, crew: Crew, x: &mut Rows<'_>) -> Result<Tensor> {
        let product = self.matrix.forward(crew, x)?;
        self.add_bias(&product)?;
        Ok(product)
    }

    /// Several products with the same rows, which are prepared once; fused where candle has a kernel for it.
    pub(crate) fn forward_all<const N: usize>(crew: Crew, all: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
        let mut blocks = Vec::with_capacity(N);
        for linear in all {
            if let Matrix::Quantised(tensor) = &linear.matrix {
                blocks.push(tensor.as_ref());
            }
        }
        if blocks.len() == N
            && let Some(fused) = QTensor::gemv_fused_shared_lhs(&blocks, x)?
            && let Ok(products) = <[Tensor; N]>::try_from(fused)
        {
            for (linear, product) in all.iter().zip(&products) {
                linear.add_bias(product)?;
            }
            return Ok(products);
        }
        let mut rows = Rows::new(x);
        let mut products = Vec::with_capacity(N);
        for linear in all {
            products.push(linear.forward_rows(crew, &mut rows)?);
        }
        <[Tensor; N]>::try_from(products).map_err(|_| candle_core::Error::Msg("a product is missing".into()))
    }

    fn add_bias(&self, product: &Tensor) -> Result<()> {
        match &self.bias {
            Some(bias) => ops::add_bias(product, bias),
            None => Ok(()),
        }
    }
}

/// The embedding table `[vocab, hidden]`, in the form its file has where nothing else needs another.
pub(crate) enum Embedding {
    /// f32, f16 or bf16 rows: a row is converted when it is looked up.
    Dense(Tensor),
    /// Quantised rows: a row is dequantised when it is looked up.
    Quantised(Arc<QTensor>),
    /// The same in tiles, shared with a head.
    #[cfg(target_arch = "x86_64")]
    Tiled(Arc<Tiles>),
}

impl Embedding {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Embedding::Dense(table) => (table.elem_count() * table.dtype().size_in_bytes()) as u64,
            Embedding::Quantised(table) => table.storage_size_in_bytes() as u64,
            #[cfg(target_arch = "x86_64")]
            Embedding::Tiled(table) => table.bytes(),
        }
    }

    /// The rows of `tokens` as f32: `[tokens, hidden]`.
    pub(crate) fn rows(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        match self {
            Embedding::Dense(table) => table.index_select(&ids, 0)?.to_dtype(DType::F32),
            Embedding::Quantised(table) => table.embedding(&ids),
            #[cfg(target_arch = "x86_64")]
            Embedding::Tiled(table) => {
                let mut rows = Vec::new();
                tokens.iter().for_each(|token| table.dequantise_row(*token as usize, &mut rows));
                let width = rows.len() / tokens.len().max(1);
                Tensor::from_vec(rows, (tokens.len(), width), &Device::Cpu)
            }
        }
    }
}

/// candle 0.11.1 re-orders some types into tiles of 16 rows for the machine's vector instructions
/// (`repack_x86.rs`): a second copy beside the original.
fn repacked_bytes(dtype: GgmlDType, shape: &[usize]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let &[rows, columns] = shape else { return 0 };
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        let vnni = avx512 || is_x86_feature_detected!("avxvnni");
        if !is_x86_feature_detected!("avx2") || !rows.is_multiple_of(16) || !columns.is_multiple_of(256) {
            return 0;
        }
        let blocks = (rows / 16 * columns / 256) as u64;
        match dtype {
            GgmlDType::Q4K => blocks * 3072,
            GgmlDType::Q6K => blocks * 5120,
            GgmlDType::Q8_0 if vnni => blocks * 8 * 544,
            _ => 0,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (dtype, shape);
        0
    }
}
