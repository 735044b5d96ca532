//! Payments that were turned away before they were accepted. Kept for days, so that an operator can say why a buyer could not pay.

use alloy::primitives::Address;
use time::OffsetDateTime;
use uuid::Uuid;

use super::history::address_columns;
use super::row::shown_address;
use super::{Ledger, LedgerError};
use crate::payment::{KeyId, Who};
use crate::protocol::{Amount, Network};

/// Refusals that are kept, at most; the oldest are deleted first.
const KEPT_MAX: i64 = 100_000;
/// Refusals that one statement deletes, at most.
const DELETED_MAX: i64 = 1_000;

/// What a payment that is turned away was to be, as far as it could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefusedPayment {
    pub network: Option<Network>,
    pub payer: Option<Address>,
    pub payee: Option<Address>,
    /// The token.
    pub asset: Option<Address>,
    pub amount: Option<Amount>,
}

/// A refusal, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRefusal {
    /// UUID v7, so that ids are in the order of time.
    pub id: Uuid,
    pub at: OffsetDateTime,
    /// The id of the request in the log.
    pub request_id: String,
    /// The call that was refused.
    pub endpoint: &'static str,
    pub code: &'static str,
    pub message: String,
    pub payment: RefusedPayment,
    pub caller: Who,
}

/// A recorded refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub id: Uuid,
    pub at: OffsetDateTime,
    pub request_id: String,
    pub endpoint: String,
    pub code: String,
    pub message: String,
    /// CAIP-2.
    pub network: Option<String>,
    pub payer: Option<String>,
    pub payee: Option<String>,
    pub asset: Option<String>,
    /// In atomic units.
    pub amount: Option<String>,
    /// Whose request it was: the id of a key, `operator` or `anonymous`.
    pub caller: String,
    /// The name of that key, if the reader may know it.
    pub key_name: Option<String>,
}

/// Selects refusals. A field that is `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct RefusalFilter {
    pub code: Option<String>,
    pub payer: Option<Address>,
    pub payee: Option<Address>,
    /// At this time or later.
    pub from: Option<OffsetDateTime>,
    /// Before this time.
    pub to: Option<OffsetDateTime>,
    /// Of payments to these payees, or by requests with this key: what the holder of the key may see.
    pub seen_by: Option<(Vec<Address>, KeyId)>,
}

