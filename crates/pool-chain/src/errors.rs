//! What can go wrong between us and a chain's node, sorted by what to do about it.

use std::time::Duration;

use alloy::{
    primitives::{Address, Bytes},
    transports::{RpcError, TransportError, TransportErrorKind},
};
use pool_journal::Unreachable;
use thiserror::Error;

use crate::Revert;

/// Why a chain did not answer as hoped. None of these shows an address of a node (they can hold keys), a key, or a
/// contract's own text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// No connection, or it broke. Try again.
    #[error("the chain's node cannot be reached ({operation})")]
    Unreachable {
        /// What was tried.
        operation: &'static str,
    },
    /// No answer in time. Try again.
    #[error("the chain's node did not answer within {} s ({operation})", .after.as_secs_f32())]
    Deadline {
        /// What was tried.
        operation: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The node asks for patience. Try again later.
    #[error("the chain's node takes no more requests for now ({operation})")]
    Busy {
        /// What was tried.
        operation: &'static str,
    },
    /// A contract refused. Trying again changes nothing.
    #[error("the chain refused to {operation}: {revert}")]
    Reverted {
        /// What was tried.
        operation: &'static str,
        /// Why.
        revert: Revert,
    },
    /// The node refused by a code of its own.
    #[error("the chain's node refused with code {code} ({operation})")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// JSON-RPC's code.
        code: i64,
    },
    /// The node's newest block is older than one that it had before. It catches up, or its chain was set back.
    #[error("the chain's node is at block {head}, before block {seen} that was read already")]
    Behind {
        /// Its newest block.
        head: u64,
        /// The block that was read.
        seen: u64,
    },
    /// The answer is none.
    #[error("the chain's node gave an answer that makes no sense ({operation})")]
    Nonsense {
        /// What was tried.
        operation: &'static str,
    },
    /// The address of the node is none.
    #[error("the address of the chain's node is not a URL of {0}")]
    Address(&'static str),
    /// The node serves another chain.
    #[error("the node serves the chain {found}, but the address book is of chain {wanted}")]
    WrongChain {
        /// What it says.
        found: u64,
        /// What the book says.
        wanted: u64,
    },
    /// A contract of the address book is not there, or is another.
    #[error("the contract {name} at {address} is not the one of the address book: deploy, or correct the book")]
    WrongContract {
        /// Its name in the book.
        name: String,
        /// Its address in the book.
        address: Address,
    },
}

impl ChainError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Deadline { .. }
                | Self::Busy { .. }
                | Self::Behind { .. }
                | Self::Nonsense { .. }
        )
    }

    /// Sorts what the transport says. Its own text may hold the node's address and never goes further than this.
    pub(crate) fn of(operation: &'static str, error: &TransportError) -> Self {
        match error {
            RpcError::ErrorResp(payload) => {
                if let Some(data) = revert_data(payload.data.as_deref().map(|raw| raw.get())) {
                    return Self::Reverted { operation, revert: Revert::decode(&data) };
                }
                match payload.code {
                    // 3 is geth's code for a revert, with or without data.
                    3 => Self::Reverted { operation, revert: Revert::decode(&Bytes::new()) },
                    429 | -32005 | -32007 | -32097 => Self::Busy { operation },
                    code => Self::Refused { operation, code },
                }
            }
            RpcError::Transport(TransportErrorKind::HttpError(http)) if http.status == 429 => Self::Busy { operation },
            RpcError::Transport(_) => Self::Unreachable { operation },
            RpcError::NullResp | RpcError::DeserError { .. } | RpcError::SerError(_) => Self::Nonsense { operation },
            _ => Self::Unreachable { operation },
        }
    }
}

impl From<ChainError> for Unreachable {
    fn from(error: ChainError) -> Self {
        Self(error.to_string())
    }
}

/// The data of a reverted call: nodes write it as a string, or as an object with the string in `data`.
fn revert_data(data: Option<&str>) -> Option<Bytes> {
    let value: serde_json::Value = serde_json::from_str(data?).ok()?;
    let text = value.as_str().or_else(|| value.get("data").and_then(serde_json::Value::as_str))?;
    // Some nodes say "Reverted 0x…".
    text.strip_prefix("Reverted ").unwrap_or(text).parse().ok()
}

#[cfg(test)]
mod tests {
    use alloy::{sol_types::SolError, transports::HttpError};
    use serde_json::json;

    use super::*;
    use crate::contracts::ISessionVault;

    fn response(code: i64, message: &str, data: Option<serde_json::Value>) -> TransportError {
        let payload = json!({ "code": code, "message": message, "data": data }).to_string();
        RpcError::ErrorResp(serde_json::from_str(&payload).unwrap())
    }

    #[test]
    fn errors_are_sorted_by_what_to_do_about_them() {
        let of = |error: TransportError| ChainError::of("ask", &error);
        let short: String = Bytes::from(ISessionVault::RunwayTooShort {}.abi_encode()).to_string();
        let revert = of(response(3, "execution reverted", Some(short.clone().into())));
        assert!(!revert.is_transient());
        assert_eq!(
            revert.to_string(),
            "the chain refused to ask: the money left does not last long enough to stream at this rate"
        );
        assert_eq!(of(response(-32000, "revert", Some(json!({ "data": short })))), revert);
        assert!(matches!(of(response(3, "execution reverted: pay me", None)), ChainError::Reverted { .. }));
        assert!(of(response(429, "slow down", None)).is_transient());
        assert_eq!(of(response(-32602, "x", None)), ChainError::Refused { operation: "ask", code: -32602 });
        let http = |status| {
            let body = String::new();
            RpcError::Transport(TransportErrorKind::HttpError(HttpError { status, body }))
        };
        assert!(matches!(of(http(429)), ChainError::Busy { .. }));
        assert!(matches!(of(http(502)), ChainError::Unreachable { .. }));
    }

    #[test]
    fn no_error_shows_what_the_node_or_the_contract_said() {
        let secret = "https://node/v3/secret-key";
        for error in [
            response(-32000, secret, None),
            response(3, secret, Some(secret.into())),
            TransportErrorKind::custom_str(secret),
            RpcError::NullResp,
        ] {
            let shown = ChainError::of("ask", &error);
            assert!(!format!("{shown} {shown:?}").contains("secret"), "{shown:?}");
        }
    }
}
