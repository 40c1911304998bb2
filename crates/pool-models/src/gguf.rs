//! The GGUF header, versions 2 and 3: metadata and the index of tensors. The layout is that of ggml's
//! `docs/gguf.md`. Every count and length is checked against what is left of the file before anything is
//! allocated, so that no file, however broken, can panic or exhaust memory.

mod value;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::source::TensorType;
pub use value::{GgufArray, GgufValue};

const MAGIC: &[u8; 4] = b"GGUF";
const MOST_METADATA: u64 = 65_536;
const MOST_TENSORS: u64 = 262_144;
const LONGEST_KEY: u64 = 65_535;
const MOST_DIMENSIONS: u32 = 4;
const DEEPEST_ARRAY: u32 = 4;
/// Vocabularies are the largest arrays there are; the largest known has a few hundred thousand entries.
const LONGEST_ARRAY: u64 = 1 << 22;
const LARGEST_HEADER: usize = 1 << 27;
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// What the header of a GGUF file says.
#[derive(Clone, Debug, Default)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Settings by key.
    pub metadata: BTreeMap<String, GgufValue>,
    /// Every tensor, in the file's order.
    pub tensors: Vec<GgufTensor>,
}

/// One entry of a GGUF file's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Row-major shape, outermost first (the file has it the other way round).
    pub shape: Vec<usize>,
    /// Element type; `Err` holds the name of one the engine cannot read.
    pub kind: Result<TensorType, &'static str>,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What is wrong with a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GgufError {
    /// Not a GGUF file.
    #[error("it does not begin with `GGUF`")]
    Magic,
    /// Version 1, a future version, or a big-endian file.
    #[error("GGUF version {0} is not supported; supported are 2 and 3")]
    Version(u32),
    /// The header ends early.
    #[error("it is cut short at byte {at} while reading {what}")]
    Truncated {
        /// Where.
        at: u64,
        /// What was being read.
        what: &'static str,
    },
    /// A number no real file has.
    #[error("{what} is {value}, more than {most}")]
    TooLarge {
        /// What it counts.
        what: &'static str,
        /// What it says.
        value: u64,
        /// The most accepted.
        most: u64,
    },
    /// A key or a tensor's name that is not UTF-8.
    #[error("a name at byte {0} is not UTF-8")]
    Name(u64),
    /// A key or tensor name occurs twice.
    #[error("`{0}` occurs twice")]
    Twice(String),
    /// An unknown metadata type.
    #[error("metadata `{key}` has the unknown type {kind}")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// An unknown tensor type.
    #[error("tensor `{name}` has the unknown type {kind}")]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        kind: u32,
    },
    /// A shape whose rows are not whole blocks, or whose size overflows.
    #[error("tensor `{0}` has an impossible shape {1:?}")]
    Shape(String, Vec<u64>),
    /// The alignment is not a usable power of two.
    #[error("the alignment {0} is not a power of two of at most {LARGEST_ALIGNMENT}")]
    Alignment(u64),
    /// A tensor that does not begin at a multiple of the alignment.
    #[error("tensor `{0}` is not aligned")]
    Unaligned(String),
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

impl Gguf {
    /// Reads the header of a file whose bytes (all of them) are `file`.
    pub fn parse(file: &[u8]) -> Result<Gguf, GgufError> {
        Self::parse_prefix(file, file.len() as u64)
    }

    /// Reads the header from the first bytes of a file that is `length` bytes long in all. [`GgufError::Truncated`]
    /// says that more of it is needed.
    pub fn parse_prefix(prefix: &[u8], length: u64) -> Result<Gguf, GgufError> {
        Self::parse_header(prefix, length).map_err(|error| match error {
            GgufError::Truncated { at, .. } if prefix.len() > LARGEST_HEADER => {
                GgufError::TooLarge { what: "the header", value: at, most: LARGEST_HEADER as u64 }
            }
            error => error,
        })
    }

