use super::*;
use crate::ledger::LaneLease;
use crate::ledger::testing::{
    LANE, NETWORK, OTHER_LANE, TestLedger, attempt, block, location, mined, request,
};
use crate::payment::{Payment, PaymentState};
use crate::protocol::{Reason, Rejection, Scheme};

/// A ledger with the payments 1 and 2 in the transaction of nonce 0.
async fn sent() -> (TestLedger, LaneLease, Uuid, [Payment; 2]) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payments = [test.accepted(1).await, test.accepted(2).await];
    let id = test.signed(lease, 0, &payments.each_ref()).await;
    (test, lease, id, payments)
}

async fn outcomes(test: &TestLedger) -> String {
    let outcomes = "select string_agg(coalesce(outcome, 'open'), ' ' order by transaction_id, position) from transaction_payments";
    test.value(outcomes).await
}

async fn states(test: &TestLedger, payments: &[Payment]) -> Vec<String> {
    let mut states = Vec::new();
    for payment in payments {
        states.push(test.state(payment.id).await);
    }
    states
}

const fn rolled_back(transactions: u64, payments: u64) -> RolledBack {
    RolledBack {
        transactions,
        payments,
    }
}

#[tokio::test]
async fn mined_transaction_is_recorded_once() {
    let (test, _, id, payments) = sent().await;
    let mined = mined(id, 0, 1, &[payments[0].id]);
    assert_eq!(test.record_mined(&mined).await.unwrap(), 1);
    assert_eq!(states(&test, &payments).await, ["mined", "inflight"]);
    assert_eq!(outcomes(&test).await, "transferred open");
    // Another process reads the same receipt, or that of a block which was orphaned since.
    let again = MinedTransaction {
        block: block(2),
        transferred: vec![TransferredPayment {
            payment: payments[1].id,
            log_index: 5,
            confirmed: true,
        }],
        ..mined
    };
    test.record_mined(&again).await.unwrap();
    assert_eq!(states(&test, &payments).await, ["mined", "inflight"]);
    assert_eq!(outcomes(&test).await, "transferred open");
    let number = "select block_number from transactions";
    assert_eq!(test.value(number).await, block(1).number.to_string());
}

#[tokio::test]
async fn log_of_another_payment_leaves_all_payments_undecided() {
    let (test, lease, id, payments) = sent().await;
    test.record_mined(&mined(id, 0, 1, &[payments[0].id]))
        .await
        .unwrap();
    let further = [test.accepted(3).await, test.accepted(4).await];
    let second = test.signed(lease, 1, &further.each_ref()).await;
    let taken = MinedTransaction {
        hash: attempt(0).hash,
        ..mined(second, 1, 2, &[further[0].id, further[1].id])
    };
    assert_eq!(test.record_mined(&taken).await.unwrap(), 0);
    assert_eq!(states(&test, &further).await, ["inflight", "inflight"]);
    let state = format!("select state from transactions where id = '{second}'");
    assert_eq!(test.value(&state).await, "mined");
    assert_eq!(outcomes(&test).await, "transferred open open open");
}

