// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Coalition, ICoalitionRegistry, Member, Proposal, Stage, Swap} from "./interfaces/ICoalitionRegistry.sol";
import {
    IGeneralDistributionAgreement,
    ISuperfluidHost,
    ISuperfluidPool,
    ISuperToken,
    PoolConfig
} from "./interfaces/ISuperfluid.sol";
import {ProposalHash} from "./ProposalHash.sol";

/// @title Who serves a pool together, and in which shares they are paid
/// @notice What it promises is written at ICoalitionRegistry.
/// @dev It has no owner and no upgrade; a better registry is a new one, with new pools. It calls nobody but Superfluid.
contract CoalitionRegistry is ICoalitionRegistry, EIP712 {
    struct Pool {
        address owner;
        uint64 epoch;
        bool dissolved;
        address gdaPool;
        int96 rate;
        address orchestrator;
        uint64 expiry;
        uint64 drainedAt;
        bytes32 proposal;
        bytes32 manifest;
        Member[] members;
        Swap[] swaps;
    }

    uint32 public constant UNITS = 1_000_000;
    uint256 public constant MAX_MEMBERS = 16;
    uint256 public constant MAX_SWAPS = 32;
    uint64 public constant DRAIN_NOTICE = 5 minutes;
    /// Rates are whole USDC units per second.
    int96 private constant UNIT = 1e12;

    address public immutable host;
    address public immutable gda;
    address public immutable usdcx;

    mapping(address operator => bool) public isRegistered;
    mapping(bytes32 poolId => Pool) private _pools;

    constructor(address host_, address gda_, address usdcx_) EIP712("ComputePool", "1") {
        (host, gda, usdcx) = (host_, gda_, usdcx_);
    }

    // ---- operators ----

    function register() external {
        _register(msg.sender);
    }

    function registerFor(address operator, uint64 deadline, bytes calldata signature) external {
        if (block.timestamp > deadline) revert Expired();
        _checkSignature(operator, registrationDigest(operator, deadline), signature);
        _register(operator);
    }

    function registrationDigest(address operator, uint64 deadline) public view returns (bytes32) {
        return _hashTypedDataV4(ProposalHash.ofRegistration(operator, deadline));
    }

    function _register(address operator) private {
        if (isRegistered[operator]) return;
        isRegistered[operator] = true;
        emit Registered(operator);
    }

    // ---- pools ----

    function poolIdOf(address owner, bytes32 label) public pure returns (bytes32) {
        return keccak256(abi.encode(owner, label));
    }

    function createPool(address owner, bytes32 label) external returns (bytes32 poolId, address gdaPool) {
        if (owner == address(0)) revert BadAddress();
        poolId = poolIdOf(owner, label);
        Pool storage pool = _pools[poolId];
        gdaPool = pool.gdaPool;
        if (gdaPool != address(0)) return (poolId, gdaPool);
        PoolConfig memory config = PoolConfig({transferabilityForUnitsOwner: false, distributionFromAnyAddress: true});
        gdaPool = IGeneralDistributionAgreement(gda).createPool(usdcx, address(this), config);
        (pool.owner, pool.gdaPool) = (owner, gdaPool);
        emit PoolCreated(poolId, owner, label, gdaPool);
    }

    function gdaPoolOf(bytes32 poolId) external view returns (address) {
        return _pools[poolId].gdaPool;
    }

    // ---- coalitions: what they are ----

    function coalitionOf(bytes32 poolId) external view returns (Coalition memory) {
        Pool storage pool = _pools[poolId];
        return Coalition({
            owner: pool.owner,
            gdaPool: pool.gdaPool,
            epoch: pool.epoch,
            stage: _stage(pool),
            proposal: pool.proposal,
            manifest: pool.manifest,
            orchestrator: pool.orchestrator,
            rate: pool.rate,
            expiry: pool.expiry,
            drainedAt: pool.drainedAt
        });
    }

    function membersOf(bytes32 poolId) external view returns (Member[] memory) {
        return _pools[poolId].members;
    }

    function swapsOf(bytes32 poolId) external view returns (Swap[] memory) {
        return _pools[poolId].swaps;
    }

    function _stage(Pool storage pool) private view returns (Stage) {
        if (pool.epoch == 0) return Stage.Unformed;
        if (pool.dissolved || block.timestamp >= pool.expiry) return Stage.Dissolved;
        if (pool.drainedAt == 0) return Stage.Active;
        return block.timestamp < pool.drainedAt ? Stage.Draining : Stage.Dissolved;
    }

    function _serves(Pool storage pool) private view returns (bool) {
        Stage stage = _stage(pool);
        return stage == Stage.Active || stage == Stage.Draining;
    }

    /// The pool, if `epoch` is its present one and it serves.
    function _serving(bytes32 poolId, uint64 epoch) private view returns (Pool storage pool) {
        pool = _ofEpoch(poolId, epoch);
        if (!_serves(pool)) revert NotActive();
    }

    function _ofEpoch(bytes32 poolId, uint64 epoch) private view returns (Pool storage pool) {
        pool = _pools[poolId];
        if (pool.gdaPool == address(0)) revert UnknownPool(poolId);
        if (epoch != pool.epoch) revert StaleEpoch(epoch, pool.epoch);
        if (epoch == 0) revert NotActive();
    }

    // ---- coalitions: consent ----

    function proposalDigest(Proposal calldata proposal) public view returns (bytes32) {
        return _hashTypedDataV4(ProposalHash.ofProposal(proposal));
    }

    function signersOf(Proposal calldata proposal) public view returns (address[] memory signers) {
        Pool storage pool = _pools[proposal.poolId];
        _checkProposal(pool, proposal);
        Member[] memory bound = _serves(pool) ? pool.members : new Member[](0);

        signers = new address[](1 + proposal.members.length + proposal.swaps.length + bound.length);
        uint256 count = _insert(signers, 0, pool.owner);
        for (uint256 i; i < proposal.members.length; ++i) {
            count = _insert(signers, count, proposal.members[i].operator);
        }
        for (uint256 i; i < proposal.swaps.length; ++i) {
            count = _insert(signers, count, proposal.swaps[i].standby);
        }
        for (uint256 i; i < bound.length; ++i) {
            count = _insert(signers, count, bound[i].operator);
        }
        assembly ("memory-safe") {
            mstore(signers, count)
        }
    }

    /// Appends what is not there yet.
    function _insert(address[] memory list, uint256 count, address one) private pure returns (uint256) {
        for (uint256 i; i < count; ++i) {
            if (list[i] == one) return count;
        }
        list[count] = one;
        return count + 1;
    }

    function _checkProposal(Pool storage pool, Proposal calldata proposal) private view {
        if (pool.gdaPool == address(0)) revert UnknownPool(proposal.poolId);
        if (proposal.epoch != pool.epoch + 1) revert StaleEpoch(proposal.epoch, pool.epoch + 1);
        if (block.timestamp >= proposal.expiry) revert Expired();
        if (proposal.rate <= 0 || proposal.rate % UNIT != 0) revert BadRate();
        if (proposal.orchestrator == address(0)) revert BadAddress();
        _checkMembers(proposal.members);
        _checkSwaps(proposal.swaps, proposal.members);
    }

    function _checkMembers(Member[] calldata members) private view {
        if (members.length == 0 || members.length > MAX_MEMBERS) revert BadMemberCount(members.length);
        uint256 sum;
        uint32 layer;
        for (uint256 i; i < members.length; ++i) {
            Member calldata member = members[i];
            if (!isRegistered[member.operator]) revert NotRegistered(member.operator);
            for (uint256 j; j < i; ++j) {
                if (members[j].operator == member.operator) revert DuplicateMember(member.operator);
            }
            if (member.firstLayer != layer || member.endLayer <= layer) revert BadLayers(i);
            if (member.units == 0) revert NoUnits(i);
            (layer, sum) = (member.endLayer, sum + member.units);
        }
        if (sum != UNITS) revert BadUnits(sum);
    }

    function _checkSwaps(Swap[] calldata swaps, Member[] calldata members) private view {
        if (swaps.length > MAX_SWAPS) revert BadSwap(swaps.length);
        for (uint256 i; i < swaps.length; ++i) {
            address standby = swaps[i].standby;
            if (swaps[i].place >= members.length) revert BadSwap(i);
            if (!isRegistered[standby]) revert NotRegistered(standby);
            for (uint256 j; j < members.length; ++j) {
                if (members[j].operator == standby) revert DuplicateMember(standby);
            }
        }
    }

    function _checkSignature(address signer, bytes32 digest, bytes calldata signature) private pure {
        (address found, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (problem != ECDSA.RecoverError.NoError || found != signer) revert BadSignature(signer);
    }

    // ---- coalitions: what happens to them ----

    function activate(Proposal calldata proposal, bytes[] calldata signatures) external {
        address[] memory signers = signersOf(proposal);
        if (signatures.length != signers.length) revert WrongSignatureCount(signatures.length, signers.length);
        bytes32 digest = proposalDigest(proposal);
        for (uint256 i; i < signers.length; ++i) {
            _checkSignature(signers[i], digest, signatures[i]);
        }

        Pool storage pool = _pools[proposal.poolId];
        Member[] memory former = pool.members;
        address gdaPool = pool.gdaPool;
        _record(pool, proposal, digest);
        emit Activated(proposal.poolId, proposal.epoch, digest, gdaPool, proposal);
        _setUnits(gdaPool, former, proposal.members);
        for (uint256 i; i < proposal.members.length; ++i) {
            _connect(proposal.poolId, gdaPool, proposal.members[i].operator);
        }
    }

    function _record(Pool storage pool, Proposal calldata proposal, bytes32 digest) private {
        pool.epoch = proposal.epoch;
        pool.dissolved = false;
        pool.rate = proposal.rate;
        pool.orchestrator = proposal.orchestrator;
        pool.expiry = proposal.expiry;
        pool.drainedAt = 0;
        pool.proposal = digest;
        pool.manifest = proposal.manifest;
        delete pool.members;
        for (uint256 i; i < proposal.members.length; ++i) {
            pool.members.push(proposal.members[i]);
        }
        delete pool.swaps;
        for (uint256 i; i < proposal.swaps.length; ++i) {
            pool.swaps.push(proposal.swaps[i]);
        }
    }

    function swap(bytes32 poolId, uint64 epoch, uint256 index) external {
        Pool storage pool = _serving(poolId, epoch);
        if (msg.sender != pool.orchestrator) revert NotAllowed();
        if (index >= pool.swaps.length) revert BadSwap(index);
        (uint32 place, address standby) = (pool.swaps[index].place, pool.swaps[index].standby);
        for (uint256 i; i < pool.members.length; ++i) {
            if (pool.members[i].operator == standby) revert DuplicateMember(standby);
        }

        Member memory leaving = pool.members[place];
        pool.members[place].operator = standby;
        emit Swapped(poolId, epoch, place, leaving.operator, standby, leaving.units);
        ISuperfluidPool gdaPool = ISuperfluidPool(pool.gdaPool);
        gdaPool.updateMemberUnits(standby, leaving.units);
        gdaPool.updateMemberUnits(leaving.operator, 0);
        _takeUp(address(gdaPool));
        _connect(poolId, address(gdaPool), standby);
    }

    function drain(bytes32 poolId, uint64 epoch) external {
        Pool storage pool = _serving(poolId, epoch);
        if (pool.drainedAt != 0) revert AlreadyDraining();
        if (msg.sender != pool.orchestrator && msg.sender != pool.owner && !_holdsPlace(pool, msg.sender)) {
            revert NotAllowed();
        }
        pool.drainedAt = uint64(block.timestamp) + DRAIN_NOTICE;
        emit DrainAnnounced(poolId, epoch, msg.sender, pool.drainedAt);
    }

    function dissolve(bytes32 poolId, uint64 epoch) external {
        Pool storage pool = _ofEpoch(poolId, epoch);
        if (pool.dissolved) revert NotActive();
        if (_serves(pool)) revert NotOver();
        pool.dissolved = true;
        emit CoalitionDissolved(poolId, epoch, msg.sender);
    }

    function _holdsPlace(Pool storage pool, address who) private view returns (bool) {
        for (uint256 i; i < pool.members.length; ++i) {
            if (pool.members[i].operator == who) return true;
        }
        return false;
    }

    // ---- money ----

    function connect(bytes32 poolId, address[] calldata operators) external {
        address gdaPool = _pools[poolId].gdaPool;
        if (gdaPool == address(0)) revert UnknownPool(poolId);
        for (uint256 i; i < operators.length; ++i) {
            _connect(poolId, gdaPool, operators[i]);
        }
    }

    function payOut(bytes32 poolId) external returns (uint256 amount) {
        Pool storage pool = _pools[poolId];
        if (pool.epoch == 0) revert NotActive();
        (int256 free,,,) = ISuperToken(usdcx).realtimeBalanceOfNow(address(this));
        if (free > 0) amount = uint256(free) - uint256(free) % UNITS;
        if (amount == 0) revert NothingToPayOut();
        emit PaidOut(poolId, amount);
        _callGda(
            abi.encodeCall(
                IGeneralDistributionAgreement.distribute, (usdcx, address(this), pool.gdaPool, amount, new bytes(0))
            )
        );
    }

    /// Adds before it removes: a pool without units would send the whole stream to its admin.
    function _setUnits(address gdaPool, Member[] memory former, Member[] calldata members) private {
        ISuperfluidPool pool = ISuperfluidPool(gdaPool);
        bool[] memory stays = new bool[](former.length);
        bool[] memory shrinks = new bool[](members.length);
        for (uint256 i; i < members.length; ++i) {
            uint32 had = _unitsBefore(former, stays, members[i].operator);
            if (members[i].units > had) pool.updateMemberUnits(members[i].operator, members[i].units);
            shrinks[i] = members[i].units < had;
        }
        for (uint256 i; i < members.length; ++i) {
            if (shrinks[i]) pool.updateMemberUnits(members[i].operator, members[i].units);
        }
        for (uint256 i; i < former.length; ++i) {
            if (!stays[i]) pool.updateMemberUnits(former[i].operator, 0);
        }
        _takeUp(gdaPool);
    }

    function _unitsBefore(Member[] memory former, bool[] memory stays, address operator) private pure returns (uint32) {
        for (uint256 i; i < former.length; ++i) {
            if (former[i].operator == operator) {
                stays[i] = true;
                return former[i].units;
            }
        }
        return 0;
    }

    /// While units change, what cannot be divided by their sum becomes an adjustment flow to the pool's admin, and stays
    /// one. A distributor who sets its rate takes that flow up into the pool again: we do, with a rate of 0.
    function _takeUp(address gdaPool) private {
        if (IGeneralDistributionAgreement(gda).getPoolAdjustmentFlowRate(gdaPool) == 0) return;
        _callGda(
            abi.encodeCall(
                IGeneralDistributionAgreement.distributeFlow, (usdcx, address(this), gdaPool, 0, new bytes(0))
            )
        );
    }

    /// A member that cannot be connected holds up nothing: its share can be claimed, by anybody and for it.
    function _connect(bytes32 poolId, address gdaPool, address operator) private {
        if (IGeneralDistributionAgreement(gda).isMemberConnected(gdaPool, operator)) return;
        bytes memory answer = _callGda(
            abi.encodeCall(IGeneralDistributionAgreement.tryConnectPoolFor, (gdaPool, operator, new bytes(0)))
        );
        (bool connected,) = abi.decode(answer, (bool, bytes));
        if (!connected) emit NotConnected(poolId, operator);
    }

    function _callGda(bytes memory call) private returns (bytes memory) {
        return ISuperfluidHost(host).callAgreement(gda, call, new bytes(0));
    }
}
