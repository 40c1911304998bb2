// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {ICoalitionRegistry, Member, Proposal, Swap} from "../../src/interfaces/ICoalitionRegistry.sol";
import {ISessionVault, ISessionVaultFactory, Terms, Voucher} from "../../src/interfaces/ISessionVault.sol";
import {
    IGeneralDistributionAgreement,
    ISuperfluidHost,
    ISuperfluidPool,
    ISuperToken,
    PoolConfig
} from "../../src/interfaces/ISuperfluid.sol";
import {ITestUsdc} from "../../src/interfaces/ITestUsdc.sol";
import {ICfaForwarder, IGdaForwarder, IGovernance} from "./Superfluid.sol";
import {vm} from "./Vm.sol";

/// The deployed contracts of a local node (forge runs on a fork of it), the people, and what they do all the time.
abstract contract World {
    int96 internal constant UNIT = 1e12;
    /// 0.0001 USDC a second, the price of most tests.
    int96 internal constant RATE = 100 * UNIT;
    uint256 internal constant LIQUIDATION = 600;
    uint256 internal constant GUARD = 120;
    bytes32 internal constant TRANSFER = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 internal constant CANCEL = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");

    ITestUsdc internal usdc;
    ISuperToken internal usdcx;
    ISuperfluidHost internal host;
    IGeneralDistributionAgreement internal gda;
    IGovernance internal governance;
    ICfaForwarder internal cfaForwarder;
    IGdaForwarder internal gdaForwarder;
    ISessionVaultFactory internal factory;
    ICoalitionRegistry internal registry;

    address internal orchestrator = _person("orchestrator");
    address internal payer = _person("payer");
    address internal stranger = _person("stranger");
    /// Holds USDC and USDCx of its own, for gifts.
    address internal donor = _person("donor");

    mapping(address => uint256) private _keys;
    uint256 private _count;

    constructor() {
        string memory book = vm.readFile(vm.envOr("COMPUTEPOOL_BOOK", "contracts/addresses/local.json"));
        usdc = ITestUsdc(_at(book, "usdc"));
        usdcx = ISuperToken(_at(book, "usdcx"));
        host = ISuperfluidHost(_at(book, "host"));
        gda = IGeneralDistributionAgreement(_at(book, "gda"));
        governance = IGovernance(_at(book, "governance"));
        cfaForwarder = ICfaForwarder(_at(book, "cfaForwarder"));
        gdaForwarder = IGdaForwarder(_at(book, "gdaForwarder"));
        factory = ISessionVaultFactory(_at(book, "sessionVaultFactory"));
        registry = ICoalitionRegistry(_at(book, "coalitionRegistry"));
        usdc.mint(payer, 1_000_000_000_000);
        usdc.mint(donor, 1_000_000_000_000);
        vm.startPrank(donor);
        usdc.approve(address(usdcx), type(uint256).max);
        usdcx.upgrade(100_000 ether);
        vm.stopPrank();
    }

    function _at(string memory book, string memory name) private returns (address where) {
        where = vm.parseJsonAddress(book, string.concat(".contracts.", name));
        require(where.code.length > 0, string.concat("run contracts/test.sh: the node lacks ", name));
        vm.label(where, name);
    }

    // ---- people ----

    function _person(string memory name) internal returns (address who) {
        uint256 key = uint256(keccak256(bytes(name)));
        who = vm.addr(key);
        _keys[who] = key;
        vm.label(who, name);
    }

    /// A person nobody has met before.
    function _somebody() internal returns (address) {
        return _person(string.concat("somebody ", string(abi.encode(address(this), ++_count))));
    }

    function _operator() internal returns (address who) {
        who = _somebody();
        _register(who);
    }

    function _register(address who) internal {
        vm.prank(who);
        registry.register();
    }

    function _sign(address who, bytes32 digest) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(_keys[who], digest);
        return abi.encodePacked(r, s, v);
    }

    function _session() internal returns (bytes32) {
        return keccak256(abi.encode("session", address(this), ++_count));
    }

    function _pass(uint256 seconds_) internal {
        vm.warp(block.timestamp + seconds_);
    }

    // ---- coalitions ----

    function _member(address who, uint32 first, uint32 end, uint32 units) internal pure returns (Member memory) {
        return Member({operator: who, firstLayer: first, endLayer: end, units: units});
    }

    /// A proposal for `poolId` with these people, a layer each.
    function _proposal(bytes32 poolId, address[] memory people, uint32[] memory units)
        internal
        view
        returns (Proposal memory p)
    {
        p.poolId = poolId;
        p.epoch = registry.coalitionOf(poolId).epoch + 1;
        p.manifest = keccak256("a model");
        p.orchestrator = orchestrator;
        p.members = new Member[](people.length);
        for (uint32 i; i < people.length; ++i) {
            p.members[i] = _member(people[i], i, i + 1, units[i]);
        }
        p.rate = 10 * RATE;
        p.expiry = uint64(block.timestamp + 30 days);
    }

    function _signatures(Proposal memory p) internal view returns (bytes[] memory signatures) {
        address[] memory signers = registry.signersOf(p);
        bytes32 digest = registry.proposalDigest(p);
        signatures = new bytes[](signers.length);
        for (uint256 i; i < signers.length; ++i) {
            signatures[i] = _sign(signers[i], digest);
        }
    }

    function _activate(Proposal memory p) internal {
        registry.activate(p, _signatures(p));
    }

    /// A pool of the orchestrator's that serves, with a coalition of new operators in these shares.
    function _pool(uint32[] memory units) internal returns (bytes32 poolId, address pool, address[] memory people) {
        people = new address[](units.length);
        for (uint256 i; i < units.length; ++i) {
            people[i] = _operator();
        }
        (poolId, pool) = registry.createPool(orchestrator, _session());
        _activate(_proposal(poolId, people, units));
    }

    function _pool() internal returns (address pool) {
        (, pool,) = _pool(_shares(600_000, 400_000));
    }

    function _shares(uint32 a) internal pure returns (uint32[] memory units) {
        units = new uint32[](1);
        units[0] = a;
    }

    function _shares(uint32 a, uint32 b) internal pure returns (uint32[] memory units) {
        units = new uint32[](2);
        (units[0], units[1]) = (a, b);
    }

    function _shares(uint32 a, uint32 b, uint32 c) internal pure returns (uint32[] memory units) {
        units = new uint32[](3);
        (units[0], units[1], units[2]) = (a, b, c);
    }

    function _people(address a) internal pure returns (address[] memory people) {
        people = new address[](1);
        people[0] = a;
    }

    function _people(address a, address b) internal pure returns (address[] memory people) {
        people = new address[](2);
        (people[0], people[1]) = (a, b);
    }

    function _people(address a, address b, address c) internal pure returns (address[] memory people) {
        people = new address[](3);
        (people[0], people[1], people[2]) = (a, b, c);
    }

    /// A pool outside the registry, to show what Superfluid does by itself.
    function _foreignPool(address admin, bool anybodyDistributes) internal returns (address) {
        return gda.createPool(address(usdcx), admin, PoolConfig(false, anybodyDistributes));
    }

    // ---- sessions ----

    function _terms(address pool, int96 maxRate) internal returns (Terms memory) {
        return Terms({
            payer: payer,
            orchestrator: orchestrator,
            pool: pool,
            maxRate: maxRate,
            expiry: uint64(block.timestamp + 1 days),
            session: _session()
        });
    }

    function _vaultOf(Terms memory t) internal view returns (ISessionVault) {
        return ISessionVault(factory.vaultOf(t));
    }

    function _voucher(address from, address to, uint256 value) internal returns (Voucher memory w) {
        w.value = value;
        w.validBefore = block.timestamp + 600;
        w.nonce = _session();
        bytes32 text = keccak256(abi.encode(TRANSFER, from, to, value, w.validAfter, w.validBefore, w.nonce));
        (w.v, w.r, w.s) = vm.sign(_keys[from], _usdcDigest(text));
    }

    function _usdcDigest(bytes32 text) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", usdc.DOMAIN_SEPARATOR(), text));
    }

    /// A session that the payer paid and nobody started yet.
    function _opened(Terms memory t, uint256 budget) internal returns (ISessionVault vault) {
        vault = _vaultOf(t);
        Voucher memory w = _voucher(t.payer, address(vault), budget);
        vm.prank(t.orchestrator);
        factory.open(t, w, 0);
    }

    function _opened(address pool, uint256 budget) internal returns (ISessionVault) {
        return _opened(_terms(pool, RATE), budget);
    }

    function _setRate(ISessionVault vault, int96 rate) internal {
        vm.prank(orchestrator);
        vault.setRate(rate);
    }

    // ---- what people have ----

    /// All USDCx that is an account's: free and held as buffer.
    function _value(address account) internal view returns (int256) {
        (int256 free, uint256 deposit,,) = usdcx.realtimeBalanceOfNow(account);
        return free + int256(deposit);
    }

    /// USDCx wei that a member has from a pool, drawn or claimable.
    function _earned(address pool, address member) internal view returns (int256) {
        return _value(member) + ISuperfluidPool(pool).getClaimable(member, uint32(block.timestamp));
    }

    function _adjustment(address pool) internal view returns (int256) {
        return gda.getPoolAdjustmentFlowRate(pool);
    }
}
