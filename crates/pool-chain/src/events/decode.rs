//! Logs into events. A log that is none of ours, or not of the contract it claims, is nothing.

use alloy::{
    primitives::{Address, B256, I256, U256, aliases::I96},
    rpc::types::Log,
    sol_types::SolEvent,
};
use pool_types::{Usdc, Usdcx};

use super::{Cursor, Event};
use crate::{
    AddressBook,
    contracts::{
        ICoalitionRegistry as Registry, IGda as Gda, ISessionVault as Vault, ISessionVaultFactory as Factory,
        ISuperfluidPool as Pool,
    },
    vault::rate_of,
};

/// Events of the factory and the registry.
pub(super) const OURS: [B256; 10] = [
    Factory::Deployed::SIGNATURE_HASH,
    Factory::Opened::SIGNATURE_HASH,
    Registry::Registered::SIGNATURE_HASH,
    Registry::PoolCreated::SIGNATURE_HASH,
    Registry::Activated::SIGNATURE_HASH,
    Registry::Swapped::SIGNATURE_HASH,
    Registry::NotConnected::SIGNATURE_HASH,
    Registry::DrainAnnounced::SIGNATURE_HASH,
    Registry::CoalitionDissolved::SIGNATURE_HASH,
    Registry::PaidOut::SIGNATURE_HASH,
];
/// Events of the agreement; their first topic after the name is the token, their second the pool.
pub(super) const AGREEMENT: [B256; 3] = [
    Gda::FlowDistributionUpdated::SIGNATURE_HASH,
    Gda::InstantDistributionUpdated::SIGNATURE_HASH,
    Gda::PoolConnectionUpdated::SIGNATURE_HASH,
];
/// Events of the single vaults and pools.
pub(super) const EACH: [B256; 7] = [
    Vault::Funded::SIGNATURE_HASH,
    Vault::RateSet::SIGNATURE_HASH,
    Vault::Closed::SIGNATURE_HASH,
    Vault::Refunded::SIGNATURE_HASH,
    Vault::RefundDeferred::SIGNATURE_HASH,
    Pool::MemberUnitsUpdated::SIGNATURE_HASH,
    Pool::DistributionClaimed::SIGNATURE_HASH,
];

/// What a log says, judged by the address it comes from.
pub(super) fn decode(book: &AddressBook, cursor: &Cursor, log: &Log) -> Option<Event> {
    let from = log.address();
    let contracts = &book.contracts;
    if from == contracts.session_vault_factory {
        factory(log)
    } else if from == contracts.coalition_registry {
        registry(log)
    } else if from == contracts.gda {
        agreement(log, contracts.usdcx).filter(|(pool, _)| cursor.pools.contains_key(pool)).map(|(_, event)| event)
    } else if cursor.vaults.contains_key(&from) {
        vault(log, from)
    } else if cursor.pools.contains_key(&from) {
        pool(log, from)
    } else {
        None
    }
}

fn factory(log: &Log) -> Option<Event> {
    match *log.topic0()? {
        Factory::Deployed::SIGNATURE_HASH => {
            let Factory::Deployed { vault, terms, .. } = read(log)?;
            Some(Event::VaultDeployed { vault, terms: terms.try_into().ok()? })
        }
        Factory::Opened::SIGNATURE_HASH => {
            let Factory::Opened { vault, payer, session, usdcAmount, rate } = read(log)?;
            Some(Event::SessionOpened { vault, payer, session, amount: usdc(usdcAmount)?, rate: rate_of(rate)? })
        }
        _ => None,
    }
}

fn registry(log: &Log) -> Option<Event> {
    match *log.topic0()? {
        Registry::Registered::SIGNATURE_HASH => {
            let Registry::Registered { operator } = read(log)?;
            Some(Event::Registered { operator })
        }
        Registry::PoolCreated::SIGNATURE_HASH => {
            let Registry::PoolCreated { poolId, owner, label, gdaPool } = read(log)?;
            Some(Event::PoolCreated { pool: poolId, owner, label, gda_pool: gdaPool })
        }
        Registry::Activated::SIGNATURE_HASH => {
            let Registry::Activated { proposal, gdaPool, text, .. } = read(log)?;
            let text = text.try_into().ok()?;
            Some(Event::Activated { digest: proposal, gda_pool: gdaPool, proposal: Box::new(text) })
        }
        Registry::Swapped::SIGNATURE_HASH => {
            let Registry::Swapped { poolId, epoch, place, from, to, units } = read(log)?;
            Some(Event::Swapped { pool: poolId, epoch, place, from, to, units })
        }
        Registry::NotConnected::SIGNATURE_HASH => {
            let Registry::NotConnected { poolId, operator } = read(log)?;
            Some(Event::NotConnected { pool: poolId, operator })
        }
        Registry::DrainAnnounced::SIGNATURE_HASH => {
            let Registry::DrainAnnounced { poolId, epoch, by, drainedAt } = read(log)?;
            Some(Event::DrainAnnounced { pool: poolId, epoch, by, drained_at: drainedAt })
        }
        Registry::CoalitionDissolved::SIGNATURE_HASH => {
            let Registry::CoalitionDissolved { poolId, epoch, .. } = read(log)?;
            Some(Event::Dissolved { pool: poolId, epoch })
        }
        Registry::PaidOut::SIGNATURE_HASH => {
            let Registry::PaidOut { poolId, amount } = read(log)?;
            Some(Event::PaidOut { pool: poolId, amount: unsigned(amount)? })
        }
        _ => None,
    }
}

