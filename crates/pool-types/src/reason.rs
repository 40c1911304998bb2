use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request, a shard or a link ended other than as wished. Each code is one that somebody acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum ReasonCode {
    /// Prompt and answer together are longer than the model's context.
    ContextTooLong = 1,
    /// The shard's KV budget has no room for the request now.
    KvFull = 2,
    /// A frame or message broke the protocol.
    Protocol = 3,
    /// A peer fell silent or its process ended.
    PeerLost = 4,
    /// The engine failed.
    Engine = 5,
    /// The client went away.
    Cancelled = 6,
    /// A deadline passed.
    Timeout = 7,
    /// The model file cannot be used.
    Model = 8,
    /// The member is leaving: its owner came back or asked it to stop.
    StandDown = 9,
    /// Identity or signature did not hold.
    Unauthorised = 10,
}

impl ReasonCode {
    /// The code as it stands in a frame.
    pub fn to_wire(self) -> u16 {
        self as u16
    }

    /// The code of a frame, or `None` for one this version does not know.
    pub fn from_wire(code: u16) -> Option<Self> {
        use ReasonCode::*;
        [ContextTooLong, KvFull, Protocol, PeerLost, Engine, Cancelled, Timeout, Model, StandDown, Unauthorised]
            .into_iter()
            .find(|reason| reason.to_wire() == code)
    }
}

/// A reason code with one plain sentence. Never contains a prompt, a token or a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is.
    pub code: ReasonCode,
    /// The sentence a person reads.
    pub message: String,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(code: ReasonCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::ReasonCode;

    #[test]
    fn codes_survive_the_wire_and_unknown_ones_are_none() {
        for code in 0..64 {
            if let Some(reason) = ReasonCode::from_wire(code) {
                assert_eq!(reason.to_wire(), code);
            }
        }
        assert_eq!(ReasonCode::from_wire(0), None);
        assert_eq!(ReasonCode::from_wire(999), None);
    }
}
