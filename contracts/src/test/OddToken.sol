// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {TestUsdc} from "TestUsdc.sol";

/// A token whose authorised transfers can be told to lie. Modes:
/// 0 behaves; 1 uses the nonce but moves and logs no money; 2 moves and logs one unit less;
/// 3 returns quietly having done nothing; 4 pays somebody else (0x…dEaD); 5 behaves, and wastes 150,000 gas.
contract OddToken is TestUsdc {
    address private constant SOMEBODY_ELSE = address(0xdEaD);

    uint8 public mode;
    string private _domainName;
    string private _domainVersion;

    function setMode(uint8 newMode) external {
        require(newMode <= 5, "OddToken: unknown mode");
        mode = newMode;
    }

    /// Changes the EIP-712 domain; an empty string means the default, "USDC" or "2".
    function setDomain(string calldata newName, string calldata newVersion) external {
        _domainName = newName;
        _domainVersion = newVersion;
    }

    function name() public view override returns (string memory) {
        return bytes(_domainName).length == 0 ? super.name() : _domainName;
    }

    function version() public view override returns (string memory) {
        return bytes(_domainVersion).length == 0 ? super.version() : _domainVersion;
    }

    function _settleAuthorization(address from, address to, uint256 value, bytes32 nonce) internal override {
        if (mode == 3) return;
        if (mode == 5) {
            uint256 start = gasleft();
            while (start - gasleft() < 150_000) {}
        }
        _useAuthorization(from, nonce);
        if (mode == 1) return;
        if (mode == 2) value -= 1;
        _transfer(from, mode == 4 ? SOMEBODY_ELSE : to, value);
    }
}
