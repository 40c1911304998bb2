//! The safetensors header: eight bytes of length, JSON, data. Every extent is checked against the file, and the
//! data must be covered without gap or overlap, as the format demands.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::source::TensorType;

/// The format's own bound.
const LARGEST_HEADER: u64 = 100_000_000;
const MOST_DIMENSIONS: usize = 8;

/// One entry of a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsEntry {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Element type; `Err` holds the name of one the engine cannot read.
    pub kind: Result<TensorType, String>,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What is wrong with a safetensors file.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    /// Shorter than its own header says.
    #[error("it is cut short: its header needs {needed} bytes of {length}")]
    Truncated {
        /// Bytes the header needs.
        needed: u64,
        /// The file's length.
        length: u64,
    },
    /// A header no real file has.
    #[error("its header claims {0} bytes, more than {LARGEST_HEADER}")]
    HeaderSize(u64),
    /// The header is not the JSON it should be.
    #[error("its header is not valid JSON: {0}")]
    Header(#[from] serde_json::Error),
    /// A tensor whose bytes do not fit its type and shape.
    #[error("tensor `{tensor}` of type {kind} and shape {shape:?} cannot take {length} bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        kind: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes the header gives it.
        length: u64,
    },
    /// Offsets that overlap, leave a gap or run backwards.
    #[error("tensor `{0}` overlaps another or leaves a gap before it")]
    Order(String),
    /// A tensor that reaches past the end of the file.
    #[error("it is cut short: tensor `{tensor}` needs bytes {start}..{end} of {length}")]
    Extent {
        /// The tensor.
        tensor: String,
        /// First byte wanted.
        start: u64,
        /// One past the last byte wanted.
        end: u64,
        /// The file's length.
        length: u64,
    },
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads the header of a file whose bytes (all of them) are `file`: its tensors by name.
pub fn parse_safetensors(file: &[u8]) -> Result<BTreeMap<String, SafetensorsEntry>, SafetensorsError> {
    parse_safetensors_prefix(file, file.len() as u64)
}

/// Reads the header from the first bytes of a file that is `length` bytes long in all.
/// [`SafetensorsError::Truncated`] says how many of them are needed.
pub fn parse_safetensors_prefix(
    prefix: &[u8],
    length: u64,
) -> Result<BTreeMap<String, SafetensorsEntry>, SafetensorsError> {
    let Some((size, rest)) = prefix.split_first_chunk::<8>() else {
        return Err(SafetensorsError::Truncated { needed: 8, length });
    };
    let size = u64::from_le_bytes(*size);
    if size > LARGEST_HEADER {
        return Err(SafetensorsError::HeaderSize(size));
    }
    let needed = size + 8;
    let header = rest.get(..size as usize).ok_or(SafetensorsError::Truncated { needed, length })?;
    let mut header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
    header.remove("__metadata__");

    let mut entries = Vec::with_capacity(header.len());
    for (name, value) in header {
        let entry: Entry = serde_json::from_value(value)?;
        entries.push((name, entry));
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = BTreeMap::new();
    let mut expected_start = 0;
    for (name, entry) in entries {
        let (start, end) = entry.data_offsets;
        if start != expected_start || end < start {
            return Err(SafetensorsError::Order(name));
        }
        expected_start = end;
        let (kind, width) = element(&entry.dtype);
        let elements = entry.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        let fits = match width {
            Some(bytes) => elements.and_then(|n| n.checked_mul(bytes)) == Some(end - start),
            None => true,
        };
        let (true, Some(shape), true) = (fits, shape, entry.shape.len() <= MOST_DIMENSIONS) else {
            return Err(SafetensorsError::Size {
                tensor: name,
                kind: entry.dtype,
                shape: entry.shape,
                length: end - start,
            });
        };
        let (start, end) = (needed.saturating_add(start), needed.saturating_add(end));
        if end > length {
            return Err(SafetensorsError::Extent { tensor: name, start, end, length });
        }
        tensors.insert(name, SafetensorsEntry { shape, kind, offset: start, length: end - start });
    }
    Ok(tensors)
}

/// What a dtype is to us, and its bytes per element where known.
fn element(dtype: &str) -> (Result<TensorType, String>, Option<u64>) {
    match dtype {
        "F32" => (Ok(TensorType::F32), Some(4)),
        "F16" => (Ok(TensorType::F16), Some(2)),
        "BF16" => (Ok(TensorType::BF16), Some(2)),
        other => {
            let width = match other {
                "F64" | "I64" | "U64" | "C64" => Some(8),
                "I32" | "U32" => Some(4),
                "I16" | "U16" => Some(2),
                "BOOL" | "I8" | "U8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(1),
                _ => None,
            };
            (Err(other.to_owned()), width)
        }
    }
}