    fn parse_header(prefix: &[u8], length: u64) -> Result<Gguf, GgufError> {
        let mut reader = Reader { bytes: &prefix[..prefix.len().min(LARGEST_HEADER)], at: 0 };
        if reader.take(4, "the magic").ok() != Some(&MAGIC[..]) {
            return Err(GgufError::Magic);
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = reader.count("the number of tensors", MOST_TENSORS)?;
        let metadata_count = reader.count("the number of metadata entries", MOST_METADATA)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = reader.name()?;
            let kind = reader.u32("a metadata type")?;
            let value = reader.value(&key, kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Twice(key));
            }
        }

        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            let name = reader.name()?;
            let dimensions = reader.u32("a tensor's number of dimensions")?;
            if dimensions > MOST_DIMENSIONS {
                let most = u64::from(MOST_DIMENSIONS);
                return Err(GgufError::TooLarge {
                    what: "a tensor's number of dimensions",
                    value: u64::from(dimensions),
                    most,
                });
            }
            let mut dims = Vec::with_capacity(dimensions as usize);
            for _ in 0..dimensions {
                dims.push(reader.u64("a tensor's shape")?);
            }
            let kind = reader.u32("a tensor's type")?;
            let offset = reader.u64("a tensor's offset")?;
            entries.push((name, dims, kind, offset));
        }

        let mut gguf = Gguf { version, metadata, tensors: Vec::with_capacity(entries.len()) };
        let alignment = gguf.unsigned("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
            return Err(GgufError::Alignment(alignment));
        }
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let mut names = std::collections::HashSet::with_capacity(entries.len());
        for (name, dims, kind, offset) in entries {
            if !names.insert(name.clone()) {
                return Err(GgufError::Twice(name));
            }
            gguf.tensors.push(tensor(name, dims, kind, offset, alignment, data_start, length)?);
        }
        Ok(gguf)
    }

    /// A text setting.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).and_then(GgufValue::as_text)
    }

    /// A whole, non-negative number, however wide it is stored.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        self.metadata.get(key).and_then(GgufValue::as_unsigned)
    }

    /// A number.
    pub fn float(&self, key: &str) -> Option<f64> {
        self.metadata.get(key).and_then(GgufValue::as_float)
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.metadata.get(key).and_then(GgufValue::as_flag)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

fn tensor(
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
    alignment: u64,
    data_start: u64,
    file_length: u64,
) -> Result<GgufTensor, GgufError> {
    let Some((kind, block, block_bytes)) = ggml_type(kind) else { return Err(GgufError::TensorType { name, kind }) };
    let elements = dims.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let row = dims.first().copied().unwrap_or(1);
    let length = elements
        .filter(|_| row.is_multiple_of(block) && !dims.contains(&0))
        .and_then(|elements| (elements / block).checked_mul(block_bytes));
    let Some(length) = length else { return Err(GgufError::Shape(name, dims)) };
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Unaligned(name));
    }
    let start = data_start.saturating_add(offset);
    let end = start.saturating_add(length);
    if end > file_length {
        return Err(GgufError::Extent { tensor: name, start, end, length: file_length });
    }
    let shape: Option<Vec<usize>> = dims.iter().rev().map(|&n| usize::try_from(n).ok()).collect();
    let Some(shape) = shape else { return Err(GgufError::Shape(name, dims)) };
    Ok(GgufTensor { name, shape, kind, offset: start, length })
}

