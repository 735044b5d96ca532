//! Signed transactions of payers, looked at before they are written: one that no block can take would be sent and looked for in vain until
//! its session ends.

use alloy::primitives::{B256, U256};

use crate::chain::transfer::SignedTransfer;
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::payment::Session;
use crate::protocol::{Reason, Rejection};
use crate::settlement::ServedNetwork;

impl Facilitator {
    /// Checks that the next blocks can take a payer's transaction. What the chain is asked takes one round trip. One that is in a block
    /// already passes.
    ///
    /// # Errors
    /// [`Reason::TransferUnmineable`] with what to do, or an unavailable endpoint.
    pub(super) async fn check_mineable(
        &self,
        served: &ServedNetwork,
        session: &Session,
        signed: &SignedTransfer,
    ) -> Result<(), Error> {
        let network = served.policy.network;
        if !served.is_open() {
            return Err(Unavailable::NetworkStarting(network).into());
        }
        check_fee(served, signed)?;
        let (transfer, rpc) = (&signed.transfer, &served.caller_rpc);
        let payer = session.payer;
        let call = (session.asset, &transfer.input);
        let (succeeds, wei, mined, pending) = tokio::try_join!(
            rpc.would_succeed(payer, call, signed.gas_limit, None),
            rpc.balance(payer),
            rpc.transaction_count(payer, "latest"),
            rpc.transaction_count(payer, "pending"),
        )?;
        let nonce = transfer.account_nonce;
        if nonce < mined {
            return self
                .check_mined(served, transfer.hash, (nonce, mined))
                .await;
        }
        if nonce > pending {
            return unmineable(&format!(
                "its account nonce is {nonce}, but the next one of {payer} is {pending}; sign it with {pending}, or send the transactions before it first"
            ));
        }
        let cost = U256::from(signed.gas_limit) * U256::from(signed.max_fee_wei);
        if wei < cost {
            return unmineable(&format!(
                "{payer} has {wei} wei, its gas may cost {cost} wei (gas limit {} at {} wei); fund the account, or pay on rail authorization, where the facilitator pays the gas",
                signed.gas_limit, signed.max_fee_wei
            ));
        }
        if !succeeds {
            return unmineable(&format!(
                "simulated with its gas limit of {}, it fails: expected {payer} to hold {} of the token {}, a token that lets it pay, and enough gas",
                signed.gas_limit, session.amount, session.asset
            ));
        }
        Ok(())
    }

    /// The account nonce is used: by this very transaction, or by another one.
    async fn check_mined(
        &self,
        served: &ServedNetwork,
        transaction: B256,
        (nonce, next): (u64, u64),
    ) -> Result<(), Error> {
        if served.caller_rpc.transfer(transaction).await?.is_some() {
            return Ok(());
        }
        unmineable(&format!(
            "its account nonce is {nonce}, which another transaction has used; sign it with {next}"
        ))
    }
}

fn check_fee(served: &ServedNetwork, signed: &SignedTransfer) -> Result<(), Error> {
    let base = served.view.head().and_then(|head| head.base_fee_wei);
    let Some(base) = base.filter(|base| signed.max_fee_wei < *base) else {
        return Ok(());
    };
    unmineable(&format!(
        "it pays at most {} wei per gas, and blocks cost {base} wei now; sign it with a higher fee",
        signed.max_fee_wei
    ))
}

fn unmineable(why: &str) -> Result<(), Error> {
    let why = format!("no block can take the transaction: {why}. Nothing was sent");
    Err(Rejection::new(Reason::TransferUnmineable, why).into())
}
