// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A contract account with one owner. The owner lives in storage slot 0: `initialize` sets it when a factory
/// creates the wallet, and whoever places the runtime by hand writes the slot.
contract SmartWallet {
    bytes4 private constant VALID = 0x1626ba7e;
    bytes4 private constant INVALID = 0xffffffff;

    address public owner;

    error NotOwner();
    error AlreadyOwned();

    function initialize(address newOwner) external {
        if (owner != address(0)) revert AlreadyOwned();
        owner = newOwner;
    }

    /// ERC-1271: the owner's 65-byte ECDSA signature over the digest as it is.
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 65 || owner == address(0)) return INVALID;
        address signer =
            ecrecover(digest, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
        return signer == owner ? VALID : INVALID;
    }

    function execute(address to, uint256 value, bytes calldata data) external payable returns (bytes memory) {
        if (msg.sender != owner) revert NotOwner();
        (bool ok, bytes memory output) = to.call{value: value}(data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(output, 0x20), mload(output))
            }
        }
        return output;
    }

    receive() external payable {}
}
