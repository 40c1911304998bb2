//! The data plane's frame: a fixed 64-byte little-endian header and at most 60 KiB of payload.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `CPFR` |
//! | 4 | 1 | version (1) |
//! | 5 | 1 | kind |
//! | 6 | 1 | element type of hidden states (0 none, 1 f32, 2 f16, 3 bf16) |
//! | 7 | 1 | flags (bit 0: sample after this step) |
//! | 8 | 8 | coalition epoch |
//! | 16 | 8 | request id |
//! | 24 | 2 | attempt |
//! | 26 | 2 | chunk index |
//! | 28 | 2 | chunk count |
//! | 30 | 2 | reason code of a `Fail`, else 0 |
//! | 32 | 4 | step |
//! | 36 | 4 | first position |
//! | 40 | 4 | token count |
//! | 44 | 4 | truncate the cache to this length first (`u32::MAX`: no) |
//! | 48 | 4 | hidden size |
//! | 52 | 4 | payload length |
//! | 56 | 4 | resume from: the first position whose token is new to the client |
//! | 60 | 4 | CRC-32C of bytes 0..60 and the payload |
//!
//! A data-channel message holds one or more frames back to back, at most [`MAX_MESSAGE`] bytes.

use bytes::{BufMut, Bytes, BytesMut};
use pool_types::{Activation, Attempt, Epoch, Failure, ReasonCode, RequestId};
use thiserror::Error;

/// Bytes of a header.
pub const HEADER: usize = 64;
/// Most payload bytes in one frame.
pub const MAX_PAYLOAD: usize = 60 * 1024;
/// Most bytes in one data-channel message.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most frames one message body may be cut into: bounds a step at about 15 MiB.
pub const MAX_CHUNKS: u16 = 256;
/// The only version this build speaks.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"CPFR";
const NO_TRUNCATE: u32 = u32::MAX;
const FLAG_SAMPLE: u8 = 1;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Gateway to entry and exit: a request begins ([`crate::Prompt`]).
    Prompt = 1,
    /// Shard to next shard: a request begins; `tokens` is the capacity to reserve.
    Open = 2,
    /// Shard to next shard: hidden states of one step.
    Hidden = 3,
    /// Exit to gateway and entry: a sampled token ([`crate::Token`]); acknowledges its step.
    Token = 4,
    /// Shard to previous shard: `step` has been worked; one more may be sent.
    Credit = 5,
    /// Gateway to entry and exit, shard to next shard: the request is over; free it.
    Release = 6,
    /// To the gateway, by way of earlier shards: the request failed here.
    Fail = 7,
}

impl Kind {
    fn from_wire(kind: u8) -> Option<Self> {
        use Kind::*;
        [Prompt, Open, Hidden, Token, Credit, Release, Fail].into_iter().find(|k| *k as u8 == kind)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// The coalition's membership generation; frames of another are dropped.
    pub epoch: Epoch,
    /// The request it belongs to.
    pub request: RequestId,
    /// The request's attempt; frames of an older one are dropped.
    pub attempt: Attempt,
    /// Which piece of the body this is, of `chunks`.
    pub chunk: u16,
    /// How many pieces the body has (at least 1).
    pub chunks: u16,
    /// Why, in a `Fail`.
    pub reason: Option<ReasonCode>,
    /// The step within the request; only grows.
    pub step: u32,
    /// Position of the first token of the step in the sequence.
    pub position: u32,
    /// Tokens (rows) in the whole step; in `Open`, the capacity to reserve.
    pub tokens: u32,
    /// Roll the cache back to this length before the step.
    pub truncate_to: Option<u32>,
    /// Width of a hidden state.
    pub hidden: u32,
    /// Element type of hidden states.
    pub dtype: Option<Activation>,
    /// Sample a token after this step.
    pub sample: bool,
    /// Position of the first token that is new to the client (0 unless replayed).
    pub resume_from: u32,
    /// This piece of the body.
    pub payload: Bytes,
}

/// Bytes that are not a frame of this version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum FrameError {
    #[error("frame cut short: {have} of {need} bytes")]
    Short { have: usize, need: usize },
    #[error("not a frame: wrong magic")]
    Magic,
    #[error("frame version {0} is not supported")]
    Version(u8),
    #[error("frame field `{0}` is out of bounds")]
    Field(&'static str),
    #[error("frame payload of {0} bytes exceeds the limit")]
    Oversized(usize),
    #[error("frame checksum does not match")]
    Checksum,
}

impl Frame {
    /// A frame with no payload; set what the kind needs.
    pub fn new(kind: Kind, epoch: Epoch, request: RequestId) -> Self {
        Frame {
            kind,
            epoch,
            request,
            attempt: Attempt(0),
            chunk: 0,
            chunks: 1,
            reason: None,
            step: 0,
            position: 0,
            tokens: 0,
            truncate_to: None,
            hidden: 0,
            dtype: None,
            sample: false,
            resume_from: 0,
            payload: Bytes::new(),
        }
    }

