//! Keys of callers, and who owns a payment.

use alloy::primitives::{B256, U256};
use time::OffsetDateTime;

use super::error::Unreadable;
use super::row::{address, hash};
use super::{Ledger, LedgerError};
use crate::payment::{Key, KeyId, PaymentId, PresentedKey, Who};

/// A key and the hashes by which its secrets are recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    pub key: Key,
    pub secret_hash: B256,
    /// The secret before the last rotation, and until when it is good.
    pub earlier: Option<(B256, OffsetDateTime)>,
}

/// Whether a key was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Yes,
    /// A live key has the name.
    NameTaken,
}

struct KeyRow {
    id: String,
    name: String,
    secret_hash: Vec<u8>,
    earlier_hash: Option<Vec<u8>>,
    earlier_until: Option<OffsetDateTime>,
    scopes: Vec<String>,
    payees: Vec<Vec<u8>>,
    networks: Vec<String>,
    gas_wei_per_day: Option<String>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
}

/// `query_as!` over all columns of `keys`, with the rest of the statement appended.
macro_rules! select_keys {
    ($rest:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            KeyRow,
            "select id, name, secret_hash, earlier_hash, earlier_until, scopes, payees, networks, gas_wei_per_day::text,
                created_at, expires_at, revoked_at
            from keys " + $rest
            $(, $argument)*
        )
    };
}

impl Ledger {
    /// Writes a new key, with the database's time of creation.
    pub async fn create_key(
        &self,
        key: &Key,
        presented: &PresentedKey,
    ) -> Result<Created, LedgerError> {
        let scopes: Vec<String> = key.scopes.iter().map(ToString::to_string).collect();
        let payees: Vec<&[u8]> = key.payees.iter().map(|payee| payee.as_slice()).collect();
        let networks: Vec<String> = key.networks.iter().map(ToString::to_string).collect();
        let created = sqlx::query!(
            "insert into keys (id, name, secret_hash, scopes, payees, networks, gas_wei_per_day, expires_at)
            values ($1, $2, $3, $4, $5, $6, ($7::text)::numeric, $8)
            on conflict (name) where revoked_at is null do nothing",
            key.id.as_str(),
            key.name,
            presented.secret_hash.as_slice(),
            &scopes,
            &payees as _,
            &networks,
            key.gas_wei_per_day.map(|wei| wei.to_string()),
            key.expires_at,
        )
        .execute(&self.pool)
        .await?;
        Ok(match created.rows_affected() {
            1 => Created::Yes,
            _ => Created::NameTaken,
        })
    }

    /// Every key, also those that are not good any more, in order of creation.
    pub async fn keys(&self) -> Result<Vec<StoredKey>, LedgerError> {
        let rows = select_keys!("order by created_at, id")
            .fetch_all(&self.pool)
            .await?;
        let keys: Result<Vec<_>, Unreadable> = rows.into_iter().map(StoredKey::try_from).collect();
        Ok(keys?)
    }

    /// The keys that are good now. A row that cannot be read is left out, so that it locks out no other key.
    pub async fn live_keys(&self) -> Result<Vec<StoredKey>, LedgerError> {
        let rows =
            select_keys!("where revoked_at is null and (expires_at is null or expires_at > now())")
                .fetch_all(&self.leases)
                .await?;
        let keys = rows.into_iter().filter_map(|row| {
            let key = StoredKey::try_from(row);
            key.inspect_err(|error| tracing::error!(%error, "key not used: its row cannot be read"))
                .ok()
        });
        Ok(keys.collect())
    }

    /// Whether there is or was a key of the operator, also one that is revoked, has expired or cannot be read.
    pub async fn has_had_admin_key(&self) -> Result<bool, LedgerError> {
        let had = sqlx::query_scalar!(
            r#"select exists (select from keys where 'admin' = any(scopes)) as "had!""#
        );
        Ok(had.fetch_one(&self.leases).await?)
    }

