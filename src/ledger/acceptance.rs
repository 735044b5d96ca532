//! Acceptance: a verified payment becomes a row, and its amount counts as promised by the payer.
//!
//! The payer's account row ([`super::accounts`]) is locked first, so that acceptances of one payer wait for each other. The promised
//! amount is the sum of the payer's payments that may still move money. The triggers of `payments` maintain it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::U256;
use time::OffsetDateTime;

use super::accounts::{Account, AccountKey, count_promises, lock};
use super::connections::{Connection, Connections};
use super::row::{address, allowance_columns, hash};
use super::undecided::record_foreign_transfer;
use super::{AuthorizationKey, GrantRequest, Ledger, LedgerError, ProcessId};
use crate::payment::{
    Candidate, Location, Payment, PaymentId, PaymentState, PaymentTerms, Verified, Who,
};
use crate::protocol::session::Rail;

/// A payment that is about to be accepted.
#[derive(Debug, Clone)]
pub struct NewPayment {
    pub id: PaymentId,
    /// The checked payment, with the balance that it was checked against.
    pub verified: Verified,
    /// Confirmations that are promised.
    pub confirmations: u32,
    /// Claimed by this process, whose lane takes it from memory. Otherwise a process that owns a lane claims it from the ledger.
    pub claimed: bool,
    /// The request to settle that has it accepted and waits in this process.
    pub first_asker: Option<GrantRequest>,
    /// Whose `/settle` it is; `None`: it came otherwise.
    pub caller: Option<Who>,
}

/// The result of an acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// A new row: queued, or settled at once because its amount is zero.
    New(Box<Payment>),
    /// The authorization has a row already.
    AlreadyAccepted,
    /// The payer has promised more than is left of its balance.
    InsufficientBalance {
        /// Atomic units promised to payments that may still move money.
        held: U256,
    },
    /// The payer has promised more than is left of what Permit2 may take.
    InsufficientAllowance {
        /// Atomic units promised to payments by Permit2 that may still move money.
        promised: U256,
    },
    /// The balance was read at a block before the payer's latest settled payment: read it again.
    Stale,
}

impl NewPayment {
    fn key(&self) -> AuthorizationKey {
        (&self.verified.candidate().terms).into()
    }
}

/// Accepts payments in one commit.
pub(super) async fn accept(
    pool: Connections,
    process: ProcessId,
    new: Arc<[NewPayment]>,
) -> Result<Vec<Result<Accepted, LedgerError>>, LedgerError> {
    let mut transaction = pool.begin().await?;
    let mut accounts = lock(&mut transaction, payers(&new)).await?;
    count_promises(&mut transaction, &new, &mut accounts).await?;
    let mut obstacles = find_obstacles(&new, &accounts, &HashSet::new());
    if obstacles.iter().any(Option::is_some) {
        // A payment that was accepted before counts in `held` already, and must not be refused because of its own amount.
        let known = already_accepted(&mut transaction, &new).await?;
        obstacles = find_obstacles(&new, &accounts, &known);
    }
    let rows: Vec<Row<'_>> = new
        .iter()
        .zip(&obstacles)
        .filter(|(_, obstacle)| obstacle.is_none())
        .map(|(new, _)| new.into())
        .collect();
    let inserted = insert(&mut transaction, process, &rows).await?;
    transaction.commit().await?;
    let answers = new.iter().zip(obstacles).map(|(new, obstacle)| {
        obstacle.unwrap_or_else(|| match inserted.get(&new.id) {
            Some(at) => Accepted::New(Box::new(accepted_payment(new, *at))),
            None => Accepted::AlreadyAccepted,
        })
    });
    Ok(answers.map(Ok).collect())
}

fn payers(new: &[NewPayment]) -> Vec<AccountKey> {
    new.iter()
        .map(|new| (&new.verified.candidate().terms).into())
        .collect()
}

/// Checks each payment against its payer's account, in order of arrival: what fits counts as promised for the next ones. `None` for a
/// payment that fits, else its answer.
fn find_obstacles(
    new: &[NewPayment],
    accounts: &HashMap<AccountKey, Account>,
    known: &HashSet<AuthorizationKey>,
) -> Vec<Option<Accepted>> {
    let mut accounts = accounts.clone();
    let mut seen = known.clone();
    let obstacles = new.iter().map(|new| {
        if seen.contains(&new.key()) {
            return Some(Accepted::AlreadyAccepted);
        }
        let account = accounts.get_mut(&AccountKey::from(&new.verified.candidate().terms));
        let Some(account) = account else {
            return Some(Accepted::Stale);
        };
        let obstacle = promise(account, &new.verified);
        if obstacle.is_none() {
            seen.insert(new.key());
        }
        obstacle
    });
    obstacles.collect()
}

