//! Bindings to the contracts, in Solidity's own words. The interfaces of ours are those of `contracts/src/interfaces`;
//! of Superfluid and of the token there is only what we call, read or listen to.
//!
//! Most callers want the typed forms around it: [`crate::Terms`],
//! [`crate::SignedVoucher`], [`crate::calls`].

#![allow(missing_docs, reason = "these names are Solidity's and are documented where the contracts are")]
#![allow(clippy::too_many_arguments, reason = "events have as many fields as Superfluid gave them")]

use alloy::sol;

sol! {
    // ---- sessions ----

    #[derive(Debug, PartialEq, Eq)]
    struct Terms {
        address payer;
        address orchestrator;
        address pool;
        int96 maxRate;
        uint64 expiry;
        bytes32 session;
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Voucher {
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    #[derive(Debug, PartialEq, Eq)]
    interface ISessionVault {
        event Funded(uint256 usdcAmount);
        event RateSet(int96 rate);
        event Closed(address indexed by);
        event Refunded(uint256 usdcAmount);
        event RefundDeferred();

        error NotAllowed();
        error BadRate();
        error IsClosed();
        error Expired();
        error RunwayTooShort();
        error PoolHasNoUnits();
        error Healthy();
        error NotClosed();
        error OutOfGas();

        function terms() external view returns (Terms memory);
        function closed() external view returns (bool);
        function guard() external view returns (uint256);
        function rate() external view returns (int96);
        function available() external view returns (int256);
        function buffer() external view returns (uint256);
        function fund() external;
        function setRate(int96 newRate) external;
        function stop() external;
        function close() external;
        function refund() external;
    }

    #[derive(Debug, PartialEq, Eq)]
    interface ISessionVaultFactory {
        event Deployed(address indexed vault, address indexed payer, bytes32 indexed session, Terms terms);
        event Opened(address indexed vault, address indexed payer, bytes32 indexed session, uint256 usdcAmount, int96 rate);

        error NotPaid();

        function implementation() external view returns (address);
        function usdc() external view returns (address);
        function vaultOf(Terms calldata terms) external view returns (address);
        function deploy(Terms calldata terms) external returns (address vault);
        function open(Terms calldata terms, Voucher calldata voucher, int96 rate) external returns (address vault);
    }

    // ---- coalitions ----

    #[derive(Debug, PartialEq, Eq)]
    struct Member {
        address operator;
        uint32 firstLayer;
        uint32 endLayer;
        uint32 units;
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Swap {
        uint32 place;
        address standby;
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Proposal {
        bytes32 poolId;
        uint64 epoch;
        bytes32 manifest;
        address orchestrator;
        Member[] members;
        Swap[] swaps;
        int96 rate;
        uint64 expiry;
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Registration {
        address operator;
        uint64 deadline;
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Stage { Unformed, Active, Draining, Dissolved }

    #[derive(Debug, PartialEq, Eq)]
    struct Coalition {
        address owner;
        address gdaPool;
        uint64 epoch;
        Stage stage;
        bytes32 proposal;
        bytes32 manifest;
        address orchestrator;
        int96 rate;
        uint64 expiry;
        uint64 drainedAt;
    }

    #[derive(Debug, PartialEq, Eq)]
    interface ICoalitionRegistry {
        event Registered(address indexed operator);
        event PoolCreated(bytes32 indexed poolId, address indexed owner, bytes32 label, address gdaPool);
        event Activated(bytes32 indexed poolId, uint64 indexed epoch, bytes32 indexed proposal, address gdaPool, Proposal text);
        event Swapped(bytes32 indexed poolId, uint64 indexed epoch, uint32 place, address indexed from, address to, uint32 units);
        event NotConnected(bytes32 indexed poolId, address indexed operator);
        event DrainAnnounced(bytes32 indexed poolId, uint64 indexed epoch, address indexed by, uint64 drainedAt);
        event CoalitionDissolved(bytes32 indexed poolId, uint64 indexed epoch, address indexed by);
        event PaidOut(bytes32 indexed poolId, uint256 amount);

        error UnknownPool(bytes32 poolId);
        error StaleEpoch(uint64 given, uint64 wanted);
        error NotRegistered(address operator);
        error BadMemberCount(uint256 count);
        error DuplicateMember(address operator);
        error BadLayers(uint256 place);
        error NoUnits(uint256 place);
        error BadUnits(uint256 sum);
        error BadSwap(uint256 index);
        error BadAddress();
        error WrongSignatureCount(uint256 given, uint256 wanted);
        error BadSignature(address wanted);
        error NotActive();
        error AlreadyDraining();
        error NotOver();
        error NothingToPayOut();

        function isRegistered(address operator) external view returns (bool);
        function register() external;
        function registerFor(address operator, uint64 deadline, bytes calldata signature) external;
        function registrationDigest(address operator, uint64 deadline) external view returns (bytes32);
        function poolIdOf(address owner, bytes32 label) external pure returns (bytes32);
        function createPool(address owner, bytes32 label) external returns (bytes32 poolId, address gdaPool);
        function gdaPoolOf(bytes32 poolId) external view returns (address);
        function coalitionOf(bytes32 poolId) external view returns (Coalition memory);
        function membersOf(bytes32 poolId) external view returns (Member[] memory);
        function proposalDigest(Proposal calldata proposal) external view returns (bytes32);
        function signersOf(Proposal calldata proposal) external view returns (address[] memory);
        function activate(Proposal calldata proposal, bytes[] calldata signatures) external;
        function swap(bytes32 poolId, uint64 epoch, uint256 index) external;
        function drain(bytes32 poolId, uint64 epoch) external;
        function dissolve(bytes32 poolId, uint64 epoch) external;
        function connect(bytes32 poolId, address[] calldata operators) external;
        function payOut(bytes32 poolId) external returns (uint256 amount);
    }

    // ---- the token (ERC-20, EIP-3009) ----

    /// What a payer signs (EIP-3009). x402's scheme `exact` carries it.
    #[derive(Debug, PartialEq, Eq)]
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    /// What a payer signs to take a voucher back (EIP-3009).
    #[derive(Debug, PartialEq, Eq)]
    struct CancelAuthorization {
        address authorizer;
        bytes32 nonce;
    }

    #[derive(Debug, PartialEq, Eq)]
    interface IUsdc {
        event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
        event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
        event Transfer(address indexed from, address indexed to, uint256 value);

        error ERC3009InvalidAuthorizationTime(uint256 validAfter, uint256 validBefore);
        error ERC3009InvalidSignature();
        error ERC3009UsedAuthorization(address authorizer, bytes32 nonce);
        error ECDSAInvalidSignature();
        error ECDSAInvalidSignatureS(bytes32 s);
        error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);

        function balanceOf(address account) external view returns (uint256);
        function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
        function transfer(address to, uint256 amount) external returns (bool);
        function transferWithAuthorization(
            address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
            uint8 v, bytes32 r, bytes32 s
        ) external;
        function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
        function mint(address to, uint256 amount) external;
    }

    // ---- Superfluid ----

    #[derive(Debug, PartialEq, Eq)]
    interface ISuperToken {
        error SF_TOKEN_MOVE_INSUFFICIENT_BALANCE();

        function balanceOf(address account) external view returns (uint256);
        function realtimeBalanceOf(address account, uint256 timestamp)
            external view returns (int256 available, uint256 deposit, uint256 owedDeposit);
        function downgradeTo(address to, uint256 amount) external;
    }

    #[derive(Debug, PartialEq, Eq)]
    interface IGovernance {
        function getPPPConfig(address host, address superToken)
            external view returns (uint256 liquidationPeriod, uint256 patricianPeriod);
        function getSuperTokenMinimumDeposit(address host, address superToken) external view returns (uint256);
    }

    #[derive(Debug, PartialEq, Eq)]
    interface IGda {
        event FlowDistributionUpdated(
            address indexed token, address indexed pool, address indexed distributor, address operator, int96 oldFlowRate,
            int96 newDistributorToPoolFlowRate, int96 newTotalDistributionFlowRate, address adjustmentFlowRecipient,
            int96 adjustmentFlowRate, bytes userData
        );
        event InstantDistributionUpdated(
            address indexed token, address indexed pool, address indexed distributor, address operator,
            uint256 requestedAmount, uint256 actualAmount, bytes userData
        );
        event PoolConnectionUpdated(
            address indexed token, address indexed pool, address indexed account, bool connected, bytes userData
        );

        error GDA_INSUFFICIENT_BALANCE();
        error GDA_NON_CRITICAL_SENDER();
        error GDA_ONLY_SUPER_TOKEN_POOL();
        error GDA_DISTRIBUTE_FROM_ANY_ADDRESS_NOT_ALLOWED();

        function getFlowRate(address token, address from, address pool) external view returns (int96);
        function getPoolAdjustmentFlowRate(address pool) external view returns (int96);
        function isMemberConnected(address pool, address member) external view returns (bool);
    }

    #[derive(Debug, PartialEq, Eq)]
    interface ISuperfluidPool {
        event MemberUnitsUpdated(address indexed token, address indexed member, uint128 oldUnits, uint128 newUnits);
        event DistributionClaimed(
            address indexed token, address indexed member, int256 claimedAmount, int256 totalClaimed
        );

        function admin() external view returns (address);
        function getTotalUnits() external view returns (uint128);
        function getUnits(address member) external view returns (uint128);
        function getTotalFlowRate() external view returns (int96);
        function getMemberFlowRate(address member) external view returns (int96);
        function getClaimable(address member, uint32 time) external view returns (int256);
        function getTotalAmountReceivedByMember(address member) external view returns (uint256);
        function claimAll(address member) external returns (bool);
    }
}
