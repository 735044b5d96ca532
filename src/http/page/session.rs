//! Who is logged in, in memory: a restart ends every session, and each process has its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{B256, FixedBytes};
use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use crate::http::operator::OperatorBy;

/// The name of the cookie.
pub(super) const COOKIE: &str = "x402d_page";
/// How long a session lasts.
pub(super) const LASTS: Duration = Duration::from_hours(12);
/// Sessions that are kept; the one that ends first makes room.
const SESSIONS_MAX: usize = 256;

/// A secret that a browser sends back.
#[derive(Clone, Copy)]
pub(super) struct Token(B256);

impl Token {
    /// `None`: the system provides no randomness.
    pub(super) fn fresh() -> Option<Self> {
        FixedBytes::try_random().ok().map(Self)
    }

    pub(super) fn text(&self) -> String {
        alloy::hex::encode(self.0)
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.text().as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(…)")
    }
}

/// A session as it is found by its cookie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    /// What made its holder the operator.
    pub(super) by: OperatorBy,
    /// Stands in every form.
    pub(super) form_token: Token,
    until: Instant,
}

/// The sessions of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PageSessions(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By the hash of the cookie, so that looking one up tells nothing about others.
    sessions: HashMap<[u8; 32], Session>,
    /// In the forms of operators without a session: programs on this machine, and callers with a key.
    form_token: Option<Token>,
}

impl PageSessions {
    /// Begins a session. Returns the value of its cookie; `None`: the system provides no randomness.
    pub(super) fn begin(&self, by: OperatorBy) -> Option<String> {
        let (cookie, form_token) = (Token::fresh()?.text(), Token::fresh()?);
        let now = Instant::now();
        let mut kept = self.kept();
        kept.sessions.retain(|_, session| session.until > now);
        if kept.sessions.len() >= SESSIONS_MAX {
            let first = kept.sessions.iter().min_by_key(|(_, one)| one.until);
            if let Some(first) = first.map(|(hash, _)| *hash) {
                kept.sessions.remove(&first);
            }
        }
        let session = Session {
            by,
            form_token,
            until: now + LASTS,
        };
        kept.sessions.insert(hash(&cookie), session);
        Some(cookie)
    }

    /// The session of a request.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<Session> {
        self.find_at(headers, Instant::now())
    }

    fn find_at(&self, headers: &HeaderMap, now: Instant) -> Option<Session> {
        let cookie = cookie(headers)?;
        let kept = self.kept();
        let session = kept.sessions.get(&hash(cookie))?;
        (session.until > now).then_some(*session)
    }

    /// Ends the session of a request.
    pub(super) fn end(&self, headers: &HeaderMap) {
        if let Some(cookie) = cookie(headers) {
            self.kept().sessions.remove(&hash(cookie));
        }
    }

    /// The form token of operators without a session.
    pub(super) fn form_token(&self) -> Option<Token> {
        let mut kept = self.kept();
        if kept.form_token.is_none() {
            kept.form_token = Token::fresh();
        }
        kept.form_token
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(cookie: &str) -> [u8; 32] {
    Sha256::digest(cookie).into()
}

/// The value of the page's cookie.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let values = headers.get_all(header::COOKIE).iter();
    let mut pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with_cookie(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_str(text).unwrap());
        headers
    }

    #[test]
    fn session_is_found_by_its_cookie_until_it_ends() {
        let sessions = PageSessions::default();
        let cookie = sessions.begin(OperatorBy::Token).unwrap();
        let headers = with_cookie(&format!("other=1; {COOKIE}={cookie}"));
        assert!(sessions.find(&headers).is_some());
        assert!(sessions.find(&with_cookie(&cookie)).is_none());
        assert!(sessions.find(&HeaderMap::new()).is_none());
        let end = Instant::now() + LASTS;
        assert!(sessions.find_at(&headers, end).is_none());

        let cookie = sessions.begin(OperatorBy::Token).unwrap();
        let headers = with_cookie(&format!("{COOKIE}={cookie}"));
        sessions.end(&headers);
        assert!(sessions.find(&headers).is_none());
    }

    #[test]
    fn oldest_session_makes_room() {
        let sessions = PageSessions::default();
        let begin = |_| sessions.begin(OperatorBy::Token).unwrap();
        let cookies: Vec<_> = (0..=SESSIONS_MAX).map(begin).collect();
        let is_there = |cookie: &String| {
            let headers = with_cookie(&format!("{COOKIE}={cookie}"));
            sessions.find(&headers).is_some()
        };
        assert!(!is_there(&cookies[0]) && is_there(&cookies[1]));
        assert!(is_there(&cookies[SESSIONS_MAX]));
    }

    #[test]
    fn tokens_are_compared_as_texts() {
        let (one, other) = (Token::fresh().unwrap(), Token::fresh().unwrap());
        assert!(one.is(&one.text()) && !one.is(&other.text()) && !one.is(""));
        assert_eq!(format!("{one:?}"), "Token(…)");
    }
}
