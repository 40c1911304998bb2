//! From a model's tensors to the decoder's weights: each tensor is checked against the configuration,
//! read once, and kept in the form that it is computed in.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use pool_models::{TensorInfo, TensorName, TensorSource, TensorType};

use crate::{
    engine::Quantise,
    errors::LoadError,
    linear::{Embedding, Matrix},
};

/// Reads weights from a source.
pub(crate) struct Weights<'a> {
    source: &'a dyn TensorSource,
    quantise: Option<Quantise>,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(source: &'a dyn TensorSource, quantise: Option<Quantise>) -> Self {
        Self { source, quantise }
    }

    /// A vector of `length` floats: norms, biases, frequency factors.
    pub(crate) fn vector(&self, name: TensorName, length: usize) -> Result<Vec<f32>, LoadError> {
        let (info, bytes) = self.read(name, &[length])?;
        floats(info.kind, &bytes).ok_or_else(|| LoadError::Type {
            name,
            file_name: info.file_name.clone(),
            kind: info.kind,
            reason: "vectors are not quantised",
        })
    }

    /// A matrix `[rows, columns]` to multiply with.
    pub(crate) fn matrix(&self, name: TensorName, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let (info, bytes) = self.read(name, &[rows, columns])?;
        let failed = |source| LoadError::Tensor { name, source };
        let dense = |values| Tensor::from_vec(values, (rows, columns), &Device::Cpu).map_err(failed);
        match floats(info.kind, &bytes) {
            Some(values) => match self.quantise {
                Some(Quantise::Q8_0) if columns.is_multiple_of(GgmlDType::Q8_0.block_size()) => {
                    let blocks = QTensor::quantize(&dense(values)?, GgmlDType::Q8_0).map_err(failed)?;
                    let tiles = tiled(TensorType::Q8_0, &blocks.data().map_err(failed)?, rows, columns);
                    Ok(tiles.unwrap_or_else(|| Matrix::Quantised(Arc::new(blocks))))
                }
                _ => Ok(Matrix::Dense(dense(values)?)),
            },
            None => {
                if let Some(tiles) = tiled(info.kind, &bytes, rows, columns) {
                    return Ok(tiles);
                }
                let blocks = blocks(info.kind, &bytes, rows, columns).map_err(failed)?;
                if multiplies(info.kind, columns) {
                    Ok(Matrix::Quantised(Arc::new(blocks)))
                } else {
                    Ok(Matrix::Dense(blocks.dequantize(&Device::Cpu).map_err(failed)?))
                }
            }
        }
    }

    /// The embedding table `[vocab, hidden]`, where nothing multiplies with it.
    pub(crate) fn embedding(&self, name: TensorName, vocab: usize, hidden: usize) -> Result<Embedding, LoadError> {
        let kind = self.source.info(name).ok_or(LoadError::Missing(name))?.kind;
        if self.quantise.is_none() && matches!(kind, TensorType::F16 | TensorType::BF16) {
            let (_, bytes) = self.read(name, &[vocab, hidden])?;
            let halves = bytes.as_chunks::<2>().0;
            let shape = (vocab, hidden);
            let table = if kind == TensorType::F16 {
                Tensor::from_vec(halves.iter().map(|b| f16::from_le_bytes(*b)).collect(), shape, &Device::Cpu)
            } else {
                Tensor::from_vec(halves.iter().map(|b| bf16::from_le_bytes(*b)).collect(), shape, &Device::Cpu)
            };
            return Ok(Embedding::Dense(table.map_err(|source| LoadError::Tensor { name, source })?));
        }
        Ok(Embedding::of(&self.matrix(name, vocab, hidden)?))
    }

    /// The tensor's description and bytes, once both are what `shape` calls for.
    fn read(&self, name: TensorName, shape: &[usize]) -> Result<(&'a TensorInfo, Cow<'a, [u8]>), LoadError> {
        let info = self.source.info(name).ok_or(LoadError::Missing(name))?;
        let file_name = || info.file_name.clone();
        if info.shape != shape {
            return Err(LoadError::Shape {
                name,
                file_name: file_name(),
                expected: shape.to_vec(),
                got: info.shape.clone(),
            });
        }
        let dtype = ggml_type(info.kind);
        let columns = shape.last().copied().unwrap_or(0);
        if !columns.is_multiple_of(dtype.block_size()) {
            let reason = "its rows are not whole blocks";
            return Err(LoadError::Type { name, file_name: file_name(), kind: info.kind, reason });
        }
        let elements: usize = shape.iter().product();
        let expected = (elements / dtype.block_size() * dtype.type_size()) as u64;
        if info.length != expected {
            return Err(LoadError::Length { name, file_name: file_name(), expected, got: info.length });
        }
        let bytes = self.source.bytes(name)?;
        if bytes.len() as u64 != expected {
            return Err(LoadError::Length { name, file_name: file_name(), expected, got: bytes.len() as u64 });
        }
        Ok((info, bytes))
    }
}

impl Embedding {
    /// The table of a matrix that is multiplied with as well (tied embeddings), shared with it.
    pub(crate) fn of(matrix: &Matrix) -> Self {
        match matrix {
            Matrix::Dense(tensor) => Embedding::Dense(tensor.clone()),
            Matrix::Quantised(blocks) => Embedding::Quantised(blocks.clone()),
            #[cfg(target_arch = "x86_64")]
            Matrix::Tiled(tiles) => Embedding::Tiled(tiles.clone()),
        }
    }
}

/// Unquantised elements as f32; `None` for block types.
fn floats(kind: TensorType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0;
    Some(match kind {
        TensorType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        TensorType::F16 => {
            let narrow: Vec<f16> = halves().iter().map(|b| f16::from_le_bytes(*b)).collect();
            let mut wide = vec![0f32; narrow.len()];
            narrow.convert_to_f32_slice(&mut wide);
            wide
        }
        TensorType::BF16 => halves().iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect(),
        _ => return None,
    })
}

/// Quantised blocks as candle holds them (it copies them, from memory aligned for its block types).
fn blocks(kind: TensorType, bytes: &[u8], rows: usize, columns: usize) -> candle_core::Result<QTensor> {
    const ALIGNMENT: usize = 16;
    let mut moved = Vec::new();
    let skip = bytes.as_ptr().align_offset(ALIGNMENT);
    let aligned = if skip == 0 {
        bytes
    } else {
        moved.resize(bytes.len() + ALIGNMENT, 0);
        let skip = moved.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        moved[skip..skip + bytes.len()].copy_from_slice(bytes);
        &moved[skip..skip + bytes.len()]
    };
    QTensor::new(QStorage::from_data(Cow::Borrowed(aligned), &Device::Cpu, ggml_type(kind))?, (rows, columns))
}

/// The blocks in tiles for our own kernels, where those serve better than candle's.
fn tiled(kind: TensorType, blocks: &[u8], rows: usize, columns: usize) -> Option<Matrix> {
    #[cfg(target_arch = "x86_64")]
    {
        crate::tiles::Tiles::pack(kind, blocks, rows, columns).map(|tiles| Matrix::Tiled(Arc::new(tiles)))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (kind, blocks, rows, columns);
        None
    }
}

/// Whether candle's products take rows of this length: some old types want an even number of blocks.
fn multiplies(kind: TensorType, columns: usize) -> bool {
    match kind {
        TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q5_1 => columns.is_multiple_of(64),
        _ => true,
    }
}

pub(crate) fn ggml_type(kind: TensorType) -> GgmlDType {
    match kind {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
    }
}
