//! The lens: a read-only contract (`contracts/src/Lens.sol`) that is deployed on no chain. Each call that needs it places its code by a
//! state override.

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

/// The address of the lens during a call. No contract can ever be deployed there.
pub(super) const LENS: Address = address!("0000000000000000000000000000000000402002");
/// Its code, compiled from `contracts/src/Lens.sol`.
const LENS_CODE: &str = include_str!("../../contracts/artifacts/Lens.runtime.hex");

/// The state override that places the lens at its own address and at `places`.
pub(super) fn overrides_at(places: impl Iterator<Item = Address>) -> Map<String, Value> {
    places
        .chain([LENS])
        .map(|place| (place.to_string(), json!({ "code": LENS_CODE.trim() })))
        .collect()
}

/// The state override that places the lens at its own address.
pub(super) fn overrides() -> Map<String, Value> {
    overrides_at(std::iter::empty())
}

/// Calldata to read the code sizes of accounts.
pub(super) fn code_sizes_call(accounts: Vec<Address>) -> Bytes {
    codeSizesCall { accounts }.abi_encode().into()
}

/// Decodes the result of [`code_sizes_call`].
pub(super) fn decode_code_sizes(answer: &Bytes) -> Option<Vec<U256>> {
    codeSizesCall::abi_decode_returns(answer).ok()
}
