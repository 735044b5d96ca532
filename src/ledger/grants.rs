//! Grants and verify leases. A grant records which request is told that a payment succeeded: the goods are given once per payment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::B256;
use uuid::Uuid;

use super::connections::Connections;
use super::error::Unreadable;
use super::quarantine::each_payment;
use super::row::{PaymentRow, select_payments};
use super::{AuthorizationKey, Ledger, LedgerError, ProcessId, sessions};
use crate::payment::{Payment, PaymentId, Session};
use crate::protocol::permit2::PERMIT2;

/// The state of a payment's grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantStatus {
    /// No request holds it, or the answer of the one that held it never arrived: the next request may take it.
    Free,
    /// The request that had the payment accepted waits for it: no other may take it.
    Reserved,
    /// A request holds it; its answer has neither reached the socket nor broken off.
    Open,
    /// The answer has reached the socket of a caller.
    Answered,
}

/// A payment and the state of its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentWithGrant {
    pub payment: Payment,
    pub grant: GrantStatus,
    /// [`GrantRequest::asked_as`] of the request that had the payment accepted.
    pub first_asker: Option<String>,
    /// [`GrantRequest::asked_as`] of the request that was told success.
    pub granted_to: Option<String>,
}

impl PaymentWithGrant {
    /// Whether the request that had the payment accepted was asked under this id.
    pub fn is_first_asker(&self, asked_as: &str) -> bool {
        self.first_asker.as_deref() == Some(asked_as)
    }

    /// The same as the request sees it that was asked under this id: a grant that is reserved for it is free.
    #[must_use]
    pub fn seen_by(mut self, asked_as: &str) -> Self {
        if self.grant == GrantStatus::Reserved && self.is_first_asker(asked_as) {
            self.grant = GrantStatus::Free;
        }
        self
    }
}

/// The request that takes a grant.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// Id of the HTTP request.
    pub request_id: String,
    /// The id that the caller gave its request, or `request_id`. Two requests may have the same one. Nobody else knows it before the payment
    /// is granted.
    pub asked_as: String,
    /// Address of the caller.
    pub caller: String,
}

/// The result of looking up an authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The session whose nonce the authorization uses.
    pub session: Option<Session>,
    /// Its payment with the grant.
    pub payment: Option<PaymentWithGrant>,
}

impl Lookup {
    /// Whether the ledger has neither a payment nor a session for the authorization.
    pub const fn is_new(&self) -> bool {
        self.session.is_none() && self.payment.is_none()
    }

    /// Whether its success was told to a request.
    pub fn was_told(&self) -> bool {
        let payment = self.payment.as_ref();
        payment.is_some_and(|found| found.grant == GrantStatus::Answered)
    }
}

/// The end of a grant.
#[derive(Debug, Clone)]
pub struct Closing {
    pub payment: PaymentId,
    /// Id of the HTTP request that held the grant.
    pub request_id: String,
    /// The answer reached the socket; otherwise the connection broke before, and the grant is void.
    pub answered: bool,
}

/// Looks authorizations up, with a result for each: a row that cannot be read fails only the lookup of its own key.
pub(super) async fn lookup(
    pool: Connections,
    keys: Arc<[AuthorizationKey]>,
) -> Result<Vec<Result<Lookup, LedgerError>>, LedgerError> {
    let nonces: Vec<B256> = keys.iter().map(|key| key.nonce).collect();
    let (sessions, payments) = tokio::try_join!(
        sessions::sessions_of_nonces(&pool, &nonces),
        payments_by_key(&pool, &keys)
    )?;
    let results = keys.iter().map(|key| {
        let mut sessions = sessions.iter();
        let session = sessions.find(|session| session.gave_nonce_to(key));
        let payment = payments.get(&raw_key(key));
        Ok(Lookup {
            session: session.map(|found| found.session.clone()).transpose()?,
            payment: payment.cloned().transpose()?,
        })
    });
    Ok(results.collect())
}

/// Network, nonce domain, payer and nonce as raw column values: a row that cannot be read has them too.
type RawKey = (String, Vec<u8>, Vec<u8>, Vec<u8>);

