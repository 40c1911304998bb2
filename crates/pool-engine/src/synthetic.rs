//! Models of random weights in any shape, as GGUF files: what `make bench` measures, and what tests of
//! a whole pool serve when no real model is at hand.
//!
//! The file is written tensor by tensor, so a model of any size needs little memory. Quantised weights
//! are drawn as random *blocks* (scales near one value, uniform levels), which takes seconds for a
//! billion parameters and gives matrices of zero mean and deviation `0.5 / sqrt(columns)`. Its answers are noise,
//! but every one of its tokens has a text.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use half::f16;
use thiserror::Error;

/// The shape of a Llama-architecture model.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticShape {
    /// Rows of the embedding table; at least 260 (256 bytes and the control tokens).
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest sequence in tokens.
    pub max_positions: usize,
    /// The head uses the embedding table.
    pub tied_embeddings: bool,
}

impl SyntheticShape {
    /// A shape for tests: about 0.9 million parameters, every width a multiple of 256.
    pub fn tiny() -> Self {
        Self {
            vocab_size: 320,
            hidden_size: 256,
            intermediate_size: 512,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            max_positions: 2048,
            tied_embeddings: false,
        }
    }

    /// 0.51 billion parameters: 16 layers of width 1536.
    pub fn half_billion() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 1536,
            intermediate_size: 4096,
            layers: 16,
            heads: 12,
            kv_heads: 4,
            head_dim: 128,
            max_positions: 8192,
            tied_embeddings: false,
        }
    }

    /// 1.1 billion parameters: TinyLlama's shape.
    pub fn one_billion() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 2048,
            intermediate_size: 5632,
            layers: 22,
            heads: 32,
            kv_heads: 4,
            head_dim: 64,
            max_positions: 8192,
            tied_embeddings: false,
        }
    }

    /// How many weights a model of this shape has.
    pub fn parameters(&self) -> u64 {
        self.tensors(SyntheticQuant::F16).iter().map(|t| t.elements() as u64).sum()
    }

    /// Every tensor, in the file's order.
    fn tensors(&self, quant: SyntheticQuant) -> Vec<Tensor> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let matrix = |name: String, rows, columns| Tensor { name, rows: Some(rows), columns, form: quant.matrix() };
        let norm = |name: String| Tensor { name, rows: None, columns: hidden, form: Form::Ones };
        let mut tensors = vec![matrix("token_embd.weight".into(), self.vocab_size, hidden)];
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.extend([
                norm(name("attn_norm")),
                matrix(name("attn_q"), query, hidden),
                matrix(name("attn_k"), key, hidden),
                Tensor { form: quant.sensitive(), ..matrix(name("attn_v"), key, hidden) },
                matrix(name("attn_output"), hidden, query),
                norm(name("ffn_norm")),
                matrix(name("ffn_gate"), inner, hidden),
                matrix(name("ffn_up"), inner, hidden),
                Tensor { form: quant.sensitive(), ..matrix(name("ffn_down"), hidden, inner) },
            ]);
        }
        tensors.push(norm("output_norm.weight".into()));
        if self.tied_embeddings {
            tensors[0].form = quant.sensitive();
        } else {
            tensors.push(Tensor { form: quant.sensitive(), ..matrix("output.weight".into(), self.vocab_size, hidden) });
        }
        tensors
    }

    fn check(&self, quant: SyntheticQuant) -> Result<(), SyntheticError> {
        let sizes = [
            self.hidden_size,
            self.intermediate_size,
            self.layers as usize,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.max_positions,
        ];
        if sizes.contains(&0) {
            return Err(SyntheticError::Shape("a size is zero"));
        }
        if self.vocab_size < FIRST_FILLER {
            return Err(SyntheticError::Shape("the vocabulary is smaller than the 256 bytes and the control tokens"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(SyntheticError::Shape("the heads do not divide up"));
        }
        let block = quant.matrix().block();
        let rows = [self.hidden_size, self.intermediate_size, self.heads * self.head_dim];
        if rows.iter().any(|columns| !columns.is_multiple_of(block)) {
            return Err(SyntheticError::Shape("a matrix's rows are not whole blocks of the quantisation"));
        }
        Ok(())
    }
}

/// How the matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticQuant {
    /// 8-bit blocks.
    Q8_0,
    /// 4-bit blocks; values, down projections and the head as 6-bit blocks (as in `Q4_K_M` files).
    Q4K,
    /// 16-bit floats.
    F16,
}

