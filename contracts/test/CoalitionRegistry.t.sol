// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {Coalition, ICoalitionRegistry, Member, Proposal, Stage, Swap} from "../src/interfaces/ICoalitionRegistry.sol";
import {ISessionVault} from "../src/interfaces/ISessionVault.sol";
import {IGeneralDistributionAgreement, ISuperfluidPool} from "../src/interfaces/ISuperfluid.sol";
import {IConnectPermission} from "./support/Superfluid.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// The life of a coalition: operators register, vote, serve, are replaced, are paid, and part.
contract CoalitionRegistryTest is World {
    // ---- operators and pools ----

    function testOperatorsRegisterWithoutGas() external {
        address operator = _somebody();
        uint64 deadline = uint64(block.timestamp + 60);
        bytes memory signature = _sign(operator, registry.registrationDigest(operator, deadline));
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.Registered(operator);
        vm.prank(stranger);
        registry.registerFor(operator, deadline, signature);
        vm.assertTrue(registry.isRegistered(operator), "a stranger relayed it");
        vm.recordLogs();
        registry.registerFor(operator, deadline, signature);
        vm.assertEq(vm.getRecordedLogs().length, 0, "again changes nothing");
    }

    function testARegistrationIsTheOperatorsAndInTime() external {
        address operator = _somebody();
        uint64 deadline = uint64(block.timestamp + 60);
        bytes memory signature = _sign(stranger, registry.registrationDigest(operator, deadline));
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, operator));
        registry.registerFor(operator, deadline, signature);
        signature = _sign(operator, registry.registrationDigest(operator, deadline));
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, operator));
        registry.registerFor(operator, deadline + 1, signature);
        vm.warp(deadline + 1);
        vm.expectRevert(ICoalitionRegistry.Expired.selector);
        registry.registerFor(operator, deadline, signature);
    }

    function testAPoolIsMadeOnceAndIsItsOwners() external {
        bytes32 id = registry.poolIdOf(orchestrator, "tiny");
        vm.assertEq(registry.gdaPoolOf(id), address(0), "not yet");
        vm.prank(stranger);
        (bytes32 made, address pool) = registry.createPool(orchestrator, "tiny");
        vm.assertEq(made, id, "the id follows from owner and label");
        vm.assertEq(registry.gdaPoolOf(id), pool, "sessions read it here");
        vm.assertEq(registry.coalitionOf(id).owner, orchestrator, "whoever creates it, it is the owner's");
        vm.assertEq(ISuperfluidPool(pool).admin(), address(registry), "no key is its admin");
        (, address again) = registry.createPool(orchestrator, "tiny");
        vm.assertEq(again, pool, "idempotent");
        (, address other) = registry.createPool(stranger, "tiny");
        vm.assertNotEq(other, pool, "the same label of somebody else is another pool");
        vm.expectRevert(ICoalitionRegistry.BadAddress.selector);
        registry.createPool(address(0), "tiny");
    }

    // ---- activation ----

    function testAllSignOneProposalAndServe() external {
        (bytes32 id, address pool) = registry.createPool(orchestrator, "tiny");
        address[] memory people = _people(_operator(), _operator(), _operator());
        Proposal memory p = _proposal(id, people, _shares(500_000, 300_000, 200_000));
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 1, standby: _operator()});
        address[] memory signers = registry.signersOf(p);
        vm.assertEq(signers.length, 5, "the owner, three members, one standby");
        vm.assertEq(signers[0], orchestrator, "the owner first");
        vm.assertEq(signers[4], p.swaps[0].standby, "the standby last");

        bytes[] memory signatures = _signatures(p);
        bytes32 digest = registry.proposalDigest(p);
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.Activated(id, 1, digest, pool, p);
        vm.prank(stranger); // open to all who hold the signatures
        registry.activate(p, signatures);

        Coalition memory c = registry.coalitionOf(id);
        vm.assertTrue(c.stage == Stage.Active, "it serves");
        vm.assertEq(c.epoch, 1, "the first epoch");
        vm.assertEq(c.proposal, digest, "by this proposal");
        vm.assertEq(c.manifest, p.manifest, "with this model");
        vm.assertEq(c.orchestrator, orchestrator, "this orchestrator");
        vm.assertEq(c.rate, p.rate, "at this price");
        vm.assertEq(c.expiry, p.expiry, "until then");
        Member[] memory members = registry.membersOf(id);
        for (uint256 i; i < 3; ++i) {
            vm.assertEq(keccak256(abi.encode(members[i])), keccak256(abi.encode(p.members[i])), "as proposed");
            vm.assertEq(ISuperfluidPool(pool).getUnits(people[i]), p.members[i].units, "with its units");
            vm.assertTrue(gda.isMemberConnected(pool, people[i]), "and connected without gas of its own");
        }
        vm.assertEq(registry.swapsOf(id).length, 1, "the swap is on record");
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
    }

    function testANewEpochWhileMoneyStreams() external {
        (bytes32 id, address pool, address[] memory people) = _pool(_shares(500_000, 500_000));
        ISessionVault vault = _opened(pool, 5_000_000);
        _setRate(vault, RATE);
        _pass(100);
        address third = _operator();
        _activate(_proposal(id, _people(people[1], third), _shares(100_001, 899_999)));
        vm.assertEq(registry.gdaPoolOf(id), pool, "one GDA pool for all epochs");
        vm.assertEq(ISuperfluidPool(pool).getUnits(people[0]), 0, "who left has no share");
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), RATE, "the whole stream goes to the members");
        vm.assertEq(_adjustment(pool), 0, "and nothing to the admin");
        _pass(100);
        _setRate(vault, 0);
        int256 each = int256(RATE) * 50;
        vm.assertEq(_earned(pool, people[0]), each, "what was earned before stays");
        vm.assertEq(_earned(pool, people[1]), each + int256(RATE) * 100 / 1_000_000 * 100_001, "before and after");
        vm.assertEq(_earned(pool, third), int256(RATE) * 100 / 1_000_000 * 899_999, "from then on");
    }

    function testTwentyNewWeightsLeaveNoResidue() external {
        (bytes32 id, address pool, address[] memory people) = _pool(_shares(500_000, 500_000));
        ISessionVault first = _opened(_terms(pool, RATE), 5_000_000);
        ISessionVault second = _opened(_terms(pool, 7 * UNIT), 5_000_000);
        _setRate(first, RATE);
        _setRate(second, 7 * UNIT);
        for (uint32 i = 1; i <= 20; ++i) {
            _activate(_proposal(id, people, _shares(500_000 + i * 13, 500_000 - i * 13)));
            vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), RATE + 7 * UNIT, "no wei goes astray");
            vm.assertEq(_adjustment(pool), 0, "none of it to the admin");
            _pass(1);
        }
        vm.assertEq(_value(address(registry)), 0, "the registry earned nothing");
    }

    function testSixteenMembersFitIntoOneTransaction() external {
        address[] memory people = new address[](16);
        uint32[] memory units = new uint32[](16);
        for (uint256 i; i < 16; ++i) {
            (people[i], units[i]) = (_operator(), 62_500);
        }
        (bytes32 id, address pool) = registry.createPool(orchestrator, "wide");
        Proposal memory p = _proposal(id, people, units);
        p.swaps = new Swap[](32);
        for (uint32 i; i < 32; ++i) {
            p.swaps[i] = Swap({place: i / 2, standby: _operator()});
        }
        uint256 gas_ = gasleft();
        _activate(p);
        vm.assertLe(gas_ - gasleft(), 16_777_216, "the limit of public chains");

        // The dearest change: everybody is replaced.
        for (uint256 i; i < 16; ++i) {
            people[i] = _operator();
        }
        p = _proposal(id, people, units);
        bytes[] memory signatures = _signatures(p);
        gas_ = gasleft();
        registry.activate(p, signatures);
        vm.assertLe(gas_ - gasleft(), 16_777_216, "the limit of public chains");
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
    }

    // ---- swaps ----

    function testAStandbyTakesTheOnlyPlaceWithoutANewVote() external {
        address standby = _operator();
        (bytes32 id, address pool, address first) = _single(standby);
        ISessionVault vault = _opened(pool, 5_000_000);
        _setRate(vault, RATE);
        _pass(60);
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.Swapped(id, 1, 0, first, standby, 1_000_000);
        vm.prank(orchestrator);
        registry.swap(id, 1, 0);
        vm.assertEq(registry.membersOf(id)[0].operator, standby, "the place is the standby's");
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), RATE, "the stream goes on");
        vm.assertEq(_adjustment(pool), 0, "all of it to the member");
        vm.assertTrue(gda.isMemberConnected(pool, standby), "who was connected");
        _pass(40);
        vm.assertEq(_earned(pool, first), int256(RATE) * 60, "each for its time");
        vm.assertEq(_earned(pool, standby), int256(RATE) * 40, "each for its time");
    }

    /// The same change of the same units on two pools: Superfluid alone leaves a residue with the admin.
    function testASwapOfAnOddShareLeavesNoResidue() external {
        address standby = _operator();
        address[] memory people = _people(_operator(), _operator(), _operator());
        uint32[] memory units = _shares(333_333, 333_333, 333_334);
        ISuperfluidPool alone = ISuperfluidPool(_foreignPool(address(this), true));
        for (uint256 i; i < 3; ++i) {
            alone.updateMemberUnits(people[i], units[i]);
        }
        (bytes32 id, address pool) = registry.createPool(orchestrator, "odd");
        Proposal memory p = _proposal(id, people, units);
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 1, standby: standby});
        _activate(p);
        _setRate(_opened(address(alone), 5_000_000), RATE);
        _setRate(_opened(pool, 5_000_000), RATE);

        alone.updateMemberUnits(standby, units[1]);
        alone.updateMemberUnits(people[1], 0);
        vm.assertGt(_adjustment(address(alone)), 0, "what could not be divided by 1,333,333");
        vm.prank(orchestrator);
        registry.swap(id, 1, 0);
        vm.assertEq(_adjustment(pool), 0, "the registry gives it back to the members");
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), RATE, "all of it");
    }

    function testASecondStandbyFollowsTheFirst() external {
        (address one, address two) = (_operator(), _operator());
        (bytes32 id, address pool) = registry.createPool(orchestrator, "spare");
        Proposal memory p = _proposal(id, _people(_operator()), _shares(1_000_000));
        p.swaps = new Swap[](2);
        (p.swaps[0], p.swaps[1]) = (Swap(0, one), Swap(0, two));
        _activate(p);
        vm.startPrank(orchestrator);
        registry.swap(id, 1, 0);
        registry.swap(id, 1, 1);
        registry.swap(id, 1, 0); // the first is well again
        vm.stopPrank();
        vm.assertEq(ISuperfluidPool(pool).getUnits(one), 1_000_000, "the first is back");
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
    }

    // ---- the end ----

    function testDrainedThenDissolvedThenFree() external {
        (bytes32 id, address pool, address[] memory people) = _pool(_shares(600_000, 400_000));
        uint64 until = uint64(block.timestamp) + registry.DRAIN_NOTICE();
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.DrainAnnounced(id, 1, people[1], until);
        vm.prank(people[1]);
        registry.drain(id, 1);
        vm.assertTrue(registry.coalitionOf(id).stage == Stage.Draining, "announced");
        vm.expectRevert(ICoalitionRegistry.NotOver.selector);
        registry.dissolve(id, 1);
        vm.warp(until);
        vm.assertTrue(registry.coalitionOf(id).stage == Stage.Dissolved, "over by itself");
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.CoalitionDissolved(id, 1, stranger);
        vm.prank(stranger);
        registry.dissolve(id, 1);
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "a stream that still runs has receivers");
        vm.expectRevert(ICoalitionRegistry.NotActive.selector);
        registry.dissolve(id, 1);
        _activate(_proposal(id, _people(_operator()), _shares(1_000_000)));
        vm.assertTrue(registry.coalitionOf(id).stage == Stage.Active, "others serve now");
        vm.assertEq(registry.coalitionOf(id).drainedAt, 0, "without the former notice");
    }

    function testADrainCanBeAnsweredByANewVoteOfAll() external {
        (bytes32 id,, address[] memory people) = _pool(_shares(600_000, 400_000));
        vm.prank(orchestrator);
        registry.drain(id, 1);
        Proposal memory p = _proposal(id, people, _shares(500_000, 500_000));
        vm.assertEq(registry.signersOf(p).length, 3, "owner and both, who are the present members too");
        _activate(p);
        vm.assertTrue(registry.coalitionOf(id).stage == Stage.Active, "serving again");
    }

    // ---- money ----

    function testWhatLiesInTheRegistryIsPaidOutByUnits() external {
        (bytes32 id, address pool, address[] memory people) = _pool(_shares(750_000, 250_000));
        vm.expectRevert(ICoalitionRegistry.NothingToPayOut.selector);
        registry.payOut(id);
        vm.prank(donor);
        usdcx.transfer(address(registry), 8 ether + 999_999);
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.PaidOut(id, 8 ether);
        vm.prank(stranger);
        vm.assertEq(registry.payOut(id), 8 ether, "what can be divided");
        vm.assertEq(_earned(pool, people[0]), 6 ether, "three quarters");
        vm.assertEq(_earned(pool, people[1]), 2 ether, "one quarter");
        vm.assertEq(_value(address(registry)), 999_999, "the rest waits for more");
        (bytes32 empty,) = registry.createPool(orchestrator, "empty");
        vm.expectRevert(ICoalitionRegistry.NotActive.selector);
        registry.payOut(empty);
    }

    /// Superfluid connects an account to four pools at most without its doing; the fifth share waits to be claimed.
    function testAMemberWithFourPoolsIsPaidByClaim() external {
        address busy = _operator();
        for (uint256 i; i < 4; ++i) {
            (bytes32 other,) = registry.createPool(orchestrator, bytes32(i));
            _activate(_proposal(other, _people(busy), _shares(1_000_000)));
        }
        (bytes32 id, address pool) = registry.createPool(orchestrator, "fifth");
        Proposal memory p = _proposal(id, _people(busy), _shares(1_000_000));
        bytes[] memory signatures = _signatures(p);
        vm.expectEmit(address(registry));
        emit ICoalitionRegistry.NotConnected(id, busy);
        registry.activate(p, signatures);
        ISessionVault vault = _opened(pool, 5_000_000);
        _setRate(vault, RATE);
        _pass(100);
        vm.assertEq(_value(busy), 0, "nothing arrives by itself");
        vm.prank(stranger);
        ISuperfluidPool(pool).claimAll(busy);
        vm.assertEq(_value(busy), int256(RATE) * 100, "anybody can claim it for the member");
    }

    function testAMemberThatWantsNoConnectionsHoldsUpNothing() external {
        address shy = _operator();
        vm.prank(shy);
        IConnectPermission(address(gda)).setConnectPermission(false);
        (bytes32 id, address pool) = registry.createPool(orchestrator, "shy");
        _activate(_proposal(id, _people(shy), _shares(1_000_000)));
        vm.assertFalse(gda.isMemberConnected(pool, shy), "its choice");
        vm.prank(shy);
        IConnectPermission(address(gda)).setConnectPermission(true);
        vm.prank(stranger);
        registry.connect(id, _people(shy));
        vm.assertTrue(gda.isMemberConnected(pool, shy), "tried again");
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.UnknownPool.selector, bytes32("none")));
        registry.connect("none", _people(shy));
    }

    /// Random members, shares and changes while two vaults stream: nothing is lost to the admin, ever.
    function testFuzz_ChangesOfMembersLoseNothing(uint256 seed) external {
        address[] memory everybody = new address[](8);
        for (uint256 i; i < 8; ++i) {
            everybody[i] = _operator();
        }
        (bytes32 id, address pool) = registry.createPool(orchestrator, "fuzz");
        _activate(_random(id, everybody, seed));
        ISessionVault vault = _opened(pool, 5_000_000);
        _setRate(vault, RATE);
        uint256 start = block.timestamp;
        for (uint256 i = 1; i < 6; ++i) {
            _pass(uint256(keccak256(abi.encode(seed, "time", i))) % 100);
            _activate(_random(id, everybody, uint256(keccak256(abi.encode(seed, i)))));
            vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
            vm.assertEq(_adjustment(pool), 0, "nothing to the admin");
        }
        int256 sum;
        for (uint256 i; i < 8; ++i) {
            sum += _earned(pool, everybody[i]);
        }
        vm.assertEq(sum, int256(RATE) * int256(block.timestamp - start), "all that streamed is the members'");
    }

    /// 1 to 5 of `everybody`, in random order and shares.
    function _random(bytes32 id, address[] memory everybody, uint256 seed) private view returns (Proposal memory) {
        uint256 count = 1 + seed % 5;
        address[] memory people = new address[](count);
        uint32[] memory units = new uint32[](count);
        uint32 left = 1_000_000;
        for (uint256 i; i < count; ++i) {
            people[i] = everybody[(seed / 5 + i * 3) % 8];
            uint32 most = left - uint32(count - 1 - i);
            units[i] = i + 1 == count ? left : 1 + uint32(uint256(keccak256(abi.encode(seed, i, "u"))) % most);
            left -= units[i];
        }
        return _proposal(id, people, units);
    }

    function _single(address standby) private returns (bytes32 id, address pool, address member) {
        member = _operator();
        (id, pool) = registry.createPool(orchestrator, "single");
        Proposal memory p = _proposal(id, _people(member), _shares(1_000_000));
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 0, standby: standby});
        _activate(p);
    }
}
