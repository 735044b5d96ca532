//! The lens: a read-only contract that stands on no chain. A call that needs it carries its code in a state override.

use alloy::primitives::{Address, Bytes, U256, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::{Map, Value, json};

sol! {
    struct Query {
        address token; address payer; address nonceDomain; bytes nonceCall; uint256 nonceMask; address spender; bytes32 digest;
        bytes signature; address factory; bytes factoryCall; address settler; bytes settlement; address sender; uint256 gasLimit;
    }
    struct Facts {
        uint256 tokenCodeSize; uint256 payerCodeSize; bool payerDelegated; bool nonceKnown; bool nonceUsed; bool balanceKnown;
        uint256 balance; bool allowanceKnown; uint256 allowance; uint256 settlerCodeSize; bool signatureValid; bool transferSucceeds;
        bytes revertData; uint256 gasUsed;
    }
    function read(Query[] queries) external returns (uint256 blockNumber, uint256 blockTime, Facts[] facts);
    function codeSizes(address[] accounts) external view returns (uint256[] sizes);
}

/// Where the lens stands during a call; no contract can ever be there.
pub(super) const LENS: Address = address!("0000000000000000000000000000000000402002");
/// Its code, compiled from `contracts/src/Lens.sol`.
const LENS_CODE: &str = include_str!("../../contracts/artifacts/Lens.runtime.hex");

/// The override that puts the lens at its own address, and at those where it stands in for somebody.
pub(super) fn placed_at(places: impl Iterator<Item = Address>) -> Map<String, Value> {
    places
        .chain([LENS])
        .map(|place| (place.to_string(), json!({ "code": LENS_CODE.trim() })))
        .collect()
}

/// The override that puts the lens at its own address.
pub(super) fn overrides() -> Map<String, Value> {
    placed_at(std::iter::empty())
}

/// The question how much code accounts have.
pub(super) fn code_sizes(accounts: Vec<Address>) -> Bytes {
    codeSizesCall { accounts }.abi_encode().into()
}

/// Its answer.
pub(super) fn code_sizes_of(answer: &Bytes) -> Option<Vec<U256>> {
    codeSizesCall::abi_decode_returns(answer).ok()
}
