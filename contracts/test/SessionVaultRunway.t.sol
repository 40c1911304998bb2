// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ISessionVault} from "../src/interfaces/ISessionVault.sol";
import {IGeneralDistributionAgreement} from "../src/interfaces/ISuperfluid.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// What a budget must leave untouched, who may stop when it runs out, and what it costs when nobody does.
contract SessionVaultRunwayTest is World {
    /// 1,500 s of the rate: 900 s to stream and 600 s of buffer.
    uint256 private constant BUDGET = 150_000;

    address private pool;
    address private operator;
    address private liquidator;
    address private rewardAccount;

    function setUp() external {
        address[] memory people;
        (, pool, people) = _pool(_shares(1_000_000));
        (operator, liquidator, rewardAccount) = (people[0], _somebody(), governance.owner());
    }

    function _started() private returns (ISessionVault vault) {
        vault = _opened(pool, BUDGET);
        _setRate(vault, RATE);
    }

    function _refund(ISessionVault vault) private returns (uint256) {
        uint256 before = usdc.balanceOf(payer);
        vm.prank(payer);
        vault.close();
        return usdc.balanceOf(payer) - before;
    }

    function testABudgetMustHoldBufferAndGuard() external {
        uint256[2] memory periods = [LIQUIDATION, 4 hours];
        for (uint256 i; i < periods.length; ++i) {
            vm.prank(governance.owner());
            governance.setPPPConfig(address(host), address(0), periods[i], periods[i] / 5);
            uint256 least = uint256(uint96(RATE / UNIT)) * (periods[i] + GUARD);
            ISessionVault vault = _opened(pool, least - 1);
            vm.expectRevert(ISessionVault.RunwayTooShort.selector);
            _setRate(vault, RATE);
            vault = _opened(pool, least);
            _setRate(vault, RATE);
            vm.assertEq(vault.runway(), GUARD, "just the guard is left");
        }
    }

    function testAMinimumDepositCountsToo() external {
        vm.prank(governance.owner());
        governance.setSuperTokenMinimumDeposit(address(host), address(usdcx), 1 ether);
        ISessionVault vault = _opened(pool, 1_011_999);
        vm.expectRevert(ISessionVault.RunwayTooShort.selector);
        _setRate(vault, RATE);
        vault = _opened(pool, 1_012_000);
        _setRate(vault, RATE);
        vm.assertEq(vault.buffer(), 1 ether, "the deposit is held as buffer");
        _pass(100);
        vm.assertEq(_refund(vault), 1_012_000 - 10_000, "and comes back");
    }

    function testAnybodyStopsBelowTheGuardAndNotAbove() external {
        ISessionVault vault = _started();
        _pass(780);
        vm.assertEq(vault.runway(), GUARD, "exactly the guard");
        vm.prank(stranger);
        vm.expectRevert(ISessionVault.Healthy.selector);
        vault.stop();
        _pass(1);
        vm.prank(stranger);
        vault.stop();
        vm.assertEq(vault.rate(), 0, "stopped");

        vm.expectRevert(ISessionVault.RunwayTooShort.selector);
        _setRate(vault, RATE);
        _setRate(vault, RATE / 2); // a lower rate has a longer runway
        vm.assertEq(_refund(vault), BUDGET - 78_100, "781 s were streamed, the buffer came back");
    }

    function testAStopAfterCriticalStillSavesTheBuffer() external {
        ISessionVault vault = _started();
        _pass(1000);
        vm.assertEq(vault.runway(), 0, "critical for 100 s");
        vm.prank(stranger);
        vault.stop();
        vm.assertEq(_refund(vault), 50_000, "500 s of the buffer are left");
        vm.assertEq(_earned(pool, operator), 100_000 * int256(UNIT), "1,000 s were paid");
    }

    function testALiquidatorTakesTheBuffer() external {
        uint256 state = vm.snapshotState();
        ISessionVault vault = _started();
        _pass(960);
        int256 before = _value(rewardAccount);
        _liquidate(vault);
        vm.assertEq(_value(rewardAccount) - before, 54_000 * int256(UNIT), "patrician: the reward account has it");
        vm.assertEq(_earned(pool, operator), 96_000 * int256(UNIT), "the operator has what was streamed");
        vm.assertEq(_refund(vault), 0, "nothing is left for the payer");

        vm.revertToState(state);
        vault = _started();
        _pass(1200);
        _liquidate(vault);
        vm.assertEq(_value(liquidator), 30_000 * int256(UNIT), "pleb: the liquidator has it");
        vm.assertEq(_refund(vault), 0, "nothing is left for the payer");
    }

    function testNobodyLiquidatesAHealthyVault() external {
        ISessionVault vault = _started();
        _pass(900);
        vm.expectRevert(bytes4(keccak256("GDA_NON_CRITICAL_SENDER()")));
        this.liquidate(vault);
    }

    /// Beyond the buffer the stream pays what the payer never paid. The guard and the sentinel exist so that it never
    /// comes to this; here is what would happen.
    function testAnInsolventVaultEndsWithoutRefund() external {
        uint256 state = vm.snapshotState();
        ISessionVault vault = _started();
        _pass(1600);
        vm.prank(stranger);
        vault.stop();
        vm.assertEq(vault.available(), -10_000 * int256(UNIT), "100 s too much");
        vm.assertEq(_refund(vault), 0, "nothing to refund, and closing works");

        vm.revertToState(state);
        vault = _started();
        _pass(1600);
        int256 before = _value(rewardAccount);
        _liquidate(vault);
        vm.assertEq(_value(liquidator), 60_000 * int256(UNIT), "the liquidator gets the whole buffer");
        vm.assertEq(_value(rewardAccount) - before, -70_000 * int256(UNIT), "the reward account bails out");
        vm.assertEq(vault.rate(), 0, "the stream has ended");
    }

    function _liquidate(ISessionVault vault) private {
        vm.prank(liquidator);
        host.callAgreement(
            address(gda),
            abi.encodeCall(IGeneralDistributionAgreement.distributeFlow, (address(usdcx), address(vault), pool, 0, "")),
            ""
        );
    }

    function liquidate(ISessionVault vault) external {
        _liquidate(vault);
    }
}
