//! Which chain is meant: its address book, and its node where one is named.

use anyhow::{Result, bail};
use pool_chain::{AddressBook, Chain, ChainConfig};

use crate::{arguments::ChainArguments, paying::address_books};

/// The address book that was asked for.
pub(crate) fn book(arguments: &ChainArguments) -> Result<AddressBook> {
    let Some(file) = &arguments.address_book else {
        return Ok(AddressBook::load(&address_books()?, &arguments.network)?);
    };
    let book = AddressBook::read(file)?;
    if book.network != arguments.network {
        bail!("{} is of the network {1}: say --network {1}", file.display(), book.network);
    }
    Ok(book)
}

/// The chain, where a node is named; checked to serve the chain of the book with its contracts.
pub(crate) async fn chain(arguments: &ChainArguments) -> Result<Option<Chain>> {
    let Some(rpc) = &arguments.rpc else { return Ok(None) };
    Ok(Some(Chain::connect(ChainConfig::new(rpc), book(arguments)?).await?))
}
