// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

/// An operator's place in a coalition. One storage word.
struct Member {
    address operator;
    /// The first layer of its shard.
    uint32 firstLayer;
    /// One past the last layer of its shard.
    uint32 endLayer;
    /// Its share, of 1,000,000.
    uint32 units;
}

/// Leave to put `standby` in the place of whoever holds `place` then, without a new vote.
struct Swap {
    /// Index into the proposal's members.
    uint32 place;
    address standby;
}

/// What a coalition is. All signers sign the EIP-712 digest of one and the same proposal.
struct Proposal {
    /// `poolIdOf(owner, label)`.
    bytes32 poolId;
    /// One more than the pool's present epoch; the first is 1. A signed proposal can therefore be activated once.
    uint64 epoch;
    /// Hash of the model's manifest. The pool's owner signs the proposal, and with it the manifest.
    bytes32 manifest;
    /// May make the swaps below and announce the end.
    address orchestrator;
    /// 1 to 16, ordered by layers, without gap or overlap from layer 0 on; units are positive and sum to 1,000,000.
    Member[] members;
    /// At most 32.
    Swap[] swaps;
    /// The most the pool charges, in wei of USDCx per second; a positive multiple of 1e12.
    int96 rate;
    /// Unix seconds. Neither activation nor swaps from then on, and the members no longer bind each other. Until then a
    /// proposal that all signed can be activated, unless another one took its epoch.
    uint64 expiry;
}

/// Where a pool stands. Expiry and the end of the notice count when they pass; nobody has to say so.
enum Stage {
    /// No coalition was ever activated.
    Unformed,
    /// Serving. A new epoch needs the consent of every present member.
    Active,
    /// The end was announced; until `drainedAt` as Active.
    Draining,
    /// Over: dissolved, drained or expired. The units stay with the last members until a new epoch.
    Dissolved
}

/// A pool and its present epoch.
struct Coalition {
    address owner;
    /// The Superfluid pool: one per pool id, for good.
    address gdaPool;
    uint64 epoch;
    Stage stage;
    /// EIP-712 digest of the activated proposal.
    bytes32 proposal;
    bytes32 manifest;
    address orchestrator;
    int96 rate;
    uint64 expiry;
    /// When a drain that was announced ends; 0 for none.
    uint64 drainedAt;
}

/// @title Who serves a pool together, and in which shares they are paid
/// @notice The registry is the admin of every GDA pool it made. Units change in three ways only: a proposal that the
///         pool's owner, every member, every standby and every present member signed; a swap that such a proposal
///         names; or, when the coalition is over (drained, expired), a proposal without the former members' consent.
/// @dev    EIP-712 domain {name "ComputePool", version "1", chainId, verifyingContract = this}. Types:
///         Proposal(bytes32 poolId,uint64 epoch,bytes32 manifest,address orchestrator,Member[] members,Swap[] swaps,
///                  int96 rate,uint64 expiry)
///         Member(address operator,uint32 firstLayer,uint32 endLayer,uint32 units)
///         Swap(uint32 place,address standby)
///         Registration(address operator,uint64 deadline)
///         Signatures are 65 bytes r ‖ s ‖ v of an ordinary key, s in the lower half, v 27 or 28.
interface ICoalitionRegistry {
    event Registered(address indexed operator);
    event PoolCreated(bytes32 indexed poolId, address indexed owner, bytes32 label, address gdaPool);
    /// `proposal` is the digest. The text is in the event, so that anybody can hash it again.
    event Activated(
        bytes32 indexed poolId, uint64 indexed epoch, bytes32 indexed proposal, address gdaPool, Proposal text
    );
    /// A standby took over a place with its layers and units.
    event Swapped(
        bytes32 indexed poolId, uint64 indexed epoch, uint32 place, address indexed from, address to, uint32 units
    );
    /// The member has 4 automatic pool connections already, or refused them. Its share waits to be claimed.
    event NotConnected(bytes32 indexed poolId, address indexed operator);
    event DrainAnnounced(bytes32 indexed poolId, uint64 indexed epoch, address indexed by, uint64 drainedAt);
    event CoalitionDissolved(bytes32 indexed poolId, uint64 indexed epoch, address indexed by);
    /// Wei of USDCx that had come to the registry were distributed to a pool's members.
    event PaidOut(bytes32 indexed poolId, uint256 amount);

