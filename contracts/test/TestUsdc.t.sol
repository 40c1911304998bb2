// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {vm} from "./support/Vm.sol";
import {World} from "./support/World.sol";

/// A wallet that is a contract: it accepts one signature.
contract SmartWallet is IERC1271 {
    function isValidSignature(bytes32, bytes memory signature) external pure returns (bytes4) {
        return keccak256(signature) == keccak256("please") ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

/// The test dollar does what Circle's does where we touch it.
contract TestUsdcTest is World {
    bytes32 private constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes4 private constant BAD_SIGNATURE = bytes4(keccak256("ERC3009InvalidSignature()"));

    address private receiver = _somebody();
    uint256 private until;

    function setUp() external {
        until = block.timestamp + 100;
    }

    function _text(bytes32 kind, bytes32 nonce) private view returns (bytes32) {
        return _usdcDigest(keccak256(abi.encode(kind, payer, receiver, uint256(7), uint256(0), until, nonce)));
    }

    function _parts(bytes memory signature) private pure returns (uint8 v, bytes32 r, bytes32 s) {
        assembly {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
            v := byte(0, mload(add(signature, 96)))
        }
    }

    function testItIsADollarWithSixDecimals() external view {
        vm.assertEq(usdc.decimals(), 6, "one USDC unit is a millionth");
        vm.assertEq(keccak256(bytes(usdc.name())), keccak256("USD Coin"), "x402 needs the domain's name");
        vm.assertEq(keccak256(bytes(usdc.version())), keccak256("1"), "and its version");
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("USD Coin"),
                keccak256("1"),
                block.chainid,
                address(usdc)
            )
        );
        vm.assertEq(usdc.DOMAIN_SEPARATOR(), domain, "the domain that wallets show");
        vm.assertEq(usdc.nonces(payer), 0, "permit's nonces");
    }

    function testBothFormsOfASignatureMoveTheSameMoney() external {
        (bytes32 one, bytes32 two) = (_session(), _session());
        (uint8 v, bytes32 r, bytes32 s) = _parts(_sign(payer, _text(TRANSFER, one)));
        vm.startPrank(stranger);
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, one, v, r, s);
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, two, _sign(payer, _text(TRANSFER, two)));
        vm.stopPrank();
        vm.assertEq(usdc.balanceOf(receiver), 14, "7 and 7");
        vm.assertTrue(usdc.authorizationState(payer, one) && usdc.authorizationState(payer, two), "both used");
    }

    function testAnAuthorizationWorksOnceAndForItsWordsOnly() external {
        bytes32 nonce = _session();
        bytes memory signature = _sign(payer, _text(TRANSFER, nonce));
        vm.expectRevert(BAD_SIGNATURE);
        usdc.transferWithAuthorization(payer, receiver, 8, 0, until, nonce, signature);
        vm.expectRevert(BAD_SIGNATURE);
        usdc.transferWithAuthorization(payer, stranger, 7, 0, until, nonce, signature);
        vm.expectRevert(BAD_SIGNATURE);
        usdc.receiveWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
        vm.expectRevert(abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", payer, nonce));
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
    }

    function testTimesAreSeconds() external {
        bytes32 nonce = _session();
        bytes memory signature = _sign(payer, _text(TRANSFER, nonce));
        vm.warp(until);
        vm.expectRevert(abi.encodeWithSignature("ERC3009InvalidAuthorizationTime(uint256,uint256)", 0, until));
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
        // OpenZeppelin's draft reads these two as block numbers, Circle's USDC as the far future.
        (uint256 a, uint256 b) = (1 << 47, (1 << 47) + (1 << 40));
        bytes32 text = keccak256(abi.encode(TRANSFER, payer, receiver, uint256(7), a, b, nonce));
        signature = _sign(payer, _usdcDigest(text));
        vm.expectRevert(abi.encodeWithSignature("ERC3009InvalidAuthorizationTime(uint256,uint256)", a, b));
        usdc.transferWithAuthorization(payer, receiver, 7, a, b, nonce, signature);
    }

    function testOnlyTheReceiverReceives() external {
        bytes32 nonce = _session();
        bytes memory signature = _sign(payer, _text(RECEIVE, nonce));
        vm.prank(stranger);
        vm.expectRevert(abi.encodeWithSignature("ERC20InvalidReceiver(address)", receiver));
        usdc.receiveWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
        vm.prank(receiver);
        usdc.receiveWithAuthorization(payer, receiver, 7, 0, until, nonce, signature);
        vm.assertEq(usdc.balanceOf(receiver), 7, "received");
    }

    function testACancelledAuthorizationIsSpentWithoutMoney() external {
        bytes32 nonce = _session();
        bytes memory cancel = _sign(payer, _usdcDigest(keccak256(abi.encode(CANCEL, payer, nonce))));
        vm.expectRevert(BAD_SIGNATURE);
        usdc.cancelAuthorization(stranger, nonce, cancel);
        usdc.cancelAuthorization(payer, nonce, cancel);
        vm.assertTrue(usdc.authorizationState(payer, nonce), "it looks used");
        bytes memory transfer = _sign(payer, _text(TRANSFER, nonce));
        vm.expectRevert(abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", payer, nonce));
        usdc.transferWithAuthorization(payer, receiver, 7, 0, until, nonce, transfer);
    }

    function testASmartWalletSignsInTheLongFormOnly() external {
        address wallet = address(new SmartWallet());
        usdc.mint(wallet, 7);
        bytes32 nonce = _session();
        vm.expectRevert(BAD_SIGNATURE);
        usdc.transferWithAuthorization(wallet, receiver, 7, 0, until, nonce, "no");
        usdc.transferWithAuthorization(wallet, receiver, 7, 0, until, nonce, "please");
        vm.assertEq(usdc.balanceOf(receiver), 7, "the wallet's word counts");
    }
}
