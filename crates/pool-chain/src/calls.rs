//! Every transaction we send: whom it calls, with what, and how much gas it may use.
//!
//! The limits are set by hand and never estimated: a vault's `close` catches a refund that fails, so an estimate finds
//! the path on which it starves; and a Superfluid transaction costs more when a member or a stream was added since.
//! Each limit covers the dearest case that was measured, with a reserve. Unused gas is not paid for.

use alloy::{
    primitives::{Address, B256, Bytes, U256},
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::{SolCall, SolStruct},
};
use pool_coalition::proposal::Proposal;
use pool_types::{FlowRate, Usdc};

use crate::{
    AddressBook, ProposalFormError, SignedVoucher, Terms, VoucherRefusal,
    contracts::{self, ICoalitionRegistry, ISessionVault, ISessionVaultFactory, ISuperToken, ISuperfluidPool, IUsdc},
    proposal::registry_signature,
    vault::wei_per_second,
};

/// A transaction without nonce, fees and signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it does, as part of a sentence: "open the session".
    pub what: &'static str,
    /// The contract.
    pub to: Address,
    /// Call data.
    pub data: Bytes,
    /// The most gas it may use.
    pub gas_limit: u64,
}

/// Gas limits. The measured costs stand beside them.
pub mod gas {
    /// Settle, deploy and wrap: 0.35 M.
    pub const OPEN: u64 = 600_000;
    /// The same and start the stream: 0.77 M; 0.97 M for a vault that somebody connected to pools.
    pub const OPEN_AND_START: u64 = 1_400_000;
    /// A first start or a change: 0.5 M; 0.68 M for a vault that somebody connected to pools.
    pub const SET_RATE: u64 = 1_100_000;
    /// 0.4 M; 0.52 M for a vault that somebody connected to pools.
    pub const STOP: u64 = 800_000;
    /// 0.58 M while streaming, 0.23 M at rest; 0.81 M for a vault that somebody connected to pools.
    pub const CLOSE: u64 = 1_300_000;
    /// 0.11 M.
    pub const DEPLOY: u64 = 250_000;
    /// 0.1 M.
    pub const FUND: u64 = 300_000;
    /// 0.2 M; more for a vault that somebody connected to pools.
    pub const REFUND: u64 = 600_000;
    /// A Superfluid pool of its own: 0.39 M.
    pub const CREATE_POOL: u64 = 1_500_000;
    /// One storage word: 0.05 M.
    pub const REGISTER: u64 = 150_000;
    /// What activation costs before its members.
    pub const ACTIVATE: u64 = 800_000;
    /// For each signer: the signature, and units and a connection for those who join or leave. 16 new members used
    /// 6.9 M in all, an epoch of 16 with four changes 2.5 M.
    pub const ACTIVATE_EACH: u64 = 750_000;
    /// Units of two members and one connection: 1.04 M while streaming.
    pub const SWAP: u64 = 2_000_000;
    /// A few storage words.
    pub const DRAIN: u64 = 200_000;
    /// A few storage words.
    pub const DISSOLVE: u64 = 200_000;
    /// One connection: 0.29 M.
    pub const CONNECT_EACH: u64 = 500_000;
    /// An instant distribution: 0.27 M.
    pub const PAY_OUT: u64 = 900_000;
    /// A claim for one member: 0.22 M.
    pub const CLAIM: u64 = 600_000;
    /// USDCx into USDC.
    pub const UNWRAP: u64 = 500_000;
    /// A plain token transaction.
    pub const TOKEN: u64 = 150_000;
    /// No transaction may use more (EIP-7825).
    pub const MOST: u64 = 1 << 24;
}

/// Settles the voucher, deploys and wraps, and for a `rate` above zero starts the stream, all or nothing. A signature
/// that no token takes is refused here.
pub fn open(
    book: &AddressBook,
    terms: &Terms,
    voucher: &SignedVoucher,
    rate: FlowRate,
) -> Result<Call, VoucherRefusal> {
    let voucher = voucher.for_contract()?;
    let call = ISessionVaultFactory::openCall { terms: terms.into(), voucher, rate: wei_per_second(rate) };
    let (what, limit) = match rate {
        FlowRate::ZERO => ("open the session", gas::OPEN),
        _ => ("open the session and start its stream", gas::OPEN_AND_START),
    };
    Ok(encode(what, book.contracts.session_vault_factory, &call, limit))
}

