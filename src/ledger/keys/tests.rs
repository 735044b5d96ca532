use alloy::primitives::Address;
use time::Duration;

use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::ledger::testing::TestLedger;
use crate::payment::Scope;
use crate::protocol::{Amount, Network};

fn key(number: u8) -> (Key, PresentedKey) {
    let id = KeyId::from_entropy([number; KeyId::LENGTH]);
    let (_, presented) = PresentedKey::new(id, [number; 32]);
    let key = Key {
        id,
        name: format!("key {number}"),
        scopes: vec![Scope::Settle, Scope::History],
        payees: vec![Address::repeat_byte(number), Address::repeat_byte(0x5e)],
        networks: vec![Network::from_chain_id(8453), Network::from_chain_id(1)],
        gas_wei_per_day: Some(Amount::from_dollars("0.01", 18).unwrap()),
        created_at: SystemClock.now(),
        expires_at: None,
        revoked_at: None,
    };
    (key, presented)
}

async fn create(test: &TestLedger, (key, presented): &(Key, PresentedKey)) -> Created {
    test.create_key(key, presented).await.unwrap()
}

async fn live(test: &TestLedger) -> Vec<KeyId> {
    let keys = test.live_keys().await.unwrap().into_iter();
    keys.map(|stored| stored.key.id).collect()
}

#[tokio::test]
async fn key_is_read_as_it_was_created() {
    let test = TestLedger::new().await;
    let (mut expected, presented) = key(1);
    assert_eq!(
        test.create_key(&expected, &presented).await.unwrap(),
        Created::Yes
    );
    let admin = Key {
        scopes: vec![Scope::Admin],
        payees: vec![],
        networks: vec![],
        gas_wei_per_day: None,
        ..key(2).0
    };
    assert_eq!(
        create(&test, &(admin.clone(), key(2).1)).await,
        Created::Yes
    );
    let keys = test.keys().await.unwrap();
    expected.created_at = keys[0].key.created_at;
    let stored = StoredKey {
        key: expected,
        secret_hash: presented.secret_hash,
        earlier: None,
    };
    assert_eq!(keys[0], stored);
    assert_eq!(keys[1].key.scopes, [Scope::Admin]);
    assert_eq!(live(&test).await, [stored.key.id, admin.id]);
}

#[tokio::test]
async fn two_good_keys_never_have_one_name() {
    let test = TestLedger::new().await;
    let first = key(1);
    create(&test, &first).await;
    let mut second = key(2);
    second.0.name.clone_from(&first.0.name);
    assert_eq!(create(&test, &second).await, Created::NameTaken);
    assert!(test.revoke_key(first.0.id).await.unwrap());
    assert_eq!(create(&test, &second).await, Created::Yes);
    // An id that exists is an error, not another key.
    let mut third = key(1);
    third.0.name = "another".to_owned();
    assert!(test.create_key(&third.0, &third.1).await.is_err());
}

#[tokio::test]
async fn schema_refuses_keys_without_limits() {
    let test = TestLedger::new().await;
    let change = |change: fn(&mut Key)| {
        let (mut key, presented) = key(1);
        change(&mut key);
        (key, presented)
    };
    for wrong in [
        change(|key| key.payees.clear()),
        change(|key| key.scopes.clear()),
        change(|key| key.scopes = vec![Scope::Admin]),
        change(|key| key.scopes.push(Scope::Admin)),
        change(|key| key.name.clear()),
        change(|key| key.expires_at = Some(key.created_at - Duration::DAY)),
    ] {
        let refused = test.create_key(&wrong.0, &wrong.1).await;
        assert!(refused.is_err(), "{wrong:?}");
    }
    assert!(live(&test).await.is_empty());
}

#[tokio::test]
async fn revoked_and_expired_keys_are_not_live() {
    let test = TestLedger::new().await;
    let (first, second) = (key(1), key(2));
    create(&test, &first).await;
    create(&test, &second).await;
    assert!(test.revoke_key(first.0.id).await.unwrap());
    assert!(!test.revoke_key(first.0.id).await.unwrap(), "once");
    assert!(!test.revoke_key(key(3).0.id).await.unwrap(), "no such key");
    assert_eq!(live(&test).await, [second.0.id]);
    test.run("update keys set created_at = now() - interval '2 days', expires_at = now() - interval '1 day' where revoked_at is null")
        .await;
    assert!(live(&test).await.is_empty());
    assert_eq!(test.keys().await.unwrap().len(), 2);
}

