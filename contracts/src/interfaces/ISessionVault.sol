// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

/// What the payer agreed to. A vault's address is a function of these terms, so whoever pays that address has agreed
/// to exactly them, and nobody can ever deploy anything else there.
struct Terms {
    /// Every refund goes here, and nowhere else.
    address payer;
    /// Sets the rate; may stop and close.
    address orchestrator;
    /// The coalition's Superfluid GDA pool: the only place the vault's money can stream to.
    address pool;
    /// The most that may stream, in wei of USDCx (1e-18) per second.
    int96 maxRate;
    /// Unix seconds. From then on the rate cannot be set, and anybody may stop and close.
    uint64 expiry;
    /// Tells two sessions with otherwise equal terms apart.
    bytes32 session;
}

/// An x402 `exact` voucher: an EIP-3009 `TransferWithAuthorization` from the payer to the vault's address.
struct Voucher {
    /// USDC units (1e-6).
    uint256 value;
    uint256 validAfter;
    uint256 validBefore;
    bytes32 nonce;
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @title The money of one session
/// @notice Exactly two ways out: the stream to `terms().pool` at no more than `terms().maxRate`, and a refund to
///         `terms().payer`. No owner, no initializer, no upgrade.
/// @dev    USDC has 6 decimals, USDCx 18; one USDC unit is `UNIT` = 1e12 wei of USDCx.
interface ISessionVault {
    /// USDC that lay here was wrapped.
    event Funded(uint256 usdcAmount);
    /// The stream runs at `rate` wei per second from this block on; 0 is stopped. `rate` is what flows, read back.
    event RateSet(int96 rate);
    /// The session ended; the stream stands still for good.
    event Closed(address indexed by);
    /// USDC units sent to the payer, those that were still wrapped included.
    event Refunded(uint256 usdcAmount);
    /// `close` could not refund (USDC paused, payer banned). Anybody may call `refund` later.
    event RefundDeferred();

    /// The caller is not one of those who may do this now.
    error NotAllowed();
    /// Negative, above `maxRate`, or not a whole number of USDC units per second.
    error BadRate();
    /// The session was closed.
    error IsClosed();
    /// The terms' expiry has passed.
    error Expired();
    /// At this rate less than `guard` seconds would be left before the buffer is in danger.
    error RunwayTooShort();
    /// Nobody would receive the stream.
    error PoolHasNoUnits();
    /// A stranger may stop the stream only when its runway is shorter than `guard`, or after expiry.
    error Healthy();
    /// `refund` works only on a closed session.
    error NotClosed();
    /// The gas limit would have starved the refund. Repeat with more gas.
    error OutOfGas();

    function terms() external view returns (Terms memory);
    function closed() external view returns (bool);
    /// Seconds of runway below which anybody may stop the stream.
    function guard() external view returns (uint256);
    function usdc() external view returns (address);
    function usdcx() external view returns (address);
    function host() external view returns (address);
    function gda() external view returns (address);
    /// The one contract besides the orchestrator whose word sets the rate (it asks for the orchestrator).
    function factory() external view returns (address);
    /// The rate that flows now, wei of USDCx per second.
    function rate() external view returns (int96);
    /// Wei of USDCx that can still stream or be refunded; the buffer is not in it. Negative: critical.
    function available() external view returns (int256);
    /// Wei of USDCx that Superfluid holds as buffer while the stream runs.
    function buffer() external view returns (uint256);
    /// Seconds until `available` reaches zero at the present rate; 0 when it is negative, the maximum when nothing flows.
    function runway() external view returns (uint256);

    /// Wraps whatever USDC lies here. Open to all: a top-up is a plain transfer followed by this.
    function fund() external;
    /// Sets the rate absolutely, so a retry is harmless; 0 stops. The orchestrator only. The same rate again is passed
    /// on to Superfluid too (it returns to the members what a change of units left over).
    function setRate(int96 newRate) external;
    /// Stops the stream: payer and orchestrator at any time, anybody when the runway is short or time is up.
    function stop() external;
    /// Ends the session for good: stops, then refunds. Payer and orchestrator at any time, anybody after expiry.
    /// A refund that fails never keeps the stream running or the session open; it is deferred.
    function close() external;
    /// Sends everything here to the payer. Open to all once closed; money that arrives late goes the same way.
    /// Less than one USDC unit can stay as USDCx.
    function refund() external;
}

/// @title Makes vaults at addresses known before anything is paid or deployed
/// @dev   A vault is OpenZeppelin's clone with immutable arguments, CREATE2 by this factory with salt 0. With
///        A = abi.encode(terms) (192 bytes) its creation code is
///        61 ‖ uint16(A.length + 0x2d) ‖ 3d81600a3d39f3363d3d373d3d3d363d73 ‖ implementation ‖
///        5af43d82803e903d91602b57fd5bf3 ‖ A.
interface ISessionVaultFactory {
    /// A vault was deployed. Says nothing about payment.
    event Deployed(address indexed vault, address indexed payer, bytes32 indexed session, Terms terms);
    /// A session was paid and opened; `rate` is what it started at, 0 for none.
    event Opened(address indexed vault, address indexed payer, bytes32 indexed session, uint256 usdcAmount, int96 rate);

    /// Only the terms' orchestrator may start the stream.
    error NotAllowed();
    /// The vault does not hold the voucher's value, for example because its authorization was cancelled.
    error NotPaid();
    /// This session was closed. Nothing was charged.
    error IsClosed();

    function implementation() external view returns (address);
    function usdc() external view returns (address);
    /// The only address at which a vault of these terms can ever live: pay here.
    function vaultOf(Terms calldata terms) external view returns (address);
    /// Deploys the vault. Idempotent and open to all: a stranger who is first has done exactly what we would have done.
    function deploy(Terms calldata terms) external returns (address vault);
    /// Settles the voucher, deploys, wraps and, for `rate` > 0 (orchestrator only), starts the stream: all or nothing.
    /// A voucher that somebody else submitted first has paid the same vault, so it counts as paid.
    /// A repeat after success reverts `NotPaid` once streaming has used some of the money: look before you retry.
    function open(Terms calldata terms, Voucher calldata voucher, int96 rate) external returns (address vault);
}
