// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

/// The words of forge's test machine that our tests use (https://getfoundry.sh/reference/cheatcodes/overview).
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function label(address account, string calldata name) external;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function etch(address target, bytes calldata code) external;
    function prank(address sender) external;
    function startPrank(address sender) external;
    function stopPrank() external;
    function expectRevert() external;
    function expectRevert(bytes4 selector) external;
    function expectRevert(bytes calldata data) external;
    function expectEmit(address emitter) external;
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);
    function snapshotState() external returns (uint256);
    function revertToState(uint256 id) external returns (bool);
    function envOr(string calldata name, string calldata fallbackValue) external view returns (string memory);
    function readFile(string calldata path) external view returns (string memory);
    function parseJsonAddress(string calldata json, string calldata key) external pure returns (address);
    function parseJsonUint(string calldata json, string calldata key) external pure returns (uint256);

    function assertTrue(bool found, string calldata why) external pure;
    function assertFalse(bool found, string calldata why) external pure;
    function assertEq(bool found, bool wanted, string calldata why) external pure;
    function assertEq(uint256 found, uint256 wanted, string calldata why) external pure;
    function assertEq(int256 found, int256 wanted, string calldata why) external pure;
    function assertEq(address found, address wanted, string calldata why) external pure;
    function assertEq(bytes32 found, bytes32 wanted, string calldata why) external pure;
    function assertNotEq(address found, address other, string calldata why) external pure;
    function assertNotEq(bytes32 found, bytes32 other, string calldata why) external pure;
    function assertLe(uint256 found, uint256 limit, string calldata why) external pure;
    function assertLe(int256 found, int256 limit, string calldata why) external pure;
    function assertGe(uint256 found, uint256 limit, string calldata why) external pure;
    function assertGe(int256 found, int256 limit, string calldata why) external pure;
    function assertGt(uint256 found, uint256 limit, string calldata why) external pure;
    function assertGt(int256 found, int256 limit, string calldata why) external pure;
}

Vm constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
