//! What the chain knows of vaults, pools, coalitions and accounts.

use alloy::{
    eips::BlockId,
    primitives::{Address, B256, I256, U256, aliases::I96},
};
use pool_coalition::proposal::{Proposal, Seat};
use pool_types::{FlowRate, Usdc, Usdcx};

use super::Chain;
use crate::{
    ChainError, ProposalFormError, Running, StreamRules,
    contracts::{
        ICoalitionRegistry, IGda, IGovernance, ISessionVault, ISessionVaultFactory, ISuperToken, ISuperfluidPool,
        IUsdc, Proposal as ProposalText, Stage, Terms as ContractTerms,
    },
    proposal::seats_of,
    vault::rate_of,
};

/// USDCx of an account at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealtimeBalance {
    /// Unix seconds at which it holds.
    pub at: u64,
    /// Free to stream or to take out; negative for an account that has run short.
    pub available: Usdcx,
    /// Locked by running streams.
    pub deposit: Usdcx,
}

/// A session's vault at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultState {
    /// Unix seconds at which it holds.
    pub at: u64,
    /// Whether there is a contract at the address.
    pub deployed: bool,
    /// Whether the session was ended for good.
    pub closed: bool,
    /// What flows.
    pub rate: FlowRate,
    /// What can still stream or be refunded; without the deposit, and without USDC that nobody wrapped yet.
    pub available: Usdcx,
    /// What the stream locks.
    pub deposit: Usdcx,
    /// USDC that lies here and was not wrapped.
    pub unwrapped: Usdc,
}

impl VaultState {
    /// The part that says how long the stream lasts.
    pub fn running(&self) -> Running {
        Running { at: self.at, available: self.available, rate: self.rate }
    }
}

/// A GDA pool at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// All members' units.
    pub units: u128,
    /// What flows to all members, in wei/s.
    pub rate: i128,
    /// What flows to the admin for rounding, in wei/s.
    pub adjustment: i128,
    /// Who may change units.
    pub admin: Address,
}

/// A member of a GDA pool at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberState {
    /// Its units.
    pub units: u128,
    /// What flows to it, in wei/s.
    pub rate: i128,
    /// What it can claim; nothing for a connected member, whose balance grows by itself.
    pub claimable: Usdcx,
    /// Whether its balance grows by itself.
    pub connected: bool,
}

/// A pool of the registry and its present coalition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoalitionState {
    /// Who owns the pool.
    pub owner: Address,
    /// Its Superfluid pool.
    pub gda_pool: Address,
    /// How often a coalition was activated.
    pub epoch: u64,
    /// Where it stands.
    pub stage: Stage,
    /// The digest of the proposal that made it.
    pub proposal: B256,
    /// Who may make its swaps.
    pub orchestrator: Address,
    /// The most that it charges.
    pub rate: FlowRate,
    /// When it ends by itself (Unix seconds).
    pub expiry: u64,
    /// Who holds the places now.
    pub seats: Vec<Seat>,
}

impl Chain {
    /// What streams lock here, from Superfluid's governance, and the vaults' guard.
    pub async fn stream_rules(&self) -> Result<StreamRules, ChainError> {
        let operation = "read the rules of streams";
        let contracts = &self.book().contracts;
        let (host, token) = (contracts.host, contracts.usdcx);
        let periods = IGovernance::getPPPConfigCall { host, superToken: token };
        let deposit = IGovernance::getSuperTokenMinimumDepositCall { host, superToken: token };
        let guard = ISessionVault::guardCall {};
        let latest = BlockId::latest();
        let (periods, deposit, guard) = tokio::try_join!(
            self.view(operation, contracts.governance, periods, latest),
            self.view(operation, contracts.governance, deposit, latest),
            self.view(operation, contracts.session_vault_implementation, guard, latest),
        )?;
        let seconds = |number: U256| u64::try_from(number).map_err(|_| ChainError::Nonsense { operation });
        Ok(StreamRules {
            liquidation_period: seconds(periods.liquidationPeriod)?,
            minimum_deposit: wrapped(operation, deposit)?,
            guard: seconds(guard)?,
        })
    }

    /// The vault's address for these terms, as the factory computes it.
    pub async fn vault_of(&self, terms: &crate::Terms) -> Result<Address, ChainError> {
        let call = ISessionVaultFactory::vaultOfCall { terms: ContractTerms::from(terms) };
        self.view("compute a vault's address", self.book().contracts.session_vault_factory, call, BlockId::latest())
            .await
    }

