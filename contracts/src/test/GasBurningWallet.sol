// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A payer that accepts every signature, until it is told to burn all the gas such a check is given.
contract GasBurningWallet {
    /// Storage slot 0.
    bool public burning;

    function setBurning(bool on) external {
        burning = on;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        if (burning) {
            assembly {
                invalid()
            }
        }
        return 0x1626ba7e;
    }
}
