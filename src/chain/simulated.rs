//! Simulations that look like the transactions which they stand for.

use alloy::primitives::{Address, Bytes, U64, U128, U256};
use serde_json::{Map, Value, json};

use crate::chain::{Fees, Rpc, RpcResult};

/// Who sends a simulated transaction, and at which price: a contract that looks at them sees what it will see in the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedSender {
    pub address: Address,
    pub fees: Fees,
}

impl SimulatedSender {
    /// Adds the sender to a call, and the balance for its gas to the overrides of the state.
    pub(super) fn add_to(self, call: &mut Value, overrides: &mut Map<String, Value>) {
        call["from"] = json!(self.address);
        add_fees(call, self.fees);
        let account = overrides
            .entry(self.address.to_string())
            .or_insert_with(|| json!({}));
        account["balance"] = json!(U256::from(u128::MAX));
    }
}

/// Adds fees to a call.
fn add_fees(call: &mut Value, fees: Fees) {
    if fees.legacy {
        call["gasPrice"] = json!(U128::from(fees.max_fee_wei));
    } else {
        call["maxFeePerGas"] = json!(U128::from(fees.max_fee_wei));
        call["maxPriorityFeePerGas"] = json!(U128::from(fees.max_priority_fee_wei));
    }
}

impl Rpc {
    /// Whether a call would succeed in a transaction of `from` with `gas_limit` and `fees`, on the newest state.
    pub async fn would_succeed(
        &self,
        from: Address,
        (to, data): (Address, &Bytes),
        gas_limit: u64,
        fees: Option<Fees>,
    ) -> RpcResult<bool> {
        let gas = U64::from(gas_limit);
        let mut call = json!({"from": from, "to": to, "data": data, "gas": gas});
        if let Some(fees) = fees {
            add_fees(&mut call, fees);
        }
        self.succeeds(call).await
    }
}
