//! Grants and verify leases: who was told that a payment bought them something.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::B256;
use uuid::Uuid;

use super::connections::Connections;
use super::error::Unreadable;
use super::quarantine::one_by_one;
use super::row::{PaymentRow, select_payments};
use super::{AuthorizationKey, Ledger, LedgerError, ProcessId, sessions};
use crate::payment::{Payment, PaymentId, Session};
use crate::protocol::permit2::PERMIT2;

/// What stands in the ledger about the success answer of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantStatus {
    /// Nobody was told yet, or the one who was never heard it: the next presenter may be told.
    Free,
    /// Somebody is being told right now; the answer has neither arrived nor broken off.
    Undecided,
    /// Somebody was told, and the answer reached their socket.
    Standing,
}

/// A known payment and its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The row.
    pub payment: Payment,
    /// Its grant.
    pub grant: GrantStatus,
}

/// Who asks to be told.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// Id of the HTTP request.
    pub request_id: String,
    /// Address of the caller.
    pub caller: String,
}

/// What the ledger knows about an authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The session that gave it its nonce.
    pub session: Option<Session>,
    /// Its payment.
    pub standing: Option<Standing>,
}

/// What became of the answer that a grant was given with.
#[derive(Debug, Clone)]
pub struct Closing {
    /// Of which payment.
    pub payment: PaymentId,
    /// Id of the HTTP request that held the grant.
    pub request_id: String,
    /// It reached the socket; otherwise it broke off.
    pub answered: bool,
}

/// What is known about authorizations, each by itself: a row that cannot be read concerns only who asks for it.
pub(super) async fn known(
    pool: Connections,
    keys: Arc<[AuthorizationKey]>,
) -> Result<Vec<Result<Known, LedgerError>>, LedgerError> {
    let nonces: Vec<B256> = keys.iter().map(|key| key.nonce).collect();
    let (sessions, standings) = tokio::try_join!(
        sessions::of_nonces(&pool, &nonces),
        standings_by_key(&pool, &keys)
    )?;
    let known = keys.iter().map(|key| {
        let mut sessions = sessions.iter();
        let session = sessions.find(|session| session.gave_its_nonce_to(key));
        let standing = standings.get(&raw_key(key));
        Ok(Known {
            session: session.map(|found| found.session.clone()).transpose()?,
            standing: standing.cloned().transpose()?,
        })
    });
    Ok(known.collect())
}

/// Network, nonce domain, payer and nonce as they stand in columns: a row that cannot be read has them too.
type RawKey = (String, Vec<u8>, Vec<u8>, Vec<u8>);

fn raw_key(key: &AuthorizationKey) -> RawKey {
    (
        key.network.to_string(),
        key.domain.to_vec(),
        key.payer.to_vec(),
        key.nonce.to_vec(),
    )
}

fn raw_key_of(row: &PaymentRow) -> RawKey {
    let domain = if row.permitted.is_some() {
        PERMIT2.to_vec()
    } else {
        row.asset.clone()
    };
    let (network, payer) = (row.network.clone(), row.payer.clone());
    (network, domain, payer, row.nonce.clone())
}

async fn standings_by_key(
    pool: &Connections,
    keys: &[AuthorizationKey],
) -> Result<HashMap<RawKey, Result<Standing, Unreadable>>, LedgerError> {
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
    let raw_keys: Vec<RawKey> = rows.iter().map(raw_key_of).collect();
    let standings = with_grants(pool, rows).await?;
    let standings = standings.into_iter().map(|(_, standing)| standing);
    Ok(raw_keys.into_iter().zip(standings).collect())
}

/// Payments and their grants; all of them must exist. Each by itself, like [`known`].
pub(super) async fn standings(
    pool: Connections,
    ids: Arc<[PaymentId]>,
) -> Result<Vec<Result<Standing, LedgerError>>, LedgerError> {
    let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = select_payments!("where p.id = any($1)", &wanted)
        .fetch_all(&pool)
        .await?;
    let by_id: HashMap<PaymentId, Result<Standing, Unreadable>> =
        with_grants(&pool, rows).await?.into_iter().collect();
    let found = ids.iter().map(|id| match by_id.get(id) {
        Some(standing) => Ok(standing.clone()?),
        None => Err(LedgerError::Conflict {
            what: "a payment that was accepted",
        }),
    });
    Ok(found.collect())
}

