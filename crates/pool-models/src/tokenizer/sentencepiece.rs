//! SentencePiece's BPE (GGUF tokenizers of the kind `llama`): the neighbours whose union scores best are merged
//! first; what is in no piece becomes bytes. Follows `bpe_model.cc` of the SentencePiece library, so that tokens
//! equal those the model was trained on; special tokens in the text are cut out first, as llama.cpp does.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use super::{
    Encoder, Leading, Pieces, Tokenizer, TokenizerError, TokenizerKind, Vocabulary, json::fallback_byte, token_type,
};
use crate::gguf::{Gguf, GgufValue};

/// SentencePiece's mark for a space.
const SPACE: &str = "▁";

pub(super) struct SentencePiece {
    /// Pieces that text can be merged to.
    pieces: HashMap<String, Mergeable>,
    /// Every token by its text.
    ids: HashMap<String, u32>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    special: Matcher,
    user_defined: Matcher,
    add_space_prefix: bool,
    bos: Option<u32>,
    eos: Option<u32>,
}

#[derive(Clone, Copy)]
struct Mergeable {
    id: u32,
    score: f32,
    unused: bool,
}

pub(super) fn load(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let vocabulary = Vocabulary::new(gguf)?;
    let scores = gguf.metadata.get("tokenizer.ggml.scores").and_then(GgufValue::as_floats).unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        let (tokens, scores) = (vocabulary.tokens.len(), scores.len());
        return Err(TokenizerError::Broken(format!("{tokens} tokens have {scores} scores")));
    }
    let add_space_prefix = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let wanted = |key: &str, default: bool| gguf.flag(&format!("tokenizer.ggml.add_{key}_token")).unwrap_or(default);
    let mut model = SentencePiece {
        pieces: HashMap::new(),
        ids: HashMap::new(),
        bytes: [None; 256],
        unknown: vocabulary.named(gguf, "tokenizer.ggml.unknown_token_id"),
        special: Matcher::default(),
        user_defined: Matcher::default(),
        add_space_prefix,
        bos: vocabulary.named(gguf, "tokenizer.ggml.bos_token_id").filter(|_| wanted("bos", true)),
        eos: vocabulary.named(gguf, "tokenizer.ggml.eos_token_id").filter(|_| wanted("eos", false)),
    };
    let mut pieces = Pieces::new(if add_space_prefix { Leading::Strip(1) } else { Leading::Keep });
    for ((id, text, kind), &score) in vocabulary.iter().zip(scores) {
        model.ids.insert(text.to_owned(), id);
        let special = matches!(kind, token_type::CONTROL | token_type::UNKNOWN);
        let byte = fallback_byte(text).filter(|_| kind == token_type::BYTE);
        match byte {
            Some(byte) => pieces.push(Some((&[byte], false))),
            None => pieces.push(Some((text.replace(SPACE, " ").as_bytes(), special))),
        }
        match kind {
            token_type::CONTROL => model.special.add(text, id),
            token_type::UNKNOWN => {
                model.special.add(text, id);
                model.unknown = model.unknown.or(Some(id));
            }
            token_type::BYTE => {
                if let Some(byte) = byte {
                    model.bytes[usize::from(byte)] = Some(id);
                }
            }
            kind => {
                if kind == token_type::USER_DEFINED {
                    model.user_defined.add(text, id);
                }
                let unused = kind == token_type::UNUSED;
                model.pieces.insert(text.to_owned(), Mergeable { id, score: score as f32, unused });
            }
        }
    }
    model.special.finish();
    model.user_defined.finish();
    Ok(Tokenizer { encoder: Encoder::SentencePiece(Box::new(model)), pieces, kind: TokenizerKind::SentencePieceBpe })
}

impl SentencePiece {
    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(super) fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        tokens.extend(self.bos.filter(|_| add_special));
        let mut at = 0;
        let mut fragment = 0;
        while at < text.len() {
            if let Some((id, length)) = self.special.longest(&text[at..]) {
                self.encode_fragment(&text[fragment..at], &mut tokens);
                tokens.push(id);
                at += length;
                fragment = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        self.encode_fragment(&text[fragment..], &mut tokens);
        tokens.extend(self.eos.filter(|_| add_special));
        tokens
    }

    /// Text between special tokens; each begins with a word separator, as at the beginning of a text.
    fn encode_fragment(&self, fragment: &str, tokens: &mut Vec<u32>) {
        if fragment.is_empty() {
            return;
        }
        let prefix = if self.add_space_prefix { SPACE } else { "" };
        let text = format!("{prefix}{}", fragment.replace(' ', SPACE));
        let mut merge = Merge::new(self, &text);
        merge.run();
        let mut after_unknown = false;
        for symbol in merge.symbols.iter().filter(|symbol| symbol.length > 0) {
            merge.emit(merge.slice(symbol), 0, tokens, &mut after_unknown);
        }
    }
}

/// One character, user-defined piece or merged piece of the text, in a doubly linked list.
struct Symbol {
    start: usize,
    /// 0 once it is merged into its left neighbour.
    length: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// A user-defined piece is never merged.
    frozen: bool,
}

/// A pair of neighbours that could be merged; stale when their lengths have changed since.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

struct Merge<'a> {
    model: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
    /// How an unused piece came about, to take it apart again.
    halves: HashMap<&'a str, (&'a str, &'a str)>,
}