/// ggml's tensor types by number: what they are to us, elements in a block, bytes of a block.
fn ggml_type(kind: u32) -> Option<(Result<TensorType, &'static str>, u64, u64)> {
    let known = |kind: TensorType| Some((Ok(kind), kind.block_elements() as u64, kind.block_bytes() as u64));
    match kind {
        0 => known(TensorType::F32),
        1 => known(TensorType::F16),
        2 => known(TensorType::Q4_0),
        3 => known(TensorType::Q4_1),
        6 => known(TensorType::Q5_0),
        7 => known(TensorType::Q5_1),
        8 => known(TensorType::Q8_0),
        9 => Some((Err("Q8_1"), 32, 36)),
        10 => known(TensorType::Q2K),
        11 => known(TensorType::Q3K),
        12 => known(TensorType::Q4K),
        13 => known(TensorType::Q5K),
        14 => known(TensorType::Q6K),
        15 => Some((Err("Q8_K"), 256, 292)),
        16 => Some((Err("IQ2_XXS"), 256, 66)),
        17 => Some((Err("IQ2_XS"), 256, 74)),
        18 => Some((Err("IQ3_XXS"), 256, 98)),
        19 => Some((Err("IQ1_S"), 256, 50)),
        20 => Some((Err("IQ4_NL"), 32, 18)),
        21 => Some((Err("IQ3_S"), 256, 110)),
        22 => Some((Err("IQ2_S"), 256, 82)),
        23 => Some((Err("IQ4_XS"), 256, 136)),
        24 => Some((Err("I8"), 1, 1)),
        25 => Some((Err("I16"), 1, 2)),
        26 => Some((Err("I32"), 1, 4)),
        27 => Some((Err("I64"), 1, 8)),
        28 => Some((Err("F64"), 1, 8)),
        29 => Some((Err("IQ1_M"), 256, 56)),
        30 => known(TensorType::BF16),
        34 => Some((Err("TQ1_0"), 256, 54)),
        35 => Some((Err("TQ2_0"), 256, 66)),
        39 => Some((Err("MXFP4"), 32, 17)),
        _ => None,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err(GgufError::Truncated { at: self.at as u64, what }) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &'static str, most: u64) -> Result<u64, GgufError> {
        let value = self.u64(what)?;
        if value > most { Err(GgufError::TooLarge { what, value, most }) } else { Ok(value) }
    }

    /// A length that the rest of the file can hold, at `each` bytes an element or more.
    fn length(&mut self, what: &'static str, each: usize, most: u64) -> Result<usize, GgufError> {
        let at = self.at as u64;
        let count = self.count(what, most)?;
        let count = usize::try_from(count).map_err(|_| GgufError::Truncated { at, what })?;
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left() => Ok(count),
            _ => Err(GgufError::Truncated { at, what }),
        }
    }

    /// A key or a tensor's name.
    fn name(&mut self) -> Result<String, GgufError> {
        let at = self.at as u64;
        let length = self.length("a name", 1, LONGEST_KEY)?;
        let bytes = self.take(length, "a name")?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| GgufError::Name(at))
    }

    /// Text values need not be UTF-8: broken characters are replaced.
    fn string(&mut self) -> Result<String, GgufError> {
        let length = self.length("a text", 1, u64::MAX)?;
        Ok(String::from_utf8_lossy(self.take(length, "a text")?).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<GgufValue, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => GgufValue::Unsigned(u64::from(self.array::<1>(WHAT)?[0])),
            1 => GgufValue::Signed(i64::from(i8::from_le_bytes(self.array(WHAT)?))),
            2 => GgufValue::Unsigned(u64::from(u16::from_le_bytes(self.array(WHAT)?))),
            3 => GgufValue::Signed(i64::from(i16::from_le_bytes(self.array(WHAT)?))),
            4 => GgufValue::Unsigned(u64::from(self.u32(WHAT)?)),
            5 => GgufValue::Signed(i64::from(i32::from_le_bytes(self.array(WHAT)?))),
            6 => GgufValue::Float(f64::from(f32::from_le_bytes(self.array(WHAT)?))),
            7 => GgufValue::Flag(self.array::<1>(WHAT)?[0] != 0),
            8 => GgufValue::Text(self.string()?),
            9 => GgufValue::Array(self.values(key, 1)?),
            10 => GgufValue::Unsigned(self.u64(WHAT)?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array(WHAT)?)),
            kind => return Err(GgufError::ValueType { key: key.to_owned(), kind }),
        })
    }

    fn values(&mut self, key: &str, depth: u32) -> Result<GgufArray, GgufError> {
        const WHAT: &str = "a metadata array";
        if depth > DEEPEST_ARRAY {
            return Err(GgufError::TooLarge {
                what: "the nesting of arrays",
                value: u64::from(depth),
                most: u64::from(DEEPEST_ARRAY),
            });
        }
        let kind = self.u32(WHAT)?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            kind => return Err(GgufError::ValueType { key: key.to_owned(), kind }),
        };
        let count = self.length(WHAT, width, LONGEST_ARRAY)?;
        Ok(match kind {
            8 => GgufArray::Texts((0..count).map(|_| self.string()).collect::<Result<_, _>>()?),
            9 => GgufArray::Arrays((0..count).map(|_| self.values(key, depth + 1)).collect::<Result<_, _>>()?),
            kind => GgufArray::numbers(kind, self.take(count * width, WHAT)?),
        })
    }
}
