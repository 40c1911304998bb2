//! Offers that need no memory: a session's id is its own proof that we offered it, on exactly these terms.
//!
//! Anybody may ask for an offer, so nothing is kept for one. The id's first half is random; the second is a keyed
//! Keccak-256 over the first and everything that was agreed. A payment that names other terms has another second half.

use alloy_primitives::{Address, B256, keccak256};
use alloy_sol_types::SolValue;
use pool_coalition::session::Quote;
use pool_types::SessionId;

/// The orchestrator's secret for offers. Its debug form does not show it.
#[derive(Clone)]
pub(crate) struct OfferKey(B256);

impl std::fmt::Debug for OfferKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OfferKey(hidden)")
    }
}

/// What a payer is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offered<'a> {
    pub(crate) payer: Address,
    pub(crate) pool: Address,
    pub(crate) model: &'a str,
    pub(crate) quote: Quote,
    /// When the vault's terms end, Unix seconds.
    pub(crate) expiry: u64,
    pub(crate) one_request: bool,
}

impl OfferKey {
    pub(crate) fn new(secret: B256) -> Self {
        Self(secret)
    }

    /// The id of an offer that is made now; `random` makes it one of a kind.
    pub(crate) fn session(&self, offered: &Offered<'_>, random: [u8; 16]) -> SessionId {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&random);
        id[16..].copy_from_slice(&self.tag(offered, random));
        SessionId(id.into())
    }

    /// Whether we made this offer.
    pub(crate) fn made(&self, session: SessionId, offered: &Offered<'_>) -> bool {
        let mut random = [0; 16];
        random.copy_from_slice(&session.0[..16]);
        let difference = self.tag(offered, random).iter().zip(&session.0[16..]).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }

    fn tag(&self, offered: &Offered<'_>, random: [u8; 16]) -> [u8; 16] {
        let Offered { payer, pool, model, quote, expiry, one_request } = offered;
        let agreed = (
            self.0,
            B256::right_padding_from(&random),
            *payer,
            *pool,
            keccak256(model.as_bytes()),
            quote.rate.units_per_second(),
            quote.seconds,
            (quote.amount.units(), quote.returned.units(), *expiry, *one_request),
        );
        let mut tag = [0; 16];
        tag.copy_from_slice(&keccak256(agreed.abi_encode())[..16]);
        tag
    }
}

#[cfg(test)]
mod tests {
    use pool_types::{FlowRate, Usdc};

    use super::*;

    #[test]
    fn only_what_was_offered_can_be_paid() {
        let key = OfferKey::new(B256::repeat_byte(7));
        let units = |units| Usdc::from_units(units).unwrap();
        let rate = FlowRate::from_units_per_second(100);
        let quote = Quote { rate, seconds: 60, amount: units(79_000), returned: units(73_000) };
        let offered = Offered {
            payer: Address::repeat_byte(1),
            pool: Address::repeat_byte(2),
            model: "tiny",
            quote,
            expiry: 1_800_000_000,
            one_request: false,
        };
        let session = key.session(&offered, [9; 16]);
        assert!(key.made(session, &offered));
        let quotes = [
            Quote { rate: FlowRate::from_units_per_second(1), ..quote },
            Quote { seconds: 600, ..quote },
            Quote { amount: units(1), ..quote },
            Quote { returned: units(1), ..quote },
        ];
        let mut changed: Vec<Offered<'_>> =
            quotes.into_iter().map(|quote| Offered { quote, ..offered.clone() }).collect();
        changed.push(Offered { payer: Address::repeat_byte(3), ..offered.clone() });
        changed.push(Offered { pool: Address::repeat_byte(3), ..offered.clone() });
        changed.push(Offered { model: "large", ..offered.clone() });
        changed.push(Offered { expiry: 1_900_000_000, ..offered.clone() });
        changed.push(Offered { one_request: true, ..offered.clone() });
        for other in changed {
            assert!(!key.made(session, &other), "{other:?} was never offered");
        }
        assert!(!OfferKey::new(B256::repeat_byte(8)).made(session, &offered), "another orchestrator's offer");
        assert!(!format!("{key:?}").contains("07"));
    }
}
