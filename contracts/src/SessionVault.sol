// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ISessionVault, Terms} from "./interfaces/ISessionVault.sol";
import {IGeneralDistributionAgreement, ISuperfluidHost, ISuperToken} from "./interfaces/ISuperfluid.sol";

/// @title The money of one session
/// @notice What it promises is written at ISessionVault.
/// @dev A clone with its terms in its code. Everything it trusts is immutable in the implementation.
contract SessionVault is ISessionVault {
    using SafeERC20 for IERC20;

    /// Wei of USDCx in one USDC unit. Rates are multiples of it: with pool units that divide it (the registry keeps
    /// their sum at 1,000,000) nothing is ever rounded, and every second moves a whole number of USDC units.
    int96 public constant UNIT = 1e12;

    /// What `refund` gets inside `close`; the dearest one (four forced pool connections and an inflow) uses 275,000.
    uint256 public constant REFUND_GAS = 500_000;
    /// What `close` wants at its start: the dearest stop, and the refund. Asked for early, so that an estimate of the
    /// gas, which finds the lowest limit that succeeds, has room for what changes until the transaction is included.
    uint256 public constant CLOSE_GAS = 1_200_000;

    address public immutable usdc;
    address public immutable usdcx;
    address public immutable host;
    address public immutable gda;
    address public immutable factory;
    uint256 public immutable guard;

    bool public closed;

    constructor(address usdc_, address usdcx_, address host_, address gda_, uint256 guard_) {
        (usdc, usdcx, host, gda, guard, factory) = (usdc_, usdcx_, host_, gda_, guard_, msg.sender);
        closed = true; // The implementation is not a vault; clones have storage of their own.
    }

    // ---- what it is and holds ----

    function terms() public view returns (Terms memory) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (Terms));
    }

    function rate() public view returns (int96) {
        return _rate(terms().pool);
    }

    function available() public view returns (int256 free) {
        (free,,,) = ISuperToken(usdcx).realtimeBalanceOfNow(address(this));
    }

    function buffer() external view returns (uint256 deposit) {
        (, deposit,,) = ISuperToken(usdcx).realtimeBalanceOfNow(address(this));
    }

    function runway() external view returns (uint256) {
        int256 free = available();
        if (free < 0) return 0;
        int96 flowing = rate();
        return flowing == 0 ? type(uint256).max : uint256(free) / uint256(uint96(flowing));
    }

    // ---- money in ----

    function fund() external {
        if (closed) revert IsClosed();
        uint256 amount = IERC20(usdc).balanceOf(address(this));
        if (amount == 0) return;
        IERC20(usdc).forceApprove(usdcx, amount);
        ISuperToken(usdcx).upgrade(amount * uint256(uint96(UNIT)));
        emit Funded(amount);
    }

    // ---- the stream ----

    function setRate(int96 newRate) external {
        Terms memory t = terms();
        if (msg.sender != t.orchestrator && msg.sender != factory) revert NotAllowed();
        if (newRate < 0 || newRate > t.maxRate || newRate % UNIT != 0) revert BadRate();
        if (newRate == 0) {
            _halt(t.pool);
            return;
        }
        if (closed) revert IsClosed();
        if (block.timestamp >= t.expiry) revert Expired();
        _distribute(t.pool, newRate);
        // Rounded down to the pool's units, and 0 when it has none.
        int96 flowing = _rate(t.pool);
        if (flowing == 0) revert PoolHasNoUnits();
        if (available() < int256(flowing) * int256(guard)) revert RunwayTooShort();
        emit RateSet(flowing);
    }

    function stop() external {
        Terms memory t = terms();
        if (!_mayEnd(t) && available() >= int256(_rate(t.pool)) * int256(guard)) revert Healthy();
        _halt(t.pool);
    }

    // ---- money out ----

    function close() external {
        if (gasleft() < CLOSE_GAS) revert OutOfGas();
        Terms memory t = terms();
        if (!_mayEnd(t)) revert NotAllowed();
        closed = true;
        emit Closed(msg.sender);
        _halt(t.pool);
        // Otherwise the caller's gas limit would decide whether the payer is refunded. A call gets at most 63/64 of what
        // is left, so this much must be.
        if (gasleft() < REFUND_GAS + REFUND_GAS / 63 + 10_000) revert OutOfGas();
        try this.refund{gas: REFUND_GAS}() {}
        catch {
            emit RefundDeferred();
        }
    }

    function refund() external {
        if (!closed) revert NotClosed();
        address payer = terms().payer;
        uint256 units = IERC20(usdc).balanceOf(address(this));
        if (units > 0) IERC20(usdc).safeTransfer(payer, units);
        int256 free = available();
        if (free >= UNIT) {
            uint256 wrapped = uint256(free) / uint256(uint96(UNIT));
            ISuperToken(usdcx).downgradeTo(payer, wrapped * uint256(uint96(UNIT)));
            units += wrapped;
        }
        emit Refunded(units);
    }

    // ---- within ----

    /// Payer and orchestrator may end things at any time, everybody once time is up.
    function _mayEnd(Terms memory t) private view returns (bool) {
        return msg.sender == t.payer || msg.sender == t.orchestrator || block.timestamp >= t.expiry;
    }

    function _halt(address pool) private {
        if (_rate(pool) == 0) return;
        _distribute(pool, 0);
        emit RateSet(0);
    }

    function _distribute(address pool, int96 newRate) private {
        bytes memory call = abi.encodeCall(
            IGeneralDistributionAgreement.distributeFlow, (usdcx, address(this), pool, newRate, new bytes(0))
        );
        ISuperfluidHost(host).callAgreement(gda, call, new bytes(0));
    }

    function _rate(address pool) private view returns (int96) {
        return IGeneralDistributionAgreement(gda).getFlowRate(usdcx, address(this), pool);
    }
}
