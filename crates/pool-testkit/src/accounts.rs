use alloy_primitives::keccak256;
use alloy_signer_local::PrivateKeySigner;

/// The people of a test. Their keys are the same in every run, and known to everybody who reads this.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Opens, sets and closes; owns the pool. Has coin for gas.
    pub orchestrator: PrivateKeySigner,
    /// Stops streams that run short. Has coin for gas.
    pub sentinel: PrivateKeySigner,
    /// Nobody in particular. Has coin for gas.
    pub stranger: PrivateKeySigner,
    /// Pay for sessions. Have USDC, and coin for gas so that they can close without an orchestrator.
    pub payers: Vec<PrivateKeySigner>,
    /// Serve. Have nothing, and need nothing.
    pub operators: Vec<PrivateKeySigner>,
}

impl Accounts {
    /// How many payers there are.
    pub const PAYERS: usize = 4;
    /// How many operators there are.
    pub const OPERATORS: usize = 20;

    /// All of them.
    pub fn new() -> Self {
        let many = |role: &str, count: usize| (0..count).map(|n| key(&format!("{role} {n}"))).collect();
        Self {
            orchestrator: key("orchestrator"),
            sentinel: key("sentinel"),
            stranger: key("stranger"),
            payers: many("payer", Self::PAYERS),
            operators: many("operator", Self::OPERATORS),
        }
    }
}

impl Default for Accounts {
    fn default() -> Self {
        Self::new()
    }
}

fn key(who: &str) -> PrivateKeySigner {
    let mut seed = keccak256(format!("computepool test account: {who}"));
    loop {
        // All but a vanishing share of 32 bytes are keys.
        match PrivateKeySigner::from_bytes(&seed) {
            Ok(key) => return key,
            Err(_) => seed = keccak256(seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everybody_is_somebody_else_and_the_same_in_every_run() {
        let accounts = Accounts::new();
        let single = [&accounts.orchestrator, &accounts.sentinel, &accounts.stranger];
        let all = single.into_iter().chain(&accounts.payers).chain(&accounts.operators);
        let addresses: HashSet<_> = all.map(PrivateKeySigner::address).collect();
        assert_eq!(addresses.len(), 3 + Accounts::PAYERS + Accounts::OPERATORS);
        assert_eq!(Accounts::new().payers[1].address(), accounts.payers[1].address());
    }
}
