//! From sampled tokens to the text of an answer.

use std::{collections::VecDeque, sync::Arc};

use pool_models::{TokenStream, Tokenizer};
use pool_types::{FinishReason, TokenChoice};
use pool_wire::Token;

use super::stop::StopFilter;

/// Some of an answer's text, and the tokens that are complete with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Piece {
    /// Text that will not be taken back.
    pub(super) text: String,
    /// Kept only where log-probabilities were asked for.
    pub(super) tokens: Vec<Scored>,
}

/// A token of the answer with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    /// The token and the most likely ones.
    pub(super) choice: TokenChoice,
    /// How many characters of the answer stand before it.
    pub(super) offset: usize,
    /// Bytes of the answer before it and including it.
    start: usize,
    end: usize,
}

/// What one more token led to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// New text or tokens, where there are any.
    pub(super) piece: Option<Piece>,
    /// Set when the answer is complete; nothing may follow.
    pub(super) finish: Option<FinishReason>,
}

/// One answer in the making.
#[derive(Debug)]
pub(super) struct Answer {
    decoder: TokenStream,
    stop: StopFilter,
    stop_tokens: Vec<u32>,
    scored: Option<VecDeque<Scored>>,
    /// Bytes and characters of text so far, certain or not.
    bytes: usize,
    characters: usize,
    /// Bytes that are certain.
    certain: usize,
    tokens: u32,
}

impl Answer {
    /// `continues`: the text goes on from a prompt of the same text, so a word separator at its beginning counts.
    pub(super) fn new(
        tokenizer: &Arc<Tokenizer>,
        continues: bool,
        stop: Vec<String>,
        stop_tokens: Vec<u32>,
        logprobs: bool,
    ) -> Self {
        Self {
            decoder: if continues { tokenizer.continuation() } else { tokenizer.stream() },
            stop: StopFilter::new(stop),
            stop_tokens,
            scored: logprobs.then(VecDeque::new),
            bytes: 0,
            characters: 0,
            certain: 0,
            tokens: 0,
        }
    }

    /// Tokens sampled so far; one that ends the answer counts.
    pub(super) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Takes the next token.
    pub(super) fn push(&mut self, token: Token) -> Progress {
        self.tokens = self.tokens.saturating_add(1);
        let mut piece = Piece::default();
        let ends = token.finish == Some(FinishReason::Stop) && self.stop_tokens.contains(&token.choice.token);
        if !ends {
            let (start, offset) = (self.bytes, self.characters);
            let text = self.decoder.push(token.choice.token).unwrap_or_default();
            let stopped = self.take(&text, &mut piece);
            if let Some(scored) = &mut self.scored {
                scored.push_back(Scored { choice: token.choice, offset, start, end: self.bytes });
            }
            if stopped {
                return self.stopped(piece);
            }
        }
        if token.finish.is_some() {
            let rest = self.decoder.finish().unwrap_or_default();
            if self.take(&rest, &mut piece) {
                return self.stopped(piece);
            }
            piece.text.push_str(&self.stop.finish());
            piece.tokens.extend(self.scored.take().into_iter().flatten());
        } else if let Some(scored) = &mut self.scored {
            let complete = scored.iter().take_while(|scored| scored.end <= self.certain).count();
            if !piece.text.is_empty() {
                piece.tokens.extend(scored.drain(..complete));
            }
        }
        Progress { piece: some(piece), finish: token.finish }
    }

    /// Adds text; returns whether a stop string appeared.
    fn take(&mut self, text: &str, piece: &mut Piece) -> bool {
        self.bytes += text.len();
        self.characters += text.chars().count();
        let (certain, stopped) = self.stop.push(text);
        self.certain += certain.len();
        piece.text.push_str(&certain);
        stopped
    }

    /// A stop string ended the answer: tokens that gave none of what is left of it are not part of it.
    fn stopped(&mut self, mut piece: Piece) -> Progress {
        let certain = self.certain;
        piece.tokens.extend(self.scored.take().into_iter().flatten().filter(|scored| scored.start < certain));
        Progress { piece: some(piece), finish: Some(FinishReason::Stop) }
    }
}

fn some(piece: Piece) -> Option<Piece> {
    (!piece.text.is_empty() || !piece.tokens.is_empty()).then_some(piece)
}

/// How a token is called in an answer: its text, or its bytes where they are no text on their own.
pub(super) fn token_name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

/// A log-probability that JSON can write: OpenAI's -9999 stands for what is (nearly) impossible.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
