// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {TestUsdc} from "../../src/TestUsdc.sol";

/// A dollar whose issuer uses its powers: it bans, pauses, and (worse than any real one) burns the gas of transfers.
/// Tests put its code in the place of TestUsdc; its own slots come last, so the balances stay.
contract HostileUsdc is TestUsdc {
    mapping(address => bool) public banned;
    bool public paused;
    bool public burnsGas;

    error Blocked();

    function ban(address who, bool is_) external {
        banned[who] = is_;
    }

    function pause(bool is_) external {
        paused = is_;
    }

    function burnGas(bool is_) external {
        burnsGas = is_;
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (burnsGas) {
            assembly ("memory-safe") {
                invalid()
            }
        }
        if (paused || banned[from] || banned[to]) revert Blocked();
        super._update(from, to, amount);
    }
}
