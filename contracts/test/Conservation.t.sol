// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ISuperfluidPool} from "../src/interfaces/ISuperfluid.sol";
import {Marketplace} from "./support/Marketplace.sol";
import {vm} from "./support/Vm.sol";

/// Whatever anybody does in whatever order: no wei is made, lost, or goes to somebody else.
contract ConservationTest {
    Marketplace private market;

    function setUp() external {
        market = new Marketplace();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(market);
    }

    function _total() private view returns (int256 sum) {
        for (uint256 v; v < market.VAULTS(); ++v) {
            sum += int256(market.refunded(v)) * 1e12 + market.held(v);
        }
        for (uint256 i; i < market.OPERATORS(); ++i) {
            sum += market.earned(i);
        }
        sum += market.inRegistry();
    }

    function invariant_PaidIsStreamedPlusRefundedPlusHeld() external view {
        int256 paid = market.gifts();
        for (uint256 v; v < market.VAULTS(); ++v) {
            paid += int256(market.paid(v)) * 1e12;
        }
        vm.assertEq(_total(), paid, "money was made or lost");
    }

    function invariant_EveryOperatorHasItsShareToTheWei() external view {
        for (uint256 i; i < market.OPERATORS(); ++i) {
            vm.assertEq(market.earned(i), market.owed(i), "an operator has more or less than its share");
        }
    }

    function invariant_APayerLosesAtMostMaxRateTimesTime() external view {
        for (uint256 v; v < market.VAULTS(); ++v) {
            int256 lost = int256(market.paid(v) - market.refunded(v)) * 1e12 - market.held(v);
            vm.assertGe(lost, 0, "a payer won");
            vm.assertLe(lost, 100e12 * int256(block.timestamp - market.opened()), "a payer lost too much");
            vm.assertLe(int256(market.vaults(v).rate()), 100e12, "a rate above the agreed one");
        }
    }

    function invariant_AClosedSessionIsStillAndEmpty() external view {
        for (uint256 v; v < market.VAULTS(); ++v) {
            if (!market.vaults(v).closed()) continue;
            vm.assertEq(int256(market.vaults(v).rate()), 0, "closed but streaming");
            vm.assertLe(market.vaults(v).available(), 1e12 - 1, "closed but holding money");
        }
    }

    function invariant_UnitsAreTheWholeAndNothingGoesToTheAdmin() external view {
        for (uint256 p; p < market.POOLS(); ++p) {
            vm.assertEq(ISuperfluidPool(market.pools(p)).getTotalUnits(), 1_000_000, "the units are not the whole");
            vm.assertEq(market.adjustment(p), 0, "a part of the stream goes to the registry");
        }
        vm.assertLe(market.inRegistry(), 1_000_000 + market.gifts(), "the registry earned something");
    }

    /// The random runs are worth something only if they reach what they are about.
    function testTheRunsReachEverything() external {
        for (uint256 i; i < 400; ++i) {
            uint256 roll = uint256(keccak256(abi.encode("reach", i)));
            (uint256 a, uint256 b, uint256 kind) = (roll >> 8, roll >> 64, roll % 16);
            if (kind < 4) market.pass(a);
            else if (kind < 7) market.setRate(a, b);
            else if (kind == 7) market.stop(a, b);
            else if (kind == 8) market.close(a, i > 250 ? 4 * b : 1);
            else if (kind == 9) market.refund(a);
            else if (kind == 10) market.vote(a, b);
            else if (kind == 11) market.swap(a);
            else if (kind == 12) market.end(a, b % 2 == 0);
            else if (kind == 13) market.payOut(a, b);
            else if (kind == 14) market.claim(a, b);
            else market.topUp(a, b);
        }
        vm.assertGt(market.starts(), 5, "streams start");
        vm.assertGt(market.stops(), 5, "streams stop");
        vm.assertGt(market.closes(), 1, "sessions close");
        vm.assertGt(market.refunds(), 1, "late money is refunded");
        vm.assertGt(market.epochs(), 5, "members change");
        vm.assertGt(market.swaps(), 3, "standbys take over");
        vm.assertGt(market.ends(), 1, "coalitions end");
        vm.assertGt(market.payOuts(), 3, "the registry pays out");
        vm.assertGt(market.owed(0), 1e15, "and operators earn");
        vm.assertEq(
            _total() - market.gifts(), int256(market.paid(0) + market.paid(1) + market.paid(2)) * 1e12, "conserved"
        );
    }
}
