// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {IERC3009, IERC3009Cancel} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title A dollar without value, for chains without one
/// @notice As Circle's USDC where ComputePool touches it: 6 decimals, EIP-2612, and EIP-3009 with both forms of a
///         signature. Anybody may mint.
/// @dev    EIP-712 domain {name "USD Coin", version "1", chainId, verifyingContract = this}. The three-part form
///         (v, r, s) comes from IERC3009. The `bytes` form takes 65 bytes r ‖ s ‖ v of an ordinary key and asks a
///         contract by ERC-1271. Validity times are Unix seconds: validAfter < now < validBefore.
interface ITestUsdc is IERC20Metadata, IERC20Permit, IERC3009, IERC3009Cancel {
    function mint(address to, uint256 amount) external;

    function version() external view returns (string memory);

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    function cancelAuthorization(address authorizer, bytes32 nonce, bytes calldata signature) external;
}
