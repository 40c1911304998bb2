// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ISessionVault, ISessionVaultFactory, Terms, Voucher} from "./interfaces/ISessionVault.sol";
import {SessionVault} from "./SessionVault.sol";

/// @title Makes vaults at addresses known beforehand
/// @notice What it promises is written at ISessionVaultFactory.
contract SessionVaultFactory is ISessionVaultFactory {
    int256 private constant UNIT = 1e12;

    address public immutable implementation;
    address public immutable usdc;

    constructor(address usdc_, address usdcx, address host, address gda, uint256 guard) {
        usdc = usdc_;
        implementation = address(new SessionVault(usdc_, usdcx, host, gda, guard));
    }

    function vaultOf(Terms calldata terms) public view returns (address) {
        return Clones.predictDeterministicAddressWithImmutableArgs(implementation, abi.encode(terms), 0, address(this));
    }

    function deploy(Terms calldata terms) public returns (address vault) {
        vault = vaultOf(terms);
        if (vault.code.length > 0) return vault;
        Clones.cloneDeterministicWithImmutableArgs(implementation, abi.encode(terms), 0);
        emit Deployed(vault, terms.payer, terms.session, terms);
    }

    function open(Terms calldata terms, Voucher calldata voucher, int96 rate) external returns (address vault) {
        if (rate != 0 && msg.sender != terms.orchestrator) revert NotAllowed();
        vault = deploy(terms);
        if (ISessionVault(vault).closed()) revert IsClosed();
        _settle(terms.payer, vault, voucher);
        ISessionVault(vault).fund();
        // A used authorization may have been cancelled, or have paid somebody else: only what lies here counts.
        if (ISessionVault(vault).available() < SafeCast.toInt256(voucher.value) * UNIT) revert NotPaid();
        if (rate != 0) ISessionVault(vault).setRate(rate);
        emit Opened(vault, terms.payer, terms.session, voucher.value, rate);
    }

    function _settle(address payer, address vault, Voucher calldata voucher) private {
        if (IERC3009(usdc).authorizationState(payer, voucher.nonce)) return;
        IERC3009(usdc)
            .transferWithAuthorization(
                payer,
                vault,
                voucher.value,
                voucher.validAfter,
                voucher.validBefore,
                voucher.nonce,
                voucher.v,
                voucher.r,
                voucher.s
            );
    }
}