/// Deploys the vault of these terms; harmless where it is there.
pub fn deploy(book: &AddressBook, terms: &Terms) -> Call {
    let call = ISessionVaultFactory::deployCall { terms: terms.into() };
    encode("deploy the session's vault", book.contracts.session_vault_factory, &call, gas::DEPLOY)
}

/// Wraps what USDC lies in the vault: the second half of a top-up.
pub fn fund(vault: Address) -> Call {
    encode("wrap the session's money", vault, &ISessionVault::fundCall {}, gas::FUND)
}

/// Sets the rate of a session absolutely; zero stops. The orchestrator's alone.
pub fn set_rate(vault: Address, rate: FlowRate) -> Call {
    match rate {
        FlowRate::ZERO => encode(
            "stop the session's stream",
            vault,
            &ISessionVault::setRateCall { newRate: wei_per_second(rate) },
            gas::STOP,
        ),
        _ => encode(
            "set the session's rate",
            vault,
            &ISessionVault::setRateCall { newRate: wei_per_second(rate) },
            gas::SET_RATE,
        ),
    }
}

/// Stops the stream: payer and orchestrator at any time, anybody when the runway is short or time is up.
pub fn stop(vault: Address) -> Call {
    encode("stop the session's stream", vault, &ISessionVault::stopCall {}, gas::STOP)
}

/// Ends the session for good and refunds the rest.
pub fn close(vault: Address) -> Call {
    encode("close the session", vault, &ISessionVault::closeCall {}, gas::CLOSE)
}

/// Sends what lies in a closed vault to the payer: a refund that was deferred, or money that came late.
pub fn refund(vault: Address) -> Call {
    encode("refund the session's rest", vault, &ISessionVault::refundCall {}, gas::REFUND)
}

/// Makes the Superfluid pool of an owner's pool; harmless where it is there.
pub fn create_pool(book: &AddressBook, owner: Address, label: B256) -> Call {
    let call = ICoalitionRegistry::createPoolCall { owner, label };
    encode("create the pool", book.contracts.coalition_registry, &call, gas::CREATE_POOL)
}

/// The sender registers as an operator.
pub fn register(book: &AddressBook) -> Call {
    let call = ICoalitionRegistry::registerCall {};
    encode("register as an operator", book.contracts.coalition_registry, &call, gas::REGISTER)
}

/// Registers an operator by its signature over the domain's `registration_digest`, so that it needs no gas.
pub fn register_for(
    book: &AddressBook,
    operator: Address,
    deadline: u64,
    signature: &[u8],
) -> Result<Call, ProposalFormError> {
    let signature = registry_signature(signature)?;
    let call = ICoalitionRegistry::registerForCall { operator, deadline, signature };
    Ok(encode("register the operator", book.contracts.coalition_registry, &call, gas::REGISTER))
}

/// Makes the proposal the pool's coalition. One signature for each of the signers, in their order
/// ([`Chain::signers_of`](crate::Chain::signers_of)).
pub fn activate(book: &AddressBook, proposal: &Proposal, signatures: &[Bytes]) -> Result<Call, ProposalFormError> {
    let signatures: Vec<Bytes> =
        signatures.iter().map(|signature| registry_signature(signature)).collect::<Result<_, _>>()?;
    let limit = gas::ACTIVATE + gas::ACTIVATE_EACH * signatures.len() as u64;
    let call = ICoalitionRegistry::activateCall { proposal: contracts::Proposal::from(proposal), signatures };
    Ok(encode("activate the coalition", book.contracts.coalition_registry, &call, limit.min(gas::MOST)))
}

/// Makes swap number `index` of the present proposal.
pub fn swap(book: &AddressBook, pool: B256, epoch: u64, index: u32) -> Call {
    let call = ICoalitionRegistry::swapCall { poolId: pool, epoch, index: U256::from(index) };
    encode("swap a member for its standby", book.contracts.coalition_registry, &call, gas::SWAP)
}

