//! Sessions: negotiated terms, and the payment that was made for them.

use alloy::primitives::B256;
use time::OffsetDateTime;

use super::connections::Connections;
use super::error::Unreadable;
use super::row::{address, bigint, hash, rail};
use super::{AuthorizationKey, Ledger, LedgerError};
use crate::payment::session::SessionStatus;
use crate::payment::{PaymentId, Session};
use crate::protocol::session::SessionId;
use crate::protocol::{Network, PlainText, X402Version};

/// Sessions without a payment are kept this long after they expire, because a payment header may still arrive. An authorization is valid
/// without a session.
const RETENTION_DAYS_AUTHORIZATION: i32 = 1;
/// The same for rail `transfer`, where only the session tells what was paid for.
const RETENTION_DAYS_TRANSFER: i32 = 30;

/// How many sessions may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenLimits {
    /// In total.
    pub total: u32,
    /// Of one client address.
    pub client: u32,
    /// Of one client address for one payer or one payee: beyond that the oldest expires.
    pub party: u32,
}

/// A session about to be opened.
#[derive(Debug)]
pub struct NewSession<'a> {
    pub session: &'a Session,
    /// Keccak-256 of the token that may cancel it.
    pub cancel_token_hash: B256,
    /// Address of the client that opens it.
    pub client: &'a str,
    pub limits: OpenLimits,
}

/// Whether a session was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    Yes,
    /// Too many are open, of this client or of all.
    TooMany,
}

struct SessionRow {
    id: String,
    x402_version: i16,
    rail: String,
    network: String,
    asset: Vec<u8>,
    payer: Vec<u8>,
    payee: Vec<u8>,
    amount: String,
    accepted: String,
    requirements_hash: Vec<u8>,
    nonce: Vec<u8>,
    resource_id: Option<String>,
    resource: Option<String>,
    client_reference: Option<String>,
    accept_from_block: i64,
    confirmations: i32,
    expires_at: OffsetDateTime,
    state: String,
    payment_id: Option<uuid::Uuid>,
    needs_id: bool,
    created_at: OffsetDateTime,
}

/// `query_as!` over all columns of `sessions s`, with the rest of the statement appended.
macro_rules! select_sessions {
    ($rest:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            SessionRow,
            r#"select s.id, s.x402_version, s.rail, s.network, s.asset, s.payer, s.payee, s.amount::text as "amount!", s.accepted,
                s.requirements_hash, s.nonce, s.resource_id, s.resource, s.client_reference, s.accept_from_block, s.confirmations,
                s.expires_at, s.state, s.payment_id, s.needs_id, s.created_at
            from sessions s "# + $rest
            $(, $argument)*
        )
    };
}

/// A session found by its nonce. The raw columns are there also when the row cannot be read.
pub(super) struct SessionOfNonce {
    network: String,
    asset: Vec<u8>,
    payer: Vec<u8>,
    nonce: Vec<u8>,
    /// A row that cannot be read fails only the request that presents its authorization.
    pub(super) session: Result<Session, Unreadable>,
}

impl SessionOfNonce {
    pub(super) fn gave_nonce_to(&self, key: &AuthorizationKey) -> bool {
        key.nonce == self.nonce[..]
            && key.payer == self.payer[..]
            && key.domain == self.asset[..]
            && key.network.to_string() == self.network
    }
}

/// The sessions of rail `authorization` with these nonces.
pub(super) async fn sessions_of_nonces(
    pool: &Connections,
    nonces: &[B256],
) -> Result<Vec<SessionOfNonce>, LedgerError> {
    let nonces: Vec<&[u8]> = nonces.iter().map(B256::as_slice).collect();
    let rows = select_sessions!(
        "where s.nonce = any($1) and s.rail = 'authorization'",
        &nonces as _
    )
    .fetch_all(pool)
    .await?;
    let sessions = rows.into_iter().map(|row| SessionOfNonce {
        network: row.network.clone(),
        asset: row.asset.clone(),
        payer: row.payer.clone(),
        nonce: row.nonce.clone(),
        session: row.try_into(),
    });
    Ok(sessions.collect())
}