    /// The caller is not one of those who may do this.
    error NotAllowed();
    /// The deadline or the proposal's expiry has passed, or the coalition's.
    error Expired();
    /// No such pool: `createPool` first.
    error UnknownPool(bytes32 poolId);
    /// The epoch is not the one that is due (activation) or present (everything else).
    error StaleEpoch(uint64 given, uint64 wanted);
    /// The operator must register first.
    error NotRegistered(address operator);
    /// No members, or more than `MAX_MEMBERS`.
    error BadMemberCount(uint256 count);
    /// An operator holds two places, or a standby holds one already.
    error DuplicateMember(address operator);
    /// Empty, or it does not begin where the one before ended (the first: at 0).
    error BadLayers(uint256 place);
    /// A member's units are 0.
    error NoUnits(uint256 place);
    /// The sum is not 1,000,000.
    error BadUnits(uint256 sum);
    /// Too many, or one that names a place that does not exist.
    error BadSwap(uint256 index);
    /// Not a positive multiple of 1e12.
    error BadRate();
    /// The zero address.
    error BadAddress();
    /// One signature for each of `signersOf(proposal)`, in that order.
    error WrongSignatureCount(uint256 given, uint256 wanted);
    /// The signature is malformed, malleable, or of somebody else than `wanted`.
    error BadSignature(address wanted);
    /// The coalition is not serving: never activated, or over.
    error NotActive();
    /// The drain was announced before.
    error AlreadyDraining();
    /// Neither drained nor expired yet.
    error NotOver();
    error NothingToPayOut();

    function UNITS() external view returns (uint32);
    function MAX_MEMBERS() external view returns (uint256);
    function MAX_SWAPS() external view returns (uint256);
    /// Seconds between the announcement of a drain and the end.
    function DRAIN_NOTICE() external view returns (uint64);
    function host() external view returns (address);
    function gda() external view returns (address);
    function usdcx() external view returns (address);

    // ---- operators ----

    function isRegistered(address operator) external view returns (bool);
    /// The caller becomes an operator. Idempotent.
    function register() external;
    /// The same by signature over Registration(operator, deadline), sent by anybody: operators need no gas.
    function registerFor(address operator, uint64 deadline, bytes calldata signature) external;
    function registrationDigest(address operator, uint64 deadline) external view returns (bytes32);

    // ---- pools ----

    /// keccak256(abi.encode(owner, label)). The id binds its owner, so nobody can take a pool id of somebody else.
    function poolIdOf(address owner, bytes32 label) external pure returns (bytes32);
    /// Makes the GDA pool (admin: this registry; anybody may distribute; units are not transferable). Idempotent and
    /// open to all. Sessions need its address, so call it before the first is offered; activation needs it too.
    function createPool(address owner, bytes32 label) external returns (bytes32 poolId, address gdaPool);
    /// The GDA pool of a pool id; zero before `createPool`. It never changes.
    function gdaPoolOf(bytes32 poolId) external view returns (address);

    // ---- coalitions ----

    function coalitionOf(bytes32 poolId) external view returns (Coalition memory);
    /// Who holds the places now, swaps included.
    function membersOf(bytes32 poolId) external view returns (Member[] memory);
    function swapsOf(bytes32 poolId) external view returns (Swap[] memory);
    /// The EIP-712 digest that every signer signs.
    function proposalDigest(Proposal calldata proposal) external view returns (bytes32);
    /// Whose signatures `activate` wants, in its order, each address once: the pool's owner, the members in order, the
    /// standbys in the order of the swaps, and, while the present coalition is not over, its members in order.
    /// Reverts for a proposal that could not be activated now, with the reason.
    function signersOf(Proposal calldata proposal) external view returns (address[] memory);
    /// Makes the proposal the pool's coalition: sets the units in one transaction (adds before removes), takes up what
    /// rounding set free, and connects the members. Open to all who hold the signatures.
    function activate(Proposal calldata proposal, bytes[] calldata signatures) external;
    /// Makes swap number `index` of the present proposal. Its orchestrator only.
    function swap(bytes32 poolId, uint64 epoch, uint256 index) external;
    /// Announces the end. The orchestrator, the pool's owner, or any present member.
    function drain(bytes32 poolId, uint64 epoch) external;
    /// Records the end, once drained or expired. Open to all. Units stay until a new epoch, so that a stream that still
    /// runs goes to those who served last.
    function dissolve(bytes32 poolId, uint64 epoch) external;

    // ---- money ----

    /// Tries again to connect members to the GDA pool (activation and swaps have tried). Open to all.
    function connect(bytes32 poolId, address[] calldata operators) external;
    /// Distributes the USDCx that lies in the registry (adjustment flow of its pools, gifts) to the pool's members by
    /// their units. Open to all.
    function payOut(bytes32 poolId) external returns (uint256 amount);
}