#[tokio::test]
async fn rotation_keeps_the_secret_before_for_a_time() {
    let test = TestLedger::new().await;
    let (first, old) = key(1);
    create(&test, &(first.clone(), old)).await;
    let (_, new) = PresentedKey::new(first.id, [9; 32]);
    let until = test.rotate_key(&new, 60).await.unwrap().unwrap();
    let stored = test.live_keys().await.unwrap().remove(0);
    assert_eq!(stored.secret_hash, new.secret_hash);
    assert_eq!(stored.earlier, Some((old.secret_hash, until)));
    assert_eq!(
        test.rotate_key(&new, 60).await.unwrap(),
        None,
        "the same secret"
    );
    test.revoke_key(first.id).await.unwrap();
    let (_, newer) = PresentedKey::new(first.id, [10; 32]);
    assert_eq!(test.rotate_key(&newer, 60).await.unwrap(), None, "revoked");
}

#[tokio::test]
async fn operators_key_is_remembered_after_its_end() {
    let test = TestLedger::new().await;
    create(&test, &key(1)).await;
    assert!(!test.has_had_admin_key().await.unwrap());
    let (settler, presented) = key(2);
    let admin = Key {
        scopes: vec![Scope::Admin],
        payees: vec![],
        networks: vec![],
        gas_wei_per_day: None,
        ..settler
    };
    create(&test, &(admin.clone(), presented)).await;
    assert!(test.has_had_admin_key().await.unwrap());
    test.revoke_key(admin.id).await.unwrap();
    assert_eq!(live(&test).await, [key(1).0.id]);
    assert!(test.has_had_admin_key().await.unwrap());
}

#[tokio::test]
async fn key_that_cannot_be_read_locks_out_no_other() {
    let test = TestLedger::new().await;
    let (first, second) = (key(1), key(2));
    create(&test, &first).await;
    create(&test, &second).await;
    test.run(
        "update keys set networks = array['eip155:99999999999999999999999'] where name = 'key 1'",
    )
    .await;
    assert_eq!(live(&test).await, [second.0.id]);
    assert!(test.keys().await.is_err());
}

#[tokio::test]
async fn gas_limits_are_read_for_each_key_by_itself() {
    let test = TestLedger::new().await;
    assert!(test.gas_limits_of_keys().await.unwrap().is_empty());
    let (first, mut second) = (key(1), key(2));
    second.0.gas_wei_per_day = None;
    create(&test, &first).await;
    create(&test, &second).await;
    test.revoke_key(first.0.id).await.unwrap();
    let limit = U256::from(10_000_000_000_000_000_u64);
    let limits = test.gas_limits_of_keys().await.unwrap();
    let expected = [(first.0.id, Some(limit)), (second.0.id, None)];
    assert_eq!(limits, expected);
    // One that cannot be read closes its own key, and opens no other.
    test.run(&format!(
        "alter table keys drop constraint keys_gas_is_uint256;
        update keys set gas_wei_per_day = 9e77 where id = '{}'",
        second.0.id
    ))
    .await;
    let limits = test.gas_limits_of_keys().await.unwrap();
    let expected = [(first.0.id, Some(limit)), (second.0.id, Some(U256::ZERO))];
    assert_eq!(limits, expected);
}

#[tokio::test]
async fn payment_gets_one_owner() {
    let test = TestLedger::new().await;
    let payment = test.accepted(1).await;
    let (first, second) = (Who::Key(key(1).0.id), Who::Anonymous);
    assert_eq!(payment.caller, None);
    assert!(test.own_payment(payment.id, first).await.unwrap());
    assert!(!test.own_payment(payment.id, second).await.unwrap());
    let owned = test.payment(payment.id).await.unwrap().unwrap();
    assert_eq!(owned.caller, Some(first));
    assert!(owned.belongs_to_another(second) && !owned.belongs_to_another(first));
}