/// Counts a payment as promised, or returns why it does not fit.
fn promise(account: &mut Account, verified: &Verified) -> Option<Accepted> {
    if verified.facts().block_number < account.settled_block {
        return Some(Accepted::Stale);
    }
    let value = verified.candidate().terms.value.atomic();
    let held = account.held.saturating_add(value);
    // A token that reports no balance: the transfer was simulated, and nothing more can be checked.
    if verified
        .facts()
        .balance
        .is_some_and(|balance| held > balance)
    {
        return Some(Accepted::InsufficientBalance { held: account.held });
    }
    if let Some(allowance) = verified.allowance() {
        let promised = account.at_permit2.saturating_add(value);
        // An EIP-2612 permit allows exactly its own payment. The payer's next permit is valid only after this one.
        let first = verified.candidate().has_token_permit() && account.at_permit2.is_zero();
        if promised > allowance && !first {
            return Some(Accepted::InsufficientAllowance {
                promised: account.at_permit2,
            });
        }
        account.at_permit2 = promised;
    }
    account.held = held;
    None
}

/// Which of the payments have a row already.
async fn already_accepted(
    connection: &mut Connection,
    new: &[NewPayment],
) -> Result<HashSet<AuthorizationKey>, LedgerError> {
    let keys: Vec<AuthorizationKey> = new.iter().map(NewPayment::key).collect();
    let networks: Vec<String> = keys.iter().map(|key| key.network.to_string()).collect();
    let domains: Vec<&[u8]> = keys.iter().map(|key| key.domain.as_slice()).collect();
    let payers: Vec<&[u8]> = keys.iter().map(|key| key.payer.as_slice()).collect();
    let nonces: Vec<&[u8]> = keys.iter().map(|key| key.nonce.as_slice()).collect();
    let rows = sqlx::query!(
        "select p.network, p.nonce_domain, p.payer, p.nonce
        from unnest($1::text[], $2::bytea[], $3::bytea[], $4::bytea[]) as asked (network, domain, payer, nonce)
        cross join lateral (
            -- Fenced, and by the nonce alone: no plan reads all payments of a payer or a network.
            select network, nonce_domain, payer, nonce from payments where nonce = asked.nonce
                and ((network, nonce_domain, payer) = (asked.network, asked.domain, asked.payer)) is true offset 0
        ) p",
        &networks,
        &domains as _,
        &payers as _,
        &nonces as _,
    )
    .fetch_all(connection)
    .await?;
    let keys = rows.iter().filter_map(|row| {
        Some(AuthorizationKey {
            network: row.network.parse().ok()?,
            domain: address(&row.nonce_domain)?,
            payer: address(&row.payer)?,
            nonce: hash(&row.nonce)?,
        })
    });
    Ok(keys.collect())
}

/// A row to insert.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    id: PaymentId,
    candidate: &'a Candidate,
    confirmations: u32,
    claimed: bool,
    first_asker: Option<&'a GrantRequest>,
    caller: Option<&'a Who>,
}

impl<'a> From<&'a NewPayment> for Row<'a> {
    fn from(new: &'a NewPayment) -> Self {
        Self {
            id: new.id,
            candidate: new.verified.candidate(),
            confirmations: new.confirmations,
            claimed: new.claimed,
            first_asker: new.first_asker.as_ref(),
            caller: new.caller.as_ref(),
        }
    }
}

/// The values of one column for all rows.
fn each<'a, T>(new: &[Row<'a>], of: impl Fn(&Row<'a>) -> T) -> Vec<T> {
    new.iter().map(of).collect()
}

