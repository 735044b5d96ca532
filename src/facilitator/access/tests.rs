use std::net::{IpAddr, Ipv4Addr};

use time::Duration as Span;

use super::*;
use crate::clock::SystemClock;

const PAYEE: Address = Address::repeat_byte(0x5e);
const OTHER: Address = Address::repeat_byte(0x6f);

fn network() -> Network {
    Network::from_chain_id(8453)
}

fn stored(number: u8, scope: Scope) -> (String, StoredKey) {
    let id = KeyId::from_entropy([number; KeyId::LENGTH]);
    let (text, presented) = PresentedKey::new(id, [number; 32]);
    let key = Key {
        id,
        name: format!("key {number}"),
        scopes: vec![scope],
        payees: vec![PAYEE],
        networks: Vec::new(),
        gas_wei_per_day: None,
        created_at: OffsetDateTime::UNIX_EPOCH,
        expires_at: None,
        revoked_at: None,
    };
    let stored = StoredKey {
        key,
        secret_hash: presented.secret_hash,
        earlier: None,
    };
    (text, stored)
}

fn access(settle: AccessMode, keys: Vec<StoredKey>) -> Access {
    let access = Access {
        settle,
        keys: Keys::default(),
        clock: Arc::new(SystemClock),
    };
    access.keys.replace(keys, false, Instant::now());
    access
}

fn caller(who: Who, key: Option<Arc<Key>>) -> Caller {
    Caller {
        who,
        key,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        request_id: String::new(),
        asked_as: String::new(),
    }
}

fn reason<T>(result: Result<T, Rejection>) -> Option<Reason> {
    result.err().map(|rejection| rejection.reason)
}

#[test]
fn a_secret_opens_its_own_key_while_that_is_good() {
    let ((text, good), (other_text, _)) = (stored(1, Scope::Settle), stored(2, Scope::Settle));
    let access = access(AccessMode::Keys, vec![good.clone()]);
    assert_eq!(access.key(&text).unwrap().id, good.key.id);
    let swapped = format!("{}{}", &text[..19], &other_text[19..]);
    for wrong in [other_text.as_str(), swapped.as_str(), "x402d_", "Bearer"] {
        assert_eq!(
            reason(access.key(wrong)),
            Some(Reason::KeyInvalid),
            "{wrong}"
        );
    }
    let now = SystemClock.now();
    let expired = StoredKey {
        key: Key {
            expires_at: Some(now - Span::SECOND),
            ..good.key.clone()
        },
        ..good
    };
    access.keys.replace(vec![expired], false, Instant::now());
    assert_eq!(reason(access.key(&text)), Some(Reason::KeyInvalid));
}

#[test]
fn after_a_rotation_both_secrets_are_good_for_a_time() {
    let ((earlier, old), (later, new)) = (stored(1, Scope::Settle), stored(2, Scope::Settle));
    // The later secret, written for the same id.
    let later = format!("{}{}", &earlier[..19], &later[19..]);
    let now = SystemClock.now();
    let rotated = |until| StoredKey {
        key: old.key.clone(),
        secret_hash: new.secret_hash,
        earlier: Some((old.secret_hash, until)),
    };
    let access = access(AccessMode::Keys, vec![rotated(now + Span::MINUTE)]);
    assert!(access.key(&earlier).is_ok() && access.key(&later).is_ok());
    access
        .keys
        .replace(vec![rotated(now - Span::SECOND)], false, Instant::now());
    assert!(access.key(&later).is_ok());
    assert_eq!(reason(access.key(&earlier)), Some(Reason::KeyInvalid));
}

#[test]
fn keys_that_were_read_long_ago_are_not_used() {
    let (text, good) = stored(1, Scope::Admin);
    let access = access(AccessMode::Keys, vec![]);
    let long_ago = Instant::now().checked_sub(AGE_MAX + Duration::from_secs(1));
    access.keys.replace(vec![good], true, long_ago.unwrap());
    assert_eq!(reason(access.key(&text)), Some(Reason::KeysUnavailable));
    assert_eq!(
        reason(access.has_had_admin_key()),
        Some(Reason::KeysUnavailable)
    );
}

#[test]
fn callers_are_admitted_by_mode_and_scope() {
    let key = |scope| Some(Arc::new(stored(1, scope).1.key));
    let id = stored(1, Scope::Settle).1.key.id;
    let table = [
        (
            caller(Who::Anonymous, None),
            None,
            Some(Reason::KeyRequired),
        ),
        (caller(Who::Operator, None), None, None),
        (caller(Who::Key(id), key(Scope::Settle)), None, None),
        (
            caller(Who::Key(id), key(Scope::History)),
            Some(Reason::ScopeMissing),
            Some(Reason::ScopeMissing),
        ),
    ];
    for (caller, open, keys) in table {
        for (mode, expected) in [(AccessMode::Open, open), (AccessMode::Keys, keys)] {
            let access = access(mode, vec![]);
            let found = reason(access.check_settler(&caller));
            assert_eq!(found, expected, "{caller:?} {mode:?}");
        }
    }
}

#[test]
fn buyers_open_sessions_for_the_payees_of_keys() {
    let (_, good) = stored(1, Scope::Settle);
    let (_, reader) = stored(2, Scope::History);
    let buyer = caller(Who::Anonymous, None);
    let seller = caller(Who::Key(good.key.id), Some(Arc::new(good.key.clone())));
    let not_allowed = Some(Reason::PayeeNotAllowed);
    let keys = access(AccessMode::Keys, vec![good.clone()]);
    let open = access(AccessMode::Open, vec![good]);
    for (access, caller, payee, expected) in [
        (&keys, &buyer, PAYEE, None),
        (&keys, &buyer, OTHER, not_allowed),
        (&open, &buyer, OTHER, None),
        (&keys, &seller, PAYEE, None),
        (&open, &seller, OTHER, not_allowed),
    ] {
        let found = reason(access.check_session(caller, network(), payee));
        assert_eq!(found, expected, "{caller:?} {payee}");
    }
    let readers_only = access(AccessMode::Keys, vec![reader]);
    let found = reason(readers_only.check_session(&buyer, network(), PAYEE));
    assert_eq!(found, not_allowed);
}
