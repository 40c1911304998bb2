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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// The bundled model's: every byte is a token, and a thousand longer ones.
    static BUNDLED: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tokenizer.json");
        Arc::new(Tokenizer::from_json(&std::fs::read(path).unwrap()).unwrap())
    });

    /// Tokens that say `text`, chosen at random among all that fit at each place, characters' halves included.
    fn tokenise(tokenizer: &Tokenizer, text: &str, choices: &[Index]) -> Vec<u32> {
        let mut rest = text.as_bytes();
        let mut tokens = Vec::new();
        for choice in choices.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let all = (0..tokenizer.vocab_size() as u32).filter(|token| !tokenizer.is_special(*token));
            let pieces = all.filter_map(|token| Some((token, tokenizer.token_bytes(token)?)));
            let fitting: Vec<_> = pieces.filter(|(_, b)| !b.is_empty() && rest.starts_with(b)).collect();
            let (token, bytes) = &fitting[choice.index(fitting.len())];
            rest = &rest[bytes.len()..];
            tokens.push(*token);
        }
        tokens
    }

    fn token(token: u32, finish: Option<FinishReason>) -> Token {
        Token { choice: TokenChoice { token, logprob: -1.0, top: Vec::new() }, finish }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_tokens_of_a_text_give_that_text_cut_at_the_stop_string(
            text in "[aeh lst,é🙂]{1,40}",
            stops in proptest::collection::vec("[aeh lst,é🙂]{1,4}", 0..=4),
            choices in proptest::collection::vec(any::<Index>(), 1..30),
        ) {
            let tokenizer = &*BUNDLED;
            let tokens = tokenise(tokenizer, &text, &choices);
            let mut answer = Answer::new(tokenizer, true, stops.clone(), Vec::new(), true);
            let (mut said, mut scored, mut finish) = (String::new(), Vec::new(), None);
            for (place, id) in tokens.iter().enumerate() {
                let last = (place + 1 == tokens.len()).then_some(FinishReason::Length);
                let progress = answer.push(token(*id, last));
                if let Some(piece) = progress.piece {
                    prop_assert!(!piece.text.is_empty() || !piece.tokens.is_empty(), "no empty pieces");
                    said.push_str(&piece.text);
                    scored.extend(piece.tokens);
                }
                finish = progress.finish;
                if finish.is_some() {
                    break;
                }
            }
            let ends = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
            let cut = ends.min().map(|(_, start)| start);
            prop_assert_eq!(&said, &text[..cut.unwrap_or(text.len())]);
            let reason = if cut.is_some() { FinishReason::Stop } else { FinishReason::Length };
            prop_assert_eq!(finish, Some(reason));
            let bytes: Vec<u8> =
                scored.iter().flat_map(|s| tokenizer.token_bytes(s.choice.token).unwrap()).collect();
            prop_assert!(bytes.starts_with(said.as_bytes()), "every token of the text is scored, in order");
            prop_assert!(scored.is_empty() || scored.last().unwrap().offset <= said.chars().count());
            if cut.is_none() {
                prop_assert_eq!(scored.len(), tokens.len());
            }
        }
    }

    #[test]
    fn a_token_that_is_no_text_is_named_by_its_bytes_and_numbers_are_finite() {
        assert_eq!(token_name("é".as_bytes()), "é");
        assert_eq!(token_name(&[0xc3, 0x0a]), "bytes:\\xc3\\x0a");
        assert_eq!([f32::NAN, f32::NEG_INFINITY, -0.5].map(finite), [-9999.0, -9999.0, -0.5]);
    }
}