/// The values of one column of the terms for all rows.
fn column<T>(new: &[Row<'_>], of: impl Fn(&PaymentTerms) -> T) -> Vec<T> {
    each(new, |row| of(&row.candidate.terms))
}

/// Inserts rows; returns the new ones with their time of creation. A session whose nonce an authorization uses is linked to its payment.
async fn insert<'a>(
    connection: &mut Connection,
    process: ProcessId,
    new: &[Row<'a>],
) -> Result<HashMap<PaymentId, OffsetDateTime>, LedgerError> {
    if new.is_empty() {
        return Ok(HashMap::new());
    }
    let confirmations = |row: &Row<'_>| i32::try_from(row.confirmations).unwrap_or(i32::MAX);
    let session = |row: &Row<'a>| Some(row.candidate.session.as_ref()?.as_str());
    let rows = sqlx::query!(
        r#"with accepted as (
            insert into payments (id, x402_version, network, scheme, asset, payer, payee, amount, resource, nonce_domain, nonce,
                valid_after, valid_before, digest, signature, wallet_factory, wallet_factory_call, state, confirmations, signer, permitted,
                allowance_permit, allowance_approval, queued_by, caller, first_asker, first_asker_process, first_request)
            -- What charges nothing is settled with that.
            select id, version, network, scheme, asset, payer, payee, amount::numeric, resource, nonce_domain, nonce, valid_after, valid_before,
                digest, signature, factory, factory_call, case when amount = '0' then 'settled' else 'queued' end, confirmations, signer,
                permitted::numeric, allowance_permit, allowance_approval, queued_by, caller, first_asker,
                case when first_asker is not null then $26::uuid end, first_request
            from unnest($1::uuid[], $2::smallint[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::text[], $8::text[], $9::bytea[],
                $10::timestamptz[], $11::timestamptz[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[], $16::integer[], $17::text[],
                $18::bytea[], $19::bytea[], $20::text[], $21::bytea[], $22::bytea[], $23::uuid[], $24::text[], $25::text[], $28::text[])
                as new (id, version, network, asset, payer, payee, amount, resource, nonce, valid_after, valid_before, digest, signature,
                    factory, factory_call, confirmations, scheme, nonce_domain, signer, permitted, allowance_permit, allowance_approval,
                    queued_by, caller, first_asker, first_request)
            on conflict on constraint payments_one_per_authorization do nothing
            returning id, network, asset, payer, payee, amount, nonce, created_at
        ), paid as (
            update sessions s set payment_id = a.id, needs_id = s.needs_id or presented.session_id is not distinct from s.id
            from accepted a join unnest($1::uuid[], $27::text[]) as presented (id, session_id) on presented.id = a.id
            where s.nonce = a.nonce and s.rail = 'authorization' and s.payment_id is null and s.network = a.network
                and s.asset = a.asset and s.payer = a.payer and s.payee = a.payee and s.amount = a.amount
        )
        select id, created_at from accepted"#,
        &each(new, |row| row.id.0),
        &column(new, |terms| i16::from(terms.version)),
        &column(new, |terms| terms.network.to_string()),
        &column(new, |terms| terms.asset.to_vec()),
        &column(new, |terms| terms.from.to_vec()),
        &column(new, |terms| terms.to.to_vec()),
        &column(new, |terms| terms.value.to_string()),
        &each(new, |row| row.candidate.resource.as_deref()) as _,
        &column(new, |terms| terms.nonce.to_vec()),
        &column(new, |terms| terms.valid_after.moment()) as _,
        &column(new, |terms| terms.valid_before.moment()) as _,
        &column(new, |terms| terms.digest.to_vec()),
        &column(new, |terms| terms.signature.to_vec()),
        &column(new, |terms| Some(terms.wallet.as_ref()?.factory.to_vec())) as _,
        &column(new, |terms| Some(terms.wallet.as_ref()?.call.to_vec())) as _,
        &each(new, confirmations),
        &column(new, |terms| terms.method.scheme().name().to_owned()),
        &column(new, |terms| terms.method.nonce_domain(terms.asset).to_vec()),
        &column(new, |terms| Some(terms.settling_signer()?.to_vec())) as _,
        &column(new, |terms| Some(terms.method.permit2()?.permitted.to_string())) as _,
        &column(new, |terms| allowance_columns(&terms.method).0) as _,
        &column(new, |terms| allowance_columns(&terms.method).1) as _,
        &each(new, |row| row.claimed.then_some(process.0)) as _,
        &each(new, |row| Some(row.caller?.as_str())) as _,
        &each(new, |row| Some(row.first_asker?.asked_as.as_str())) as _,
        process.0,
        &each(new, session) as _,
        &each(new, |row| Some(row.first_asker?.request_id.as_str())) as _,
    )
    .fetch_all(connection)
    .await?;
    let created = rows.into_iter();
    let created = created.map(|row| (PaymentId(row.id), row.created_at));
    Ok(created.collect())
}

/// The payment of a row that was just inserted, without reading it again.
fn accepted_payment(new: &NewPayment, at: OffsetDateTime) -> Payment {
    let candidate = new.verified.candidate();
    Payment {
        id: new.id,
        rail: Rail::Authorization,
        terms: PaymentTerms {
            signed_by: None,
            ..candidate.terms.clone()
        },
        resource: candidate.resource.clone(),
        state: if candidate.terms.value.is_zero() {
            PaymentState::Uncharged
        } else {
            PaymentState::Queued
        },
        caller: new.caller,
        confirmations: new.confirmations,
        quarantine: None,
        unmatched: None,
        told: false,
        created_at: at,
        updated_at: at,
    }
}

/// A payment whose money was transferred before the ledger had a row for it.
#[derive(Debug)]
pub struct AlreadyTransferred<'a> {
    pub id: PaymentId,
    pub candidate: &'a Candidate,
    /// Confirmations that are promised.
    pub confirmations: u32,
    /// The transfer.
    pub location: &'a Location,
    /// The transfer has the promised confirmations.
    pub confirmed: bool,
    /// Whose `/settle` has found it; `None`: it was found otherwise.
    pub caller: Option<Who>,
}

impl Ledger {
    /// Accepts a payment whose money was transferred already. If its log is recorded for another payment, it is quarantined.
    /// `false`: the authorization has got a row in the meantime.
    pub async fn accept_transferred(
        &self,
        moved: &AlreadyTransferred<'_>,
    ) -> Result<bool, LedgerError> {
        let mut transaction = self.pool.begin().await?;
        let row = Row {
            id: moved.id,
            candidate: moved.candidate,
            confirmations: moved.confirmations,
            claimed: true,
            first_asker: None,
            caller: moved.caller.as_ref(),
        };
        // The row counts as promised for a moment: between its insert and the record of its transfer no other acceptance may read the sum.
        lock(&mut transaction, vec![(&moved.candidate.terms).into()]).await?;
        if insert(&mut transaction, self.process(), &[row])
            .await?
            .is_empty()
        {
            return Ok(false);
        }
        record_foreign_transfer(&mut transaction, moved.id, moved.location, moved.confirmed)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Queues a refused payment again, because it was presented again and is valid now, with the caller, wallet, signature, charge and
    /// allowance of the new presentation. [`Accepted::AlreadyAccepted`]: it is not in state `refused` any more.
    pub async fn queue_again(&self, again: NewPayment) -> Result<Accepted, LedgerError> {
        let mut transaction = self.pool.begin().await?;
        let again = [again];
        let mut accounts = lock(&mut transaction, payers(&again)).await?;
        count_promises(&mut transaction, &again, &mut accounts).await?;
        let [new] = again;
        let obstacle = find_obstacles(std::slice::from_ref(&new), &accounts, &HashSet::new()).pop();
        if let Some(obstacle) = obstacle.unwrap_or(Some(Accepted::Stale)) {
            return Ok(obstacle);
        }
        let candidate = new.verified.candidate();
        let wallet = candidate.terms.wallet.as_ref();
        let (permit, approval) = allowance_columns(&candidate.terms.method);
        let queued = sqlx::query!(
            "update payments set state = case when $5 = '0' then 'settled' else 'queued' end, reason = null, message = null,
                queued_at = now(), signature = $2, wallet_factory = $3, wallet_factory_call = $4, amount = ($5::text)::numeric,
                allowance_permit = $6, allowance_approval = $7, queued_by = $8, first_asker = $10, first_asker_process = $11,
                first_request = $12,
                -- What was broadcast once is public. It stays its owner's, whoever presents it.
                caller = case when caller is not null and exists (select from transaction_payments where payment_id = payments.id)
                    then caller else $9 end
            where id = $1 and state = 'refused' and quarantined_at is null",
            new.id.0,
            &candidate.terms.signature[..],
            wallet.map(|wallet| wallet.factory.as_slice()),
            wallet.map(|wallet| &wallet.call[..]),
            candidate.terms.value.to_string(),
            permit,
            approval,
            new.claimed.then_some(self.process().0),
            new.caller.as_ref().map(Who::as_str),
            new.first_asker.as_ref().map(|first| &first.asked_as),
            new.first_asker.as_ref().map(|_| self.process().0),
            new.first_asker.as_ref().map(|first| &first.request_id),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        if queued.rows_affected() == 0 {
            return Ok(Accepted::AlreadyAccepted);
        }
        let payment = self.payment(new.id).await?;
        Ok(payment.map_or(Accepted::AlreadyAccepted, |payment| {
            Accepted::New(Box::new(payment))
        }))
    }
}

#[cfg(test)]
mod tests;
