// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {Coalition, Member, Proposal, Stage, Swap} from "../../src/interfaces/ICoalitionRegistry.sol";
import {ISessionVault, Terms} from "../../src/interfaces/ISessionVault.sol";
import {vm} from "./Vm.sol";
import {World} from "./World.sol";

/// Three payers, two pools of the registry, five operators, and everything that any of them may do, in any order.
/// Beside the chain it keeps its own account of what each operator must have earned.
contract Marketplace is World {
    uint256 public constant VAULTS = 3;
    uint256 public constant POOLS = 2;
    uint256 public constant OPERATORS = 5;
    uint256 private constant PAYER_START = 1e12;

    bytes32[POOLS] public ids;
    address[POOLS] public pools;
    ISessionVault[VAULTS] public vaults;
    address[VAULTS] public payers;
    /// USDC units that payer i put into its vault, gifts to the vault included.
    uint256[VAULTS] public paid;
    address[OPERATORS] public operators;
    uint256 public immutable opened;
    /// What operator i must have, in wei of USDCx.
    int256[OPERATORS] public owed;
    /// Gifts that a pay-out from the registry distributed or still has to, in wei.
    int256 public gifts;

    /// How often each kind of thing happened, so that a test can tell whether the runs reach it.
    uint256 public starts;
    uint256 public stops;
    uint256 public closes;
    uint256 public refunds;
    uint256 public epochs;
    uint256 public swaps;
    uint256 public ends;
    uint256 public payOuts;

    constructor() {
        opened = block.timestamp;
        for (uint256 i; i < OPERATORS; ++i) {
            operators[i] = _operator();
        }
        for (uint256 i; i < POOLS; ++i) {
            (ids[i], pools[i]) = registry.createPool(orchestrator, bytes32(i));
            _vote(i, uint256(keccak256(abi.encode(i))));
        }
        for (uint256 i; i < VAULTS; ++i) {
            payers[i] = _somebody();
            usdc.mint(payers[i], PAYER_START);
            Terms memory t = _terms(pools[i % POOLS], RATE);
            t.payer = payers[i];
            t.expiry = uint64(block.timestamp + 5000);
            vaults[i] = ISessionVault(factory.deploy(t));
            _pay(i, 300_000);
            vaults[i].fund();
        }
    }

    // ---- the account beside the chain ----

    /// Time passes: each pool's rate is shared by units. The products are whole, so nothing is rounded.
    function pass(uint256 time) public {
        time = 1 + time % 200;
        for (uint256 p; p < POOLS; ++p) {
            int256 rate;
            for (uint256 v; v < VAULTS; ++v) {
                if (v % POOLS == p) rate += vaults[v].rate();
            }
            Member[] memory members = registry.membersOf(ids[p]);
            for (uint256 i; i < members.length; ++i) {
                owed[_indexOf(members[i].operator)] += rate / 1_000_000 * int256(uint256(members[i].units))
                    * int256(time);
            }
        }
        vm.warp(block.timestamp + time);
    }

    function _indexOf(address operator) private view returns (uint256 i) {
        while (operators[i] != operator) ++i;
    }

    // ---- what payers, the orchestrator and strangers do to sessions ----

    function topUp(uint256 v, uint256 amount) external {
        v %= VAULTS;
        _pay(v, amount % 200_000);
        if (amount % 2 == 0 && !vaults[v].closed()) vaults[v].fund();
    }

    function setRate(uint256 v, uint256 rate) external {
        pass(rate >> 128);
        ISessionVault vault = vaults[v % VAULTS];
        // Sometimes more than allowed, sometimes not a whole number of units.
        int96 wanted = int96(int256(rate % 121)) * UNIT + int96(int256(rate % 17 == 0 ? int256(1) : int256(0)));
        vm.prank(orchestrator);
        try vault.setRate(wanted) {
            if (wanted > 0) ++starts;
        } catch {}
    }

    function stop(uint256 v, uint256 who) external {
        v %= VAULTS;
        vm.prank(_someone(v, who));
        try vaults[v].stop() {
            ++stops;
        } catch {}
    }

    function close(uint256 v, uint256 who) external {
        if (who % 4 != 0) return; // else everything is closed before anything happens
        v %= VAULTS;
        vm.prank(_someone(v, who / 4));
        try vaults[v].close() {
            ++closes;
        } catch {}
    }

    function refund(uint256 v) external {
        try vaults[v % VAULTS].refund() {
            ++refunds;
        } catch {}
    }

    function _someone(uint256 v, uint256 who) private view returns (address) {
        who %= 3;
        return who == 0 ? orchestrator : who == 1 ? payers[v] : stranger;
    }

    function _pay(uint256 v, uint256 amount) private {
        vm.prank(payers[v]);
        usdc.transfer(address(vaults[v]), amount);
        paid[v] += amount;
    }

    // ---- what happens to coalitions ----

    function vote(uint256 p, uint256 seed) external {
        pass(seed >> 128);
        _vote(p % POOLS, seed);
    }

    /// A new epoch: one to four of the operators in random shares, and one more as standby for a place.
    function _vote(uint256 p, uint256 seed) private {
        uint256 count = 1 + seed % 4;
        address[] memory people = new address[](count);
        uint32[] memory units = new uint32[](count);
        uint32 left = 1_000_000;
        for (uint256 i; i < count; ++i) {
            people[i] = operators[(seed / 4 + i) % OPERATORS];
            uint32 most = left - uint32(count - 1 - i);
            units[i] = i + 1 == count ? left : 1 + uint32(uint256(keccak256(abi.encode(seed, i))) % most);
            left -= units[i];
        }
        Proposal memory proposal = _proposal(ids[p], people, units);
        proposal.swaps = new Swap[](1);
        proposal.swaps[0] = Swap(uint32(seed % count), operators[(seed / 4 + count) % OPERATORS]);
        _activate(proposal);
        ++epochs;
    }

    function swap(uint256 p) external {
        p %= POOLS;
        uint64 epoch = registry.coalitionOf(ids[p]).epoch;
        vm.prank(orchestrator);
        try registry.swap(ids[p], epoch, 0) {
            ++swaps;
        } catch {}
    }

    function end(uint256 p, bool dissolve) external {
        p %= POOLS;
        Coalition memory c = registry.coalitionOf(ids[p]);
        vm.prank(orchestrator);
        try registry.drain(ids[p], c.epoch) {} catch {}
        if (!dissolve) return;
        try registry.dissolve(ids[p], c.epoch) {
            ++ends;
        } catch {}
    }

    /// Somebody gives the registry USDCx, and it is paid out to one pool's members.
    function payOut(uint256 p, uint256 amount) external {
        p %= POOLS;
        amount = amount % 1 ether;
        vm.prank(donor);
        usdcx.transfer(address(registry), amount);
        gifts += int256(amount);
        try registry.payOut(ids[p]) returns (uint256 out) {
            ++payOuts;
            Member[] memory members = registry.membersOf(ids[p]);
            for (uint256 i; i < members.length; ++i) {
                owed[_indexOf(members[i].operator)] += int256(out / 1_000_000 * members[i].units);
            }
        } catch {}
    }

    /// Anybody draws for an operator.
    function claim(uint256 p, uint256 i) external {
        (bool done,) = pools[p % POOLS].call(abi.encodeWithSignature("claimAll(address)", operators[i % OPERATORS]));
        require(done, "a claim never fails");
    }

    // ---- what is true at any time ----

    function earned(uint256 i) public view returns (int256) {
        return _earned(pools[0], operators[i]) + _earned(pools[1], operators[i]) - _value(operators[i]);
    }

    function refunded(uint256 v) public view returns (uint256) {
        return usdc.balanceOf(payers[v]) + paid[v] - PAYER_START;
    }

    function held(uint256 v) public view returns (int256) {
        return _value(address(vaults[v])) + int256(usdc.balanceOf(address(vaults[v]))) * UNIT;
    }

    function inRegistry() external view returns (int256) {
        return _value(address(registry));
    }

    function adjustment(uint256 p) external view returns (int256) {
        return _adjustment(pools[p]);
    }
}
