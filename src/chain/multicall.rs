//! Several calls in one, by Multicall3: batches of payments, their simulation, and reads.

use alloy::primitives::{Address, Bytes, U64, U256, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::json;

use crate::chain::{Rpc, RpcError, RpcResult, SimulatedSender, lens};

sol! {
    interface Multicall3 {
        struct Call3 { address target; bool allowFailure; bytes callData; }
        struct Result { bool success; bytes returnData; }
        function aggregate3(Call3[] calls) external payable returns (Result[] results);
    }
}

/// Multicall3; it has the same address on every chain.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

/// Gas for reading code sizes: once, and for each account.
const CODE_SIZES_GAS: u64 = 50_000;
const CODE_SIZE_GAS: u64 = 4_000;

/// A call in a batch. If it reverts, the others are not affected.
pub(super) fn call((target, data): (Address, Bytes)) -> Multicall3::Call3 {
    Multicall3::Call3 {
        target,
        allowFailure: true,
        callData: data,
    }
}

/// Calldata that makes several calls.
pub(super) fn batch(calls: Vec<Multicall3::Call3>) -> Bytes {
    Multicall3::aggregate3Call { calls }.abi_encode().into()
}

/// The simulated result of one payment of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallOutcome {
    /// The call of the payment succeeds.
    pub succeeds: bool,
    /// The payer's account has code, which would run in the batch.
    pub payer_has_code: bool,
}

impl Rpc {
    /// Simulates a batch in a transaction of `sender` with `gas_limit`, on the newest state. One call returns for each payment whether it
    /// succeeds and whether its payer has code.
    pub(super) async fn simulate_calls(
        &self,
        sender: SimulatedSender,
        (calls, payers): (Vec<Multicall3::Call3>, Vec<Address>),
        gas_limit: u64,
    ) -> RpcResult<Vec<CallOutcome>> {
        let count = calls.len();
        let gas_of_rows = CODE_SIZE_GAS.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
        let gas = gas_limit.saturating_add(CODE_SIZES_GAS.saturating_add(gas_of_rows));
        // The code sizes come first, so that a payment that uses up the gas cannot affect them.
        let codes = call((lens::LENS, lens::code_sizes_call(payers)));
        let data = batch(std::iter::once(codes).chain(calls).collect());
        let mut call = json!({"to": MULTICALL3, "data": data, "gas": U64::from(gas)});
        let mut overrides = lens::overrides();
        sender.add_to(&mut call, &mut overrides);
        let simulated = self.simulate(call, overrides, None, decode_simulation);
        let (sizes, results) = simulated.await?;
        if sizes.len() != count || results.len() != count {
            return Err(RpcError::Malformed("eth_call"));
        }
        let rows = results.iter().zip(sizes).map(|(result, size)| CallOutcome {
            succeeds: result.success,
            payer_has_code: !size.is_zero(),
        });
        Ok(rows.collect())
    }

    /// Several read-only calls at the block at height `block` in one `eth_call`; `None` for a call that reverted.
    pub(super) async fn call_many(
        &self,
        calls: &[(Address, Bytes)],
        block: u64,
    ) -> RpcResult<Vec<Option<Bytes>>> {
        let together = batch(calls.iter().cloned().map(call).collect());
        let answer = self.agreed_call(&(MULTICALL3, together), block).await?;
        if answer.is_empty() {
            return self.call_one_by_one(calls, block).await;
        }
        let results = Multicall3::aggregate3Call::abi_decode_returns(&answer)
            .ok()
            .filter(|results| results.len() == calls.len())
            .ok_or(RpcError::Malformed("aggregate3"))?;
        let values = results
            .into_iter()
            .map(|result| result.success.then_some(result.returnData));
        Ok(values.collect())
    }

    /// The same with one `eth_call` each, for chains without Multicall3.
    async fn call_one_by_one(
        &self,
        calls: &[(Address, Bytes)],
        block: u64,
    ) -> RpcResult<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(calls.len());
        for call in calls {
            values.push(match self.agreed_call(call, block).await {
                Ok(answer) => Some(answer),
                Err(error) if error.is_revert() => None,
                Err(error) => return Err(error),
            });
        }
        Ok(values)
    }
}

/// Decodes the result of a simulated batch: the code size of each payer, and the result of each payment's call.
fn decode_simulation(answer: &Bytes) -> Option<(Vec<U256>, Vec<Multicall3::Result>)> {
    let mut results = Multicall3::aggregate3Call::abi_decode_returns(answer)
        .ok()?
        .into_iter();
    let codes = results.next().filter(|codes| codes.success)?;
    Some((
        lens::decode_code_sizes(&codes.returnData)?,
        results.collect(),
    ))
}