impl Ledger {
    /// Opens a session, unless too many are open. If a client has too many for one payer or payee, its oldest expires first.
    pub async fn open_session(&self, new: &NewSession<'_>) -> Result<Opened, LedgerError> {
        let session = new.session;
        self.expire_oldest(new).await?;
        let opened = sqlx::query!(
            "insert into sessions (id, cancel_token_hash, client, x402_version, rail, network, asset, payer, payee, amount, accepted,
                requirements_hash, nonce, resource_id, resource, client_reference, accept_from_block, confirmations, expires_at)
            select $1, $2, $3, $4, $5, $6, $7, $8, $9, ($10::text)::numeric, $11, $12, $13, $14, $15, $16, $17, $18, $19
            where (select count(*) from (select from sessions
                    where state = 'open' and payment_id is null and expires_at > now() limit $20) as open_ones) < $20
                and (select count(*) from (select from sessions
                    where client = $3 and state = 'open' and payment_id is null and expires_at > now() limit $21) as own) < $21",
            session.id.as_str(),
            new.cancel_token_hash.as_slice(),
            new.client,
            i16::from(session.version),
            session.rail.name(),
            session.network.to_string(),
            session.asset.as_slice(),
            session.payer.as_slice(),
            session.payee.as_slice(),
            session.amount.to_string(),
            session.accepted,
            session.requirements_hash.as_slice(),
            session.nonce.as_slice(),
            session.resource_id.as_deref(),
            session.resource.as_deref(),
            session.client_reference.as_deref(),
            bigint(session.accept_from_block),
            i32::try_from(session.confirmations).unwrap_or(i32::MAX),
            session.expires_at,
            i64::from(new.limits.total),
            i64::from(new.limits.client),
        )
        .execute(&self.pool)
        .await?;
        Ok(if opened.rows_affected() == 1 {
            Opened::Yes
        } else {
            Opened::TooMany
        })
    }

    /// Expires the client's oldest open sessions for the same payer or payee, to make room for a new one.
    async fn expire_oldest(&self, new: &NewSession<'_>) -> Result<(), LedgerError> {
        sqlx::query!(
            "update sessions set state = 'expired' where id in (
                select id from (
                    select id, row_number() over (order by created_at desc) as age from sessions
                    where client = $1 and state = 'open' and payment_id is null and expires_at > now() and payer = $2
                ) of_payer where age >= $4
                union
                select id from (
                    select id, row_number() over (order by created_at desc) as age from sessions
                    where client = $1 and state = 'open' and payment_id is null and expires_at > now() and payee = $3
                ) of_payee where age >= $4
            ) and state = 'open' and payment_id is null",
            new.client,
            new.session.payer.as_slice(),
            new.session.payee.as_slice(),
            i64::from(new.limits.party),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub async fn session(&self, id: &SessionId) -> Result<Option<Session>, LedgerError> {
        let row = select_sessions!("where s.id = $1", id.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(Session::try_from).transpose()?)
    }

    /// Cancels an open session, if the token is the session's. `false`: it is not, or the session is not open any more.
    pub async fn cancel_session(
        &self,
        id: &SessionId,
        cancel_token_hash: B256,
    ) -> Result<bool, LedgerError> {
        let cancelled = sqlx::query!(
            "update sessions s set state = 'cancelled'
            where s.id = $1 and s.cancel_token_hash = $2 and s.state = 'open' and (s.payment_id is null
                or exists (select from payments p where p.id = s.payment_id and p.state = 'refused'))",
            id.as_str(),
            cancel_token_hash.as_slice(),
        )
        .execute(&self.pool)
        .await?;
        Ok(cancelled.rows_affected() == 1)
    }

    /// Whether this token may cancel this session.
    pub async fn may_cancel(
        &self,
        id: &SessionId,
        cancel_token_hash: B256,
    ) -> Result<bool, LedgerError> {
        let allowed = sqlx::query_scalar!(
            r#"select exists (select from sessions where id = $1 and cancel_token_hash = $2) as "may!""#,
            id.as_str(),
            cancel_token_hash.as_slice(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(allowed)
    }

    /// From now on the session's payment is granted only to a request with the session's id.
    pub async fn need_session_id(&self, id: &SessionId) -> Result<(), LedgerError> {
        sqlx::query!(
            "update sessions set needs_id = true where id = $1 and rail = 'authorization' and not needs_id",
            id.as_str(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Expires an open session without a payment.
    pub async fn expire_session(&self, id: &SessionId) -> Result<(), LedgerError> {
        sqlx::query!(
            "update sessions set state = 'expired' where id = $1 and state = 'open' and payment_id is null",
            id.as_str(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Which of `ids` are not open any more or have a payment. For requests that wait at another process than the one that changed them.
    pub async fn sessions_changed(&self, ids: &[SessionId]) -> Result<Vec<SessionId>, LedgerError> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let changed = sqlx::query_scalar!(
            "select id from sessions where id = any($1) and (payment_id is not null or state <> 'open')",
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(changed.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Deletes sessions without a payment after their retention, at most 1000 at a time. Returns the number deleted.
    pub async fn delete_unpaid_sessions(&self) -> Result<u64, LedgerError> {
        let deleted = sqlx::query!(
            "delete from sessions where id in (
                select id from sessions where payment_id is null and expires_at < now()
                    - make_interval(days => case rail when 'transfer' then $1::integer else $2::integer end)
                order by created_at limit 1000
            ) and payment_id is null",
            RETENTION_DAYS_TRANSFER,
            RETENTION_DAYS_AUTHORIZATION,
        )
        .execute(&self.pool)
        .await?;
        Ok(deleted.rows_affected())
    }
}

impl TryFrom<SessionRow> for Session {
    type Error = Unreadable;

    fn try_from(row: SessionRow) -> Result<Self, Unreadable> {
        let bad = |column| Unreadable {
            table: "sessions",
            column,
            id: row.id.clone(),
        };
        let version = u8::try_from(row.x402_version)
            .ok()
            .and_then(|number| X402Version::try_from(number).ok());
        let status = [
            SessionStatus::Open,
            SessionStatus::Cancelled,
            SessionStatus::Expired,
        ]
        .into_iter()
        .find(|status| status.name() == row.state);
        let network: Result<Network, _> = row.network.parse();
        Ok(Self {
            id: row.id.parse().map_err(|_| bad("id"))?,
            version: version.ok_or_else(|| bad("x402_version"))?,
            rail: rail(&row.rail).ok_or_else(|| bad("rail"))?,
            network: network.map_err(|_| bad("network"))?,
            asset: address(&row.asset).ok_or_else(|| bad("asset"))?,
            payer: address(&row.payer).ok_or_else(|| bad("payer"))?,
            payee: address(&row.payee).ok_or_else(|| bad("payee"))?,
            amount: row.amount.parse().map_err(|_| bad("amount"))?,
            requirements_hash: hash(&row.requirements_hash)
                .ok_or_else(|| bad("requirements_hash"))?,
            nonce: hash(&row.nonce).ok_or_else(|| bad("nonce"))?,
            accept_from_block: u64::try_from(row.accept_from_block)
                .map_err(|_| bad("accept_from_block"))?,
            confirmations: u32::try_from(row.confirmations).map_err(|_| bad("confirmations"))?,
            status: status.ok_or_else(|| bad("state"))?,
            accepted: row.accepted,
            resource_id: row.resource_id.as_deref().map(stored_text),
            resource: row.resource.as_deref().map(stored_text),
            client_reference: row.client_reference.as_deref().map(stored_text),
            expires_at: row.expires_at,
            payment: row.payment_id.map(PaymentId),
            needs_id: row.needs_id,
            created_at: row.created_at,
        })
    }
}

/// A text of a row. It was checked when it was written.
fn stored_text(text: &str) -> PlainText {
    PlainText::cleaned(text, usize::MAX)
}

#[cfg(test)]
mod tests;