impl SyntheticQuant {
    fn matrix(self) -> Form {
        match self {
            SyntheticQuant::Q8_0 => Form::Q8_0,
            SyntheticQuant::Q4K => Form::Q4K,
            SyntheticQuant::F16 => Form::F16,
        }
    }

    fn sensitive(self) -> Form {
        match self {
            SyntheticQuant::Q4K => Form::Q6K,
            other => other.matrix(),
        }
    }

    /// The number of `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            SyntheticQuant::F16 => 1,
            SyntheticQuant::Q8_0 => 7,
            SyntheticQuant::Q4K => 15,
        }
    }
}

/// A model file that could not be written.
#[derive(Debug, Error)]
pub enum SyntheticError {
    /// The shape makes no model.
    #[error("this shape makes no model: {0}")]
    Shape(&'static str),
    /// Writing failed.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes a model of random weights to `path`: the same bytes for the same arguments. `progress` is
/// told `(bytes written, bytes in all)` after every tensor. The file appears under its name only when it is whole.
pub fn write_gguf(
    path: &Path,
    shape: &SyntheticShape,
    quant: SyntheticQuant,
    seed: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), SyntheticError> {
    shape.check(quant)?;
    let partial = path.with_extension("partial");
    let written = File::create(&partial)
        .and_then(|file| write_file(file, shape, quant, seed, &mut progress))
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // Nothing half-written stays behind; when it cannot be removed the first error says more.
        let _ = std::fs::remove_file(&partial);
        SyntheticError::Write { path: path.to_owned(), source }
    })
}