    /// A `Fail` frame; its payload is the failure's sentence.
    pub fn fail(epoch: Epoch, request: RequestId, failure: &Failure) -> Self {
        let message = &failure.message[..failure.message.floor_char_boundary(1024)];
        Frame {
            reason: Some(failure.code),
            payload: Bytes::copy_from_slice(message.as_bytes()),
            ..Frame::new(Kind::Fail, epoch, request)
        }
    }

    /// The failure a `Fail` frame carries.
    pub fn failure(&self) -> Failure {
        Failure::new(self.reason.unwrap_or(ReasonCode::Protocol), String::from_utf8_lossy(&self.payload))
    }

    /// Cuts `body` into as many copies of this frame as it needs.
    pub fn with_body(self, body: &Bytes) -> Vec<Frame> {
        let chunks = body.len().div_ceil(MAX_PAYLOAD).max(1) as u16;
        (0..chunks)
            .map(|chunk| {
                let start = usize::from(chunk) * MAX_PAYLOAD;
                let payload = body.slice(start..body.len().min(start + MAX_PAYLOAD));
                Frame { chunk, chunks, payload, ..self.clone() }
            })
            .collect()
    }

    /// Bytes this frame takes in a message.
    pub fn encoded_len(&self) -> usize {
        HEADER + self.payload.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&MAGIC);
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u8(match self.dtype {
            None => 0,
            Some(Activation::F32) => 1,
            Some(Activation::F16) => 2,
            Some(Activation::Bf16) => 3,
        });
        out.put_u8(if self.sample { FLAG_SAMPLE } else { 0 });
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.request.0);
        out.put_u16_le(self.attempt.0);
        out.put_u16_le(self.chunk);
        out.put_u16_le(self.chunks);
        out.put_u16_le(self.reason.map_or(0, ReasonCode::to_wire));
        out.put_u32_le(self.step);
        out.put_u32_le(self.position);
        out.put_u32_le(self.tokens);
        out.put_u32_le(self.truncate_to.unwrap_or(NO_TRUNCATE));
        out.put_u32_le(self.hidden);
        out.put_u32_le(self.payload.len() as u32);
        out.put_u32_le(self.resume_from);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&out[start..]), &self.payload);
        out.put_u32_le(checksum);
        out.put_slice(&self.payload);
    }

    fn decode(bytes: &mut Bytes) -> Result<Frame, FrameError> {
        if bytes.len() < HEADER {
            return Err(FrameError::Short { have: bytes.len(), need: HEADER });
        }
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let length = u32_at(52) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::Oversized(length));
        }
        if bytes.len() < HEADER + length {
            return Err(FrameError::Short { have: bytes.len(), need: HEADER + length });
        }
        let payload = bytes.slice(HEADER..HEADER + length);
        if crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &payload) != u32_at(60) {
            return Err(FrameError::Checksum);
        }
        let kind = Kind::from_wire(bytes[5]).ok_or(FrameError::Field("kind"))?;
        let dtype = match bytes[6] {
            0 => None,
            1 => Some(Activation::F32),
            2 => Some(Activation::F16),
            3 => Some(Activation::Bf16),
            _ => return Err(FrameError::Field("dtype")),
        };
        if bytes[7] & !FLAG_SAMPLE != 0 {
            return Err(FrameError::Field("flags"));
        }
        let (chunk, chunks) = (u16_at(26), u16_at(28));
        if chunks == 0 || chunks > MAX_CHUNKS || chunk >= chunks {
            return Err(FrameError::Field("chunk"));
        }
        if chunk + 1 < chunks && length != MAX_PAYLOAD {
            return Err(FrameError::Field("payload length"));
        }
        let reason = match u16_at(30) {
            0 => None,
            code => Some(ReasonCode::from_wire(code).ok_or(FrameError::Field("reason"))?),
        };
        let truncate_to = Some(u32_at(44)).filter(|length| *length != NO_TRUNCATE);
        let frame = Frame {
            kind,
            epoch: Epoch(u64_at(8)),
            request: RequestId(u64_at(16)),
            attempt: Attempt(u16_at(24)),
            chunk,
            chunks,
            reason,
            step: u32_at(32),
            position: u32_at(36),
            tokens: u32_at(40),
            truncate_to,
            hidden: u32_at(48),
            dtype,
            sample: bytes[7] & FLAG_SAMPLE != 0,
            resume_from: u32_at(56),
            payload,
        };
        *bytes = bytes.slice(HEADER + length..);
        Ok(frame)
    }
}

