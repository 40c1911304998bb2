// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ISessionVault, ISessionVaultFactory, Terms, Voucher} from "../src/interfaces/ISessionVault.sol";
import {ISuperfluidPool} from "../src/interfaces/ISuperfluid.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// The life of a session on the real Superfluid, with every amount known to the wei beforehand.
contract SessionVaultTest is World {
    function testPaidBeforeDeployedStreamedChangedStoppedClosed() external {
        (, address pool, address[] memory people) = _pool(_shares(500_000, 300_000, 200_000));
        Terms memory t = _terms(pool, 2 * RATE);
        ISessionVault vault = _vaultOf(t);
        vm.assertEq(address(vault).code.length, 0, "there is no code when the payer pays");
        uint256 before = usdc.balanceOf(payer);
        vm.prank(payer);
        usdc.transfer(address(vault), 5_000_000);

        vm.prank(stranger);
        vm.assertEq(factory.deploy(t), address(vault), "a stranger deploys exactly what was predicted");
        vm.assertEq(factory.deploy(t), address(vault), "and again changes nothing");
        vm.assertEq(vault.terms().session, t.session, "the terms are in the code");
        vm.assertEq(vault.terms().payer, payer, "the terms are in the code");
        vm.prank(stranger);
        vault.fund();
        vm.assertEq(vault.available(), 5_000_000 * int256(UNIT), "all of it is wrapped");
        vm.assertEq(vault.runway(), type(uint256).max, "nothing flows, so the runway has no end");

        _setRate(vault, RATE);
        vm.assertEq(vault.rate(), RATE, "the rate is exact");
        vm.assertEq(vault.buffer(), uint256(uint96(RATE)) * LIQUIDATION, "the buffer is rate x liquidation period");
        vm.assertEq(vault.runway(), 50_000 - LIQUIDATION, "what is not buffer can stream");
        _pass(300);
        _setRate(vault, 2 * RATE);
        _pass(50);
        _setRate(vault, 0);
        vm.assertEq(vault.rate(), 0, "0 stops");
        _setRate(vault, 0);
        _pass(150);
        _setRate(vault, RATE);
        _pass(100);
        vm.prank(payer);
        vault.close();

        int256 streamed = int256(RATE) * 300 + 2 * int256(RATE) * 50 + int256(RATE) * 100;
        vm.assertEq(_earned(pool, people[0]), streamed / 2, "half of it");
        vm.assertEq(_earned(pool, people[1]), streamed * 3 / 10, "three tenths");
        vm.assertEq(_earned(pool, people[2]), streamed / 5, "a fifth");
        uint256 lost = before - usdc.balanceOf(payer);
        vm.assertEq(int256(lost) * UNIT, streamed, "paid = streamed + refunded, to the last wei");
        vm.assertEq(_value(address(vault)), 0, "no dust");
        vm.assertTrue(vault.closed(), "the end is recorded");
        vm.expectRevert(ISessionVault.IsClosed.selector);
        _setRate(vault, RATE);
    }

    function testOtherTermsAreAnotherAddress() external {
        Terms memory t = _terms(_pool(), RATE);
        address vault = factory.vaultOf(t);
        Terms memory other = abi.decode(abi.encode(t), (Terms));
        other.payer = stranger;
        vm.assertNotEq(factory.vaultOf(other), vault, "payer");
        other = abi.decode(abi.encode(t), (Terms));
        other.orchestrator = stranger;
        vm.assertNotEq(factory.vaultOf(other), vault, "orchestrator");
        other = abi.decode(abi.encode(t), (Terms));
        other.pool = stranger;
        vm.assertNotEq(factory.vaultOf(other), vault, "pool");
        other = abi.decode(abi.encode(t), (Terms));
        other.maxRate += UNIT;
        vm.assertNotEq(factory.vaultOf(other), vault, "rate");
        other = abi.decode(abi.encode(t), (Terms));
        other.expiry += 1;
        vm.assertNotEq(factory.vaultOf(other), vault, "expiry");
        other = abi.decode(abi.encode(t), (Terms));
        other.session = bytes32(uint256(other.session) + 1);
        vm.assertNotEq(factory.vaultOf(other), vault, "session");
    }

    /// The address as interfaces/ISessionVault.sol describes it, for clients that cannot ask the factory.
    function testTheAddressFollowsFromTheDescription() external {
        Terms memory t = _terms(_pool(), RATE);
        bytes memory a = abi.encode(t);
        bytes memory code = abi.encodePacked(
            hex"61",
            uint16(a.length + 0x2d),
            hex"3d81600a3d39f3363d3d373d3d3d363d73",
            factory.implementation(),
            hex"5af43d82803e903d91602b57fd5bf3",
            a
        );
        bytes32 hash = keccak256(abi.encodePacked(bytes1(0xff), address(factory), bytes32(0), keccak256(code)));
        vm.assertEq(factory.vaultOf(t), address(uint160(uint256(hash))), "CREATE2 of the documented code");
        vm.assertEq(a.length, 192, "six words");
    }

    function testOpenSettlesDeploysWrapsAndStartsInOneTransaction() external {
        Terms memory t = _terms(_pool(), RATE);
        ISessionVault vault = _vaultOf(t);
        Voucher memory w = _voucher(payer, address(vault), 2_500_000);
        vm.expectEmit(address(factory));
        emit ISessionVaultFactory.Opened(address(vault), payer, t.session, 2_500_000, RATE);
        vm.prank(orchestrator);
        factory.open(t, w, RATE);
        vm.assertEq(vault.rate(), RATE, "it streams");
        vm.assertEq(_value(address(vault)), 2_500_000 * int256(UNIT), "all that was paid is in the vault");
        vm.assertEq(vault.factory(), address(factory), "the vault knows its factory");
    }

    function testAnybodyTopsUp() external {
        ISessionVault vault = _opened(_pool(), 150_000);
        _setRate(vault, RATE);
        _pass(850);
        vm.assertEq(vault.runway(), 50, "the end is near");
        vm.prank(donor);
        usdc.transfer(address(vault), 100_000);
        vm.expectEmit(address(vault));
        emit ISessionVault.Funded(100_000);
        vm.prank(stranger);
        vault.fund();
        vm.assertEq(vault.runway(), 1050, "a thousand seconds more");
    }

    function testTheSameRateAgainIsPassedOn() external {
        ISessionVault vault = _opened(_pool(), 5_000_000);
        _setRate(vault, RATE);
        _pass(10);
        vm.expectEmit(address(vault));
        emit ISessionVault.RateSet(RATE);
        _setRate(vault, RATE);
        vm.assertEq(vault.rate(), RATE, "the rate is absolute");
    }

    function testRatesThatCannotBe() external {
        ISessionVault vault = _opened(_pool(), 5_000_000);
        int96[4] memory bad = [RATE + UNIT, RATE - 1, -UNIT, type(int96).max];
        for (uint256 i; i < bad.length; ++i) {
            vm.expectRevert(ISessionVault.BadRate.selector);
            _setRate(vault, bad[i]);
        }
    }

    function testTwoVaultsOfOnePoolAddUp() external {
        (, address pool, address[] memory people) = _pool(_shares(500_001, 299_999, 200_000));
        (int96 a, int96 b) = (101 * UNIT, 53 * UNIT);
        ISessionVault first = _opened(_terms(pool, 4 * a), 3_000_000);
        ISessionVault second = _opened(_terms(pool, 4 * b), 2_000_000);
        _setRate(first, a);
        _pass(10);
        _setRate(second, b);
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), a + b, "rates add up without rounding");
        _pass(20);
        _setRate(first, 0);
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), b, "one stops, the other flows on");
        _pass(30);
        _setRate(second, 0);
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), 0, "the pool stands still");
        vm.assertEq(_adjustment(pool), 0, "nothing was rounded");
        int256 streamed = int256(a) * 30 + int256(b) * 50;
        vm.assertEq(_earned(pool, people[0]), streamed / 1_000_000 * 500_001, "exact, also for an odd share");
    }

    /// Random budgets, rates and times; one to five operators in random shares.
    function testFuzz_NothingIsLostOrMade(uint256 seed, uint256 operators) external {
        uint32[] memory units = _randomUnits(seed, 1 + operators % 5);
        (, address pool, address[] memory people) = _pool(units);
        ISessionVault vault = _opened(_terms(pool, 300 * UNIT), 1_000_000);
        uint256 before = usdc.balanceOf(payer);
        int256 streamed;
        for (uint256 i; i < 4; ++i) {
            uint256 roll = uint256(keccak256(abi.encode(seed, i)));
            int96 rate = int96(int256(roll % 301)) * UNIT;
            _setRate(vault, rate);
            uint256 time = (roll >> 32) % 400;
            _pass(time);
            streamed += int256(rate) * int256(time);
        }
        vm.prank(seed % 2 == 0 ? payer : orchestrator);
        vault.close();
        uint256 refunded = usdc.balanceOf(payer) - before;
        vm.assertEq(1_000_000 * int256(UNIT), streamed + int256(refunded) * UNIT, "paid = streamed + refunded");
        vm.assertEq(_value(address(vault)), 0, "dust 0");
        for (uint256 i; i < people.length; ++i) {
            int256 share = streamed / 1_000_000 * int256(uint256(units[i]));
            vm.assertEq(_earned(pool, people[i]), share, "every share to the wei");
        }
    }

    function _randomUnits(uint256 seed, uint256 count) internal pure returns (uint32[] memory units) {
        units = new uint32[](count);
        uint32 left = 1_000_000;
        for (uint256 i; i + 1 < count; ++i) {
            uint32 most = left - uint32(count - 1 - i);
            units[i] = 1 + uint32(uint256(keccak256(abi.encode(seed, "units", i))) % most);
            left -= units[i];
        }
        units[count - 1] = left;
    }
}
