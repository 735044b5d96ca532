// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A payer whose signatures hold only in blocks with an even number, so that checking and settling can disagree.
contract BlockParityWallet {
    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        return block.number % 2 == 0 ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}