fn raw_key(key: &AuthorizationKey) -> RawKey {
    (
        key.network.to_string(),
        key.domain.to_vec(),
        key.payer.to_vec(),
        key.nonce.to_vec(),
    )
}

fn raw_key_of_row(row: &PaymentRow) -> RawKey {
    let domain = if row.permitted.is_some() {
        PERMIT2.to_vec()
    } else {
        row.asset.clone()
    };
    let (network, payer) = (row.network.clone(), row.payer.clone());
    (network, domain, payer, row.nonce.clone())
}

async fn payments_by_key(
    pool: &Connections,
    keys: &[AuthorizationKey],
) -> Result<HashMap<RawKey, Result<PaymentWithGrant, Unreadable>>, LedgerError> {
    let networks: Vec<String> = keys.iter().map(|key| key.network.to_string()).collect();
    let domains: Vec<&[u8]> = keys.iter().map(|key| key.domain.as_slice()).collect();
    let payers: Vec<&[u8]> = keys.iter().map(|key| key.payer.as_slice()).collect();
    let nonces: Vec<&[u8]> = keys.iter().map(|key| key.nonce.as_slice()).collect();
    let rows = select_payments!(
        "where p.id = any(array(
            select found.id from unnest($1::text[], $2::bytea[], $3::bytea[], $4::bytea[]) as asked (network, domain, payer, nonce)
            cross join lateral (
                -- Fenced, and by the nonce alone: no plan reads all payments of a payer or a network.
                select id from payments where nonce = asked.nonce
                    and ((network, nonce_domain, payer) = (asked.network, asked.domain, asked.payer)) is true offset 0
            ) found
        ))",
        &networks,
        &domains as _,
        &payers as _,
        &nonces as _,
    )
    .fetch_all(pool)
    .await?;
    let raw_keys: Vec<RawKey> = rows.iter().map(raw_key_of_row).collect();
    let payments = with_grants(pool, rows).await?;
    let payments = payments.into_iter().map(|(_, payment)| payment);
    Ok(raw_keys.into_iter().zip(payments).collect())
}

/// Payments with their grants; all of them must exist. One result for each, as in [`lookup`].
pub(super) async fn payments_with_grants(
    pool: Connections,
    ids: Arc<[PaymentId]>,
) -> Result<Vec<Result<PaymentWithGrant, LedgerError>>, LedgerError> {
    let uuids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = select_payments!("where p.id = any($1)", &uuids)
        .fetch_all(&pool)
        .await?;
    let by_id: HashMap<PaymentId, Result<PaymentWithGrant, Unreadable>> =
        with_grants(&pool, rows).await?.into_iter().collect();
    let results = ids.iter().map(|id| match by_id.get(id) {
        Some(payment) => Ok(payment.clone()?),
        None => Err(LedgerError::Conflict {
            what: "an accepted payment",
        }),
    });
    Ok(results.collect())
}

/// The payments of `rows`, in their order, with their grants.
async fn with_grants(
    pool: &Connections,
    rows: Vec<PaymentRow>,
) -> Result<Vec<(PaymentId, Result<PaymentWithGrant, Unreadable>)>, LedgerError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let found = sqlx::query!(
        r#"select p.id as "id!", p.first_asker, coalesce(g.asked_as, g.request_id) as granted_to, case
            when g.answered_at is not null then 'answered'
            when g.voided_at is null and holder.lease_until >= now() then 'open'
            when first.lease_until >= now() then 'reserved'
            else 'free' end as "status!"
        from payments p
        left join grants g on g.payment_id = p.id
        left join processes holder on holder.id = g.process_id
        left join processes first on first.id = p.first_asker_process
        where p.id = any($1)"#,
        &ids,
    )
    .fetch_all(pool)
    .await?;
    let mut grants: HashMap<Uuid, (GrantStatus, Option<String>, Option<String>)> = found
        .into_iter()
        .map(|row| {
            let (status, granted_to) = match row.status.as_str() {
                "answered" => (GrantStatus::Answered, row.granted_to),
                "open" => (GrantStatus::Open, None),
                "reserved" => (GrantStatus::Reserved, None),
                _ => (GrantStatus::Free, None),
            };
            (row.id, (status, row.first_asker, granted_to))
        })
        .collect();
    let payments = each_payment(pool, rows).await.into_iter();
    let with_grants = payments.map(|(id, payment)| {
        let grant = grants.remove(&id.0);
        let (grant, first_asker, granted_to) = grant.unwrap_or((GrantStatus::Free, None, None));
        let payment = payment.map(|payment| PaymentWithGrant {
            payment,
            grant,
            first_asker,
            granted_to,
        });
        (id, payment)
    });
    Ok(with_grants.collect())
}

