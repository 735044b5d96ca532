use super::*;
use crate::protocol::{Network, PaymentMethod};
use alloy::primitives::B256;

fn key(id: &str) -> PurchaseKey {
    let url = "https://shop.example/report".parse().unwrap();
    PurchaseKey::new(Address::ZERO, Some(id), ("GET", &url, b""))
}

fn payment(amount: &str) -> OpenPayment {
    let url: Url = "https://shop.example/report?key=secret".parse().unwrap();
    OpenPayment {
        requested_url: url.clone(),
        presented_to: url,
        version: X402Version::V2,
        header: "aGVhZGVy".to_owned(),
        signed: SignedPayment {
            network: Network::from_chain_id(84_532),
            asset: Address::repeat_byte(1),
            payer: Address::repeat_byte(2),
            pay_to: Address::repeat_byte(3),
            amount: amount.parse().unwrap(),
            method: PaymentMethod::default(),
            nonce: B256::repeat_byte(4),
            valid_before: Some(1_900_000_000),
        },
        session: None,
        transaction: None,
    }
}

#[test]
fn purchase_key_covers_payer_and_request_or_purchase_id() {
    let url: Url = "https://a.example/x".parse().unwrap();
    let other: Url = "https://a.example/y".parse().unwrap();
    let payer = Address::ZERO;
    let key = PurchaseKey::new(payer, None, ("GET", &url, b"1"));
    assert_eq!(key, PurchaseKey::new(payer, None, ("GET", &url, b"1")));
    for different in [
        PurchaseKey::new(Address::repeat_byte(1), None, ("GET", &url, b"1")),
        PurchaseKey::new(payer, None, ("POST", &url, b"1")),
        PurchaseKey::new(payer, None, ("GET", &other, b"1")),
        PurchaseKey::new(payer, None, ("GET", &url, b"2")),
        PurchaseKey::new(payer, Some("order"), ("GET", &url, b"1")),
    ] {
        assert_ne!(key, different);
    }
    let named = PurchaseKey::new(payer, Some("order"), ("GET", &url, b"1"));
    assert_eq!(
        named,
        PurchaseKey::new(payer, Some("order"), ("PUT", &other, b"2"))
    );
}

#[test]
fn open_payments_survive_reopening_and_closed_ones_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purchases.jsonl");
    let journal = Journal::open(&path).unwrap();
    journal.record(&key("one"), &payment("10")).unwrap();
    journal.record(&key("two"), &payment("20")).unwrap();
    journal.record_transaction(&key("one"), "0xaa").unwrap();
    journal.record_transaction(&key("one"), "0xbb").unwrap();
    journal.close(&key("two")).unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    let found = journal.find(&key("one")).unwrap();
    assert_eq!(
        found.transaction.as_deref(),
        Some("0xaa"),
        "the first recorded hash stays"
    );
    assert_eq!(found.header, "aGVhZGVy");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1, "closed purchases are dropped");
    assert!(journal.find(&key("two")).is_none());
    assert_eq!(journal.committed(Address::repeat_byte(2)), U256::from(10));
    assert_eq!(journal.committed(Address::repeat_byte(9)), U256::ZERO);
    journal.close(&key("one")).unwrap();
    drop(journal);
    assert!(Journal::open(&path).unwrap().unresolved().is_empty());
    assert_eq!(
        std::fs::read(&path).unwrap(),
        b"",
        "no open purchase, empty file"
    );
}

#[test]
fn torn_last_line_is_dropped_and_corrupt_middle_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purchases.jsonl");
    let journal = Journal::open(&path).unwrap();
    journal.record(&key("one"), &payment("10")).unwrap();
    let first = std::fs::read(&path).unwrap().len();
    journal.record(&key("two"), &payment("20")).unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for end in first..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert!(
            journal.find(&key("one")).is_some() && journal.find(&key("two")).is_none(),
            "{end}"
        );
        journal.record(&key("three"), &payment("30")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().unresolved().len(), 2, "{end}");
    }
    let mut broken = whole;
    broken[3] = b'?';
    std::fs::write(&path, &broken).unwrap();
    assert!(matches!(
        Journal::open(&path),
        Err(JournalError::Corrupt { line: 1, .. })
    ));
    assert_eq!(
        std::fs::read(&path).unwrap(),
        broken,
        "the file is unchanged"
    );
}

#[test]
fn file_is_locked_and_readable_by_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purchases.jsonl");
    let journal = Journal::open(&path).unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalError::InUse(_))));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert!(!format!("{journal:?} {:?}", payment("1")).contains("secret"));
    drop(journal);
    Journal::open(&path).unwrap();
}

#[cfg(unix)]
#[test]
fn journal_that_was_open_to_others_is_closed_to_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purchases.jsonl");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).unwrap();
    };
    let mode_now = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    Journal::open(&path)
        .unwrap()
        .record(&key("a"), &payment("1"))
        .unwrap();
    assert_eq!(mode_now(), 0o600);
    for open in [0o644, 0o666, 0o620, 0o777] {
        mode(open);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.unresolved().len(), 1);
        assert_eq!(mode_now(), 0o600, "{open:o}");
    }
}
