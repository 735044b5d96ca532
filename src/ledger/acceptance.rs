//! Acceptance: a payment becomes a row, and a promise of its payer.
//!
//! A payer's account row ([`super::accounts`]) is locked first, so that acceptances of one payer wait for each other; what is promised there are its payments
//! that may still move money. The triggers of `payments` keep that sum.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::U256;
use time::OffsetDateTime;
use uuid::Uuid;

use super::accounts::{Account, AccountKey, count_promises, lock};
use super::connections::{Connection, Connections};
use super::row::{address, allowance_columns, hash, moment};
use super::undecided::move_here;
use super::{AuthorizationKey, Ledger, LedgerError, ProcessId};
use crate::payment::{Candidate, Location, Payment, PaymentId, PaymentState, Verified};
use crate::protocol::session::Rail;

/// A payment that is about to be accepted.
#[derive(Debug, Clone)]
pub struct NewPayment {
    /// Its id from now on.
    pub id: PaymentId,
    /// What was checked, and against which balance.
    pub verified: Verified,
    /// Depth that is promised.
    pub confirmations: u32,
    /// A lane of this process takes it from memory; otherwise whoever owns one finds it in the ledger.
    pub in_hand: bool,
}

/// What became of an acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// A new row: queued, or settled with nothing.
    New(Box<Payment>),
    /// The identity is known; look at that row.
    Known,
    /// The payer has promised more than is left of its balance.
    Short {
        /// Atomic units promised to payments that may still move money.
        held: U256,
    },
    /// The payer has promised more than is left of what Permit2 may take.
    Unallowed {
        /// Atomic units promised to payments by Permit2 that may still move money.
        promised: U256,
    },
    /// The balance was read before a block in which this payer paid: read it again.
    Stale,
}

impl NewPayment {
    fn key(&self) -> AuthorizationKey {
        self.verified.candidate().into()
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
    let mut verdicts = judge(&new, &accounts, &HashSet::new());
    if verdicts.iter().any(|verdict| *verdict != Verdict::Fits) {
        // What is known already counts in `held`, and must not be refused for lack of what it holds itself.
        let known = known(&mut transaction, &new).await?;
        verdicts = judge(&new, &accounts, &known);
    }
    let fitting: Vec<Row<'_>> = new
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| **verdict == Verdict::Fits)
        .map(|(new, _)| new.into())
        .collect();
    let inserted = insert(&mut transaction, process, &fitting).await?;
    transaction.commit().await?;
    let answers = new
        .iter()
        .zip(verdicts)
        .map(|(new, verdict)| match verdict {
            Verdict::Fits => match inserted.get(&new.id) {
                Some(at) => Accepted::New(Box::new(begun(new, *at))),
                None => Accepted::Known,
            },
            Verdict::Known => Accepted::Known,
            Verdict::Short { held } => Accepted::Short { held },
            Verdict::Unallowed { promised } => Accepted::Unallowed { promised },
            Verdict::Stale => Accepted::Stale,
        });
    Ok(answers.map(Ok).collect())
}

fn payers(new: &[NewPayment]) -> Vec<AccountKey> {
    new.iter()
        .map(|new| new.verified.candidate().into())
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fits,
    Known,
    Short { held: U256 },
    Unallowed { promised: U256 },
    Stale,
}

/// Who fits, in the order of coming.
fn judge(
    new: &[NewPayment],
    accounts: &HashMap<AccountKey, Account>,
    known: &HashSet<AuthorizationKey>,
) -> Vec<Verdict> {
    let mut accounts = accounts.clone();
    let mut seen = known.clone();
    let verdicts = new.iter().map(|new| {
        if seen.contains(&new.key()) {
            return Verdict::Known;
        }
        let account = accounts.get_mut(&AccountKey::from(new.verified.candidate()));
        let verdict = account.map_or(Verdict::Stale, |account| fits(account, &new.verified));
        if verdict == Verdict::Fits {
            seen.insert(new.key());
        }
        verdict
    });
    verdicts.collect()
}

fn fits(account: &mut Account, verified: &Verified) -> Verdict {
    if verified.block_number() < account.settled_block {
        return Verdict::Stale;
    }
    let value = verified.candidate().authorization.value.atomic();
    let held = account.held.saturating_add(value);
    // A token that does not tell balances was simulated, which is all that can be known.
    if verified.balance().is_some_and(|balance| held > balance) {
        return Verdict::Short { held: account.held };
    }
    if let Some(allowance) = verified.allowance() {
        let promised = account.at_permit2.saturating_add(value);
        // A permit of the token's own allows exactly its payment, and a payer's next one is good only after it.
        let first = verified.candidate().brings_a_permit() && account.at_permit2.is_zero();
        if promised > allowance && !first {
            return Verdict::Unallowed {
                promised: account.at_permit2,
            };
        }
        account.at_permit2 = promised;
    }
    account.held = held;
    Verdict::Fits
}