/// Takes the grants of payments whose money was transferred, for one request per payment at most. A request that gets the grant gets the
/// payment as of the same statement: between two statements a reorg may change it.
pub(super) async fn grant(
    pool: Connections,
    process: ProcessId,
    asked: Arc<[(PaymentId, GrantRequest)]>,
) -> Result<Vec<Result<Option<Payment>, LedgerError>>, LedgerError> {
    // A statement may touch a row once: of several requests for one payment the first is chosen.
    let mut seen = HashSet::new();
    let firsts: Vec<bool> = asked.iter().map(|(id, _)| seen.insert(*id)).collect();
    let chosen = || asked.iter().zip(&firsts).filter(|(_, first)| **first);
    let ids: Vec<Uuid> = chosen().map(|((id, _), _)| id.0).collect();
    let request_ids: Vec<&str> = chosen()
        .map(|((_, request), _)| request.request_id.as_str())
        .collect();
    let callers: Vec<&str> = chosen()
        .map(|((_, request), _)| request.caller.as_str())
        .collect();
    let asked_as: Vec<&str> = chosen()
        .map(|((_, request), _)| request.asked_as.as_str())
        .collect();
    let rows: Vec<PaymentRow> = select_payments!(
        with "with taken as (
            insert into grants as g (payment_id, process_id, request_id, caller, asked_as)
            select p.id, $2, asked.request_id, asked.caller, asked.asked_as
            from unnest($1::uuid[], $3::text[], $4::text[], $5::text[]) as asked (payment_id, request_id, caller, asked_as)
            cross join lateral (
                -- Fenced: each by its id, never all of a state.
                select id, state, quarantined_at, unmatched_reason, first_asker, first_asker_process
                from payments where id = asked.payment_id offset 0
            ) p
            where p.state in ('settled', 'final', 'late_settled') and p.quarantined_at is null and p.unmatched_reason is null
                and (p.first_asker_process is null or p.first_asker = asked.asked_as or not exists (
                    select from processes first where first.id = p.first_asker_process and first.lease_until >= now()
                ))
            on conflict on constraint grants_one_per_payment do update
            set process_id = excluded.process_id, request_id = excluded.request_id, caller = excluded.caller,
                asked_as = excluded.asked_as, granted_at = now(), voided_at = null
            where g.answered_at is null and (g.voided_at is not null or exists (
                select from processes holder where holder.id = g.process_id and holder.lease_until < now()
            ))
                -- A statement that arrives after its grant was given up takes nothing.
                and g.request_id <> excluded.request_id
            returning payment_id, request_id
        ), told as (
            insert into events (payment_id, kind, reason) select payment_id, 'granted', request_id from taken
        ) ",
        "where p.id = any(array(select payment_id from taken))",
        &ids,
        process.0,
        &request_ids as _,
        &callers as _,
        &asked_as as _,
    )
    .fetch_all(&pool)
    .await?;
    let granted: HashMap<PaymentId, Result<Payment, Unreadable>> =
        each_payment(&pool, rows).await.into_iter().collect();
    let answers = asked.iter().zip(firsts).map(|((id, _), first)| {
        let payment = granted.get(id).filter(|_| first);
        Ok(payment.cloned().transpose()?)
    });
    Ok(answers.collect())
}

