// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.30;

import {Permit2} from "Permit2.sol";

/// What the two x402 proxies share: they are the spender a payer signs for in Permit2, and send the money
/// nowhere but to the payee in the signed witness.
abstract contract Permit2Proxy {
    struct EIP2612Permit {
        uint256 value;
        uint256 deadline;
        bytes32 r;
        bytes32 s;
        uint8 v;
    }

    /// A payment as both schemes see it once the witness is hashed.
    struct Payment {
        uint256 amount;
        address owner;
        address to;
        uint256 validAfter;
        bytes32 witness;
    }

    Permit2 public constant PERMIT2 = Permit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);

    event Settled();
    event SettledWithPermit();
    /// The token's permit failed; the transfer is tried all the same, on the allowance there is.
    event EIP2612PermitFailedWithData(address indexed token, address indexed owner, bytes data);

    error InvalidAmount();
    error InvalidDestination();
    error InvalidOwner();
    error PaymentTooEarly();
    error Permit2612AmountMismatch();
    error ReentrancyGuardReentrantCall();

    modifier once() {
        uint256 entered;
        assembly ("memory-safe") {
            entered := tload(0)
        }
        if (entered != 0) revert ReentrancyGuardReentrantCall();
        assembly ("memory-safe") {
            tstore(0, 1)
        }
        _;
        assembly ("memory-safe") {
            tstore(0, 0)
        }
    }

    function _transfer(
        Permit2.PermitTransferFrom calldata permit,
        Payment memory payment,
        string memory witnessType,
        bytes calldata signature
    ) internal {
        if (payment.amount == 0) revert InvalidAmount();
        if (payment.owner == address(0)) revert InvalidOwner();
        if (payment.to == address(0)) revert InvalidDestination();
        if (block.timestamp < payment.validAfter) revert PaymentTooEarly();
        PERMIT2.permitWitnessTransferFrom(
            permit,
            Permit2.SignatureTransferDetails(payment.to, payment.amount),
            payment.owner,
            payment.witness,
            witnessType,
            signature
        );
    }

    function _approve(EIP2612Permit calldata approval, Permit2.PermitTransferFrom calldata permit, address owner)
        internal
    {
        if (approval.value != permit.permitted.amount) revert Permit2612AmountMismatch();
        address token = permit.permitted.token;
        // permit(address,address,uint256,uint256,uint8,bytes32,bytes32)
        (bool ok, bytes memory data) = token.call(
            abi.encodeWithSelector(
                0xd505accf,
                owner,
                address(PERMIT2),
                approval.value,
                approval.deadline,
                approval.v,
                approval.r,
                approval.s
            )
        );
        if (!ok) emit EIP2612PermitFailedWithData(token, owner, data);
    }
}