#[tokio::test]
async fn payment_that_is_decided_already_keeps_its_state() {
    let (test, _, id, payments) = sent().await;
    let elsewhere = location(9);
    let columns = format!(
        "transaction_hash = '\\x{:x}', log_index = 1, block_number = {}, block_hash = '\\x{:x}', block_time = now()",
        elsewhere.transaction, elsewhere.block_number, elsewhere.block_hash
    );
    test.set(payments[0].id, &format!("state = 'settled', {columns}"))
        .await;
    test.set(payments[1].id, "state = 'failed', reason = 'a test'")
        .await;
    let mut mined = mined(id, 0, 1, &payments.each_ref().map(|payment| payment.id));
    assert_eq!(test.record_mined(&mined).await.unwrap(), 0);
    // A failed payment has to wait for its confirmations.
    assert_eq!(states(&test, &payments).await, ["settled", "failed"]);
    assert_eq!(outcomes(&test).await, "open open");

    test.run("update transactions set state = 'signed', hash = null, succeeded = null, block_number = null, block_hash = null,
        gas_used = null, gas_price_wei = null")
        .await;
    for transferred in &mut mined.transferred {
        transferred.confirmed = true;
    }
    assert_eq!(test.record_mined(&mined).await.unwrap(), 1);
    assert_eq!(states(&test, &payments).await, ["settled", "late_settled"]);
}

#[tokio::test]
async fn mined_payment_is_settled_at_its_confirmations() {
    let (test, _, id, payments) = sent().await;
    test.record_mined(&mined(id, 0, 1, &[payments[0].id]))
        .await
        .unwrap();
    let (height, all) = (block(1).number, [block(1).hash, block(2).hash]);
    // Two confirmations are promised: the block's own and one more.
    assert_eq!(
        test.confirm(NETWORK, height, &all).await.unwrap(),
        (vec![], true)
    );
    let elsewhere = Network::from_chain_id(1);
    let none = (vec![], false);
    assert_eq!(
        test.confirm(elsewhere, height + 1, &all).await.unwrap(),
        none
    );
    let orphaned = test.confirm(NETWORK, height + 1, &[block(2).hash]).await;
    assert_eq!(orphaned.unwrap(), (vec![], true));
    let (settled, waits) = test.confirm(NETWORK, height + 1, &all).await.unwrap();
    let expected = SettledPayment {
        payment: payments[0].id,
        scheme: Scheme::Exact,
        payer: payments[0].terms.from,
        signer: Some(LANE.signer),
        transaction: Some(mined(id, 0, 1, &[]).hash),
    };
    assert_eq!((settled, waits), (vec![expected], false));
    assert_eq!(test.confirm(NETWORK, height + 1, &all).await.unwrap(), none);
    assert_eq!(states(&test, &payments).await, ["settled", "inflight"]);
}

#[tokio::test]
async fn quarantined_payment_awaits_no_confirmations() {
    let (test, _, id, payments) = sent().await;
    test.record_mined(&mined(id, 0, 1, &[payments[0].id]))
        .await
        .unwrap();
    test.quarantine(payments[0].id, "a test").await.unwrap();
    let (settled, waits) = test
        .confirm(NETWORK, 1_000_000, &[block(1).hash])
        .await
        .unwrap();
    assert_eq!((settled, waits), (vec![], false));
    assert_eq!(states(&test, &payments).await, ["mined", "inflight"]);
}

#[tokio::test]
async fn settled_payment_is_final_up_to_the_height() {
    let test = TestLedger::new().await;
    let payments = [
        test.settled(1).await,
        test.settled(2).await,
        test.settled(3).await,
    ];
    test.set(payments[2].id, "state = 'late_settled'").await;
    let elsewhere = Network::from_chain_id(1);
    let all = [1, 2, 3].map(|number| block(number).hash);
    let finalise = async |network, height, canonical: &[B256]| {
        test.finalise(network, height, canonical).await.unwrap()
    };
    assert_eq!(finalise(elsewhere, 1_000, &all).await, 0);
    assert_eq!(finalise(NETWORK, block(0).number, &all).await, 0);
    assert_eq!(
        finalise(NETWORK, 1_000, &[]).await,
        0,
        "no block was found in the chain"
    );
    assert_eq!(finalise(NETWORK, block(1).number, &all).await, 1);
    assert_eq!(
        states(&test, &payments).await,
        ["final", "settled", "late_settled"]
    );
    assert_eq!(finalise(NETWORK, 1_000, &all[1..]).await, 1);
    assert_eq!(
        states(&test, &payments).await,
        ["final", "final", "late_settled"]
    );
}

#[tokio::test]
async fn unreadable_block_is_left_out() {
    let (test, _, id, payments) = sent().await;
    test.record_mined(&mined(id, 0, 1, &[payments[0].id]))
        .await
        .unwrap();
    for number in 2..=4 {
        test.settled(number + 8).await;
    }
    test.run("alter table payments drop constraint payments_hashes_have_32_bytes; update payments set block_hash = '\\x11' where block_number = 111")
        .await;
    let blocks = test.unfinal_blocks(NETWORK, 100, 111).await.unwrap();
    let expected = [10, 1].map(|number| (block(number).number, block(number).hash));
    assert_eq!(blocks, expected);
}

#[tokio::test]
async fn unfinal_blocks_are_compared_however_deep() {
    let (test, lease, first, payments) = sent().await;
    let second = test.signed(lease, 1, &[&test.accepted(3).await]).await;
    let third = test.signed(lease, 2, &[&test.accepted(4).await]).await;
    test.record_mined(&mined(first, 0, 1, &[payments[0].id]))
        .await
        .unwrap();
    let compared = async |height, head: u8| {
        let blocks = test.unfinal_blocks(NETWORK, height, block(head).number);
        let blocks = blocks.await.unwrap().into_iter();
        blocks.map(|(number, _)| number).collect::<Vec<_>>()
    };
    let number = |number| block(number).number;
    for (id, nonce) in [(second, 1), (third, 2)] {
        let mined = mined(id, nonce, u8::try_from(nonce).unwrap() + 1, &[]);
        test.record_mined(&mined).await.unwrap();
    }
    assert_eq!(compared(0, 9).await, [3, 2, 1].map(number));
    assert_eq!(compared(0, 2).await, [2, 1].map(number), "up to the head");
    // The payment that is not final, and the newest nonce.
    assert_eq!(compared(1_000, 9).await, [3, 1].map(number));
    test.set(payments[0].id, "state = 'settled'").await;
    test.set(payments[0].id, "state = 'final'").await;
    assert_eq!(compared(1_000, 9).await, [3].map(number));
    let elsewhere = Network::from_chain_id(1);
    let blocks = test.unfinal_blocks(elsewhere, 0, 1_000).await;
    assert_eq!(blocks.unwrap(), []);
}

#[tokio::test]
async fn reorg_opens_the_transactions_of_its_blocks_alone() {
    let (test, lease, id, payments) = sent().await;
    let both = payments.each_ref().map(|payment| payment.id);
    test.record_mined(&mined(id, 0, 1, &both)).await.unwrap();
    let other = [test.accepted(3).await];
    let kept = test.signed(lease, 1, &other.each_ref()).await;
    test.record_mined(&mined(kept, 1, 2, &[other[0].id]))
        .await
        .unwrap();
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    let finished = test.settled(5).await;
    test.set(
        finished.id,
        &format!("state = 'final', block_hash = '\\x{:x}'", block(1).hash),
    )
    .await;
    let granted = test
        .confirm(NETWORK, 200, &[1, 2].map(|number| block(number).hash))
        .await
        .unwrap();
    assert_eq!(granted.0.len(), 3);
    assert!(test.grant(both[0], request("one")).await.unwrap().is_some());

    let removed = [block(1).hash];
    let (height, elsewhere) = (block(1).number, Network::from_chain_id(1));
    assert_eq!(
        test.roll_back(elsewhere, &removed, height).await.unwrap(),
        rolled_back(0, 0)
    );
    assert_eq!(
        test.roll_back(NETWORK, &removed, height + 1).await.unwrap(),
        rolled_back(0, 0)
    );
    let nothing = test.roll_back(NETWORK, &[B256::ZERO], height).await;
    assert_eq!(nothing.unwrap(), rolled_back(0, 0));
    assert_eq!(states(&test, &payments).await, ["settled", "settled"]);
    assert_eq!(test.value("select max(reopened) from lanes").await, "0");

    let undone = test.roll_back(NETWORK, &removed, height).await;
    assert_eq!(undone.unwrap(), rolled_back(1, 2));
    assert_eq!(states(&test, &payments).await, ["inflight", "inflight"]);
    assert_eq!(states(&test, &other).await, ["settled"]);
    assert_eq!(test.state(finished.id).await, "final");
    let pending = test.pending_transactions(LANE).await.unwrap();
    let open: Vec<(Uuid, usize)> = pending
        .iter()
        .map(|open| (open.id, open.payments.len()))
        .collect();
    assert_eq!(open, [(id, 2)]);
    let reopened = "select string_agg(reopened::text, ' ' order by signer) from lanes";
    assert_eq!(test.value(reopened).await, "1 0");
    assert_eq!(
        test.value("select count(*) from grants").await,
        "1",
        "grants stay"
    );
    let again = test.roll_back(NETWORK, &removed, height).await;
    assert_eq!(again.unwrap(), rolled_back(0, 0));
}

#[tokio::test]
async fn payment_in_a_later_transaction_stays_there_after_a_reorg() {
    let (test, lease, id, payments) = sent().await;
    test.record_mined(&mined(id, 0, 1, &[])).await.unwrap();
    // Without effect in the first transaction: one is sent again, one is refused.
    test.run("update transaction_payments set outcome = 'without_effect'")
        .await;
    test.set(payments[0].id, "state = 'queued', transaction_hash = null")
        .await;
    test.set(payments[1].id, "state = 'queued', transaction_hash = null")
        .await;
    test.signed(lease, 1, &[&payments[0]]).await;
    let rejection = Rejection {
        reason: Reason::UnexpectedSettleError,
        message: "a test".to_owned(),
    };
    assert!(test.refuse(payments[1].id, &rejection).await.unwrap());
    let reopened = test
        .roll_back(NETWORK, &[block(1).hash], block(1).number)
        .await;
    assert_eq!(reopened.unwrap(), rolled_back(1, 0));
    let mut hashes = Vec::new();
    for payment in &payments {
        let payment = test.payment(payment.id).await.unwrap().unwrap();
        hashes.push(payment.state);
    }
    let expected = [1, 0].map(|nonce| PaymentState::Inflight(attempt(nonce).hash));
    assert_eq!(hashes, expected);
    assert_eq!(outcomes(&test).await, "without_effect open open");
}

#[tokio::test]
async fn reorg_of_a_foreign_transaction_queues_its_payment_again() {
    let test = TestLedger::new().await;
    let settled = [test.settled(1).await, test.settled(2).await];
    let reopened = test
        .roll_back(NETWORK, &[block(1).hash], block(1).number)
        .await;
    assert_eq!(reopened.unwrap(), rolled_back(0, 1));
    assert_eq!(states(&test, &settled).await, ["queued", "settled"]);
    let events = "select count(*) from events where kind = 'reorged'";
    assert_eq!(test.value(events).await, "1");
}
