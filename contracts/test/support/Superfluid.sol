// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

// What tests call of Superfluid beyond what our contracts do: what attackers, liquidators and governance can call.

interface IGovernance {
    function owner() external view returns (address);
    function setPPPConfig(address host, address token, uint256 liquidationPeriod, uint256 patricianPeriod) external;
    function setSuperTokenMinimumDeposit(address host, address token, uint256 value) external;
}

interface ICfaForwarder {
    function setFlowrate(address token, address receiver, int96 rate) external returns (bool);
}

interface IGdaForwarder {
    function updateMemberUnits(address pool, address member, uint128 units, bytes calldata userData)
        external
        returns (bool);
    function distributeFlow(address token, address from, address pool, int96 rate, bytes calldata userData)
        external
        returns (bool);
    function distribute(address token, address from, address pool, uint256 amount, bytes calldata userData)
        external
        returns (bool);
}

interface IConnectPermission {
    function setConnectPermission(bool allow) external;
}
