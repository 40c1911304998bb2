// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.26;

/// @title CREATE2 for one owner
/// @notice Deploys at addresses that depend on its own address, a salt and the code, and on nobody's nonce. Only its
///         owner may use it, so nobody can take such an address first; and what must be set up is set up in the
///         transaction that deploys it, so nobody can set it up first either (a proxy, Superfluid's host).
contract DeterministicDeployer {
    struct Call {
        /// The zero address stands for the contract that was just deployed.
        address target;
        bytes data;
    }

    address public immutable owner;

    event Deployed(address indexed account, bytes32 indexed salt);

    error NotAllowed();
    /// The code's constructor failed, or the address is taken.
    error NotDeployed();

    modifier onlyOwner() {
        if (msg.sender != owner) revert NotAllowed();
        _;
    }

    constructor(address owner_) {
        owner = owner_;
    }

    function addressOf(bytes32 salt, bytes32 codeHash) external view returns (address) {
        return address(uint160(uint256(keccak256(abi.encodePacked(bytes1(0xff), address(this), salt, codeHash)))));
    }

    /// Deploys and then makes the calls, in order: all or nothing.
    function deploy(bytes32 salt, bytes memory code, Call[] calldata calls)
        external
        onlyOwner
        returns (address account)
    {
        assembly ("memory-safe") {
            account := create2(0, add(code, 32), mload(code), salt)
        }
        if (account == address(0)) revert NotDeployed();
        emit Deployed(account, salt);
        _make(calls, account);
    }

    /// Calls as the deployer, which is the first owner of what made its deployer the owner.
    function execute(Call[] calldata calls) external onlyOwner {
        _make(calls, address(0));
    }

    /// A failure is passed on unchanged.
    function _make(Call[] calldata calls, address deployed) private {
        for (uint256 i; i < calls.length; ++i) {
            address target = calls[i].target == address(0) ? deployed : calls[i].target;
            (bool done, bytes memory answer) = target.call(calls[i].data);
            if (!done) {
                assembly ("memory-safe") {
                    revert(add(answer, 32), mload(answer))
                }
            }
        }
    }
}