/// The payments of `rows`, in their order, with their grants.
async fn with_grants(
    pool: &Connections,
    rows: Vec<PaymentRow>,
) -> Result<Vec<(PaymentId, Result<Standing, Unreadable>)>, LedgerError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let granted = sqlx::query!(
        r#"select g.payment_id, case
            when g.answered_at is not null then 'standing'
            when g.voided_at is not null or holder.lease_until < now() then 'free'
            else 'undecided' end as "status!"
        from grants g join processes holder on holder.id = g.process_id
        where g.payment_id = any($1)"#,
        &ids,
    )
    .fetch_all(pool)
    .await?;
    let granted: HashMap<Uuid, GrantStatus> = granted
        .into_iter()
        .map(|row| {
            let status = match row.status.as_str() {
                "standing" => GrantStatus::Standing,
                "undecided" => GrantStatus::Undecided,
                _ => GrantStatus::Free,
            };
            (row.payment_id, status)
        })
        .collect();
    let payments = one_by_one(pool, rows).await.into_iter();
    let standings = payments.map(|(id, payment)| {
        let grant = granted.get(&id.0).copied().unwrap_or(GrantStatus::Free);
        (id, payment.map(|payment| Standing { payment, grant }))
    });
    Ok(standings.collect())
}

/// Takes the grants of payments whose money has moved, one asker a payment at most; who gets it, gets the row to answer from, as of the same
/// moment: a payment may move again between two statements.
pub(super) async fn grant(
    pool: Connections,
    process: ProcessId,
    asked: Arc<[(PaymentId, GrantRequest)]>,
) -> Result<Vec<Result<Option<Payment>, LedgerError>>, LedgerError> {
    // A statement may touch a row once: of several askers for one payment the first is taken.
    let mut taken = HashSet::new();
    let firsts: Vec<bool> = asked.iter().map(|(id, _)| taken.insert(*id)).collect();
    let chosen = || asked.iter().zip(&firsts).filter(|(_, first)| **first);
    let ids: Vec<Uuid> = chosen().map(|((id, _), _)| id.0).collect();
    let request_ids: Vec<&str> = chosen()
        .map(|((_, request), _)| request.request_id.as_str())
        .collect();
    let callers: Vec<&str> = chosen()
        .map(|((_, request), _)| request.caller.as_str())
        .collect();
    let rows: Vec<PaymentRow> = select_payments!(
        with "with taken as (
            insert into grants as g (payment_id, process_id, request_id, caller)
            select p.id, $2, asked.request_id, asked.caller
            from unnest($1::uuid[], $3::text[], $4::text[]) as asked (payment_id, request_id, caller)
            cross join lateral (
                -- Fenced: each by its id, never all of a state.
                select id, state, quarantined_at, unmatched_reason from payments where id = asked.payment_id offset 0
            ) p
            where p.state in ('settled', 'final', 'late_settled') and p.quarantined_at is null and p.unmatched_reason is null
            on conflict on constraint grants_one_per_payment do update
            set process_id = excluded.process_id, request_id = excluded.request_id, caller = excluded.caller,
                granted_at = now(), voided_at = null
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
    )
    .fetch_all(&pool)
    .await?;
    let granted: HashMap<PaymentId, Result<Payment, Unreadable>> =
        one_by_one(&pool, rows).await.into_iter().collect();
    let answers = asked.iter().zip(firsts).map(|((id, _), first)| {
        let payment = granted.get(id).filter(|_| first);
        Ok(payment.cloned().transpose()?)
    });
    Ok(answers.collect())
}

/// Records what became of answers.
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
    /// Voids a grant that this process asked for and got no answer about. It waits for a statement that is still taking it, and leaves a
    /// row by which one that arrives later takes nothing.
    ///
    /// # Errors
    /// When the database fails; the grant may then be open.
    pub async fn void_lost_grant(
        &self,
        payment: PaymentId,
        request: &GrantRequest,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "with voided as (
                insert into grants as g (payment_id, process_id, request_id, caller, voided_at) values ($1, $2, $3, $4, now())
                on conflict on constraint grants_one_per_payment do update set voided_at = now()
                where g.process_id = excluded.process_id and g.request_id = excluded.request_id
                    and g.answered_at is null and g.voided_at is null
                returning payment_id, request_id, granted_at
            )
            -- A row of this statement's own was never a grant.
            insert into events (payment_id, kind, reason) select payment_id, 'voided', request_id from voided where granted_at < now()",
            payment.0,
            self.process.0,
            request.request_id,
            request.caller,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes the short lease of a verify over a payment that is under way. `false`: another verify holds it.
    ///
    /// # Errors
    /// When the database fails.
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

    /// Ends the lease of a verify: its settle has come.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_verify_lease(&self, id: PaymentId) -> Result<(), LedgerError> {
        sqlx::query!("delete from verify_leases where payment_id = $1", id.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
