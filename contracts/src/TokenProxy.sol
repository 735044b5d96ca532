// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// Minimal ERC-1967 proxy: every call is delegated to the address in the implementation slot.
/// It has no constructor; the slot is written when the chain is set up.
contract TokenProxy {
    /// ERC-1967: keccak256("eip1967.proxy.implementation") - 1.
    bytes32 private constant IMPLEMENTATION = 0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc;
    /// ERC-1967: keccak256("eip1967.proxy.admin") - 1.
    bytes32 private constant ADMIN = 0xb53127684a568b3173ae13b9f8a6016e243e63b6e8ee1178d6a717850b5d6103;

    fallback() external payable {
        assembly ("memory-safe") {
            // USDC's proxy refuses its admin before it delegates; reading the slot keeps the gas alike.
            // An unset admin must not match the zero address, which is the caller of an eth_call without `from`.
            let admin := sload(ADMIN)
            if and(iszero(iszero(admin)), eq(caller(), admin)) { revert(0, 0) }
            let data := mload(0x40)
            calldatacopy(data, 0, calldatasize())
            let ok := delegatecall(gas(), sload(IMPLEMENTATION), data, calldatasize(), 0, 0)
            returndatacopy(data, 0, returndatasize())
            if iszero(ok) { revert(data, returndatasize()) }
            return(data, returndatasize())
        }
    }
}