    /// A session's vault now. Everything is read at one block, and its money brought forward to [`Chain::time`].
    pub async fn vault(&self, vault: Address) -> Result<VaultState, ChainError> {
        let operation = "read the session's vault";
        let (block, time) = self.now().await?;
        let (code, balance, unwrapped) = tokio::try_join!(
            self.code_at(vault, block),
            self.realtime_balance_at(vault, time, block),
            self.usdc_at(vault, block),
        )?;
        let RealtimeBalance { at, available, deposit } = balance;
        if code.is_empty() {
            let (deployed, closed, rate) = (false, false, FlowRate::ZERO);
            return Ok(VaultState { at, deployed, closed, rate, available, deposit, unwrapped });
        }
        let (closed, rate) = tokio::try_join!(
            self.view(operation, vault, ISessionVault::closedCall {}, block),
            self.view(operation, vault, ISessionVault::rateCall {}, block),
        )?;
        let rate = rate_of(rate).ok_or(ChainError::Nonsense { operation })?;
        Ok(VaultState { at, deployed: true, closed, rate, available, deposit, unwrapped })
    }

    /// USDC of an account.
    pub async fn usdc(&self, account: Address) -> Result<Usdc, ChainError> {
        self.usdc_at(account, BlockId::latest()).await
    }

    async fn usdc_at(&self, account: Address, block: BlockId) -> Result<Usdc, ChainError> {
        let operation = "read a USDC balance";
        let units = self.view(operation, self.book().contracts.usdc, IUsdc::balanceOfCall { account }, block).await?;
        let units = u128::try_from(units).ok().and_then(|units| Usdc::from_units(units).ok());
        units.ok_or(ChainError::Nonsense { operation })
    }

    /// USDCx of an account at `time`, which must not lie before its last change on the chain.
    pub async fn realtime_balance(&self, account: Address, time: u64) -> Result<RealtimeBalance, ChainError> {
        self.realtime_balance_at(account, time, BlockId::latest()).await
    }

    async fn realtime_balance_at(
        &self,
        account: Address,
        time: u64,
        block: BlockId,
    ) -> Result<RealtimeBalance, ChainError> {
        let operation = "read a USDCx balance";
        let call = ISuperToken::realtimeBalanceOfCall { account, timestamp: U256::from(time) };
        let balance = self.view(operation, self.book().contracts.usdcx, call, block).await?;
        let deposit = wrapped(operation, balance.deposit)?;
        Ok(RealtimeBalance { at: time, available: signed(operation, balance.available)?, deposit })
    }

    /// Whether a voucher's nonce was used or cancelled.
    pub async fn authorization_used(&self, payer: Address, nonce: B256) -> Result<bool, ChainError> {
        let call = IUsdc::authorizationStateCall { authorizer: payer, nonce };
        self.view("ask whether a voucher was used", self.book().contracts.usdc, call, BlockId::latest()).await
    }

    /// A GDA pool now.
    pub async fn pool(&self, pool: Address) -> Result<PoolState, ChainError> {
        let operation = "read a pool";
        let (block, _) = self.now().await?;
        let (units, rate, admin, adjustment) = tokio::try_join!(
            self.view(operation, pool, ISuperfluidPool::getTotalUnitsCall {}, block),
            self.view(operation, pool, ISuperfluidPool::getTotalFlowRateCall {}, block),
            self.view(operation, pool, ISuperfluidPool::adminCall {}, block),
            self.view(operation, self.book().contracts.gda, IGda::getPoolAdjustmentFlowRateCall { pool }, block),
        )?;
        Ok(PoolState { units, rate: narrow(operation, rate)?, adjustment: narrow(operation, adjustment)?, admin })
    }

    /// A pool's member now.
    pub async fn member(&self, pool: Address, member: Address) -> Result<MemberState, ChainError> {
        let operation = "read a pool's member";
        let (block, time) = self.now().await?;
        // Superfluid's clock has 32 bits.
        let time = u32::try_from(time).unwrap_or(u32::MAX);
        let (units, rate, claimable, connected) = tokio::try_join!(
            self.view(operation, pool, ISuperfluidPool::getUnitsCall { member }, block),
            self.view(operation, pool, ISuperfluidPool::getMemberFlowRateCall { member }, block),
            self.view(operation, pool, ISuperfluidPool::getClaimableCall { member, time }, block),
            self.view(operation, self.book().contracts.gda, IGda::isMemberConnectedCall { pool, member }, block),
        )?;
        let claimable = signed(operation, claimable)?;
        Ok(MemberState { units, rate: narrow(operation, rate)?, claimable, connected })
    }