/// One step's hidden states: what a [`Kind::Hidden`] frame says besides its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of Frame")]
pub struct Hidden {
    pub request: RequestId,
    pub attempt: Attempt,
    pub step: u32,
    pub position: u32,
    pub tokens: u32,
    pub truncate_to: Option<u32>,
    pub hidden: u32,
    pub dtype: Activation,
    pub sample: bool,
    pub resume_from: u32,
}

impl Default for Hidden {
    fn default() -> Self {
        Hidden {
            request: RequestId(0),
            attempt: Attempt(0),
            step: 0,
            position: 0,
            tokens: 0,
            truncate_to: None,
            hidden: 0,
            dtype: Activation::F16,
            sample: false,
            resume_from: 0,
        }
    }
}

impl Hidden {
    /// The frames that carry `rows` (`tokens * hidden` elements of `dtype`, little endian).
    pub fn frames(&self, epoch: Epoch, rows: impl AsRef<[u8]>) -> Vec<Frame> {
        self.frame(epoch).with_body(&Bytes::copy_from_slice(rows.as_ref()))
    }

    /// As [`Self::frames`], without copying the rows.
    pub fn frames_owned(&self, epoch: Epoch, rows: Vec<u8>) -> Vec<Frame> {
        self.frame(epoch).with_body(&Bytes::from(rows))
    }

    fn frame(&self, epoch: Epoch) -> Frame {
        Frame {
            attempt: self.attempt,
            step: self.step,
            position: self.position,
            tokens: self.tokens,
            truncate_to: self.truncate_to,
            hidden: self.hidden,
            dtype: Some(self.dtype),
            sample: self.sample,
            resume_from: self.resume_from,
            ..Frame::new(Kind::Hidden, epoch, self.request)
        }
    }
}

/// All frames in one message. The caller keeps the sum of [`Frame::encoded_len`] within [`MAX_MESSAGE`];
/// [`messages`] does.
pub fn message(frames: &[Frame]) -> Bytes {
    let mut out = BytesMut::with_capacity(frames.iter().map(Frame::encoded_len).sum());
    for frame in frames {
        frame.encode(&mut out);
    }
    out.freeze()
}

/// Packs frames, in order, into as few messages as hold them.
pub fn messages(frames: &[Frame]) -> Vec<Bytes> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut size = 0;
    for (i, frame) in frames.iter().enumerate() {
        if size + frame.encoded_len() > MAX_MESSAGE {
            out.push(message(&frames[start..i]));
            (start, size) = (i, 0);
        }
        size += frame.encoded_len();
    }
    if start < frames.len() {
        out.push(message(&frames[start..]));
    }
    out
}

/// The frames of one message, in order; ends after the first error.
pub fn parse(message: Bytes) -> impl Iterator<Item = Result<Frame, FrameError>> {
    let mut rest = message;
    if rest.len() > MAX_MESSAGE {
        rest = Bytes::from_static(b"oversized");
    }
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = Frame::decode(&mut rest);
        if frame.is_err() {
            rest = Bytes::new();
        }
        Some(frame)
    })
}

#[cfg(test)]
mod tests;