impl<'a> Merge<'a> {
    fn new(model: &'a SentencePiece, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let user_defined = model.user_defined.longest(&text[at..]).map(|(_, length)| length);
            let length = user_defined.unwrap_or_else(|| text[at..].chars().next().map_or(1, char::len_utf8));
            let index = symbols.len();
            if let Some(last) = symbols.last_mut() {
                last.next = Some(index);
            }
            let previous = index.checked_sub(1);
            symbols.push(Symbol { start: at, length, previous, next: None, frozen: user_defined.is_some() });
            at += length;
        }
        Self { model, text, symbols, candidates: BinaryHeap::new(), halves: HashMap::new() }
    }

    fn slice(&self, symbol: &Symbol) -> &'a str {
        &self.text[symbol.start..symbol.start + symbol.length]
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(Some(right - 1), Some(right));
        }
        while let Some(Candidate { left, right, length, .. }) = self.candidates.pop() {
            let (left_length, right_length) = (self.symbols[left].length, self.symbols[right].length);
            if left_length == 0 || right_length == 0 || left_length + right_length != length {
                continue;
            }
            let next = self.symbols[right].next;
            self.symbols[left].length = length;
            self.symbols[left].next = next;
            self.symbols[right].length = 0;
            if let Some(next) = next {
                self.symbols[next].previous = Some(left);
            }
            self.consider(self.symbols[left].previous, Some(left));
            self.consider(Some(left), next);
        }
    }

    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (first, second) = (&self.symbols[left], &self.symbols[right]);
        if first.frozen || second.frozen {
            return;
        }
        let union = &self.text[first.start..second.start + second.length];
        let Some(piece) = self.model.pieces.get(union) else { return };
        if piece.unused {
            self.halves.insert(union, union.split_at(first.length));
        }
        self.candidates.push(Candidate { score: piece.score, left, right, length: union.len() });
    }

    /// A piece's token; unused pieces are taken apart, unknown ones become bytes or, without those, one unknown
    /// token for a run of them.
    fn emit(&self, text: &str, depth: usize, tokens: &mut Vec<u32>, after_unknown: &mut bool) {
        let piece = self.model.pieces.get(text);
        // Halves grow shorter each time, so the depth is bounded by the longest piece; the check bounds the stack.
        if piece.is_some_and(|piece| piece.unused)
            && depth < 256
            && let Some((left, right)) = self.halves.get(text)
        {
            self.emit(left, depth + 1, tokens, after_unknown);
            return self.emit(right, depth + 1, tokens, after_unknown);
        }
        if let Some(piece) = piece {
            tokens.push(piece.id);
            *after_unknown = false;
            return;
        }
        let bytes: Option<Vec<u32>> = text.bytes().map(|byte| self.model.bytes[usize::from(byte)]).collect();
        if let Some(bytes) = bytes {
            tokens.extend(bytes);
            *after_unknown = false;
        } else if !*after_unknown {
            tokens.extend(self.model.unknown);
            *after_unknown = true;
        }
    }
}

/// The best score first; of equal ones the leftmost.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Finds the longest of some texts at the beginning of another.
#[derive(Default)]
struct Matcher {
    ids: HashMap<Vec<u8>, u32>,
    /// By first byte: the lengths that occur, longest first.
    lengths: HashMap<u8, Vec<usize>>,
}

impl Matcher {
    fn add(&mut self, text: &str, id: u32) {
        if let Some(&first) = text.as_bytes().first() {
            self.ids.insert(text.as_bytes().to_vec(), id);
            self.lengths.entry(first).or_default().push(text.len());
        }
    }

    fn finish(&mut self) {
        for lengths in self.lengths.values_mut() {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
    }

    fn longest(&self, text: &str) -> Option<(u32, usize)> {
        let bytes = text.as_bytes();
        let lengths = self.lengths.get(bytes.first()?)?;
        lengths.iter().find_map(|&length| Some((*self.ids.get(bytes.get(..length)?)?, length)))
    }
}
