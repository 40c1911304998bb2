// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

// The parts of Superfluid that we call, in our own words. The deployed contracts are Superfluid's.

interface ISuperToken is IERC20 {
    function getUnderlyingToken() external view returns (address);
    function upgrade(uint256 amount) external;
    function downgradeTo(address to, uint256 amount) external;
    function realtimeBalanceOfNow(address account)
        external
        view
        returns (int256 available, uint256 deposit, uint256 owedDeposit, uint256 timestamp);
}

interface ISuperfluidHost {
    function callAgreement(address agreement, bytes calldata callData, bytes calldata userData)
        external
        returns (bytes memory);
}

struct PoolConfig {
    bool transferabilityForUnitsOwner;
    bool distributionFromAnyAddress;
}

/// The General Distribution Agreement. What takes `ctx` must be called through the host, with `ctx` empty.
interface IGeneralDistributionAgreement {
    function createPool(address token, address admin, PoolConfig calldata config) external returns (address pool);
    function getFlowRate(address token, address from, address pool) external view returns (int96);
    function getPoolAdjustmentFlowRate(address pool) external view returns (int96);
    function isMemberConnected(address pool, address member) external view returns (bool);
    function distributeFlow(address token, address from, address pool, int96 rate, bytes calldata ctx)
        external
        returns (bytes memory newCtx);
    function distribute(address token, address from, address pool, uint256 amount, bytes calldata ctx)
        external
        returns (bytes memory newCtx);
    function tryConnectPoolFor(address pool, address member, bytes calldata ctx)
        external
        returns (bool success, bytes memory newCtx);
}

interface ISuperfluidPool {
    function admin() external view returns (address);
    function superToken() external view returns (address);
    function getUnits(address member) external view returns (uint128);
    function getTotalUnits() external view returns (uint128);
    function getTotalFlowRate() external view returns (int96);
    function getMemberFlowRate(address member) external view returns (int96);
    function getClaimable(address member, uint32 time) external view returns (int256);
    function updateMemberUnits(address member, uint128 units) external returns (bool);
    function claimAll(address member) external returns (bool);
}
