//! What a session came to: in words, and read by the payer itself from its vault's events.

use std::fmt::Write as _;

use alloy_primitives::{Address, B256};
use anyhow::Result;
use pool_chain::{
    Chain,
    events::{Stretch, VaultBooks},
};
use pool_types::{Usdc, Usdcx};
use serde::{Deserialize, Serialize};

/// What a session came to, in the orchestrator's form: `paid = streamed + refunded`, to the last unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) network: String,
    pub(crate) vault: Address,
    pub(crate) pool: Address,
    pub(crate) paid: Usdc,
    pub(crate) streamed: Usdcx,
    pub(crate) refunded: Usdc,
    pub(crate) dust: Usdcx,
    pub(crate) stretches: Vec<Stretch>,
    pub(crate) closed_by: Option<Address>,
    pub(crate) transactions: Vec<B256>,
}

impl Receipt {
    /// Whether the figures agree.
    pub(crate) fn adds_up(&self) -> bool {
        self.missing() == Some(Usdcx::ZERO)
    }

    /// Paid less streamed, refunded and dust; `None` where no number holds it.
    fn missing(&self) -> Option<Usdcx> {
        let accounted = self.streamed.checked_add(self.refunded.to_usdcx())?.checked_add(self.dust)?;
        self.paid.to_usdcx().checked_sub(accounted)
    }
}

/// Reads a receipt from the chain. The orchestrator does the same for its own; a payer that can reach the chain does
/// not have to believe it.
pub(super) async fn read(chain: &Chain, vault: Address, pool: Address) -> Result<Receipt> {
    let VaultBooks { paid, streamed, refunded, left: dust, stretches, closed_by, transactions } =
        chain.books_of_vault(vault).await?;
    let network = chain.book().caip2();
    Ok(Receipt { network, vault, pool, paid, streamed, refunded, dust, stretches, closed_by, transactions })
}

/// The one line: `paid = streamed + refunded`.
pub(crate) fn one_line(receipt: &Receipt) -> String {
    let Receipt { paid, streamed, refunded, dust, .. } = receipt;
    // What streamed is whole units wherever nothing is wrong; if not, every digit is shown.
    let streamed = match streamed.dust() == Usdcx::ZERO {
        true => streamed.whole_usdc().to_string(),
        false => streamed.to_string(),
    };
    let rest = if *dust == Usdcx::ZERO { String::new() } else { format!(" + {dust} left in the vault") };
    format!("paid {paid} = streamed {streamed} + refunded {refunded}{rest} USDC")
}

/// All of it. Says so where the figures do not agree.
pub(super) fn words(receipt: &Receipt) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "receipt  {}", one_line(receipt));
    match receipt.missing() {
        Some(Usdcx::ZERO) => {}
        Some(missing) => {
            let _ = writeln!(text, "         the figures do not agree: {missing} USDC are missing");
        }
        None => {
            let _ = writeln!(text, "         the figures do not agree");
        }
    }
    for stretch in &receipt.stretches {
        let seconds = stretch.to.saturating_sub(stretch.from);
        let _ = writeln!(text, "         {seconds} s at {} from {}", stretch.rate, crate::when::utc(stretch.from));
    }
    if let Some(by) = receipt.closed_by {
        let _ = writeln!(text, "closed   by {by}");
    }
    let mut name = "on chain";
    for transaction in &receipt.transactions {
        let _ = writeln!(text, "{name:<9}{transaction}");
        name = "";
    }
    text
}

#[cfg(test)]
mod tests {
    use pool_types::FlowRate;

    use super::*;

    fn receipt() -> Receipt {
        let usdc = |text: &str| text.parse::<Usdc>().unwrap();
        Receipt {
            network: "eip155:16602".to_owned(),
            vault: Address::repeat_byte(5),
            pool: Address::repeat_byte(3),
            paid: usdc("0.103"),
            streamed: usdc("0.002").to_usdcx(),
            refunded: usdc("0.101"),
            dust: Usdcx::ZERO,
            stretches: vec![Stretch {
                from: 1_798_700_000,
                to: 1_798_700_020,
                rate: FlowRate::from_units_per_second(100),
            }],
            closed_by: Some(Address::repeat_byte(2)),
            transactions: vec![B256::repeat_byte(7), B256::repeat_byte(8)],
        }
    }

    #[test]
    fn a_receipt_adds_up_in_one_line_and_in_many() {
        assert_eq!(one_line(&receipt()), "paid 0.103000 = streamed 0.002000 + refunded 0.101000 USDC");
        insta::assert_snapshot!(words(&receipt()), @r"
        receipt  paid 0.103000 = streamed 0.002000 + refunded 0.101000 USDC
                 20 s at 0.000100/s from 2026-12-31 06:53:20 UTC
        closed   by 0x0202020202020202020202020202020202020202
        on chain 0x0707070707070707070707070707070707070707070707070707070707070707
                 0x0808080808080808080808080808080808080808080808080808080808080808
        ");
    }

    #[test]
    fn a_receipt_that_does_not_add_up_says_so() {
        let short = Receipt { refunded: "0.1".parse().unwrap(), ..receipt() };
        assert!(words(&short).contains("the figures do not agree: 0.001000000000000000 USDC are missing"));
        let dusty = Receipt { dust: Usdcx::from_wei(5), ..receipt() };
        assert!(one_line(&dusty).contains("0.000000000000000005 left in the vault"), "{}", one_line(&dusty));
    }
}
