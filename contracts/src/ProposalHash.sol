// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {Member, Proposal, Swap} from "./interfaces/ICoalitionRegistry.sol";

/// @title EIP-712 struct hashes of what members and operators sign
library ProposalHash {
    bytes32 internal constant MEMBER =
        keccak256("Member(address operator,uint32 firstLayer,uint32 endLayer,uint32 units)");
    bytes32 internal constant SWAP = keccak256("Swap(uint32 place,address standby)");
    bytes32 internal constant PROPOSAL = keccak256(
        "Proposal(bytes32 poolId,uint64 epoch,bytes32 manifest,address orchestrator,Member[] members,Swap[] swaps,"
        "int96 rate,uint64 expiry)Member(address operator,uint32 firstLayer,uint32 endLayer,uint32 units)"
        "Swap(uint32 place,address standby)"
    );
    bytes32 internal constant REGISTRATION = keccak256("Registration(address operator,uint64 deadline)");

    function ofProposal(Proposal calldata proposal) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                PROPOSAL,
                proposal.poolId,
                proposal.epoch,
                proposal.manifest,
                proposal.orchestrator,
                _hash(proposal.members),
                _hash(proposal.swaps),
                proposal.rate,
                proposal.expiry
            )
        );
    }

    function ofRegistration(address operator, uint64 deadline) internal pure returns (bytes32) {
        return keccak256(abi.encode(REGISTRATION, operator, deadline));
    }

    function _hash(Member[] calldata members) private pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](members.length);
        for (uint256 i; i < members.length; ++i) {
            hashes[i] = keccak256(abi.encode(MEMBER, members[i]));
        }
        return keccak256(abi.encodePacked(hashes));
    }

    function _hash(Swap[] calldata swaps) private pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](swaps.length);
        for (uint256 i; i < swaps.length; ++i) {
            hashes[i] = keccak256(abi.encode(SWAP, swaps[i]));
        }
        return keccak256(abi.encodePacked(hashes));
    }
}