    /// Revokes a key. `false`: it is revoked already, or there is none.
    pub async fn revoke_key(&self, id: KeyId) -> Result<bool, LedgerError> {
        let revoked = sqlx::query!(
            "update keys set revoked_at = now() where id = $1 and revoked_at is null",
            id.as_str(),
        )
        .execute(&self.pool)
        .await?;
        Ok(revoked.rows_affected() == 1)
    }

    /// Gives a live key a new secret. The old one is good for `seconds` more; one that was older ends now. Returns until when; `None`: there
    /// is no such key, or it is not live.
    pub async fn rotate_key(
        &self,
        presented: &PresentedKey,
        seconds: u32,
    ) -> Result<Option<OffsetDateTime>, LedgerError> {
        let until = sqlx::query_scalar!(
            r#"update keys set earlier_hash = secret_hash, earlier_until = now() + make_interval(secs => $3), secret_hash = $2
            where id = $1 and revoked_at is null and (expires_at is null or expires_at > now()) and secret_hash <> $2
            returning earlier_until as "until!""#,
            presented.id.as_str(),
            presented.secret_hash.as_slice(),
            f64::from(seconds),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(until)
    }

    /// All keys, with what their payments may cost on a network in 24 hours, in wei; `None`: the key has no limit. Payments of keys that are
    /// not good any more may still wait, so those are among them. Where a limit cannot be read, nothing may be spent.
    pub async fn gas_limits_of_keys(&self) -> Result<Vec<(KeyId, Option<U256>)>, LedgerError> {
        let rows = sqlx::query!("select id, gas_wei_per_day::text as wei from keys order by id")
            .fetch_all(&self.engine)
            .await?;
        let limits = rows.into_iter().filter_map(|row| {
            let limit = row.wei.map(|wei| wei.parse().unwrap_or(U256::ZERO));
            Some((row.id.parse().ok()?, limit))
        });
        Ok(limits.collect())
    }

    /// Makes `who` the owner of a payment that has none: it was not accepted by a `/settle`. `false`: it has one.
    pub async fn own_payment(&self, id: PaymentId, who: Who) -> Result<bool, LedgerError> {
        let owned = sqlx::query!(
            "update payments set caller = $2 where id = $1 and caller is null",
            id.0,
            who.as_str(),
        )
        .execute(&self.pool)
        .await?;
        Ok(owned.rows_affected() == 1)
    }
}

impl TryFrom<KeyRow> for StoredKey {
    type Error = Unreadable;

    fn try_from(row: KeyRow) -> Result<Self, Unreadable> {
        let bad = |column| Unreadable {
            table: "keys",
            column,
            id: row.id.clone(),
        };
        let earlier_hash = row
            .earlier_hash
            .as_deref()
            .map(|bytes| hash(bytes).ok_or_else(|| bad("earlier_hash")));
        let scopes = row.scopes.iter().map(|scope| scope.parse());
        let payees = row.payees.iter().map(|payee| address(payee));
        let networks = row.networks.iter().map(|network| network.parse());
        let gas = row.gas_wei_per_day.as_deref().map(str::parse).transpose();
        Ok(Self {
            secret_hash: hash(&row.secret_hash).ok_or_else(|| bad("secret_hash"))?,
            earlier: earlier_hash.transpose()?.zip(row.earlier_until),
            key: Key {
                id: row.id.parse().map_err(|_| bad("id"))?,
                scopes: scopes
                    .collect::<Result<_, _>>()
                    .map_err(|_| bad("scopes"))?,
                payees: payees.collect::<Option<_>>().ok_or_else(|| bad("payees"))?,
                networks: networks
                    .collect::<Result<_, _>>()
                    .map_err(|_| bad("networks"))?,
                gas_wei_per_day: gas.map_err(|_| bad("gas_wei_per_day"))?,
                name: row.name,
                created_at: row.created_at,
                expires_at: row.expires_at,
                revoked_at: row.revoked_at,
            },
        })
    }
}

#[cfg(test)]
mod tests;
