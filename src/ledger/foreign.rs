//! Nonces of our signers that somebody else has used with the same key.

use alloy::primitives::B256;
use uuid::Uuid;

use super::connections::Connection;
use super::row::bigint;
use super::{LaneKey, LaneLease, Ledger, LedgerError};
use crate::payment::PaymentId;

/// So many times within an hour a key may be used elsewhere; then its lane stops. What is found within two minutes is one use: an approval,
/// a swap and a transfer are settled block by block.
const TIMES_MAX: i64 = 3;

/// A nonce that a transaction of somebody else has used for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignNonce {
    /// Which.
    pub nonce: u64,
    /// The transaction, where an endpoint could show it.
    pub transaction: Option<B256>,
}

/// What followed from foreign nonces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoncesLost {
    /// What rode in them, queued again.
    pub payments: Vec<PaymentId>,
    /// Where the lane goes on.
    pub next_nonce: u64,
    /// How often that happened within an hour, this time included.
    pub times: i64,
    /// Why the lane stops now, if it does.
    pub stopped: Option<String>,
}

impl Ledger {
    /// Gives up nonces that somebody else has used for good: what rode in them is queued again, and the lane goes on from `chain_nonce`, which
    /// is settled at the promised confirmations, or from its own next nonce if that is higher. The third time within an hour it stops. `None`:
    /// the lane is another process's now, and nothing was written.
    ///
    /// # Errors
    /// When the database fails; nothing is given up then.
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
        // Without bytes where it is not known.
        let hashes = hashes.map(|hash| hash.map(|hash| hash.to_vec()).unwrap_or_default());
        let hashes: Vec<Vec<u8>> = hashes.collect();
        let mut losing = self.engine.begin().await?;
        let owned = sqlx::query!(
            "select epoch from lanes where network = $1 and signer = $2 and owner = $3 and epoch = $4 for update",
            network,
            signer,
            self.process().0,
            lease.epoch,
        )
        .fetch_optional(&mut *losing)
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
        .execute(&mut *losing)
        .await?;
        let payments = requeue(&mut losing, (&network, signer), &nonces).await?;
        let last = foreign.last().map(said).unwrap_or_default();
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
            TIMES_MAX,
            format!("{last}: the key is used elsewhere, {TIMES_MAX} times within an hour"),
        )
        .fetch_one(&mut *losing)
        .await?;
        losing.commit().await?;
        Ok(Some(NoncesLost {
            payments,
            next_nonce: u64::try_from(row.next_nonce).unwrap_or_default(),
            times: row.times,
            stopped: row.stopped_reason,
        }))
    }
}

/// Queues again what rode in these nonces. Gas money that was not given can be given again.
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
    let rode = sqlx::query_scalar!(
        "update transaction_payments set outcome = 'without_effect'
        where transaction_id = any($1) and outcome is null returning payment_id",
        &lost,
    )
    .fetch_all(&mut *connection)
    .await?;
    let queued = sqlx::query_scalar!(
        "update payments set state = 'queued', transaction_hash = null, queued_at = now(), queued_by = null
        where id = any($1) and state = 'inflight' returning id",
        &rode,
    )
    .fetch_all(&mut *connection)
    .await?;
    Ok(queued.into_iter().map(PaymentId).collect())
}

fn said(foreign: &ForeignNonce) -> String {
    let nonce = foreign.nonce;
    match foreign.transaction {
        Some(hash) => {
            format!("nonce {nonce} of this signer was used by {hash}, which is not x402d's")
        }
        None => {
            format!("nonce {nonce} of this signer was used by a transaction that is not x402d's")
        }
    }
}
