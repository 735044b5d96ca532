use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::ledger::testing::TestLedger;
use crate::payment::{Key, PresentedKey, Scope};

const PAYEE: Address = Address::repeat_byte(0x5e);
const OTHER: Address = Address::repeat_byte(0x6f);

fn key_id() -> KeyId {
    KeyId::from_entropy([3; KeyId::LENGTH])
}

fn refusal(code: &'static str, payee: Option<Address>, caller: Who) -> NewRefusal {
    NewRefusal {
        id: Uuid::now_v7(),
        at: SystemClock.now(),
        request_id: format!("request for {code}"),
        endpoint: "verify",
        code,
        message: "expected 1, got 2".to_owned(),
        payment: RefusedPayment {
            network: Some(Network::from_chain_id(8453)),
            payer: Some(Address::repeat_byte(1)),
            payee,
            asset: Some(Address::repeat_byte(2)),
            amount: Some(Amount::from_dollars("0.01", 6).unwrap()),
        },
        caller,
    }
}

async fn codes(test: &TestLedger, filter: &RefusalFilter) -> Vec<String> {
    let found = test.refusals(filter, (None, 100)).await.unwrap();
    found.into_iter().map(|refusal| refusal.code).collect()
}

#[tokio::test]
async fn refusals_are_recorded_once_and_read_as_they_were() {
    let test = TestLedger::new().await;
    let denied = refusal("address_denied", Some(PAYEE), Who::Operator);
    let mut unread = refusal("invalid_payload", None, Who::Anonymous);
    unread.payment = RefusedPayment::default();
    let group = [denied, unread];
    // The answer to the first statement may be lost.
    test.record_refusals(&group).await.unwrap();
    test.record_refusals(&group).await.unwrap();
    test.record_refusals(&[]).await.unwrap();
    let found = test
        .refusals(&RefusalFilter::default(), (None, 100))
        .await
        .unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!((&found[0].payer, &found[0].network), (&None, &None));
    let full = &found[1];
    assert_eq!(full.network.as_deref(), Some("eip155:8453"));
    assert_eq!(full.payee.as_deref(), Some(&*PAYEE.to_checksum(None)));
    assert_eq!(full.amount.as_deref(), Some("10000"));
    assert_eq!((&*full.caller, &full.key_name), ("operator", &None));
    assert_eq!(full.request_id, "request for address_denied");
}

#[tokio::test]
async fn unwritable_refusal_is_left_out_of_its_group() {
    let test = TestLedger::new().await;
    let [before, mut spoiled, behind] = ["address_denied", "invalid_payload", "rate_limited"]
        .map(|code| refusal(code, Some(PAYEE), Who::Anonymous));
    spoiled.message = "x".repeat(2_049);
    let group = [before, spoiled, behind];
    assert_eq!(test.record_refusals(&group).await.unwrap(), 1);
    let written = codes(&test, &RefusalFilter::default()).await;
    assert_eq!(written, ["rate_limited", "address_denied"]);
}

#[tokio::test]
async fn schema_refuses_what_is_no_refusal() {
    let test = TestLedger::new().await;
    for (change, constraint) in [
        ("endpoint = 'payments'", "refusals_endpoint_is_known"),
        ("message = repeat('x', 2049)", "refusals_texts_are_short"),
        ("network = 'base'", "refusals_network_is_caip2"),
        ("payer = '\\x00'", "refusals_addresses_have_20_bytes"),
        ("amount = -1", "refusals_amount_is_uint256"),
        ("caller = 'somebody'", "refusals_caller_is_known"),
    ] {
        let good = refusal("invalid_payload", Some(PAYEE), Who::Anonymous);
        test.record_refusals(&[good]).await.unwrap();
        let error = test.try_run(&format!("update refusals set {change}")).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(constraint), "{change}: {error}");
    }
}

