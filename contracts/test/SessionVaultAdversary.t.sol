// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ISessionVault, ISessionVaultFactory, Terms, Voucher} from "../src/interfaces/ISessionVault.sol";
import {IGeneralDistributionAgreement, ISuperfluidPool} from "../src/interfaces/ISuperfluid.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// What a hostile orchestrator, payer or stranger can do to a session: only what the terms allow.
contract SessionVaultAdversaryTest is World {
    uint256 private constant BUDGET = 5_000_000;

    // ---- the orchestrator ----

    function testAHostileOrchestratorTakesMaxRateTimesTimeIntoThePool() external {
        (, address pool, address[] memory people) = _pool(_shares(1_000_000));
        ISessionVault vault = _opened(pool, BUDGET);
        uint256 before = usdc.balanceOf(payer);
        _setRate(vault, RATE); // at once, at the top, and never stopped
        _pass(90);
        vm.prank(payer);
        vault.close();
        vm.assertEq(usdc.balanceOf(payer) - before, BUDGET - 9000, "90 s at the agreed rate, the rest comes back");
        vm.assertEq(_earned(pool, people[0]), 90 * int256(RATE), "and what was taken is the operators'");
        vm.assertEq(_value(orchestrator) + int256(usdc.balanceOf(orchestrator)), 0, "the orchestrator got nothing");
    }

    function testNobodyElseSetsTheRate() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        address[2] memory people = [stranger, payer];
        for (uint256 i; i < people.length; ++i) {
            vm.prank(people[i]);
            vm.expectRevert(ISessionVault.NotAllowed.selector);
            vault.setRate(RATE);
        }
    }

    function testTheRefundGoesToThePayerWhoeverCloses() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        uint256 before = usdc.balanceOf(payer);
        vm.prank(orchestrator);
        vault.close();
        vm.assertEq(usdc.balanceOf(payer) - before, BUDGET, "there is no other receiver");
        vm.assertEq(usdc.balanceOf(orchestrator), 0, "not the one who calls");
    }

    function testAfterExpiryTheOrchestratorCanOnlyStop() external {
        Terms memory t = _terms(_pool(), RATE);
        t.expiry = uint64(block.timestamp + 300);
        ISessionVault vault = _opened(t, BUDGET);
        _setRate(vault, RATE);
        _pass(400);
        vm.expectRevert(ISessionVault.Expired.selector);
        _setRate(vault, RATE / 2);
        _setRate(vault, 0);
    }

    function testAfterExpiryAnybodyStopsAndCloses() external {
        Terms memory t = _terms(_pool(), RATE);
        t.expiry = uint64(block.timestamp + 300);
        ISessionVault vault = _opened(t, BUDGET);
        uint256 before = usdc.balanceOf(payer);
        _setRate(vault, RATE);
        _pass(299);
        vm.prank(stranger);
        vm.expectRevert(ISessionVault.Healthy.selector);
        vault.stop();
        vm.prank(stranger);
        vm.expectRevert(ISessionVault.NotAllowed.selector);
        vault.close();
        _pass(1);
        vm.prank(stranger);
        vault.stop();
        vm.assertEq(vault.rate(), 0, "stopped in the second of expiry");
        vm.prank(stranger);
        vault.close();
        vm.assertEq(usdc.balanceOf(payer) - before, BUDGET - 30_000, "300 s were streamed");
    }

    /// A first version closed and refunded nothing, even with the exact estimate of eth_estimateGas.
    function testNoGasLimitClosesWithoutRefund() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        _setRate(vault, RATE);
        _pass(10);
        uint256 before = usdc.balanceOf(payer);
        uint256 closedAt;
        for (uint256 gas_ = 300_000; gas_ <= 1_500_000; gas_ += 10_000) {
            uint256 state = vm.snapshotState();
            vm.prank(orchestrator);
            (bool done,) = address(vault).call{gas: gas_}(abi.encodeCall(ISessionVault.close, ()));
            if (done) {
                vm.assertEq(usdc.balanceOf(payer) - before, BUDGET - 1000, "closed means refunded");
                if (closedAt == 0) closedAt = gas_;
            } else {
                vm.assertEq(closedAt, 0, "more gas never fails where less succeeded");
                vm.assertFalse(vault.closed(), "and what fails leaves no trace");
            }
            vm.revertToState(state);
        }
        vm.assertTrue(closedAt > 0 && closedAt <= 1_300_000, "our fixed limit suffices");
    }

    // ---- the payer ----

    function testAPayerWhoClosesBeforeOpenKeepsTheVoucher() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _vaultOf(t);
        Voucher memory w = _voucher(payer, address(vault), BUDGET);
        factory.deploy(t);
        vm.prank(payer);
        vault.close();
        uint256 before = usdc.balanceOf(payer);
        vm.prank(orchestrator);
        vm.expectRevert(ISessionVaultFactory.IsClosed.selector);
        factory.open(t, w, RATE);
        vm.assertEq(usdc.balanceOf(payer), before, "nothing was charged");
        vm.assertFalse(usdc.authorizationState(payer, w.nonce), "the voucher is unspent");
    }

    function testAVoucherCancelledAfterVerificationOpensNothing() external {
        Terms memory t = _terms(_pool(), RATE);
        Voucher memory w = _voucher(payer, factory.vaultOf(t), BUDGET);
        _cancel(w.nonce);
        vm.prank(orchestrator);
        vm.expectRevert(ISessionVaultFactory.NotPaid.selector);
        factory.open(t, w, 0);
    }

    /// The value of a voucher is only signed when it is settled. A cancelled one with a value that turns negative as a
    /// signed number must not pass for paid.
    function testACancelledVoucherOfAnyValueOpensNothing() external {
        Terms memory t = _terms(_pool(), RATE);
        Voucher memory w = _voucher(payer, factory.vaultOf(t), BUDGET);
        _cancel(w.nonce);
        uint256[4] memory values = [type(uint256).max, 1 << 255, type(uint256).max / 1e12, uint256(1)];
        for (uint256 i; i < values.length; ++i) {
            w.value = values[i];
            vm.prank(orchestrator);
            vm.expectRevert();
            factory.open(t, w, 0);
        }
    }

    function testACloseInFrontOfTheStart() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        vm.prank(payer);
        vault.close();
        vm.expectRevert(ISessionVault.IsClosed.selector);
        _setRate(vault, RATE);
    }

    function testThePayerEndsItAloneAtAnyTime() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        _setRate(vault, RATE);
        vm.prank(payer);
        vault.stop();
        vm.assertEq(vault.rate(), 0, "stopped without the orchestrator");
        _setRate(vault, RATE);
        vm.prank(payer);
        vault.close();
        vm.assertEq(vault.rate(), 0, "closed without the orchestrator");
    }

    // ---- strangers ----

    function testAStrangerWhoSettlesDeploysAndWrapsFirstIsNoHindrance() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _vaultOf(t);
        Voucher memory w = _voucher(payer, address(vault), BUDGET);
        vm.startPrank(stranger);
        usdc.transferWithAuthorization(payer, address(vault), w.value, 0, w.validBefore, w.nonce, w.v, w.r, w.s);
        factory.deploy(t);
        vault.fund();
        vm.stopPrank();
        vm.prank(orchestrator);
        factory.open(t, w, RATE);
        vm.assertEq(vault.rate(), RATE, "the voucher counts as paid");
    }

    function testAVoucherCannotBeUsedTwice() external {
        address pool = _pool();
        Terms memory t = _terms(pool, RATE);
        ISessionVault vault = _vaultOf(t);
        Voucher memory w = _voucher(payer, address(vault), BUDGET);
        vm.startPrank(orchestrator);
        factory.open(t, w, RATE);
        uint256 left = usdc.balanceOf(payer);
        vm.expectRevert(ISessionVaultFactory.NotPaid.selector);
        factory.open(t, w, 0); // the buffer is locked, so the vault no longer shows the whole voucher
        Terms memory other = _terms(pool, RATE);
        vm.expectRevert(ISessionVaultFactory.NotPaid.selector);
        factory.open(other, w, 0);
        vm.stopPrank();
        vm.assertEq(usdc.balanceOf(payer), left, "charged once");
    }

    function testAVoucherIsForTheTermsItWasSignedFor() external {
        Terms memory t = _terms(_pool(), RATE);
        Voucher memory w = _voucher(payer, factory.vaultOf(t), BUDGET);
        t.maxRate = 2 * RATE;
        vm.prank(orchestrator);
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        factory.open(t, w, 0);
    }

    function testAStrangerMayOpenButNotStart() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _vaultOf(t);
        Voucher memory w = _voucher(payer, address(vault), BUDGET);
        vm.startPrank(stranger);
        vm.expectRevert(ISessionVaultFactory.NotAllowed.selector);
        factory.open(t, w, RATE);
        factory.open(t, w, 0);
        vm.stopPrank();
        vm.assertEq(vault.available(), int256(BUDGET) * UNIT, "opened for the payer, standing still");
    }

    function testAnExpiredVoucherOpensNothing() external {
        Terms memory t = _terms(_pool(), RATE);
        Voucher memory w = _voucher(payer, factory.vaultOf(t), BUDGET);
        vm.warp(w.validBefore);
        vm.prank(orchestrator);
        vm.expectRevert(
            abi.encodeWithSignature("ERC3009InvalidAuthorizationTime(uint256,uint256)", w.validAfter, w.validBefore)
        );
        factory.open(t, w, 0);
    }

    function testDustAndGiftsGoToThePayerAndLateMoneyToo() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _opened(t, 1_000_000);
        uint256 before = usdc.balanceOf(payer);
        vm.startPrank(donor);
        usdc.transfer(address(vault), 7);
        usdcx.transfer(address(vault), uint256(uint96(3 * UNIT)) + 5);
        vm.stopPrank();
        vm.prank(payer);
        vault.close();
        vm.assertEq(usdc.balanceOf(payer) - before, 1_000_010, "7 units of USDC and 3 of USDCx came along");
        vm.assertEq(vault.available(), 5, "what is less than one USDC unit cannot be unwrapped");
        vm.prank(donor);
        usdc.transfer(address(vault), 11);
        vm.expectRevert(ISessionVault.IsClosed.selector);
        vault.fund();
        vm.prank(stranger);
        vault.refund();
        vm.assertEq(usdc.balanceOf(payer) - before, 1_000_021, "late money is refunded by anybody");
    }

    function testAClosedSessionStaysClosed() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _opened(t, 1_000_000);
        vm.prank(payer);
        vault.close();
        Voucher memory again = _voucher(payer, address(vault), 1);
        vm.prank(orchestrator);
        vm.expectRevert(ISessionVaultFactory.IsClosed.selector);
        factory.open(t, again, 0);
        factory.deploy(t);
        vm.assertTrue(vault.closed(), "deploying again does not bring it back");
        vm.prank(payer);
        vault.close(); // harmless
    }

    function testRefundNeedsAClosedSession() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        vm.prank(orchestrator);
        vm.expectRevert(ISessionVault.NotClosed.selector);
        vault.refund();
    }

    function testTheImplementationIsNoVault() external {
        ISessionVault implementation = ISessionVault(factory.implementation());
        vm.assertTrue(implementation.closed(), "born closed");
        vm.expectRevert();
        implementation.close();
        vm.expectRevert();
        implementation.stop();
        vm.expectRevert();
        implementation.setRate(0);
        vm.expectRevert(ISessionVault.IsClosed.selector);
        implementation.fund();
    }

    // ---- pools that are not what they should be ----

    function testAPoolThatOnlyItsAdminFeedsCannotBeUsed() external {
        ISessionVault vault = _opened(_foreignPool(address(this), false), BUDGET);
        vm.expectRevert(bytes4(keccak256("GDA_DISTRIBUTE_FROM_ANY_ADDRESS_NOT_ALLOWED()")));
        _setRate(vault, RATE);
    }

    function testAPoolWithoutUnitsIsRefused() external {
        (, address pool) = registry.createPool(orchestrator, "no coalition yet");
        ISessionVault vault = _opened(pool, BUDGET);
        vm.expectRevert(ISessionVault.PoolHasNoUnits.selector);
        _setRate(vault, RATE);
    }

    function testAnAddressThatIsNoPoolCannotBePaidButRefunds() external {
        ISessionVault vault = _opened(stranger, BUDGET);
        uint256 before = usdc.balanceOf(payer);
        vm.expectRevert();
        _setRate(vault, RATE);
        vm.prank(payer);
        vault.close();
        vm.assertEq(usdc.balanceOf(payer) - before, BUDGET, "the payer has it back");
    }

    /// Why the registry is the admin of every pool: a key that is one can take the whole stream. The payer can still end it.
    function testAHostilePoolAdminTakesTheStreamAndThePayerCanStillClose() external {
        address pool = _foreignPool(address(this), true);
        address honest = _somebody();
        ISuperfluidPool(pool).updateMemberUnits(honest, 1_000_000);
        ISessionVault vault = _opened(pool, BUDGET);
        _setRate(vault, RATE);
        ISuperfluidPool(pool).updateMemberUnits(honest, 0);
        vm.assertEq(_adjustment(pool), int256(RATE), "the whole stream goes to the admin");
        vm.assertEq(vault.rate(), RATE, "and the vault cannot see it");
        vm.prank(payer);
        vault.close();
        vm.assertEq(vault.rate(), 0, "closed all the same");
    }

    // ---- forced company ----

    function testInflowAndForcedPoolConnectionsOnlyCostGas() external {
        ISessionVault vault = _opened(_pool(), BUDGET);
        uint256 before = usdc.balanceOf(payer);
        for (uint256 i; i < 5; ++i) {
            address trap = _foreignPool(address(this), true);
            ISuperfluidPool(trap).updateMemberUnits(address(vault), 10);
            host.callAgreement(
                address(gda),
                abi.encodeCall(IGeneralDistributionAgreement.tryConnectPoolFor, (trap, address(vault), "")),
                ""
            );
            vm.prank(donor);
            gdaForwarder.distributeFlow(address(usdcx), donor, trap, UNIT, "");
        }
        vm.prank(donor);
        cfaForwarder.setFlowrate(address(usdcx), address(vault), UNIT);

        uint256[3] memory used;
        used[0] = gasleft();
        _setRate(vault, RATE);
        used[0] -= gasleft();
        _pass(100);
        used[1] = gasleft();
        _setRate(vault, 0);
        used[1] -= gasleft();
        _setRate(vault, RATE);
        _pass(100);
        used[2] = gasleft();
        vm.prank(payer);
        vault.close();
        used[2] -= gasleft();
        vm.assertLe(used[0], 1_100_000, "start within its fixed limit");
        vm.assertLe(used[1], 800_000, "stop within its fixed limit");
        vm.assertLe(used[2], 1_300_000, "close within its fixed limit");
        vm.assertGe(usdc.balanceOf(payer) - before, BUDGET - 20_000, "and the payer has the attacker's money too");
        _pass(50);
        uint256 then = usdc.balanceOf(payer);
        vm.prank(stranger);
        vault.refund();
        vm.assertGt(usdc.balanceOf(payer), then, "what still flows in is refunded later");
    }

    function _cancel(bytes32 nonce) private {
        usdc.cancelAuthorization(payer, nonce, _sign(payer, _usdcDigest(keccak256(abi.encode(CANCEL, payer, nonce)))));
    }
}
