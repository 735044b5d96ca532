//! Foreign nonce use: nonces of our signers that another program has used with the same key.

use alloy::primitives::B256;
use uuid::Uuid;

use super::budgets::recount;
use super::connections::Connection;
use super::row::bigint;
use super::{LaneKey, LaneLease, Ledger, LedgerError};
use crate::payment::PaymentId;

/// A lane stops at this number of foreign uses within an hour. Nonces found within two minutes count as one use: an approval, a swap and a
/// transfer of one person come in consecutive blocks.
const USES_PER_HOUR_MAX: i64 = 3;

/// A nonce that a foreign transaction has used, with the promised confirmations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignNonce {
    pub nonce: u64,
    /// The foreign transaction, if an endpoint has shown it.
    pub transaction: Option<B256>,
}

/// The result of giving up nonces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoncesLost {
    /// The payments of these nonces, queued again.
    pub payments: Vec<PaymentId>,
    /// The lane's next nonce.
    pub next_nonce: u64,
    /// Number of foreign uses within the last hour, including this one.
    pub times: i64,
    /// Why the lane is stopped, if it is.
    pub stopped: Option<String>,
}

impl Ledger {
    /// Gives up nonces that foreign transactions have used: their payments are queued again, and the lane continues at `chain_nonce`,
    /// which has the promised confirmations, or at its own next nonce if that is higher. The third use within an hour stops the lane.
    /// `None`: this process does not own the lane any more, and nothing was written. On an error nothing was written either.
    pub async fn lose_nonces(
        &self,
        lane: LaneKey,
        lease: LaneLease,
        foreign: &[ForeignNonce],
        chain_nonce: u64,
    ) -> Result<Option<NoncesLost>, LedgerError> {
        let (network, signer) = (lane.network.to_string(), lane.signer.as_slice());
        let nonces: Vec<i64> = foreign.iter().map(|one| bigint(one.nonce)).collect();
        let hashes = foreign.iter().map(|one| one.transaction);
        // An unknown hash is passed as no bytes, which the statement turns into null.
        let hashes = hashes.map(|hash| hash.map(|hash| hash.to_vec()).unwrap_or_default());
        let hashes: Vec<Vec<u8>> = hashes.collect();
        let mut transaction = self.engine.begin().await?;
        let owned = sqlx::query!(
            "select epoch from lanes where network = $1 and signer = $2 and owner = $3 and epoch = $4 for update",
            network,
            signer,
            self.process().0,
            lease.epoch,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if owned.is_none() {
            return Ok(None);
        }
        sqlx::query!(
            r#"insert into foreign_nonces (network, signer, nonce, transaction_hash)
            select $1, $2, nonce, nullif(hash, ''::bytea) from unnest($3::bigint[], $4::bytea[]) as used (nonce, hash)
            on conflict on constraint foreign_nonces_pkey do nothing"#,
            network,
            signer,
            &nonces,
            &hashes,
        )
        .execute(&mut *transaction)
        .await?;
        let payments = requeue(&mut transaction, (&network, signer), &nonces).await?;
        let last = foreign.last().map(use_in_words).unwrap_or_default();
        let row = sqlx::query!(
            r#"with recursive uses as (
                select min(found_at) as began from foreign_nonces
                where network = $1 and signer = $2 and found_at > now() - interval '1 hour'
                union all
                select (
                    select min(found_at) from foreign_nonces
                    where network = $1 and signer = $2 and found_at > uses.began + interval '2 minutes'
                ) from uses where uses.began is not null
            ), counted as (
                select count(began) as times from uses
            )
            update lanes set next_nonce = greatest(next_nonce, $3),
                stopped_reason = case when counted.times >= $4 then coalesce(stopped_reason, $5) else stopped_reason end
            from counted where network = $1 and signer = $2
            returning next_nonce, stopped_reason, counted.times as "times!""#,
            network,
            signer,
            bigint(chain_nonce),
            USES_PER_HOUR_MAX,
            format!("{last}; the key was used elsewhere {USES_PER_HOUR_MAX} times within an hour"),
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some(NoncesLost {
            payments,
            next_nonce: u64::try_from(row.next_nonce).unwrap_or_default(),
            times: row.times,
            stopped: row.stopped_reason,
        }))
    }
}

/// Queues the payments of these nonces again. Their fundings are deleted, so that gas money that was not sent can be sent again.
async fn requeue(
    connection: &mut Connection,
    (network, signer): (&str, &[u8]),
    nonces: &[i64],
) -> Result<Vec<PaymentId>, LedgerError> {
    let lost: Vec<Uuid> = sqlx::query_scalar!(
        "update transactions set state = 'lost'
        where network = $1 and signer = $2 and nonce = any($3) and state = 'signed' returning id",
        network,
        signer,
        nonces,
    )
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query!("delete from fundings where transaction_id = any($1)", &lost)
        .execute(&mut *connection)
        .await?;
    let carried = sqlx::query_scalar!(
        "update transaction_payments set outcome = 'without_effect'
        where transaction_id = any($1) and outcome is null returning payment_id",
        &lost,
    )
    .fetch_all(&mut *connection)
    .await?;
    let queued = sqlx::query_scalar!(
        "update payments set state = 'queued', transaction_hash = null, queued_at = now(), queued_by = null
        where id = any($1) and state = 'inflight' returning id",
        &carried,
    )
    .fetch_all(&mut *connection)
    .await?;
    recount(connection, &lost, (0, -1)).await?;
    Ok(queued.into_iter().map(PaymentId).collect())
}

fn use_in_words(foreign: &ForeignNonce) -> String {
    let nonce = foreign.nonce;
    match foreign.transaction {
        Some(hash) => {
            format!("nonce {nonce} of this signer was used by the foreign transaction {hash}")
        }
        None => {
            format!("nonce {nonce} of this signer was used by a foreign transaction")
        }
    }
}

#[cfg(test)]
mod tests;