fn write_file(
    file: File,
    shape: &SyntheticShape,
    quant: SyntheticQuant,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let tensors = shape.tensors(quant);
    let header = header(shape, quant, &tensors);
    let total = header.len() as u64 + tensors.iter().map(|t| t.padded_bytes() as u64).sum::<u64>();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&header)?;
    let mut written = header.len() as u64;
    let mut buffer = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let mut noise = Noise(seed ^ (index as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let mut blocks = tensor.elements() / tensor.form.block();
        while blocks > 0 {
            let run = blocks.min(4096);
            buffer.clear();
            (0..run).for_each(|_| tensor.form.draw(&mut noise, tensor.columns, &mut buffer));
            out.write_all(&buffer)?;
            blocks -= run;
        }
        out.write_all(&vec![0; tensor.padded_bytes() - tensor.bytes()])?;
        written += tensor.padded_bytes() as u64;
        progress(written, total);
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

const ALIGNMENT: usize = 32;
const BEGIN: u32 = 256;
const END: u32 = 257;
/// Tokens from here on are words that no text encodes to: they fill the vocabulary.
const FIRST_FILLER: usize = 260;

struct Tensor {
    name: String,
    /// `None` for a vector.
    rows: Option<usize>,
    columns: usize,
    form: Form,
}

impl Tensor {
    fn elements(&self) -> usize {
        self.rows.unwrap_or(1) * self.columns
    }

    fn bytes(&self) -> usize {
        self.elements() / self.form.block() * self.form.block_bytes()
    }

    fn padded_bytes(&self) -> usize {
        self.bytes().next_multiple_of(ALIGNMENT)
    }
}

#[derive(Clone, Copy)]
enum Form {
    /// f32, all one: a norm's weights.
    Ones,
    F16,
    Q8_0,
    Q4K,
    Q6K,
}

impl Form {
    /// Elements in a block.
    fn block(self) -> usize {
        match self {
            Form::Ones | Form::F16 => 1,
            Form::Q8_0 => 32,
            Form::Q4K | Form::Q6K => 256,
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Form::Ones => 4,
            Form::F16 => 2,
            Form::Q8_0 => 34,
            Form::Q4K => 144,
            Form::Q6K => 210,
        }
    }

    /// GGUF's number of the type.
    fn number(self) -> u32 {
        match self {
            Form::Ones => 0,
            Form::F16 => 1,
            Form::Q8_0 => 8,
            Form::Q4K => 12,
            Form::Q6K => 14,
        }
    }

    /// One block of weights with deviation `0.5 / sqrt(columns)` (layouts: ggml's `block_q8_0`, `block_q4_K`, `block_q6_K`).
    fn draw(self, noise: &mut Noise, columns: usize, out: &mut Vec<u8>) {
        let deviation = 0.5 / (columns as f32).sqrt();
        // The deviation of `levels` equally likely whole numbers.
        let spread = |levels: f32| ((levels * levels - 1.0) / 12.0).sqrt();
        match self {
            Form::Ones => out.extend(1f32.to_le_bytes()),
            Form::F16 => {
                let uniform = (noise.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                out.extend(f16::from_f32(uniform * 12f32.sqrt() * deviation).to_le_bytes());
            }
            Form::Q8_0 => {
                let scale = deviation / spread(255.0) * noise.around_one();
                out.extend(f16::from_f32(scale).to_le_bytes());
                // -128 is never written by a quantiser, and would overflow some kernels.
                out.extend((0..4).flat_map(|_| noise.next().to_le_bytes()).map(|b| b.max(1) ^ 0x80));
            }
            Form::Q4K => {
                // value = d * scale * level - dmin * min, with 8 sub-blocks of 6-bit scales and mins.
                let d = deviation / spread(16.0) / 32.0;
                out.extend(f16::from_f32(d).to_le_bytes());
                out.extend(f16::from_f32(d * 7.5).to_le_bytes());
                let mut packed = [0u8; 12];
                for j in 0..8 {
                    let scale = (24 + noise.next() % 17) as u8;
                    if j < 4 {
                        packed[j] |= scale;
                        packed[j + 4] |= scale;
                    } else {
                        packed[j + 4] |= (scale & 15) | (scale & 15) << 4;
                        packed[j - 4] |= (scale >> 4) << 6;
                        packed[j] |= (scale >> 4) << 6;
                    }
                }
                out.extend(packed);
                out.extend((0..16).flat_map(|_| noise.next().to_le_bytes()));
            }
            Form::Q6K => {
                // value = d * scale * (level - 32), with 16 sub-blocks of 8-bit scales.
                out.extend((0..24).flat_map(|_| noise.next().to_le_bytes()));
                for _ in 0..16 {
                    let scale = (48 + noise.next() % 33) as u8;
                    // Half of the scales are negative, so that the levels' mean of -1/2 cancels out.
                    out.push(if noise.next() & 1 == 0 { scale } else { scale.wrapping_neg() });
                }
                out.extend(f16::from_f32(deviation / spread(64.0) / 64.0).to_le_bytes());
            }
        }
    }
}

/// SplitMix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0.75 and 1.25.
    fn around_one(&mut self) -> f32 {
        0.75 + (self.next() >> 40) as f32 / (1u64 << 25) as f32
    }
}

/// A GGUF version 3 header: metadata, tensor list, padding.
fn header(shape: &SyntheticShape, quant: SyntheticQuant, tensors: &[Tensor]) -> Vec<u8> {
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", "llama");
    metadata.text("general.name", "Synthetic");
    metadata.number("general.file_type", quant.file_type());
    metadata.number("general.alignment", ALIGNMENT as u32);
    metadata.number("llama.block_count", shape.layers);
    metadata.number("llama.context_length", shape.max_positions as u32);
    metadata.number("llama.embedding_length", shape.hidden_size as u32);
    metadata.number("llama.feed_forward_length", shape.intermediate_size as u32);
    metadata.number("llama.attention.head_count", shape.heads as u32);
    metadata.number("llama.attention.head_count_kv", shape.kv_heads as u32);
    metadata.number("llama.attention.key_length", shape.head_dim as u32);
    metadata.number("llama.attention.value_length", shape.head_dim as u32);
    metadata.number("llama.rope.dimension_count", shape.head_dim as u32);
    metadata.number("llama.vocab_size", shape.vocab_size as u32);
    metadata.float("llama.rope.freq_base", 10_000.0);
    metadata.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    metadata.text("tokenizer.ggml.model", "gpt2");
    metadata.text("tokenizer.ggml.pre", "gpt-2");
    let tokens: Vec<String> = (0..shape.vocab_size).map(token_text).collect();
    metadata.texts("tokenizer.ggml.tokens", &tokens);
    let (normal, control) = (1, 3);
    let kinds: Vec<i32> =
        (0..shape.vocab_size).map(|id| if (256..FIRST_FILLER).contains(&id) { control } else { normal }).collect();
    metadata.numbers("tokenizer.ggml.token_type", &kinds);
    metadata.texts("tokenizer.ggml.merges", &[]);
    metadata.number("tokenizer.ggml.bos_token_id", BEGIN);
    metadata.number("tokenizer.ggml.eos_token_id", END);
    metadata.flag("tokenizer.ggml.add_bos_token", true);
    metadata.text(
        "tokenizer.chat_template",
        "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}: {{ message['content'] }}\n\
         {% endfor %}{% if add_generation_prompt %}<|turn|>assistant: {% endif %}",
    );

    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(metadata.entries.to_le_bytes());
    out.extend(metadata.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        push_text(&mut out, &tensor.name);
        // Innermost dimension first.
        let dimensions: Vec<usize> = std::iter::once(tensor.columns).chain(tensor.rows).collect();
        out.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        out.extend(tensor.form.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.padded_bytes() as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// GPT-2's printable stand-ins for the 256 bytes, the control tokens, then fillers.
fn token_text(id: usize) -> String {
    match id {
        0..256 => byte_text(id as u8).to_string(),
        256 => "<|begin|>".into(),
        257 => "<|finish|>".into(),
        258 => "<|turn|>".into(),
        259 => "<|unused|>".into(),
        _ => format!("\u{120}w{id}"),
    }
}

/// Printable bytes stand for themselves, the others for the characters from U+0100 on, in order.
fn byte_text(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{100}')
}

#[derive(Default)]
struct Metadata {
    bytes: Vec<u8>,
    entries: u64,
}

impl Metadata {
    fn entry(&mut self, key: &str, kind: u32) {
        push_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.entries += 1;
    }

    fn number(&mut self, key: &str, value: u32) {
        self.entry(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.entry(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.entry(key, 7);
        self.bytes.push(u8::from(value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.entry(key, 8);
        push_text(&mut self.bytes, value);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        self.entry(key, 9);
        self.bytes.extend(8u32.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| push_text(&mut self.bytes, value));
    }

    fn numbers(&mut self, key: &str, values: &[i32]) {
        self.entry(key, 9);
        self.bytes.extend(5u32.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, quantized::gguf_file};

    use super::*;

    #[test]
    fn candle_reads_the_file_and_every_matrix_has_the_intended_spread() {
        let folder = tempfile::tempdir().unwrap();
        for quant in [SyntheticQuant::Q8_0, SyntheticQuant::Q4K, SyntheticQuant::F16] {
            let path = folder.path().join(format!("{quant:?}.gguf"));
            let shape = SyntheticShape::tiny();
            let mut told = (0, 0);
            write_gguf(&path, &shape, quant, 7, |done, total| told = (done, total)).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!(told, (length, length), "progress ends at the file's length");
            let mut file = File::open(&path).unwrap();
            let content = gguf_file::Content::read(&mut file).unwrap();
            assert_eq!(content.tensor_infos.len(), 1 + 9 * 2 + 2);
            for (name, info) in &content.tensor_infos {
                let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                if name.contains("norm") {
                    assert!(values.iter().all(|v| *v == 1.0));
                    continue;
                }
                let n = values.len() as f32;
                let mean = values.iter().sum::<f32>() / n;
                let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
                let wanted = 0.5 / (info.shape.dims()[1] as f32).sqrt();
                assert!((deviation / wanted - 1.0).abs() < 0.1, "{quant:?} {name}: {deviation} for {wanted}");
                assert!(mean.abs() < 0.05 * wanted, "{quant:?} {name}: mean {mean}");
            }
        }
    }

    #[test]
    fn the_seed_decides_the_bytes_and_nothing_partial_stays() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, seed| {
            let path = folder.path().join(name);
            write_gguf(&path, &SyntheticShape::tiny(), SyntheticQuant::Q8_0, seed, |_, _| {}).unwrap();
            std::fs::read(path).unwrap()
        };
        let first = write("a.gguf", 1);
        assert!(first == write("b.gguf", 1), "the same seed gives the same bytes");
        assert!(first != write("c.gguf", 2));
        let nowhere = folder.path().join("missing").join("d.gguf");
        let failed = write_gguf(&nowhere, &SyntheticShape::tiny(), SyntheticQuant::Q8_0, 1, |_, _| {});
        assert!(matches!(failed, Err(SyntheticError::Write { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn shapes_that_make_no_model_are_refused() {
        let tiny = SyntheticShape::tiny();
        for shape in [
            SyntheticShape { vocab_size: 256, ..tiny.clone() },
            SyntheticShape { kv_heads: 3, ..tiny.clone() },
            SyntheticShape { hidden_size: 100, ..tiny.clone() },
            SyntheticShape { layers: 0, ..tiny },
        ] {
            let result = write_gguf(Path::new("never"), &shape, SyntheticQuant::Q4K, 1, |_, _| {});
            assert!(matches!(result, Err(SyntheticError::Shape(_))), "{shape:?}");
        }
    }

    #[test]
    fn presets_have_the_sizes_they_are_named_for() {
        let sizes = [SyntheticShape::half_billion(), SyntheticShape::one_billion()].map(|s| s.parameters());
        assert!((450_000_000..550_000_000).contains(&sizes[0]), "{}", sizes[0]);
        assert!((1_050_000_000..1_150_000_000).contains(&sizes[1]), "{}", sizes[1]);
    }
}
