//! Who may use the interface: whoever can read the owner's state folder.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use alloy_primitives::hex;
use pool_node::identity::{IdentityError, write_private};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

/// Where the interface is, and the token that opens it. In a file that only its owner can read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Where it listens.
    pub address: SocketAddr,
    /// Goes into `Authorization: Bearer <token>`.
    pub token: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why the interface cannot be found or offered.
#[derive(Debug, Error)]
pub enum AccessError {
    /// No node runs here, or it has no interface.
    #[error("no node runs with the state folder {}", .0.display())]
    Nobody(PathBuf),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] IdentityError),
    /// The file cannot be read.
    #[error("{path} cannot be used: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Access {
    /// A fresh token of 256 random bits for an interface at `address`.
    pub fn new(address: SocketAddr) -> Self {
        let token = hex::encode(rand::random::<[u8; 32]>());
        Self { address, token }
    }

    /// The file in a state folder.
    pub fn path(state: &Path) -> PathBuf {
        state.join("api.json")
    }

    /// Writes the file for its owner alone (mode 0600), in place of one that was left over.
    pub fn write(&self, state: &Path) -> Result<(), AccessError> {
        let path = Self::path(state);
        let text =
            serde_json::to_vec(self).map_err(|error| AccessError::File { path: path.clone(), source: error.into() })?;
        Ok(write_private(&path, &text)?)
    }

    /// Reads what a running node wrote.
    pub fn read(state: &Path) -> Result<Self, AccessError> {
        let path = Self::path(state);
        let wrap = |source| AccessError::File { path: path.clone(), source };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(AccessError::Nobody(state.to_owned()));
            }
            Err(error) => return Err(wrap(error)),
        };
        serde_json::from_slice(&text).map_err(|error| wrap(error.into()))
    }

    /// Takes the file away when the node ends.
    pub fn remove(state: &Path) {
        let _ = fs::remove_file(Self::path(state));
    }

    /// Whether `token` is this one. Takes the same time whatever is wrong with it.
    pub(crate) fn opens(&self, token: &str) -> bool {
        self.token.as_bytes().ct_eq(token.as_bytes()).into()
    }
}
