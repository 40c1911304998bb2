use bytes::{Buf, BufMut, Bytes, BytesMut};
use pool_types::{Epoch, FinishReason, RequestId, Sampling, TokenChoice};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{Frame, Kind};

/// What a request is: the body of a [`Kind::Prompt`] frame, the same for entry and exit.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The rendered, tokenised prompt; never empty.
    pub tokens: Vec<u32>,
    /// How to sample.
    pub sampling: Sampling,
    /// The answer ends after this many tokens.
    pub max_new_tokens: u32,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptOptions {
    sampling: Sampling,
    max_new_tokens: u32,
    stop_tokens: Vec<u32>,
}

/// A body that does not say what its kind should.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum BodyError {
    #[error("{0} body cut short")]
    Short(&'static str),
    #[error("prompt options are not valid: {0}")]
    Options(#[from] serde_json::Error),
    #[error("{0}")]
    Sampling(#[from] pool_types::SamplingError),
    #[error("{0} is out of bounds")]
    Field(&'static str),
}

const MAX_OPTIONS: usize = 64 * 1024;
const MAX_STOP_TOKENS: usize = 64;

impl Prompt {
    /// The most tokens the sequence will ever hold. The last sampled token is never fed back, yet is counted.
    pub fn capacity(&self) -> u32 {
        (self.tokens.len() as u32).saturating_add(self.max_new_tokens)
    }

    /// The frames that carry this prompt; their `tokens` field is the capacity to reserve.
    pub fn frames(&self, epoch: Epoch, request: RequestId) -> Result<Vec<Frame>, BodyError> {
        let options = serde_json::to_vec(&PromptOptions {
            sampling: self.sampling.clone(),
            max_new_tokens: self.max_new_tokens,
            stop_tokens: self.stop_tokens.clone(),
        })?;
        let mut body = BytesMut::with_capacity(4 + options.len() + 4 * self.tokens.len());
        body.put_u32_le(options.len() as u32);
        body.put_slice(&options);
        for token in &self.tokens {
            body.put_u32_le(*token);
        }
        let frame = Frame { tokens: self.capacity(), ..Frame::new(Kind::Prompt, epoch, request) };
        Ok(frame.with_body(&body.freeze()))
    }

    /// Reads a reassembled body.
    pub fn parse(mut body: Bytes) -> Result<Self, BodyError> {
        if body.len() < 4 {
            return Err(BodyError::Short("prompt"));
        }
        let length = body.get_u32_le() as usize;
        if length > MAX_OPTIONS {
            return Err(BodyError::Field("prompt options length"));
        }
        if body.len() < length {
            return Err(BodyError::Short("prompt"));
        }
        let options: PromptOptions = serde_json::from_slice(&body.split_to(length))?;
        options.sampling.validate()?;
        if options.stop_tokens.len() > MAX_STOP_TOKENS {
            return Err(BodyError::Field("stop_tokens"));
        }
        if options.max_new_tokens == 0 {
            return Err(BodyError::Field("max_new_tokens"));
        }
        if body.is_empty() || !body.len().is_multiple_of(4) {
            return Err(BodyError::Field("prompt tokens"));
        }
        let tokens = body.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let PromptOptions { sampling, max_new_tokens, stop_tokens } = options;
        Ok(Prompt { tokens, sampling, max_new_tokens, stop_tokens })
    }
}

/// A sampled token: the body of a [`Kind::Token`] frame. The frame's `step` is the one it answers and its
/// `position` the place of the token in the sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The token and its log-probabilities.
    pub choice: TokenChoice,
    /// Set on the last token of the answer.
    pub finish: Option<FinishReason>,
}

impl Token {
    /// The frame that carries this token. `with_logprobs` is false towards the entry shard, which needs none.
    pub fn frame(&self, template: Frame, with_logprobs: bool) -> Frame {
        let top: &[(u32, f32)] = if with_logprobs { &self.choice.top } else { &[] };
        let mut body = BytesMut::with_capacity(12 + 8 * top.len());
        body.put_u32_le(self.choice.token);
        body.put_f32_le(if with_logprobs { self.choice.logprob } else { f32::NAN });
        body.put_u16_le(match self.finish {
            None => 0,
            Some(FinishReason::Stop) => 1,
            Some(FinishReason::Length) => 2,
        });
        body.put_u16_le(top.len() as u16);
        for (token, logprob) in top {
            body.put_u32_le(*token);
            body.put_f32_le(*logprob);
        }
        Frame { kind: Kind::Token, tokens: 1, payload: body.freeze(), ..template }
    }

    /// Reads a token frame's payload.
    pub fn parse(mut body: Bytes) -> Result<Self, BodyError> {
        if body.len() < 12 {
            return Err(BodyError::Short("token"));
        }
        let (token, logprob) = (body.get_u32_le(), body.get_f32_le());
        let finish = match body.get_u16_le() {
            0 => None,
            1 => Some(FinishReason::Stop),
            2 => Some(FinishReason::Length),
            _ => return Err(BodyError::Field("finish")),
        };
        let count = usize::from(body.get_u16_le());
        if count > usize::from(Sampling::MAX_LOGPROBS) || body.len() != 8 * count {
            return Err(BodyError::Field("top log-probabilities"));
        }
        let top = (0..count).map(|_| (body.get_u32_le(), body.get_f32_le())).collect();
        Ok(Token { choice: TokenChoice { token, logprob, top }, finish })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt(tokens: Vec<u32>) -> Prompt {
        Prompt { tokens, sampling: Sampling::greedy(), max_new_tokens: 5, stop_tokens: vec![2] }
    }

    #[test]
    fn a_long_prompt_crosses_in_several_frames() {
        let sent = prompt((0..40_000).collect());
        let frames = sent.frames(Epoch(1), RequestId(9)).unwrap();
        assert!(frames.len() > 1, "160 kB do not fit one frame");
        assert_eq!(frames[0].tokens, 40_005);
        let body: Vec<u8> = frames.iter().flat_map(|f| f.payload.to_vec()).collect();
        assert_eq!(Prompt::parse(body.into()).unwrap(), sent);
    }

    #[test]
    fn a_prompt_that_cannot_be_served_is_refused() {
        let body = |p: Prompt| p.frames(Epoch(0), RequestId(0)).unwrap()[0].payload.clone();
        assert!(Prompt::parse(body(prompt(vec![]))).is_err(), "an empty prompt has nothing to continue");
        assert!(Prompt::parse(body(Prompt { max_new_tokens: 0, ..prompt(vec![1]) })).is_err());
        let hot = Sampling { temperature: 9.0, ..Sampling::default() };
        assert!(Prompt::parse(body(Prompt { sampling: hot, ..prompt(vec![1]) })).is_err());
    }

    #[test]
    fn the_entry_is_not_told_log_probabilities() {
        let choice = TokenChoice { token: 7, logprob: -0.5, top: vec![(7, -0.5), (8, -1.0)] };
        let token = Token { choice, finish: Some(FinishReason::Length) };
        let template = Frame::new(Kind::Token, Epoch(1), RequestId(1));
        assert_eq!(Token::parse(token.frame(template.clone(), true).payload).unwrap(), token);
        let bare = Token::parse(token.frame(template, false).payload).unwrap();
        assert!(bare.choice.logprob.is_nan() && bare.choice.top.is_empty() && bare.finish == token.finish);
    }

    proptest! {
        #[test]
        fn random_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Prompt::parse(bytes.clone().into());
            let _ = Token::parse(bytes.into());
        }
    }
}
