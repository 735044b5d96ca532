// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A wallet whose signatures have 65 bytes and are no ECDSA, as a Safe's are for a hash that its owner has approved:
/// the owner (storage slot 0) as `r`, nothing as `s`, and 0, 1 or 31 as the last byte.
contract ApprovedHashWallet {
    address public owner;

    function isValidSignature(bytes32, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 65 || owner == address(0)) return 0xffffffff;
        bool approved =
            bytes32(signature[0:32]) == bytes32(uint256(uint160(owner))) && bytes32(signature[32:64]) == bytes32(0);
        uint8 kind = uint8(signature[64]);
        return approved && (kind < 2 || kind == 31) ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}
