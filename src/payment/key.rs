//! Keys of callers: what one may do, and how one is written.

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::payment::KeyId;
use crate::protocol::{Amount, Network, Reason, Rejection};

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Verify, settle and sessions, for its payees.
    Settle,
    /// Read the payments of its payees.
    History,
    /// Everything that the operator may.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Settle, Self::History, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::History => "history",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| "expected settle, history or admin".to_owned())
    }
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: KeyId,
    /// The operator's name for it.
    pub name: String,
    pub scopes: Vec<Scope>,
    /// Who may be paid, and whose payments may be read. Empty for the scope `admin` alone.
    pub payees: Vec<Address>,
    /// Where; empty is everywhere.
    pub networks: Vec<Network>,
    /// Wei that its payments may cost in 24 hours on each network.
    pub gas_wei_per_day: Option<Amount>,
    pub created_at: OffsetDateTime,
    /// Not good from then on.
    pub expires_at: Option<OffsetDateTime>,
    /// Not good since then.
    pub revoked_at: Option<OffsetDateTime>,
}

impl Key {
    /// Whether the key is neither revoked nor expired.
    pub fn is_live(&self, now: OffsetDateTime) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Whether payments to `payee` on `network` are this key's.
    pub fn covers(&self, network: Network, payee: Address) -> bool {
        let everywhere = self.networks.is_empty() || self.networks.contains(&network);
        everywhere && self.payees.contains(&payee)
    }

    /// Rejects payments that are not this key's.
    pub fn check_payee(&self, network: Network, payee: Address) -> Result<(), Rejection> {
        if self.covers(network, payee) {
            return Ok(());
        }
        let why = format!(
            "key {} does not allow payments to {payee} on {network}; the operator says which payees and networks a key has",
            self.id
        );
        Err(Rejection::new(Reason::PayeeNotAllowed, why))
    }
}

/// A key as callers send it: `x402d_`, the id, `_`, and the secret. Only the hash of the secret is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresentedKey {
    pub id: KeyId,
    /// SHA-256 of the secret. It has 256 random bits, so that a slow hash would make nothing safer.
    pub secret_hash: B256,
}

impl PresentedKey {
    /// How every key begins.
    pub const PREFIX: &str = "x402d_";
    /// Digits of a secret: 32 bytes in hexadecimal.
    const SECRET_DIGITS: usize = 64;

    /// The text of a key, to be shown once, and what is stored of it.
    pub fn new(id: KeyId, secret: [u8; 32]) -> (String, Self) {
        let secret = alloy::hex::encode(secret);
        let text = format!("{}{id}_{secret}", Self::PREFIX);
        (
            text,
            Self {
                id,
                secret_hash: hash(&secret),
            },
        )
    }

    /// Reads a key. `None`: it has another form, so no key is like it.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(Self::PREFIX)?.split_once('_')?;
        let id = id.parse().ok()?;
        let is_digit = |letter: u8| matches!(letter, b'0'..=b'9' | b'a'..=b'f');
        let has_form = secret.len() == Self::SECRET_DIGITS && secret.bytes().all(is_digit);
        has_form.then(|| Self {
            id,
            secret_hash: hash(secret),
        })
    }
}

fn hash(secret: &str) -> B256 {
    B256::from_slice(&Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYEE: Address = Address::repeat_byte(0x5e);

    fn id() -> KeyId {
        KeyId::from_entropy([7; KeyId::LENGTH])
    }

    fn key() -> Key {
        Key {
            id: id(),
            name: "shop".to_owned(),
            scopes: vec![Scope::Settle],
            payees: vec![PAYEE],
            networks: Vec::new(),
            gas_wei_per_day: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_is_read_as_it_was_shown() {
        let (text, stored) = PresentedKey::new(id(), [0xab; 32]);
        assert_eq!(text, format!("x402d_777777777777_{}", "ab".repeat(32)));
        assert_eq!(PresentedKey::parse(&text), Some(stored));
        let (_, other) = PresentedKey::new(id(), [0xac; 32]);
        assert_ne!(other.secret_hash, stored.secret_hash);
        let upper = text.to_uppercase();
        for wrong in ["", "x402d_", &text[1..], &text[..text.len() - 1], &upper] {
            assert_eq!(PresentedKey::parse(wrong), None, "{wrong}");
        }
        assert_eq!(PresentedKey::parse(&(text + "0")), None);
    }

    #[test]
    fn a_key_covers_its_payees_on_its_networks() {
        let (base, other) = (Network::from_chain_id(8453), Network::from_chain_id(1));
        let everywhere = key();
        let on_base = Key {
            networks: vec![base],
            ..key()
        };
        assert!(everywhere.covers(base, PAYEE) && everywhere.covers(other, PAYEE));
        assert!(on_base.covers(base, PAYEE) && !on_base.covers(other, PAYEE));
        assert!(!everywhere.covers(base, Address::ZERO));
        let refused = on_base.check_payee(other, PAYEE).unwrap_err();
        assert_eq!(refused.reason, Reason::PayeeNotAllowed);
    }

    #[test]
    fn a_key_is_live_until_it_expires_or_is_revoked() {
        let end = OffsetDateTime::UNIX_EPOCH + time::Duration::DAY;
        let expiring = Key {
            expires_at: Some(end),
            ..key()
        };
        assert!(expiring.is_live(end - time::Duration::SECOND) && !expiring.is_live(end));
        let revoked = Key {
            revoked_at: Some(end),
            ..key()
        };
        assert!(key().is_live(end) && !revoked.is_live(OffsetDateTime::UNIX_EPOCH));
    }
}