fn agreement(log: &Log, usdcx: Address) -> Option<(Address, Event)> {
    let (token, pool, event) = match *log.topic0()? {
        Gda::FlowDistributionUpdated::SIGNATURE_HASH => {
            let update: Gda::FlowDistributionUpdated = read(log)?;
            let event = Event::Flow {
                pool: update.pool,
                from: update.distributor,
                old: narrow(update.oldFlowRate)?,
                new: narrow(update.newDistributorToPoolFlowRate)?,
                total: narrow(update.newTotalDistributionFlowRate)?,
                adjustment: narrow(update.adjustmentFlowRate)?,
            };
            (update.token, update.pool, event)
        }
        Gda::InstantDistributionUpdated::SIGNATURE_HASH => {
            let update: Gda::InstantDistributionUpdated = read(log)?;
            let amount = unsigned(update.actualAmount)?;
            (update.token, update.pool, Event::Distributed { pool: update.pool, from: update.distributor, amount })
        }
        Gda::PoolConnectionUpdated::SIGNATURE_HASH => {
            let Gda::PoolConnectionUpdated { token, pool, account, connected, .. } = read(log)?;
            (token, pool, Event::Connected { pool, member: account, connected })
        }
        _ => return None,
    };
    (token == usdcx).then_some((pool, event))
}

fn vault(log: &Log, vault: Address) -> Option<Event> {
    match *log.topic0()? {
        Vault::Funded::SIGNATURE_HASH => {
            let Vault::Funded { usdcAmount } = read(log)?;
            Some(Event::VaultFunded { vault, amount: usdc(usdcAmount)? })
        }
        Vault::RateSet::SIGNATURE_HASH => {
            let Vault::RateSet { rate } = read(log)?;
            Some(Event::VaultRate { vault, rate: rate_of(rate)? })
        }
        Vault::Closed::SIGNATURE_HASH => {
            let Vault::Closed { by } = read(log)?;
            Some(Event::VaultClosed { vault, by })
        }
        Vault::Refunded::SIGNATURE_HASH => {
            let Vault::Refunded { usdcAmount } = read(log)?;
            Some(Event::VaultRefunded { vault, amount: usdc(usdcAmount)? })
        }
        Vault::RefundDeferred::SIGNATURE_HASH => Some(Event::RefundDeferred { vault }),
        _ => None,
    }
}

fn pool(log: &Log, pool: Address) -> Option<Event> {
    match *log.topic0()? {
        Pool::MemberUnitsUpdated::SIGNATURE_HASH => {
            let Pool::MemberUnitsUpdated { member, oldUnits, newUnits, .. } = read(log)?;
            Some(Event::Units { pool, member, old: oldUnits, new: newUnits })
        }
        Pool::DistributionClaimed::SIGNATURE_HASH => {
            let Pool::DistributionClaimed { member, claimedAmount, .. } = read(log)?;
            Some(Event::Claimed { pool, member, amount: signed(claimedAmount)? })
        }
        _ => None,
    }
}

fn read<E: SolEvent>(log: &Log) -> Option<E> {
    E::decode_log(&log.inner).ok().map(|decoded| decoded.data)
}

fn usdc(units: U256) -> Option<Usdc> {
    Usdc::from_units(u128::try_from(units).ok()?).ok()
}

fn unsigned(wei: U256) -> Option<Usdcx> {
    i128::try_from(wei).ok().map(Usdcx::from_wei)
}

fn signed(wei: I256) -> Option<Usdcx> {
    i128::try_from(wei).ok().map(Usdcx::from_wei)
}

fn narrow(rate: I96) -> Option<i128> {
    i128::try_from(rate).ok()
}
