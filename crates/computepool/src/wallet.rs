//! A payer's key, and `computepool wallet`.

use std::{path::PathBuf, process::ExitCode};

use alloy_primitives::Address;
use alloy_signer_local::{MnemonicBuilder, PrivateKeySigner, coins_bip39::English};
use anyhow::{Context, Result, bail};
use pool_node::identity::{KEYSTORE_FILE, Passphrase, open_or_create};
use pool_types::Usdcx;
use serde_json::json;

use crate::{
    arguments::{WalletArguments, WalletShowArguments},
    network, serving,
};

/// The phrase behind anvil's accounts. Everybody knows it, and with it their keys.
const DEVELOPMENT_PHRASE: &str = "test test test test test test test test test test test junk";

/// A key that pays, and the folder where its sessions are kept.
pub(crate) struct Wallet {
    pub(crate) folder: PathBuf,
    pub(crate) key: PrivateKeySigner,
}

impl Wallet {
    /// Opens the wallet for a network; a fresh key is made where there is none yet, and said so.
    pub(crate) fn open(arguments: &WalletArguments, network: &str) -> Result<Self> {
        let folder = arguments.wallet.clone();
        if let Some(number) = arguments.development_account {
            if network != "local" {
                bail!(
                    "everybody knows the key of development account {number}: it pays on the network local only, not \
                     on {network}"
                );
            }
            let account = MnemonicBuilder::<English>::default().phrase(DEVELOPMENT_PHRASE).index(number);
            let key = account.and_then(|account| account.build()).context("the development account has no key")?;
            return Ok(Self { folder, key });
        }
        let is_new = !folder.join(KEYSTORE_FILE).exists();
        let passphrase = Passphrase::from_file_or_environment(arguments.passphrase_file.as_deref())?;
        let key = open_or_create(&folder, &passphrase)?;
        if is_new {
            eprintln!(
                "A wallet was made in {}: {}. Keep the folder and the passphrase; without both its money is lost.",
                folder.display(),
                key.address()
            );
        }
        Ok(Self { folder, key })
    }

    pub(crate) fn address(&self) -> Address {
        self.key.address()
    }
}

/// `computepool wallet`: the address to send money to, and what it has where the chain can be asked.
pub(crate) fn run(arguments: &WalletShowArguments) -> Result<ExitCode> {
    let wallet = Wallet::open(&arguments.wallet, &arguments.chain.network)?;
    let address = wallet.address();
    let balances = serving::runtime(1)?.block_on(async {
        let Some(chain) = network::chain(&arguments.chain).await? else { return Ok::<_, anyhow::Error>(None) };
        Ok(Some(tokio::try_join!(chain.usdc(address), chain.native_balance(address))?))
    })?;
    if arguments.json {
        let (usdc, coin) = balances.unzip();
        println!("{}", json!({ "address": address, "usdc": usdc, "coin": coin.map(|coin| coin.to_string()) }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{address}");
    if let Some((usdc, coin)) = balances {
        println!("{usdc} USDC, and {} of the chain's coin for gas", coin_text(coin));
    }
    Ok(ExitCode::SUCCESS)
}

/// Wei as whole coins, without the zeros at the end.
pub(crate) fn coin_text(wei: u128) -> String {
    // The coin has as many decimals as USDCx.
    let text = Usdcx::from_wei(i128::try_from(wei).unwrap_or(i128::MAX)).to_string();
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use alloy_primitives::address;

    use super::*;

    fn development(number: u32) -> WalletArguments {
        WalletArguments { wallet: "nowhere".into(), passphrase_file: None, development_account: Some(number) }
    }

    #[test]
    fn development_accounts_are_anvils_and_pay_on_the_local_chain_only() {
        let first = Wallet::open(&development(0), "local").unwrap();
        assert_eq!(first.address(), address!("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
        let second = Wallet::open(&development(1), "local").unwrap();
        assert_eq!(second.address(), address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"));
        let refused = Wallet::open(&development(0), "galileo").err().unwrap().to_string();
        assert!(refused.contains("local only, not on galileo"), "{refused}");
    }

    #[test]
    fn a_wallet_is_made_once_and_opens_with_its_passphrase_alone() {
        let folder = tempfile::tempdir().unwrap();
        let passphrase = folder.path().join("passphrase");
        std::fs::write(&passphrase, "a long one\n").unwrap();
        let arguments = WalletArguments {
            wallet: folder.path().join("payer"),
            passphrase_file: Some(passphrase.clone()),
            development_account: None,
        };
        let made = Wallet::open(&arguments, "galileo").unwrap().address();
        assert_eq!(Wallet::open(&arguments, "galileo").unwrap().address(), made, "the same key every time");
        std::fs::write(&passphrase, "another").unwrap();
        let error = Wallet::open(&arguments, "galileo").err().unwrap().to_string();
        assert!(error.contains("check the passphrase"), "{error}");
    }

    #[test]
    fn coins_are_shown_without_idle_zeros() {
        assert_eq!(coin_text(1_500_000_000_000_000_000), "1.5");
        assert_eq!(coin_text(100_000_000_000_000_000_000), "100");
        assert_eq!(coin_text(0), "0");
        assert_eq!(coin_text(1), "0.000000000000000001");
    }
}
