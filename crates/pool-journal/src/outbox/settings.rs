//! How the outbox treats one chain.

use std::time::Duration;

use thiserror::Error;

/// How the outbox treats one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxSettings {
    /// How many blocks, the one that holds it included, make a transaction's outcome. 1 on a chain of one's own.
    pub confirmations: u64,
    /// How many blocks make it unchangeable. Until then a re-organisation that takes it out is noticed.
    pub settled_after: u64,
    /// How many blocks must stand over a nonce that somebody else used before its intent gets another one. Getting
    /// this wrong could make an effect happen twice, so it is deep.
    pub foreign_after: u64,
    /// How long nodes may be behind a block that held a transaction before that block is taken for gone.
    pub lag_after: Duration,
    /// How many signed transactions of one signer may be without a block.
    pub in_flight: usize,
    /// How long a transaction may be the next of its signer before its fee is raised.
    pub bump_after: Duration,
    /// How often the same bytes are broadcast again while no block holds them.
    pub rebroadcast_after: Duration,
    /// How often the chain is looked at while something is under way, if the port tells of no new block.
    pub look_after: Duration,
    /// The most wei for a unit of gas. Transactions wait rather than pay more.
    pub max_fee: u128,
    /// How many variants of one transaction are signed at most.
    pub variants: usize,
    /// How long a call of the port or the signer may take.
    pub call_timeout: Duration,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        OutboxSettings {
            confirmations: 1,
            settled_after: 64,
            foreign_after: 12,
            lag_after: Duration::from_secs(30),
            in_flight: 16,
            bump_after: Duration::from_secs(15),
            rebroadcast_after: Duration::from_secs(10),
            look_after: Duration::from_secs(1),
            max_fee: 500_000_000_000,
            variants: 24,
            call_timeout: Duration::from_secs(10),
        }
    }
}

/// Settings that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the outbox cannot work with these settings: {0}")]
pub struct SettingsError(&'static str);

impl OutboxSettings {
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        let rules = [
            ("confirmations must be at least 1", self.confirmations >= 1),
            ("settled_after must not be below confirmations", self.settled_after >= self.confirmations),
            ("foreign_after must be at least 1", self.foreign_after >= 1),
            ("in_flight must be 1 to 1000", (1..=1000).contains(&self.in_flight)),
            ("variants must be 1 to 100", (1..=100).contains(&self.variants)),
            ("max_fee must be above 0", self.max_fee > 0),
            ("look_after must be above 0", !self.look_after.is_zero()),
            ("call_timeout must be above 0", !self.call_timeout.is_zero()),
        ];
        rules.into_iter().find(|(_, kept)| !kept).map_or(Ok(()), |(rule, _)| Err(SettingsError(rule)))
    }
}
