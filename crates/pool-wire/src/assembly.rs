use bytes::{Bytes, BytesMut};
use pool_types::{Attempt, RequestId};
use thiserror::Error;

use crate::frame::{Frame, Kind, MAX_PAYLOAD};

/// A whole body with the header fields of its first frame.
pub type Assembled = Frame;

/// Pieces that do not make a body.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum AssemblyError {
    #[error("chunk {got} of request {request} arrived where {want} was due")]
    Order { request: RequestId, want: u16, got: u16 },
    #[error("a body of {0} bytes exceeds the limit")]
    Oversized(usize),
}

/// Puts the pieces of chunked bodies together again. One per link and lane: lanes are ordered, so at most
/// one body is in progress and its pieces arrive in order. Holds at most `limit` bytes.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    partial: Option<(Frame, BytesMut)>,
}

type Key = (Kind, RequestId, Attempt, u32, u16);

fn key(frame: &Frame) -> Key {
    (frame.kind, frame.request, frame.attempt, frame.step, frame.chunks)
}

impl Assembler {
    /// An assembler for bodies of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Assembler { limit, partial: None }
    }

    /// Takes the next frame; gives the body once its last piece is here. After an error the body in
    /// progress is forgotten.
    pub fn push(&mut self, frame: Frame) -> Result<Option<Assembled>, AssemblyError> {
        if frame.chunks == 1 && self.partial.is_none() {
            return if frame.payload.len() > self.limit {
                Err(AssemblyError::Oversized(frame.payload.len()))
            } else {
                Ok(Some(frame))
            };
        }
        let whole = usize::from(frame.chunks) * MAX_PAYLOAD;
        let (first, mut body) = match self.partial.take() {
            Some((first, _)) if key(&first) != key(&frame) => {
                return Err(AssemblyError::Order { request: frame.request, want: first.chunk, got: frame.chunk });
            }
            Some(partial) => partial,
            None if whole.saturating_sub(MAX_PAYLOAD) > self.limit => return Err(AssemblyError::Oversized(whole)),
            None => (Frame { payload: Bytes::new(), ..frame.clone() }, BytesMut::new()),
        };
        let want = (body.len() / MAX_PAYLOAD) as u16;
        if frame.chunk != want {
            return Err(AssemblyError::Order { request: frame.request, want, got: frame.chunk });
        }
        body.extend_from_slice(&frame.payload);
        if body.len() > self.limit {
            return Err(AssemblyError::Oversized(body.len()));
        }
        if frame.chunk + 1 < frame.chunks {
            self.partial = Some((first, body));
            return Ok(None);
        }
        Ok(Some(Frame { payload: body.freeze(), chunk: 0, ..first }))
    }
}

#[cfg(test)]
mod tests {
    use pool_types::Epoch;

    use super::*;

    fn pieces(bytes: usize) -> Vec<Frame> {
        let body: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
        Frame::new(Kind::Hidden, Epoch(1), RequestId(3)).with_body(&body.into())
    }

    #[test]
    fn pieces_in_order_make_the_body_again() {
        let mut assembler = Assembler::new(1 << 20);
        let sent = pieces(2 * MAX_PAYLOAD + 5);
        let got: Vec<_> = sent.into_iter().map(|f| assembler.push(f).unwrap()).collect();
        assert!(got[0].is_none() && got[1].is_none());
        let body = &got[2].as_ref().unwrap().payload;
        assert_eq!(body.len(), 2 * MAX_PAYLOAD + 5);
        assert!(body.iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn a_missing_repeated_or_foreign_piece_is_an_error_and_the_next_body_is_fine() {
        for wrong in [2, 0] {
            let mut assembler = Assembler::new(1 << 20);
            let sent = pieces(3 * MAX_PAYLOAD);
            assembler.push(sent[0].clone()).unwrap();
            assert!(matches!(assembler.push(sent[wrong].clone()), Err(AssemblyError::Order { .. })));
            assert!(assembler.push(pieces(10).remove(0)).unwrap().is_some());
        }
    }

    #[test]
    fn a_body_over_the_limit_is_refused_before_it_is_held() {
        let mut assembler = Assembler::new(MAX_PAYLOAD);
        let announced = pieces(3 * MAX_PAYLOAD).remove(0);
        assert!(matches!(assembler.push(announced), Err(AssemblyError::Oversized(_))));
    }
}
