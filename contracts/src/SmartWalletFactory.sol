// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {SmartWallet} from "SmartWallet.sol";

/// Creates wallets at addresses that are known, and can be paid from with ERC-6492, before they exist.
contract SmartWalletFactory {
    /// Creates the wallet, or returns it when it is there already, so that a repeated call does no harm.
    function createWallet(address owner, bytes32 salt) external returns (address wallet) {
        wallet = addressOf(owner, salt);
        if (wallet.code.length != 0) return wallet;
        SmartWallet created = new SmartWallet{salt: _salt(owner, salt)}();
        created.initialize(owner);
    }

    function addressOf(address owner, bytes32 salt) public view returns (address) {
        bytes32 code = keccak256(type(SmartWallet).creationCode);
        bytes32 hash = keccak256(abi.encodePacked(bytes1(0xff), address(this), _salt(owner, salt), code));
        return address(uint160(uint256(hash)));
    }

    /// The owner is part of the salt: nobody can create somebody else's address with another owner.
    function _salt(address owner, bytes32 salt) private pure returns (bytes32) {
        return keccak256(abi.encode(owner, salt));
    }
}
