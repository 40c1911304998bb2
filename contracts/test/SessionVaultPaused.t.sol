// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ISessionVault, Terms, Voucher} from "../src/interfaces/ISessionVault.sol";
import {HostileUsdc} from "./support/HostileUsdc.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// The dollar's issuer pauses it or bans an account: streams still stop, sessions still close, refunds wait.
contract SessionVaultPausedTest is World {
    uint256 private constant BUDGET = 5_000_000;

    HostileUsdc private issuer;
    address private pool;
    ISessionVault private vault;
    uint256 private before;

    function setUp() external {
        vm.etch(address(usdc), address(new HostileUsdc()).code);
        issuer = HostileUsdc(address(usdc));
        pool = _pool();
        vault = _opened(pool, BUDGET);
        before = usdc.balanceOf(payer);
        _setRate(vault, RATE);
        _pass(100);
    }

    function _closeIsDeferred(address by) private {
        vm.expectEmit(address(vault));
        emit ISessionVault.RefundDeferred();
        vm.prank(by);
        vault.close();
        vm.assertEq(vault.rate(), 0, "the stream stands still");
        vm.assertTrue(vault.closed(), "the session is closed");
        vm.assertEq(usdc.balanceOf(payer), before, "nothing was refunded yet");
    }

    function _refundWorksNow() private {
        vm.prank(stranger);
        vault.refund();
        vm.assertEq(usdc.balanceOf(payer) - before, BUDGET - 10_000, "all of it, by anybody's call");
    }

    function testThePayerIsBanned() external {
        issuer.ban(payer, true);
        _closeIsDeferred(orchestrator);
        vm.prank(stranger);
        vm.expectRevert(HostileUsdc.Blocked.selector);
        vault.refund();
        issuer.ban(payer, false);
        _refundWorksNow();
    }

    function testTheDollarIsPaused() external {
        issuer.pause(true);
        _closeIsDeferred(payer);
        issuer.pause(false);
        _refundWorksNow();
    }

    function testTheDollarIsPausedBeforeOpen() external {
        Terms memory t = _terms(pool, RATE);
        Voucher memory w = _voucher(payer, factory.vaultOf(t), BUDGET);
        issuer.pause(true);
        vm.prank(orchestrator);
        vm.expectRevert(HostileUsdc.Blocked.selector);
        factory.open(t, w, RATE);
        vm.assertFalse(usdc.authorizationState(payer, w.nonce), "the voucher is unspent");
        vm.assertEq(factory.vaultOf(t).code.length, 0, "and nothing was deployed");
    }

    function testTheVaultIsBanned() external {
        issuer.ban(address(vault), true);
        vm.prank(orchestrator);
        vault.close();
        vm.assertEq(
            usdc.balanceOf(payer) - before, BUDGET - 10_000, "what is wrapped comes from USDCx, not from the vault"
        );
    }

    /// Worse than any real issuer: the transfer burns all gas it is given. That must not keep a session open.
    function testTheDollarBurnsGas() external {
        issuer.burnGas(true);
        uint256 state = vm.snapshotState();
        vm.prank(payer);
        (bool done,) = address(vault).call{gas: 1_300_000}(abi.encodeCall(ISessionVault.close, ()));
        vm.assertTrue(done && vault.closed(), "closed within the fixed gas limit");
        vm.revertToState(state);
        uint256 used = gasleft();
        vm.prank(payer);
        vault.close();
        used -= gasleft();
        vm.assertLe(used, 1_300_000, "and it burns no more, whatever the caller allows");
        vm.assertEq(vault.rate(), 0, "the stream stands still");
        issuer.burnGas(false);
        _refundWorksNow();
    }
}
