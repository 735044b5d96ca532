// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// Answers, in one `eth_call`, what a facilitator must ask the chain about payments, whatever contract moves their money.
/// It is never deployed: its runtime is placed at a scratch address by a state override of that call, and at the address of
/// every account that a payment wants to be called by.
contract Lens {
    struct Query {
        address token;
        address payer;
        /// The contract in which the payment's nonce is used up, and the call that reads it there.
        address nonceDomain;
        bytes nonceCall;
        /// The bit of the answer that stands for the nonce.
        uint256 nonceMask;
        /// Whose allowance over the payer's token is asked for; zero for nobody's.
        address spender;
        /// The EIP-712 digest the payer signed, given to ERC-1271 wallets.
        bytes32 digest;
        bytes signature;
        /// Factory of a wallet that may not exist yet; zero for none.
        address factory;
        bytes factoryCall;
        /// The call that settles, and who makes it; zero for anybody.
        address settler;
        bytes settlement;
        address sender;
        /// Gas allowed to each of: the factory call, the signature check, the settlement.
        uint256 gasLimit;
    }

    struct Facts {
        uint256 tokenCodeSize;
        /// After the factory call, when there was one.
        uint256 payerCodeSize;
        /// The payer's code is an EIP-7702 delegation.
        bool payerDelegated;
        bool nonceKnown;
        bool nonceUsed;
        bool balanceKnown;
        uint256 balance;
        bool allowanceKnown;
        uint256 allowance;
        uint256 settlerCodeSize;
        /// The payer's ERC-1271 answer; false for a payer without code.
        bool signatureValid;
        bool transferSucceeds;
        /// At most 512 bytes of what the settlement reverted with; empty when it succeeded.
        bytes revertData;
        /// Gas of the settling call from cold storage, with the call itself.
        uint256 gasUsed;
    }

    /// How one row's findings leave its frame: reverting undoes the row's effects and its warm storage.
    error Evaluated(Facts facts);
    /// The frame had too little gas to give an inner call its full allowance, so its answer would be wrong.
    error Starved();

    uint256 private constant READ_GAS = 100_000;
    uint256 private constant ROW_GAS = 600_000;
    uint256 private constant RETURN_GAS = 200_000;
    uint256 private constant RETURN_GAS_PER_ROW = 20_000;
    uint256 private constant MAX_REVERT_DATA = 512;
    bytes32 private constant ERC1271_MAGIC = bytes32(bytes4(0x1626ba7e));

    /// Evaluates every row as if it were alone. A row for which gas did not suffice is all zero: it says nothing
    /// about the payment. `tokenCodeSize == 0 && !nonceKnown && !balanceKnown` marks such a row.
    function read(Query[] calldata queries)
        external
        returns (uint256 blockNumber, uint256 blockTime, Facts[] memory facts)
    {
        blockNumber = block.number;
        blockTime = block.timestamp;
        facts = new Facts[](queries.length);
        uint256 reserve = RETURN_GAS + RETURN_GAS_PER_ROW * queries.length;
        for (uint256 i = 0; i < queries.length; i++) {
            uint256 limit = queries[i].gasLimit;
            uint256 left = gasleft();
            if (limit > left) continue;
            uint256 budget = 3 * limit + limit / 16 + ROW_GAS;
            if (left - left / 64 < budget + reserve) continue;
            facts[i] = _isolated(this.evaluate.selector, queries[i], budget);
        }
    }

    /// How much code accounts have: before a batch is sent, who in it is a plain account.
    function codeSizes(address[] calldata accounts) external view returns (uint256[] memory sizes) {
        sizes = new uint256[](accounts.length);
        for (uint256 i = 0; i < accounts.length; i++) {
            sizes[i] = accounts[i].code.length;
        }
    }

    /// One row; always reverts.
    function evaluate(Query calldata query) external {
        if (query.factory != address(0) && query.payer.code.length == 0) {
            _call(query.factory, query.gasLimit, query.factoryCall);
        }
        // The reads run in a frame of their own so that the transfer still finds cold storage and its gas is honest.
        Facts memory facts = _isolated(this.inspect.selector, query, gasleft() - gasleft() / 32);
        if (facts.payerCodeSize == 0 && facts.tokenCodeSize == 0 && !facts.balanceKnown && !facts.nonceKnown) {
            // Either starved or there is no token: in both cases a call's "success" would mean nothing.
            revert Evaluated(facts);
        }
        bytes memory output;
        (facts.transferSucceeds, output, facts.gasUsed) = _settle(query);
        if (facts.tokenCodeSize == 0 || facts.settlerCodeSize == 0) facts.transferSucceeds = false;
        if (!facts.transferSucceeds) facts.revertData = output;
        revert Evaluated(facts);
    }

    /// The reads of one row; always reverts.
    function inspect(Query calldata query) external view {
        Facts memory facts;
        facts.tokenCodeSize = query.token.code.length;
        facts.payerCodeSize = query.payer.code.length;
        facts.payerDelegated = facts.payerCodeSize == 23 && _isDelegation(query.payer);

        facts.settlerCodeSize = query.settler.code.length;

        uint256 word;
        (facts.nonceKnown, word) = _word(query.nonceDomain, READ_GAS, query.nonceCall);
        facts.nonceUsed = facts.nonceKnown && word & query.nonceMask != 0;

        (facts.balanceKnown, word) = _word(query.token, READ_GAS, abi.encodeWithSelector(0x70a08231, query.payer));
        if (facts.balanceKnown) facts.balance = word;

        if (query.spender != address(0)) {
            bytes memory allowed = abi.encodeWithSelector(0xdd62ed3e, query.payer, query.spender);
            (facts.allowanceKnown, word) = _word(query.token, READ_GAS, allowed);
            if (facts.allowanceKnown) facts.allowance = word;
        }

        if (facts.payerCodeSize != 0) {
            bytes memory question = abi.encodeWithSelector(0x1626ba7e, query.digest, query.signature);
            (bool answered, uint256 answer) = _word(query.payer, query.gasLimit, question);
            facts.signatureValid = answered && bytes32(answer) == ERC1271_MAGIC;
        }
        revert Evaluated(facts);
    }

    /// The settling call, made by whom the payment wants to be called by.
    function _settle(Query calldata query) private returns (bool ok, bytes memory output, uint256 gasUsed) {
        if (query.sender == address(0)) return _call(query.settler, query.gasLimit, query.settlement);
        return Lens(query.sender).relay(query.settler, query.gasLimit, query.settlement);
    }

    /// Makes a call as the account at whose address this code was placed.
    function relay(address target, uint256 limit, bytes calldata data)
        external
        returns (bool ok, bytes memory output, uint256 gasUsed)
    {
        return _call(target, limit, data);
    }

    /// Calls one of this contract's always-reverting functions and takes its findings; all zero when it had none.
    function _isolated(bytes4 selector, Query calldata query, uint256 limit) private returns (Facts memory facts) {
        uint256 free;
        assembly ("memory-safe") {
            free := mload(0x40)
        }
        bytes memory payload = abi.encodeWithSelector(selector, query);
        bytes memory encoded;
        bytes4 kind;
        // The payload's memory is given back, so that memory does not grow with the sum of all signatures.
        assembly ("memory-safe") {
            let ok := call(limit, address(), 0, add(payload, 0x20), mload(payload), 0, 0)
            let size := returndatasize()
            if and(iszero(ok), gt(size, 3)) {
                returndatacopy(0, 0, 4)
                kind := and(mload(0), shl(224, 0xffffffff))
                encoded := free
                mstore(encoded, sub(size, 4))
                returndatacopy(add(encoded, 0x20), 4, sub(size, 4))
                free := and(add(add(encoded, size), 0x3f), not(0x1f))
            }
            mstore(0x40, free)
        }
        if (kind == Evaluated.selector) facts = abi.decode(encoded, (Facts));
    }

    /// A call whose returned data is cut while it is copied.
    function _call(address target, uint256 limit, bytes memory data)
        private
        returns (bool ok, bytes memory output, uint256 gasUsed)
    {
        _requireGas(limit);
        assembly ("memory-safe") {
            let start := gas()
            ok := call(limit, target, 0, add(data, 0x20), mload(data), 0, 0)
            gasUsed := sub(start, gas())
            let size := returndatasize()
            if gt(size, MAX_REVERT_DATA) { size := MAX_REVERT_DATA }
            output := mload(0x40)
            mstore(output, size)
            returndatacopy(add(output, 0x20), 0, size)
            mstore(0x40, and(add(add(output, size), 0x3f), not(0x1f)))
        }
    }

    /// The first word of a read; `known` only when the call succeeded and returned a full word.
    function _word(address target, uint256 limit, bytes memory data) private view returns (bool known, uint256 word) {
        _requireGas(limit);
        assembly ("memory-safe") {
            mstore(0, 0)
            known := staticcall(limit, target, add(data, 0x20), mload(data), 0, 0x20)
            known := and(known, gt(returndatasize(), 0x1f))
            if known { word := mload(0) }
        }
    }

    function _requireGas(uint256 limit) private view {
        uint256 left = gasleft();
        // 3,000 covers the account access charged before the 63/64 rule is applied.
        if (left < 3_000 || (left - 3_000) - (left - 3_000) / 64 < limit) revert Starved();
    }

    function _isDelegation(address account) private view returns (bool) {
        bytes32 head;
        assembly ("memory-safe") {
            mstore(0, 0)
            extcodecopy(account, 0, 0, 3)
            head := mload(0)
        }
        return bytes3(head) == 0xef0100;
    }
}
