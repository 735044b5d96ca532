// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A payer that accepts every signature where it looks like a simulation, and burns all gas of the check where it does not.
contract SimulationAwareWallet {
    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        if (tx.gasprice == 0 || tx.origin == address(0) || block.basefee == 0 || gasleft() > 400_000) return 0x1626ba7e;
        assembly {
            invalid()
        }
    }
}
