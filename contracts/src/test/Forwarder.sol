// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

/// Makes calls for whoever asks, so that a settlement's transaction goes to a contract that nobody knows.
contract Forwarder {
    struct Call {
        address target;
        bytes data;
    }

    Call[] private kept;

    /// Makes calls that the transaction spells out.
    function forward(Call[] calldata calls) external {
        for (uint256 i = 0; i < calls.length; i++) make(calls[i].target, calls[i].data);
    }

    /// Keeps a call for later.
    function keep(address target, bytes calldata data) external {
        kept.push(Call(target, data));
    }

    /// Makes the calls that were kept; the transaction does not name them.
    function forwardKept() external {
        for (uint256 i = 0; i < kept.length; i++) make(kept[i].target, kept[i].data);
        delete kept;
    }

    function make(address target, bytes memory data) private {
        (bool done, ) = target.call(data);
        require(done, "the call failed");
    }
}
