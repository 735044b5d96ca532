// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// A token that answers its reads and reverts everything else with 100,000 bytes, which a careless caller
/// pays to copy. Every byte is 0x42.
contract RevertBomb {
    function balanceOf(address) external pure returns (uint256) {
        return type(uint128).max;
    }

    function authorizationState(address, bytes32) external pure returns (bool) {
        return false;
    }

    fallback() external {
        assembly {
            for { let i := 0 } lt(i, 100000) { i := add(i, 32) } {
                mstore(i, 0x4242424242424242424242424242424242424242424242424242424242424242)
            }
            revert(0, 100000)
        }
    }
}