/// Closes grants: each as answered, or as void.
pub(super) async fn close(
    pool: Connections,
    process: ProcessId,
    closings: Arc<[Closing]>,
) -> Result<Vec<Result<(), LedgerError>>, LedgerError> {
    let ids: Vec<Uuid> = closings.iter().map(|closing| closing.payment.0).collect();
    let request_ids: Vec<&str> = closings
        .iter()
        .map(|closing| closing.request_id.as_str())
        .collect();
    let answered: Vec<bool> = closings.iter().map(|closing| closing.answered).collect();
    sqlx::query!(
        "with closed as (
            update grants g
            set answered_at = case when c.answered then now() end, voided_at = case when c.answered then null else now() end
            from unnest($1::uuid[], $3::text[], $4::boolean[]) as c (payment_id, request_id, answered)
            where g.payment_id = c.payment_id and g.process_id = $2 and g.request_id = c.request_id
                and g.answered_at is null and g.voided_at is null
            returning g.payment_id, g.request_id, c.answered
        )
        insert into events (payment_id, kind, reason)
        select payment_id, case when answered then 'answered' else 'voided' end, request_id from closed",
        &ids,
        process.0,
        &request_ids as _,
        &answered,
    )
    .execute(&pool)
    .await?;
    Ok(closings.iter().map(|_| Ok(())).collect())
}

impl Ledger {
    /// Voids a grant when this process got no reply to the statement that takes it. Waits for that statement if it still runs; if it
    /// arrives later, the row written here stops it. On an error the grant may be open.
    pub async fn void_lost_grant(
        &self,
        payment: PaymentId,
        request: &GrantRequest,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "with voided as (
                insert into grants as g (payment_id, process_id, request_id, caller, asked_as, voided_at)
                values ($1, $2, $3, $4, $5, now())
                on conflict on constraint grants_one_per_payment do update
                set process_id = excluded.process_id, request_id = excluded.request_id, caller = excluded.caller,
                    asked_as = excluded.asked_as, voided_at = now(),
                    granted_at = case when g.request_id = excluded.request_id then g.granted_at else now() end
                -- A void row of another request would let the late statement in: its place is taken as well.
                where g.answered_at is null and case when g.request_id = excluded.request_id then g.voided_at is null
                    else g.voided_at is not null or exists (
                        select from processes holder where holder.id = g.process_id and holder.lease_until < now()
                    ) end
                returning payment_id, request_id, granted_at
            )
            -- What this statement has written in its own name was never a grant.
            insert into events (payment_id, kind, reason) select payment_id, 'voided', request_id from voided where granted_at <> now()",
            payment.0,
            self.process.0,
            request.request_id,
            request.caller,
            request.asked_as,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Ends the first right of the request that had a payment accepted and waits in this process: others may take the grant. That of a later
    /// request for the same payment, which may have been asked under the same id, stays.
    pub async fn end_first_right(
        &self,
        payment: PaymentId,
        request: &GrantRequest,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "update payments set first_asker_process = null
            where id = $1 and first_asker_process = $2 and first_request = $3",
            payment.0,
            self.process.0,
            request.request_id,
        )
        .execute(&self.granting)
        .await?;
        Ok(())
    }

    /// Takes the short lease of a verify on a payment that is being settled. `false`: another verify holds it.
    pub async fn lease_verify(&self, id: PaymentId, seconds: u32) -> Result<bool, LedgerError> {
        let leased = sqlx::query!(
            "insert into verify_leases as l (payment_id, lease_until) values ($1, now() + make_interval(secs => $2))
            on conflict on constraint verify_leases_one_per_payment do update set lease_until = excluded.lease_until
            where l.lease_until < now()",
            id.0,
            f64::from(seconds),
        )
        .execute(&self.pool)
        .await?;
        Ok(leased.rows_affected() == 1)
    }

    /// Ends the lease of a verify, because its settle has arrived.
    pub async fn end_verify_lease(&self, id: PaymentId) -> Result<(), LedgerError> {
        sqlx::query!("delete from verify_leases where payment_id = $1", id.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
