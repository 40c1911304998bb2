use std::sync::Arc;

use super::Tokenizer;

/// Tokens to text, one token at a time and each at the cost of its own length. A character whose bytes are spread
/// over several tokens comes out whole, with the token that completes it.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Arc<Tokenizer>,
    /// The beginning of a character; never more than three bytes between calls.
    pending: Vec<u8>,
    started: bool,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, started: bool) -> Self {
        Self { tokenizer, pending: Vec::new(), started }
    }

    /// The text that this token completes, or `None` when it completes none (or is special, or unknown).
    pub fn push(&mut self, token: u32) -> Option<String> {
        let piece = self.tokenizer.pieces.get(token).filter(|piece| !piece.special)?;
        if self.started {
            self.pending.extend_from_slice(piece.bytes);
        } else {
            self.pending.extend_from_slice(&self.tokenizer.pieces.first(&piece));
        }
        self.started = true;
        self.complete()
    }

    /// What is left when no more tokens come: U+FFFD for a character that was begun and never completed.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    fn complete(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(length) = error.error_len() else {
                        rest = bad;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        }
        let consumed = self.pending.len() - rest.len();
        self.pending.drain(..consumed);
        (!text.is_empty()).then_some(text)
    }
}