/// Which of the payments have a row already.
async fn known(
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
    in_hand: bool,
}

impl<'a> From<&'a NewPayment> for Row<'a> {
    fn from(new: &'a NewPayment) -> Self {
        Self {
            id: new.id,
            candidate: new.verified.candidate(),
            confirmations: new.confirmations,
            in_hand: new.in_hand,
        }
    }
}

/// One column of the rows to insert.
fn column<T>(new: &[Row<'_>], of: impl Fn(&Candidate) -> T) -> Vec<T> {
    new.iter().map(|new| of(new.candidate)).collect()
}

/// Inserts rows, and says which are new and since when. The session that gave an authorization its nonce is paid by it from now on.
async fn insert(
    connection: &mut Connection,
    process: ProcessId,
    new: &[Row<'_>],
) -> Result<HashMap<PaymentId, OffsetDateTime>, LedgerError> {
    if new.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = new.iter().map(|new| new.id.0).collect();
    let confirmations: Vec<i32> = new
        .iter()
        .map(|new| i32::try_from(new.confirmations).unwrap_or(i32::MAX))
        .collect();
    let in_hand: Vec<Option<Uuid>> = new
        .iter()
        .map(|new| new.in_hand.then_some(process.0))
        .collect();
    let rows = sqlx::query!(
        r#"with accepted as (
            insert into payments (id, x402_version, network, scheme, asset, payer, payee, amount, resource, nonce_domain, nonce,
                valid_after, valid_before, digest, signature, wallet_factory, wallet_factory_call, state, confirmations, signer, permitted,
                allowance_permit, allowance_approval, queued_by)
            -- What charges nothing is settled with that.
            select id, version, network, scheme, asset, payer, payee, amount::numeric, resource, nonce_domain, nonce, valid_after, valid_before,
                digest, signature, factory, factory_call, case when amount = '0' then 'settled' else 'queued' end, confirmations, signer,
                permitted::numeric, allowance_permit, allowance_approval, queued_by
            from unnest($1::uuid[], $2::smallint[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::text[], $8::text[], $9::bytea[],
                $10::timestamptz[], $11::timestamptz[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[], $16::integer[], $17::text[],
                $18::bytea[], $19::bytea[], $20::text[], $21::bytea[], $22::bytea[], $23::uuid[])
                as new (id, version, network, asset, payer, payee, amount, resource, nonce, valid_after, valid_before, digest, signature,
                    factory, factory_call, confirmations, scheme, nonce_domain, signer, permitted, allowance_permit, allowance_approval,
                    queued_by)
            on conflict on constraint payments_one_per_authorization do nothing
            returning id, network, asset, payer, payee, amount, nonce, created_at
        ), paid as (
            update sessions s set payment_id = a.id from accepted a
            where s.nonce = a.nonce and s.rail = 'authorization' and s.payment_id is null and s.network = a.network
                and s.asset = a.asset and s.payer = a.payer and s.payee = a.payee and s.amount = a.amount
        )
        select id, created_at from accepted"#,
        &ids,
        &column(new, |new| i16::from(new.version)),
        &column(new, |new| new.network.to_string()),
        &column(new, |new| new.asset.to_vec()),
        &column(new, |new| new.authorization.from.to_vec()),
        &column(new, |new| new.authorization.to.to_vec()),
        &column(new, |new| new.authorization.value.to_string()),
        &column(new, |new| new.resource.clone()) as _,
        &column(new, |new| new.authorization.nonce.to_vec()),
        &column(new, |new| moment(new.authorization.valid_after)) as _,
        &column(new, |new| moment(new.authorization.valid_before)) as _,
        &column(new, |new| new.digest.to_vec()),
        &column(new, |new| new.signature.to_vec()),
        &column(new, |new| Some(new.wallet.as_ref()?.factory.to_vec())) as _,
        &column(new, |new| Some(new.wallet.as_ref()?.call.to_vec())) as _,
        &confirmations,
        &column(new, |new| new.method.scheme().name().to_owned()),
        &column(new, |new| new.method.nonce_domain(new.asset).to_vec()),
        &column(new, |new| Some(new.method.facilitator()?.to_vec())) as _,
        &column(new, |new| Some(new.method.permit2()?.permitted.to_string())) as _,
        &column(new, |new| allowance_columns(&new.method).0) as _,
        &column(new, |new| allowance_columns(&new.method).1) as _,
        &in_hand as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (PaymentId(row.id), row.created_at))
        .collect())
}

/// The row that was just inserted.
fn begun(new: &NewPayment, at: OffsetDateTime) -> Payment {
    let candidate = new.verified.candidate();
    Payment {
        id: new.id,
        version: candidate.version,
        rail: Rail::Authorization,
        network: candidate.network,
        asset: candidate.asset,
        authorization: candidate.authorization,
        method: candidate.method.clone(),
        digest: candidate.digest,
        signature: candidate.signature.clone(),
        wallet: candidate.wallet.clone(),
        resource: candidate.resource.clone(),
        state: if candidate.authorization.value.is_zero() {
            PaymentState::Uncharged
        } else {
            PaymentState::Queued
        },
        confirmations: new.confirmations,
        quarantine: None,
        unmatched: None,
        created_at: at,
        updated_at: at,
    }
}

/// A payment whose money had moved before the ledger knew of it.
#[derive(Debug)]
pub struct MovedBefore<'a> {
    /// Its id from now on.
    pub id: PaymentId,
    /// What was presented.
    pub candidate: &'a Candidate,
    /// Depth that is promised.
    pub confirmations: u32,
    /// Where its money moved.
    pub location: &'a Location,
    /// Whether the promised depth is reached already.
    pub deep: bool,
}

impl Ledger {
    /// Writes a payment whose money has moved already; where its log is another payment's, it is set aside. `false`: it has a row meanwhile.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn adopt(&self, moved: &MovedBefore<'_>) -> Result<bool, LedgerError> {
        let mut transaction = self.pool.begin().await?;
        let row = Row {
            id: moved.id,
            candidate: moved.candidate,
            confirmations: moved.confirmations,
            in_hand: true,
        };
        // Nobody promises anything of this payer while the row comes and goes as a promise.
        lock(&mut transaction, vec![moved.candidate.into()]).await?;
        if insert(&mut transaction, self.process(), &[row])
            .await?
            .is_empty()
        {
            return Ok(false);
        }
        move_here(&mut transaction, moved.id, moved.location, moved.deep).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Puts a refused payment into the queue again, because it was presented again and is good now. With the wallet, signature,
    /// charge and allowance of the new presentation. [`Accepted::Known`]: it was not refused any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queue_again(&self, again: NewPayment) -> Result<Accepted, LedgerError> {
        let mut transaction = self.pool.begin().await?;
        let again = [again];
        let mut accounts = lock(&mut transaction, payers(&again)).await?;
        count_promises(&mut transaction, &again, &mut accounts).await?;
        let [new] = again;
        match judge(std::slice::from_ref(&new), &accounts, &HashSet::new()).first() {
            Some(Verdict::Fits) => {}
            Some(Verdict::Short { held }) => return Ok(Accepted::Short { held: *held }),
            Some(Verdict::Unallowed { promised }) => {
                return Ok(Accepted::Unallowed {
                    promised: *promised,
                });
            }
            Some(Verdict::Known | Verdict::Stale) | None => return Ok(Accepted::Stale),
        }
        let candidate = new.verified.candidate();
        let wallet = candidate.wallet.as_ref();
        let (permit, approval) = allowance_columns(&candidate.method);
        let queued = sqlx::query!(
            "update payments set state = case when $5 = '0' then 'settled' else 'queued' end, reason = null, message = null,
                queued_at = now(), signature = $2, wallet_factory = $3, wallet_factory_call = $4, amount = ($5::text)::numeric,
                allowance_permit = $6, allowance_approval = $7, queued_by = $8
            where id = $1 and state = 'refused' and quarantined_at is null",
            new.id.0,
            &candidate.signature[..],
            wallet.map(|wallet| wallet.factory.as_slice()),
            wallet.map(|wallet| &wallet.call[..]),
            candidate.authorization.value.to_string(),
            permit,
            approval,
            new.in_hand.then_some(self.process().0),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        if queued.rows_affected() == 0 {
            return Ok(Accepted::Known);
        }
        let payment = self.payment(new.id).await?;
        Ok(payment.map_or(Accepted::Known, |payment| Accepted::New(Box::new(payment))))
    }
}