impl Ledger {
    /// Records refusals, and returns how many of them can never be. One that is recorded already is left as it is.
    pub async fn record_refusals(&self, refusals: &[NewRefusal]) -> Result<u64, LedgerError> {
        match self.insert_refusals(refusals).await {
            Ok(()) => return Ok(0),
            Err(error) if error.concerns_one_row() => {}
            Err(error) => return Err(error),
        }
        let mut unwritable = 0;
        for one in refusals {
            match self.insert_refusals(std::slice::from_ref(one)).await {
                Ok(()) => {}
                Err(error) if error.concerns_one_row() => unwritable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(unwritable)
    }

    async fn insert_refusals(&self, refusals: &[NewRefusal]) -> Result<(), LedgerError> {
        let address = |of: fn(&RefusedPayment) -> Option<Address>| {
            let values = refusals.iter().map(|refusal| of(&refusal.payment));
            let values = values.map(|address| address.map(|address| address.to_vec()));
            values.collect::<Vec<Option<Vec<u8>>>>()
        };
        let text = |of: fn(&NewRefusal) -> Option<String>| {
            let values = refusals.iter().map(of);
            values.collect::<Vec<Option<String>>>()
        };
        let ids: Vec<Uuid> = refusals.iter().map(|refusal| refusal.id).collect();
        let times: Vec<OffsetDateTime> = refusals.iter().map(|refusal| refusal.at).collect();
        sqlx::query!(
            "insert into refusals (id, at, request_id, endpoint, code, message, network, payer, payee, asset, amount, caller)
            select id, at, request_id, endpoint, code, message, network, payer, payee, asset, amount::numeric, caller
            from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[],
                $9::bytea[], $10::bytea[], $11::text[], $12::text[])
                as new (id, at, request_id, endpoint, code, message, network, payer, payee, asset, amount, caller)
            on conflict on constraint refusals_pkey do nothing",
            &ids,
            &times,
            &text(|refusal| Some(refusal.request_id.clone())) as _,
            &text(|refusal| Some(refusal.endpoint.to_owned())) as _,
            &text(|refusal| Some(refusal.code.to_owned())) as _,
            &text(|refusal| Some(refusal.message.clone())) as _,
            &text(|refusal| Some(refusal.payment.network?.to_string())) as _,
            &address(|payment| payment.payer) as _,
            &address(|payment| payment.payee) as _,
            &address(|payment| payment.asset) as _,
            &text(|refusal| Some(refusal.payment.amount?.to_string())) as _,
            &text(|refusal| Some(refusal.caller.to_string())) as _,
        )
        .execute(&self.history)
        .await?;
        Ok(())
    }

    /// One page of the refusals, newest first: at most `limit` behind `after`.
    pub async fn refusals(
        &self,
        filter: &RefusalFilter,
        (after, limit): (Option<Uuid>, u16),
    ) -> Result<Vec<Refusal>, LedgerError> {
        let seen_by = filter.seen_by.as_ref();
        let (payees, key) = seen_by.map(|(payees, key)| (payees, key)).unzip();
        let rows = sqlx::query!(
            r#"select r.id, r.at, r.request_id, r.endpoint, r.code, r.message, r.network, r.payer, r.payee, r.asset,
                r.amount::text as amount, r.caller,
                -- A seller is not told the operator's names for others.
                case when $7::text is null or r.caller = $7 then k.name end as key_name
            from refusals r left join keys k on k.id = r.caller
            where ($1::text is null or r.code = $1) and ($2::bytea is null or r.payer = $2) and ($3::bytea is null or r.payee = $3)
                and ($4::timestamptz is null or r.at >= $4) and ($5::timestamptz is null or r.at < $5)
                and ($7::text is null or r.payee = any($6::bytea[]) or r.caller = $7)
                and ($8::uuid is null or r.id < $8)
            order by r.id desc limit $9"#,
            filter.code,
            filter.payer.as_ref().map(|address| address.as_slice()),
            filter.payee.as_ref().map(|address| address.as_slice()),
            filter.from,
            filter.to,
            payees.map(|payees| address_columns(payees)) as _,
            key.map(KeyId::as_str),
            after,
            i64::from(limit),
        )
        .fetch_all(&self.history)
        .await?;
        let shown = |bytes: Option<Vec<u8>>| bytes.map(|bytes| shown_address(&bytes));
        let refusals = rows.into_iter().map(|row| Refusal {
            id: row.id,
            at: row.at,
            request_id: row.request_id,
            endpoint: row.endpoint,
            code: row.code,
            message: row.message,
            network: row.network,
            payer: shown(row.payer),
            payee: shown(row.payee),
            asset: shown(row.asset),
            amount: row.amount,
            caller: row.caller,
            key_name: row.key_name,
        });
        Ok(refusals.collect())
    }

    /// Deletes a group of refusals that are older than seven days, or more than are kept. `false`: there are no more of them.
    pub async fn forget_refusals(&self) -> Result<bool, LedgerError> {
        let deleted = sqlx::query!(
            "delete from refusals where id = any(array(
                select id from refusals
                where at < now() - interval '7 days' or id <= (select id from refusals order by id desc offset $1 limit 1)
                order by id limit $2
            ))",
            KEPT_MAX,
            DELETED_MAX,
        )
        .execute(&self.history)
        .await?;
        Ok(i64::try_from(deleted.rows_affected()).is_ok_and(|deleted| deleted == DELETED_MAX))
    }
}

#[cfg(test)]
mod tests;