/// Announces the coalition's end.
pub fn drain(book: &AddressBook, pool: B256, epoch: u64) -> Call {
    let call = ICoalitionRegistry::drainCall { poolId: pool, epoch };
    encode("announce the coalition's end", book.contracts.coalition_registry, &call, gas::DRAIN)
}

/// Records the coalition's end.
pub fn dissolve(book: &AddressBook, pool: B256, epoch: u64) -> Call {
    let call = ICoalitionRegistry::dissolveCall { poolId: pool, epoch };
    encode("dissolve the coalition", book.contracts.coalition_registry, &call, gas::DISSOLVE)
}

/// Tries again to connect members to the pool.
pub fn connect(book: &AddressBook, pool: B256, operators: Vec<Address>) -> Call {
    let limit = gas::CONNECT_EACH * (1 + operators.len() as u64);
    let call = ICoalitionRegistry::connectCall { poolId: pool, operators };
    encode("connect the members", book.contracts.coalition_registry, &call, limit.min(gas::MOST))
}

/// Distributes what has come to the registry to the pool's members.
pub fn pay_out(book: &AddressBook, pool: B256) -> Call {
    let call = ICoalitionRegistry::payOutCall { poolId: pool };
    encode("pay out the registry's income", book.contracts.coalition_registry, &call, gas::PAY_OUT)
}

/// Claims for a member who is not connected what the pool holds for it. Anybody may.
pub fn claim_all(gda_pool: Address, member: Address) -> Call {
    encode("claim a member's earnings", gda_pool, &ISuperfluidPool::claimAllCall { member }, gas::CLAIM)
}

/// The sender turns USDCx into USDC for `to`.
pub fn unwrap_to(book: &AddressBook, to: Address, amount: Usdc) -> Call {
    let amount = U256::from(amount.to_usdcx().wei().unsigned_abs());
    let call = ISuperToken::downgradeToCall { to, amount };
    encode("turn USDCx into USDC", book.contracts.usdcx, &call, gas::UNWRAP)
}

/// The sender pays USDC to `to`: the first half of a top-up.
pub fn transfer(book: &AddressBook, to: Address, amount: Usdc) -> Call {
    let call = IUsdc::transferCall { to, amount: U256::from(amount.units()) };
    encode("transfer USDC", book.contracts.usdc, &call, gas::TOKEN)
}

/// Mints test USDC, on chains where it is a test token.
pub fn mint(book: &AddressBook, to: Address, amount: Usdc) -> Call {
    let call = IUsdc::mintCall { to, amount: U256::from(amount.units()) };
    encode("mint test USDC", book.contracts.usdc, &call, gas::TOKEN)
}

/// Submits a voucher straight to the token, as any stranger may. The money can only go where the voucher says.
pub fn settle(book: &AddressBook, voucher: &SignedVoucher) -> Result<Call, VoucherRefusal> {
    let contracts::Voucher { value, validAfter, validBefore, nonce, v, r, s } = voucher.for_contract()?;
    let (from, to) = (voucher.authorization.from, voucher.authorization.to);
    let call = IUsdc::transferWithAuthorizationCall { from, to, value, validAfter, validBefore, nonce, v, r, s };
    Ok(encode("settle the voucher", book.contracts.usdc, &call, gas::TOKEN))
}

/// Takes a voucher back before it is used, by its payer's signature; anybody may send it.
pub fn cancel(book: &AddressBook, payer: &PrivateKeySigner, nonce: B256) -> Result<Call, alloy::signers::Error> {
    let authorizer = payer.address();
    let digest = contracts::CancelAuthorization { authorizer, nonce }.eip712_signing_hash(&book.token().eip712());
    let signature = payer.sign_hash_sync(&digest)?;
    let (v, r, s) = (27 + u8::from(signature.v()), signature.r().into(), signature.s().into());
    let call = IUsdc::cancelAuthorizationCall { authorizer, nonce, v, r, s };
    Ok(encode("cancel the voucher", book.contracts.usdc, &call, gas::TOKEN))
}

/// The most one activation of so many signers and connections can use stays below a transaction's limit.
const _: () = assert!(gas::ACTIVATE + gas::ACTIVATE_EACH * 16 < gas::MOST);

fn encode(what: &'static str, to: Address, call: &impl SolCall, gas_limit: u64) -> Call {
    Call { what, to, data: call.abi_encode().into(), gas_limit }
}
