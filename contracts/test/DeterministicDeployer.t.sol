// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

import {DeterministicDeployer} from "../src/DeterministicDeployer.sol";
import {vm} from "./support/Vm.sol";

contract Owned {
    address public owner;
    uint256 public mark;

    error TooLarge(uint256 value);

    constructor(bool fails) {
        require(!fails);
        owner = msg.sender;
    }

    function set(uint256 value) external {
        require(msg.sender == owner);
        if (value > 9) revert TooLarge(value);
        mark = value;
    }
}

contract DeterministicDeployerTest {
    bytes32 private constant SALT = "salt";

    address private owner = address(0xA11CE);
    DeterministicDeployer private deployer = new DeterministicDeployer(owner);
    bytes private code = abi.encodePacked(type(Owned).creationCode, abi.encode(false));

    function _set(address target, uint256 value) private pure returns (DeterministicDeployer.Call[] memory calls) {
        calls = new DeterministicDeployer.Call[](1);
        calls[0] = DeterministicDeployer.Call({target: target, data: abi.encodeCall(Owned.set, (value))});
    }

    function testTheAddressIsKnownAndTheSetUpIsPartOfIt() external {
        address expected = deployer.addressOf(SALT, keccak256(code));
        vm.prank(owner);
        address made = deployer.deploy(SALT, code, _set(address(0), 7));
        vm.assertEq(made, expected, "CREATE2");
        vm.assertEq(Owned(made).mark(), 7, "set up in the same transaction");
        vm.assertEq(Owned(made).owner(), address(deployer), "the deployer is its first owner");
        vm.prank(owner);
        deployer.execute(_set(made, 8));
        vm.assertEq(Owned(made).mark(), 8, "and can act for us");
    }

    function testItServesItsOwnerOnly() external {
        vm.expectRevert(DeterministicDeployer.NotAllowed.selector);
        deployer.deploy(SALT, code, new DeterministicDeployer.Call[](0));
        vm.expectRevert(DeterministicDeployer.NotAllowed.selector);
        deployer.execute(new DeterministicDeployer.Call[](0));
    }

    function testAFailureUndoesEverything() external {
        vm.prank(owner);
        vm.expectRevert(abi.encodeWithSelector(Owned.TooLarge.selector, 10));
        deployer.deploy(SALT, code, _set(address(0), 10));
        vm.assertEq(deployer.addressOf(SALT, keccak256(code)).code.length, 0, "not deployed either");
    }

    function testWhatCannotBeDeployed() external {
        vm.startPrank(owner);
        vm.expectRevert(DeterministicDeployer.NotDeployed.selector);
        deployer.deploy(
            SALT, abi.encodePacked(type(Owned).creationCode, abi.encode(true)), new DeterministicDeployer.Call[](0)
        );
        deployer.deploy(SALT, code, new DeterministicDeployer.Call[](0));
        vm.expectRevert(DeterministicDeployer.NotDeployed.selector);
        deployer.deploy(SALT, code, new DeterministicDeployer.Call[](0));
        vm.stopPrank();
    }
}
