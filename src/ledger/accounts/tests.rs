use std::sync::Arc;

use super::*;
use crate::ledger::Accepted;
use crate::ledger::acceptance::accept;
use crate::ledger::testing::{TestLedger, candidate, new_payment, permit2_candidate, verified};
use crate::payment::ChainFacts;
use crate::payment::fixture::{self, AMOUNT};
use crate::protocol::Scheme;

/// More than an amount can be; the column admits it.
const TOO_LARGE: &str = "repeat('9', 78)::numeric";

#[tokio::test]
async fn account_is_inserted_once_and_locked() {
    let test = TestLedger::new().await;
    let keys = vec![
        AccountKey::from(&candidate(1).terms),
        AccountKey::from(&candidate(1).terms),
    ];
    let mut first = test.pool.begin().await.unwrap();
    assert_eq!(lock(&mut first, keys.clone()).await.unwrap().len(), 1);
    first.commit().await.unwrap();
    test.run("update payer_accounts set held = 5").await;
    let mut second = test.pool.begin().await.unwrap();
    let accounts = lock(&mut second, keys).await.unwrap();
    let held: Vec<U256> = accounts.values().map(|account| account.held).collect();
    assert_eq!(held, [U256::from(5)]);
    // Nobody else promises in the meantime.
    let locked = "select from payer_accounts for update nowait";
    let refused = test.try_run(locked).await.unwrap_err();
    let code = crate::ledger::connections::code(&refused);
    assert_eq!(code.as_deref(), Some("55P03"), "{refused:?}");
}

#[tokio::test]
async fn unreadable_account_refuses_its_payer_alone() {
    let test = TestLedger::new().await;
    test.run(&format!(
        "insert into payer_accounts (network, asset, payer, held)
        values ('eip155:84532', '\\x{:x}', '\\x{:x}', {TOO_LARGE})",
        fixture::USDC,
        candidate(2).terms.from,
    ))
    .await;
    let group: Arc<[_]> = [new_payment(1), new_payment(2), new_payment(3)].into();
    let answers = accept(test.pool.clone(), test.process(), group).await;
    let [first, spoiled, third] = answers.unwrap().try_into().unwrap();
    assert!(matches!(first.unwrap(), Accepted::New(_)));
    let held = U256::MAX;
    assert_eq!(spoiled.unwrap(), Accepted::InsufficientBalance { held });
    assert!(matches!(third.unwrap(), Accepted::New(_)));
}

#[tokio::test]
async fn promises_beyond_any_amount_refuse_their_payer_alone() {
    let test = TestLedger::new().await;
    let facts = ChainFacts {
        allowance: Some(U256::from(2 * AMOUNT)),
        balance: None,
        ..fixture::facts()
    };
    let new = |nonce, payer| {
        let mut candidate = permit2_candidate(Scheme::Exact, nonce);
        candidate.terms.from = permit2_candidate(Scheme::Exact, payer).terms.from;
        verified(candidate, &facts)
    };
    let group: Arc<[_]> = [new(1, 1), new(2, 2)].into();
    let answers = accept(test.pool.clone(), test.process(), group).await;
    for answer in answers.unwrap() {
        assert!(matches!(answer.unwrap(), Accepted::New(_)));
    }
    test.run("alter table payments drop constraint payments_amount_is_uint256, drop constraint payments_permitted_is_uint256")
        .await;
    let spoiled = format!(
        "update payments set amount = {TOO_LARGE}, permitted = {TOO_LARGE} where payer = '\\x{:x}'",
        new(2, 2).verified.candidate().terms.from
    );
    test.run(&spoiled).await;
    let group: Arc<[_]> = [new(3, 1), new(4, 2)].into();
    let answers = accept(test.pool.clone(), test.process(), group).await;
    let [good, spoiled] = answers.unwrap().try_into().unwrap();
    assert!(matches!(good.unwrap(), Accepted::New(_)));
    let promised = U256::MAX;
    assert_eq!(
        spoiled.unwrap(),
        Accepted::InsufficientAllowance { promised }
    );
}
