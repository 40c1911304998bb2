// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {CoalitionRegistry} from "../src/CoalitionRegistry.sol";
import {ICoalitionRegistry, Member, Proposal, Stage, Swap} from "../src/interfaces/ICoalitionRegistry.sol";
import {IGeneralDistributionAgreement, ISuperfluidPool} from "../src/interfaces/ISuperfluid.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// Whoever wants another's share, place or consent.
contract CoalitionAdversaryTest is World {
    /// Half the order of secp256k1 decides which of two signatures of the same words counts.
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    bytes32 private id;
    address private pool;
    address[] private people;

    function setUp() external {
        (id, pool, people) = _pool(_shares(600_000, 400_000));
    }

    function _next() private returns (Proposal memory p) {
        p = _proposal(id, _people(people[0], people[1], _operator()), _shares(300_000, 300_000, 400_000));
    }

    function _refused(Proposal memory p, bytes[] memory signatures, bytes memory why) private {
        vm.expectRevert(why);
        registry.activate(p, signatures);
        vm.assertEq(registry.coalitionOf(p.poolId).epoch, 1, "nothing changed");
    }

    // ---- who may change units ----

    function testNobodyChangesUnitsPastTheRegistry() external {
        address[3] memory thieves = [stranger, orchestrator, people[1]];
        for (uint256 i; i < thieves.length; ++i) {
            vm.startPrank(thieves[i]);
            vm.expectRevert(bytes4(keccak256("SUPERFLUID_POOL_NOT_POOL_ADMIN_OR_GDA()")));
            ISuperfluidPool(pool).updateMemberUnits(thieves[i], 1_000_000);
            vm.expectRevert(bytes4(keccak256("GDA_NOT_POOL_ADMIN()")));
            gdaForwarder.updateMemberUnits(pool, thieves[i], 1_000_000, "");
            vm.stopPrank();
        }
        vm.prank(people[0]);
        (bool moved,) = pool.call(abi.encodeWithSignature("transfer(address,uint256)", stranger, 1));
        vm.assertFalse(moved, "units cannot be handed on");
    }

    /// The orchestrator that owns the pool has a coalition of its own creatures sign, and lacks the present members.
    function testAHostileOrchestratorCannotVoteTheMembersOut() external {
        address creature = _operator();
        Proposal memory p = _proposal(id, _people(creature), _shares(1_000_000));
        address[] memory signers = registry.signersOf(p);
        vm.assertEq(signers.length, 4, "owner, the new member, and the two who serve");
        bytes32 digest = registry.proposalDigest(p);
        bytes[] memory two = new bytes[](2);
        (two[0], two[1]) = (_sign(orchestrator, digest), _sign(creature, digest));
        _refused(p, two, abi.encodeWithSelector(ICoalitionRegistry.WrongSignatureCount.selector, 2, 4));
        bytes[] memory four = new bytes[](4);
        (four[0], four[1], four[2], four[3]) = (two[0], two[1], two[1], two[0]);
        _refused(p, four, abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, people[0]));
        vm.assertEq(ISuperfluidPool(pool).getUnits(people[0]), 600_000, "the units are untouched");
    }

    /// Not even by announcing the end: the members see it, and have the notice's time to stop serving.
    function testAHostileOrchestratorMustGiveNotice() external {
        Proposal memory p = _proposal(id, _people(_operator()), _shares(1_000_000));
        vm.prank(orchestrator);
        registry.drain(id, 1);
        vm.assertEq(registry.signersOf(p).length, 4, "during the notice they are still bound");
        _pass(registry.DRAIN_NOTICE() - 1);
        vm.assertEq(registry.signersOf(p).length, 4, "to the last second");
        _pass(1);
        vm.assertEq(registry.signersOf(p).length, 2, "then owner and the new member suffice");
    }

    /// Somebody else's pool cannot be taken: its id binds the owner, and the owner's signature is always wanted.
    function testAStrangerCannotTakeAPool() external {
        (bytes32 fresh,) = registry.createPool(orchestrator, "fresh");
        address creature = _operator();
        Proposal memory p = _proposal(fresh, _people(creature), _shares(1_000_000));
        p.orchestrator = stranger;
        bytes32 digest = registry.proposalDigest(p);
        bytes[] memory signatures = new bytes[](2);
        (signatures[0], signatures[1]) = (_sign(stranger, digest), _sign(creature, digest));
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, orchestrator));
        registry.activate(p, signatures);
    }

    // ---- signatures ----

    function testEverySignatureCounts() external {
        Proposal memory p = _next();
        bytes[] memory all = _signatures(p);
        address[] memory signers = registry.signersOf(p);
        vm.assertEq(all.length, 4, "owner and three members");
        for (uint256 i; i < all.length; ++i) {
            bytes memory good = all[i];
            bytes memory wrong = abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, signers[i]);
            all[i] = _sign(stranger, registry.proposalDigest(p));
            _refused(p, all, wrong); // a foreign one
            all[i] = all[(i + 1) % all.length];
            _refused(p, all, wrong); // another signer's, twice
            all[i] = "";
            _refused(p, all, wrong); // none
            all[i] = _malleated(good);
            _refused(p, all, wrong); // the same signature in its other form
            all[i] = abi.encodePacked(good, bytes1(0));
            _refused(p, all, wrong); // too long
            all[i] = good;
        }
        bytes[] memory fewer = new bytes[](3);
        (fewer[0], fewer[1], fewer[2]) = (all[0], all[1], all[2]);
        _refused(p, fewer, abi.encodeWithSelector(ICoalitionRegistry.WrongSignatureCount.selector, 3, 4));
        registry.activate(p, all);
    }

    function _malleated(bytes memory signature) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = (bytes32(0), bytes32(0), uint8(signature[64]));
        assembly {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function testAStandbyMustHaveSigned() external {
        Proposal memory p = _next();
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 0, standby: _operator()});
        bytes[] memory signatures = _signatures(p);
        signatures[4] = signatures[3];
        _refused(p, signatures, abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, p.swaps[0].standby));
    }

    /// Who signed something else has not signed this.
    function testEveryWordOfAProposalIsSigned() external {
        Proposal memory p = _next();
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 0, standby: _operator()});
        bytes32 digest = registry.proposalDigest(p);
        bytes memory text = abi.encode(p);
        Proposal memory q = abi.decode(text, (Proposal));
        q.poolId = "another";
        vm.assertNotEq(registry.proposalDigest(q), digest, "pool");
        q = abi.decode(text, (Proposal));
        q.epoch += 1;
        vm.assertNotEq(registry.proposalDigest(q), digest, "epoch");
        q = abi.decode(text, (Proposal));
        q.manifest = "another";
        vm.assertNotEq(registry.proposalDigest(q), digest, "manifest");
        q = abi.decode(text, (Proposal));
        q.orchestrator = stranger;
        vm.assertNotEq(registry.proposalDigest(q), digest, "orchestrator");
        q = abi.decode(text, (Proposal));
        q.rate += 1;
        vm.assertNotEq(registry.proposalDigest(q), digest, "rate");
        q = abi.decode(text, (Proposal));
        q.expiry += 1;
        vm.assertNotEq(registry.proposalDigest(q), digest, "expiry");
        q = abi.decode(text, (Proposal));
        (q.members[0].units, q.members[1].units) = (299_999, 300_001);
        vm.assertNotEq(registry.proposalDigest(q), digest, "units");
        q = abi.decode(text, (Proposal));
        (q.members[0].endLayer, q.members[1].firstLayer) = (2, 2);
        vm.assertNotEq(registry.proposalDigest(q), digest, "layers");
        q = abi.decode(text, (Proposal));
        q.members[2].operator = stranger;
        vm.assertNotEq(registry.proposalDigest(q), digest, "operator");
        q = abi.decode(text, (Proposal));
        q.swaps[0].place = 1;
        vm.assertNotEq(registry.proposalDigest(q), digest, "place");
        q = abi.decode(text, (Proposal));
        q.swaps[0].standby = stranger;
        vm.assertNotEq(registry.proposalDigest(q), digest, "standby");
        q = abi.decode(text, (Proposal));
        q.swaps = new Swap[](0);
        vm.assertNotEq(registry.proposalDigest(q), digest, "swaps");
    }

    function testSignaturesHoldForOneChainAndOneRegistry() external {
        Proposal memory p = _next();
        bytes[] memory signatures = _signatures(p);
        bytes32 digest = registry.proposalDigest(p);
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        vm.assertNotEq(registry.proposalDigest(p), digest, "another chain, another digest");
        _refused(p, signatures, abi.encodeWithSelector(ICoalitionRegistry.BadSignature.selector, orchestrator));
        vm.chainId(here);

        CoalitionRegistry other = new CoalitionRegistry(address(host), address(gda), address(usdcx));
        vm.assertNotEq(other.proposalDigest(p), digest, "another registry, another digest");
        vm.assertNotEq(
            other.registrationDigest(stranger, 1), registry.registrationDigest(stranger, 1), "registrations too"
        );
    }

    // ---- replay ----

    function testAProposalIsActivatedOnce() external {
        Proposal memory p = _next();
        bytes[] memory signatures = _signatures(p);
        registry.activate(p, signatures);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, 2, 3));
        registry.activate(p, signatures);
    }

    function testEpochsAreNotSkipped() external {
        Proposal memory p = _next();
        p.epoch = 3;
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, 3, 2));
        registry.signersOf(p);
        p.epoch = 1;
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, 1, 2));
        registry.signersOf(p);
        p.epoch = type(uint64).max;
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, type(uint64).max, 2));
        registry.signersOf(p);
    }

    function testAnExpiredProposalIsRefused() external {
        Proposal memory p = _next();
        p.expiry = uint64(block.timestamp + 10);
        bytes[] memory signatures = _signatures(p);
        _pass(10);
        _refused(p, signatures, abi.encodeWithSelector(ICoalitionRegistry.Expired.selector));
    }

    // ---- proposals that make no sense ----

    function _senseless(Proposal memory p, bytes memory why) private {
        vm.expectRevert(why);
        registry.signersOf(p);
        vm.expectRevert(why);
        registry.activate(p, new bytes[](0));
    }

    function testLayersWithGapsOrOverlaps() external {
        Proposal memory p = _next();
        p.members[0].firstLayer = 1;
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadLayers.selector, 0));
        p = _next();
        p.members[1].firstLayer = 2; // a gap
        p.members[1].endLayer = 3;
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadLayers.selector, 1));
        p = _next();
        p.members[2].firstLayer = 1; // an overlap
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadLayers.selector, 2));
        p = _next();
        p.members[2].endLayer = 2; // empty
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadLayers.selector, 2));
    }

    function testUnitsThatAreNotTheWhole() external {
        Proposal memory p = _next();
        p.members[0].units += 1;
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadUnits.selector, 1_000_001));
        p = _next();
        (p.members[0].units, p.members[1].units) = (0, 600_000);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.NoUnits.selector, 0));
        p = _next();
        p.members[0].units = type(uint32).max;
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadUnits.selector, uint256(type(uint32).max) + 700_000));
    }

    function testPeopleThatCannotBe() external {
        Proposal memory p = _next();
        p.members[2].operator = people[0];
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.DuplicateMember.selector, people[0]));
        p = _next();
        p.members[2].operator = stranger;
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.NotRegistered.selector, stranger));
        p = _next();
        p.members[2].operator = address(0);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.NotRegistered.selector, address(0)));
        p = _next();
        p.members = new Member[](0);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadMemberCount.selector, 0));
        p.members = new Member[](17);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadMemberCount.selector, 17));
        p = _next();
        p.orchestrator = address(0);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadAddress.selector));
    }

    function testSwapsThatCannotBe() external {
        Proposal memory p = _next();
        p.swaps = new Swap[](1);
        p.swaps[0] = Swap({place: 3, standby: _operator()});
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadSwap.selector, 0));
        p.swaps[0] = Swap({place: 0, standby: stranger});
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.NotRegistered.selector, stranger));
        p.swaps[0] = Swap({place: 0, standby: people[1]});
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.DuplicateMember.selector, people[1]));
        p.swaps = new Swap[](33);
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadSwap.selector, 33));
    }

    function testRatesAndPoolsThatCannotBe() external {
        Proposal memory p = _next();
        int96[3] memory rates = [int96(0), -UNIT, UNIT + 1];
        for (uint256 i; i < rates.length; ++i) {
            p.rate = rates[i];
            _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.BadRate.selector));
        }
        p = _next();
        p.poolId = "none";
        _senseless(p, abi.encodeWithSelector(ICoalitionRegistry.UnknownPool.selector, bytes32("none")));
    }

    // ---- swaps and the end ----

    function _withStandby() private returns (address standby) {
        standby = _operator();
        Proposal memory p = _proposal(id, _people(people[0], people[1]), _shares(600_000, 400_000));
        p.swaps = new Swap[](2);
        p.swaps[0] = Swap({place: 0, standby: standby});
        p.swaps[1] = Swap({place: 1, standby: standby});
        _activate(p);
    }

    function testOnlySwapsThatWereVotedAndOnlyByTheOrchestrator() external {
        _withStandby();
        address[2] memory others = [stranger, people[0]];
        for (uint256 i; i < others.length; ++i) {
            vm.prank(others[i]);
            vm.expectRevert(ICoalitionRegistry.NotAllowed.selector);
            registry.swap(id, 2, 0);
        }
        vm.startPrank(orchestrator);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.BadSwap.selector, 2));
        registry.swap(id, 2, 2);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, 1, 2));
        registry.swap(id, 1, 0);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.UnknownPool.selector, bytes32("none")));
        registry.swap("none", 1, 0);
        vm.stopPrank();
    }

    function testOneStandbyTakesOnePlace() external {
        address standby = _withStandby();
        vm.startPrank(orchestrator);
        registry.swap(id, 2, 0);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.DuplicateMember.selector, standby));
        registry.swap(id, 2, 1);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.DuplicateMember.selector, standby));
        registry.swap(id, 2, 0);
        vm.stopPrank();
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
    }

    /// Who was swapped out has no say any more, who was swapped in has.
    function testTheOneWhoHoldsThePlaceIsAsked() external {
        address standby = _withStandby();
        vm.prank(orchestrator);
        registry.swap(id, 2, 0);
        address[] memory signers = registry.signersOf(_proposal(id, _people(_operator()), _shares(1_000_000)));
        vm.assertEq(signers.length, 4, "owner, the new one, and the two who serve now");
        vm.assertEq(signers[2], standby, "the standby is one of them");
        vm.prank(people[0]);
        vm.expectRevert(ICoalitionRegistry.NotAllowed.selector);
        registry.drain(id, 2);
        vm.prank(standby);
        registry.drain(id, 2);
    }

    function testAfterTheEndThereAreNoSwapsAndNoDrains() external {
        _withStandby();
        vm.warp(registry.coalitionOf(id).expiry);
        vm.assertTrue(registry.coalitionOf(id).stage == Stage.Dissolved, "expired");
        vm.startPrank(orchestrator);
        vm.expectRevert(ICoalitionRegistry.NotActive.selector);
        registry.swap(id, 2, 0);
        vm.expectRevert(ICoalitionRegistry.NotActive.selector);
        registry.drain(id, 2);
        vm.stopPrank();
        registry.dissolve(id, 2);
    }

    function testDrainIsForThoseConcernedAndOnce() external {
        vm.prank(stranger);
        vm.expectRevert(ICoalitionRegistry.NotAllowed.selector);
        registry.drain(id, 1);
        vm.prank(people[0]);
        registry.drain(id, 1);
        vm.prank(orchestrator);
        vm.expectRevert(ICoalitionRegistry.AlreadyDraining.selector);
        registry.drain(id, 1);
        vm.expectRevert(abi.encodeWithSelector(ICoalitionRegistry.StaleEpoch.selector, 2, 1));
        registry.dissolve(id, 2);
        (bytes32 unformed,) = registry.createPool(orchestrator, "unformed");
        vm.expectRevert(ICoalitionRegistry.NotActive.selector);
        registry.dissolve(unformed, 0);
        vm.assertTrue(registry.coalitionOf(unformed).stage == Stage.Unformed, "never formed");
    }

    /// Anybody may distribute into the pool; that gives money to the members and changes no share.
    function testADistributionByAStrangerIsAGift() external {
        vm.prank(donor);
        gdaForwarder.distributeFlow(address(usdcx), donor, pool, 123_456_789_012_345, "");
        Proposal memory p = _next();
        _activate(p);
        vm.assertEq(ISuperfluidPool(pool).getTotalUnits(), 1_000_000, "the whole");
        vm.assertEq(_adjustment(pool), 0, "odd rates are rounded for the giver, not for the admin");
        vm.prank(donor);
        gdaForwarder.distributeFlow(address(usdcx), donor, pool, 0, "");
        vm.assertEq(ISuperfluidPool(pool).getTotalFlowRate(), 0, "and ends cleanly");
    }
}