#[tokio::test]
async fn filters_and_pages_select() {
    let test = TestLedger::new().await;
    for (code, payee) in [("a", PAYEE), ("b", OTHER), ("c", PAYEE), ("a", OTHER)] {
        let one = refusal(code, Some(payee), Who::Anonymous);
        test.record_refusals(&[one]).await.unwrap();
    }
    let of = RefusalFilter::default;
    assert_eq!(codes(&test, &of()).await, ["a", "c", "b", "a"]);
    let by_code = RefusalFilter {
        code: Some("a".to_owned()),
        ..of()
    };
    assert_eq!(codes(&test, &by_code).await.len(), 2);
    let by_payee = RefusalFilter {
        payee: Some(PAYEE),
        ..of()
    };
    assert_eq!(codes(&test, &by_payee).await, ["c", "a"]);
    let by_payer = RefusalFilter {
        payer: Some(OTHER),
        ..of()
    };
    assert!(codes(&test, &by_payer).await.is_empty());
    let now = SystemClock.now() + time::Duration::MINUTE;
    let (later, earlier) = (
        RefusalFilter {
            from: Some(now),
            ..of()
        },
        RefusalFilter {
            to: Some(now),
            ..of()
        },
    );
    assert!(codes(&test, &later).await.is_empty());
    assert_eq!(codes(&test, &earlier).await.len(), 4);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = test.refusals(&of(), (after, 3)).await.unwrap();
        after = page.last().map(|last| last.id);
        seen.extend(page.iter().map(|refusal| refusal.code.clone()));
        if page.len() < 3 {
            break;
        }
    }
    assert_eq!(seen, ["a", "c", "b", "a"]);
}

#[tokio::test]
async fn holder_of_a_key_sees_its_payees_and_its_own_requests() {
    let test = TestLedger::new().await;
    let key = Key {
        id: key_id(),
        name: "shop".to_owned(),
        scopes: vec![Scope::Settle, Scope::History],
        payees: vec![PAYEE],
        networks: vec![],
        gas_wei_per_day: None,
        created_at: SystemClock.now(),
        expires_at: None,
        revoked_at: None,
    };
    let (_, presented) = PresentedKey::new(key.id, [3; 32]);
    test.create_key(&key, &presented).await.unwrap();
    let foreign = KeyId::from_entropy([4; KeyId::LENGTH]);
    for (code, payee, caller) in [
        ("own_payee", Some(PAYEE), Who::Anonymous),
        ("own_request", Some(OTHER), Who::Key(key.id)),
        ("unread", None, Who::Key(key.id)),
        ("foreign", Some(OTHER), Who::Key(foreign)),
        ("unread", None, Who::Anonymous),
    ] {
        let one = refusal(code, payee, caller);
        test.record_refusals(&[one]).await.unwrap();
    }
    let of_key = |id: KeyId, payee: Address| RefusalFilter {
        seen_by: Some((vec![payee], id)),
        ..RefusalFilter::default()
    };
    let own = of_key(key.id, PAYEE);
    assert_eq!(
        codes(&test, &own).await,
        ["unread", "own_request", "own_payee"]
    );
    let named = test.refusals(&own, (None, 100)).await.unwrap();
    assert_eq!(named[0].key_name.as_deref(), Some("shop"));
    // Another payee's key sees the same request, and not whose it was by name.
    let other = test
        .refusals(&of_key(foreign, OTHER), (None, 100))
        .await
        .unwrap();
    let names: Vec<_> = other
        .iter()
        .map(|one| (&*one.code, &one.key_name))
        .collect();
    assert_eq!(names, [("foreign", &None), ("own_request", &None)]);
    let all = test
        .refusals(&RefusalFilter::default(), (None, 100))
        .await
        .unwrap();
    assert_eq!(all[3].key_name.as_deref(), Some("shop"), "the operator");
}

#[tokio::test]
async fn old_refusals_and_too_many_are_deleted_in_groups() {
    let test = TestLedger::new().await;
    let fill = |count: i64, age: &str| {
        format!(
            "insert into refusals (id, at, request_id, endpoint, code, message, caller)
            select gen_random_uuid(), now() - interval '{age}', 'r', 'settle', 'c', 'm', 'anonymous' from generate_series(1, {count})"
        )
    };
    test.run(&fill(5, "6 days 23 hours")).await;
    assert!(!test.forget_refusals().await.unwrap());
    test.run(&fill(DELETED_MAX + 3, "7 days 1 minute")).await;
    assert!(test.forget_refusals().await.unwrap(), "there are more");
    assert!(!test.forget_refusals().await.unwrap());
    assert_eq!(test.value("select count(*) from refusals").await, "5");

    test.run(&fill(KEPT_MAX, "1 minute")).await;
    let newest = "select max(id::text) from refusals";
    let newest = test.value(newest).await;
    assert!(!test.forget_refusals().await.unwrap());
    let count = test.value("select count(*) from refusals").await;
    assert_eq!(count, KEPT_MAX.to_string());
    assert_eq!(
        test.value("select max(id::text) from refusals").await,
        newest
    );
}
