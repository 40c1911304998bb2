/// A metadata value; numbers of all widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// Text.
    Text(String),
    /// Many values of one type.
    Array(GgufArray),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    /// u8 to u64, and flags as 0 and 1.
    Unsigned(Vec<u64>),
    /// i8 to i64.
    Signed(Vec<i64>),
    /// f32 and f64; f32 is what vocabularies score with.
    Floats(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
    /// Arrays of arrays.
    Arrays(Vec<GgufArray>),
}

impl GgufValue {
    /// A whole, non-negative number.
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Self::Array(GgufArray::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// An array of whole numbers.
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        match self {
            Self::Array(GgufArray::Signed(numbers)) => Some(numbers.clone()),
            Self::Array(GgufArray::Unsigned(numbers)) => {
                numbers.iter().map(|&n| i64::try_from(n).ok()).collect::<Option<Vec<_>>>()
            }
            _ => None,
        }
    }

    /// An array of numbers with a fraction.
    pub fn as_floats(&self) -> Option<&[f64]> {
        match self {
            Self::Array(GgufArray::Floats(numbers)) => Some(numbers),
            _ => None,
        }
    }
}

impl GgufArray {
    /// Numbers of ggml type `kind` from their little-endian bytes; unknown kinds are treated as bytes.
    pub(super) fn numbers(kind: u32, bytes: &[u8]) -> Self {
        fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
        }
        match kind {
            1 => Self::Signed(each(bytes, |b| i64::from(i8::from_le_bytes(b)))),
            2 => Self::Unsigned(each(bytes, |b| u64::from(u16::from_le_bytes(b)))),
            3 => Self::Signed(each(bytes, |b| i64::from(i16::from_le_bytes(b)))),
            4 => Self::Unsigned(each(bytes, |b| u64::from(u32::from_le_bytes(b)))),
            5 => Self::Signed(each(bytes, |b| i64::from(i32::from_le_bytes(b)))),
            6 => Self::Floats(each(bytes, |b| f64::from(f32::from_le_bytes(b)))),
            10 => Self::Unsigned(each(bytes, u64::from_le_bytes)),
            11 => Self::Signed(each(bytes, i64::from_le_bytes)),
            12 => Self::Floats(each(bytes, f64::from_le_bytes)),
            _ => Self::Unsigned(bytes.iter().map(|&b| u64::from(b)).collect()),
        }
    }

    /// How many values it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Unsigned(values) => values.len(),
            Self::Signed(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Arrays(values) => values.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