    /// All that a member has received from a pool by the end of the block at `height`, claimed or not.
    pub async fn received(&self, pool: Address, member: Address, height: u64) -> Result<Usdcx, ChainError> {
        let operation = "read a member's income";
        let call = ISuperfluidPool::getTotalAmountReceivedByMemberCall { member };
        wrapped(operation, self.view(operation, pool, call, height.into()).await?)
    }

    /// What one vault streams into a pool now, in wei/s.
    pub async fn flow_rate(&self, from: Address, pool: Address) -> Result<i128, ChainError> {
        let operation = "read a stream's rate";
        let contracts = &self.book().contracts;
        let call = IGda::getFlowRateCall { token: contracts.usdcx, from, pool };
        narrow(operation, self.view(operation, contracts.gda, call, BlockId::latest()).await?)
    }

    /// A pool of the registry and its coalition; `None` where no such pool was created.
    pub async fn coalition(&self, pool: B256) -> Result<Option<CoalitionState>, ChainError> {
        let operation = "read a coalition";
        let registry = self.book().contracts.coalition_registry;
        let latest = BlockId::latest();
        let address =
            self.view(operation, registry, ICoalitionRegistry::gdaPoolOfCall { poolId: pool }, latest).await?;
        if address == Address::ZERO {
            return Ok(None);
        }
        let (found, members) = tokio::try_join!(
            self.view(operation, registry, ICoalitionRegistry::coalitionOfCall { poolId: pool }, latest),
            self.view(operation, registry, ICoalitionRegistry::membersOfCall { poolId: pool }, latest),
        )?;
        let nonsense = |_: ProposalFormError| ChainError::Nonsense { operation };
        Ok(Some(CoalitionState {
            owner: found.owner,
            gda_pool: found.gdaPool,
            epoch: found.epoch,
            stage: found.stage,
            proposal: found.proposal,
            orchestrator: found.orchestrator,
            rate: rate_of(found.rate).ok_or(ChainError::Nonsense { operation })?,
            expiry: found.expiry,
            seats: seats_of(members).map_err(nonsense)?,
        }))
    }

    /// The digest of a proposal as the registry computes it; ours is `Proposal::digest`.
    pub async fn proposal_digest(&self, proposal: &Proposal) -> Result<B256, ChainError> {
        let call = ICoalitionRegistry::proposalDigestCall { proposal: ProposalText::from(proposal) };
        self.view("compute a proposal's digest", self.book().contracts.coalition_registry, call, BlockId::latest())
            .await
    }

    /// The digest of a registration as the registry computes it; ours is `RegistryDomain::registration_digest`.
    pub async fn registration_digest(&self, operator: Address, deadline: u64) -> Result<B256, ChainError> {
        let call = ICoalitionRegistry::registrationDigestCall { operator, deadline };
        let registry = self.book().contracts.coalition_registry;
        self.view("compute a registration's digest", registry, call, BlockId::latest()).await
    }

    /// Whose signatures an activation wants now, in the registry's order; an error where it could not be activated.
    pub async fn signers_of(&self, proposal: &Proposal) -> Result<Vec<Address>, ChainError> {
        let call = ICoalitionRegistry::signersOfCall { proposal: ProposalText::from(proposal) };
        self.view("take up the proposal", self.book().contracts.coalition_registry, call, BlockId::latest()).await
    }

    /// Whether an operator is registered.
    pub async fn is_registered(&self, operator: Address) -> Result<bool, ChainError> {
        let call = ICoalitionRegistry::isRegisteredCall { operator };
        self.view("ask for an operator", self.book().contracts.coalition_registry, call, BlockId::latest()).await
    }
}

fn wrapped(operation: &'static str, wei: U256) -> Result<Usdcx, ChainError> {
    i128::try_from(wei).map(Usdcx::from_wei).map_err(|_| ChainError::Nonsense { operation })
}

fn signed(operation: &'static str, wei: I256) -> Result<Usdcx, ChainError> {
    i128::try_from(wei).map(Usdcx::from_wei).map_err(|_| ChainError::Nonsense { operation })
}

fn narrow(operation: &'static str, rate: I96) -> Result<i128, ChainError> {
    i128::try_from(rate).map_err(|_| ChainError::Nonsense { operation })
}
