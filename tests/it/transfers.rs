//! Sessions on rail `transfer`: the payer sends a plain ERC-20 transfer and pays for its gas.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;
use x402d::protocol::session::transfer_calldata;

use crate::support::{OpenSession, Purchase, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0xca);
const RAIL: &str = "transfer";

async fn open(world: &World, payer: &PrivateKeySigner, amount: u64) -> OpenSession {
    OpenSession::open(&world.facilitator, payer, RAIL, PAYEE, amount).await
}

fn raw(transaction: &Bytes) -> Value {
    json!({"rawTransaction": transaction})
}

#[tokio::test(flavor = "multi_thread")]
async fn submitted_bytes_and_claim_buy_once() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer, 700).await;
    assert_eq!(session.opened["transfer"]["value"], "0");
    assert_eq!(session.opened["claim"]["primaryType"], "SessionClaim");
    let (bytes, hash) = session.transaction(0, None);
    let paid = session.submit(&world.facilitator, &raw(&bytes)).await;
    assert_eq!(
        (paid.status, paid.body["state"].as_str()),
        (200, Some("paid")),
        "{}",
        paid.body
    );
    assert_eq!(paid.body["transaction"], hash.to_string());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(700));

    assert!(
        world
            .facilitator
            .verify(&session.proof(hash))
            .await
            .is_valid()
    );
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(settled.transaction(), hash.to_string());
    assert_eq!(settled.body["extra"]["sessionId"], session.id);
    assert_eq!(settled.body["payer"], payer.address().to_checksum(None));
    assert_eq!(session.read(&world.facilitator).await["state"], "consumed");
    let again = world.facilitator.settle(&session.proof(hash)).await;
    assert_eq!(
        (again.reason(), again.transaction()),
        ("duplicate_settlement", hash.to_string())
    );
    let same = session.submit(&world.facilitator, &raw(&bytes)).await;
    assert_eq!(
        (same.status, same.body["state"].as_str()),
        (200, Some("consumed")),
        "repeating is harmless"
    );
    assert_eq!(world.transactions(1).await, 0, "no gas of ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_alone_suffices_after_payers_transfer() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer, 40).await;
    let (bytes, hash) = session.transaction(0, Some(session.untagged()));
    let early = world.facilitator.settle(&session.proof(hash)).await;
    assert_eq!(early.reason(), "transfer_not_found");
    let sent = json!({"transaction": hash, "signature": session.claim(hash)});
    let early = session.submit(&world.facilitator, &sent).await;
    assert_eq!(
        (early.status, early.body["code"].as_str()),
        (404, Some("transfer_not_found"))
    );
    assert_eq!(
        (&early.body["retryable"], &early.body["moneyMayMove"]),
        (&json!(true), &json!(true))
    );

    world.send_raw(&bytes).await;
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert!(settled.succeeded(), "{}", settled.body);
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(
        (&row["transaction"], &row["state"]),
        (&json!(hash), &json!("settled"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_copies_of_a_proof_at_two_processes_buy_once() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let replica = world.replica().await;
    let session = open(&world, &payer, 9).await;
    let (bytes, hash) = session.transaction(0, None);
    world.send_raw(&bytes).await;
    let bodies = || vec![session.proof(hash); 25];
    let (here, there) = tokio::join!(
        world.facilitator.settle_all(bodies()),
        replica.settle_all(bodies())
    );
    let answers: Vec<_> = here.into_iter().chain(there).collect();
    let granted = answers.iter().filter(|answer| answer.succeeded()).count();
    assert_eq!(granted, 1);
    for answer in answers.iter().filter(|answer| !answer.succeeded()) {
        assert_eq!(
            (answer.reason(), answer.transaction()),
            ("duplicate_settlement", hash.to_string())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_not_matching_session_has_its_code() {
    let world = World::new().await;
    let (payer, other_payer) = (world.payer_with_gas().await, world.payer_with_gas().await);
    let old = open(&world, &payer, 10).await;
    let (bytes, old_hash) = old.transaction(0, Some(old.untagged()));
    world.send_raw(&bytes).await;
    world.chain.mine(2).await;
    let height = world.chain.call("eth_blockNumber", json!([])).await;
    let session = eventually("a newer head", Duration::from_secs(20), async || {
        let session = open(&world, &payer, 10).await;
        let from = session.opened["acceptFromBlock"].as_u64().unwrap();
        let height: U256 = serde_json::from_value(height.clone()).unwrap();
        (U256::from(from) > height).then_some(session)
    })
    .await;
    let tag = session.nonce();
    let other =
        |payee: Address, amount: &str| transfer_calldata(payee, amount.parse().unwrap(), tag);
    let (dear, dear_hash) = session.transaction(1, Some(other(PAYEE, "11")));
    let (astray, astray_hash) = session.transaction(2, Some(other(other_payer.address(), "10")));
    let foreign = open(&world, &other_payer, 10).await;
    let (theirs, their_hash) = foreign.transaction(0, Some(foreign.untagged()));
    for bytes in [&dear, &astray, &theirs] {
        world.send_raw(bytes).await;
    }
    for (hash, code) in [
        (old_hash, "transfer_too_old"),
        (dear_hash, "session_transfer_mismatch"),
        (astray_hash, "session_transfer_mismatch"),
        (their_hash, "session_transfer_mismatch"),
        (B256::repeat_byte(0x77), "transfer_not_found"),
    ] {
        let settled = world.facilitator.settle(&session.proof(hash)).await;
        assert_eq!(settled.reason(), code, "{}", settled.body);
        let advised = world.facilitator.verify(&session.proof(hash)).await;
        assert_eq!(advised.reason(), code);
        let sent = json!({"transaction": hash, "signature": session.claim(hash)});
        let submitted = session.submit(&world.facilitator, &sent).await;
        assert_eq!(submitted.body["code"], code);
    }
    assert_eq!(
        session.read(&world.facilitator).await["state"],
        "open",
        "none of it was accepted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_without_payers_claim_are_refused() {
    let world = World::new().await;
    let (payer, other_payer) = (world.payer_with_gas().await, new_account());
    let session = open(&world, &payer, 10).await;
    let (untagged, untagged_hash) = session.transaction(0, Some(session.untagged()));
    for claim in [
        None,
        Some(session.claim_by(&other_payer, untagged_hash)),
        Some(session.claim(B256::ZERO)),
    ] {
        let mut body = raw(&untagged);
        if let Some(claim) = claim {
            body["signature"] = json!(claim);
        }
        let refused = session.submit(&world.facilitator, &body).await;
        assert_eq!(
            (refused.status, refused.body["code"].as_str()),
            (422, Some("session_claim_invalid"))
        );
    }
    let mut forged = session.proof(untagged_hash);
    forged["paymentPayload"]["payload"]["signature"] =
        json!(session.claim_by(&other_payer, untagged_hash));
    assert_eq!(
        world.facilitator.settle(&forged).await.reason(),
        "session_claim_invalid"
    );
    let junk = session
        .submit(&world.facilitator, &json!({"rawTransaction": "0x02c0"}))
        .await;
    assert_eq!(junk.body["code"], "session_transfer_mismatch");
    assert_eq!(
        session.read(&world.facilitator).await["state"],
        "open",
        "none of it was accepted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_and_sessions_match_one_to_one() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let (first, second) = (
        open(&world, &payer, 10).await,
        open(&world, &payer, 10).await,
    );
    let (bytes, hash) = first.transaction(0, Some(first.untagged()));
    world.send_raw(&bytes).await;
    let settled = world.facilitator.settle(&first.proof(hash)).await;
    assert!(settled.succeeded(), "{}", settled.body);
    let reused = world.facilitator.settle(&second.proof(hash)).await;
    assert_eq!(reused.reason(), "transfer_already_used");
    let (more, more_hash) = first.transaction(1, Some(first.untagged()));
    world.send_raw(&more).await;
    let taken = world.facilitator.settle(&first.proof(more_hash)).await;
    assert_eq!(taken.reason(), "session_in_use");
    // The second transfer is not lost: another session can claim it.
    let settled = world.facilitator.settle(&second.proof(more_hash)).await;
    assert!(settled.succeeded(), "{}", settled.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn self_submitted_authorization_buys_once() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer, 25).await;
    let purchase = Purchase::new(&payer, PAYEE, 25);
    world.chain.submit(&purchase).await;
    let logs = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    let hash: B256 = serde_json::from_value(logs[0]["transactionHash"].clone()).unwrap();
    let as_proof = world.facilitator.settle(&session.proof(hash)).await;
    assert_eq!(as_proof.reason(), "session_transfer_mismatch");
    let as_header = [
        world.facilitator.settle(&purchase.body()).await,
        world.facilitator.settle(&purchase.body()).await,
    ];
    let bought = as_header.iter().filter(|answer| answer.succeeded()).count();
    assert!(bought <= 1, "{as_header:?}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_requires_the_upfront_flow() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer, 10).await;
    let (bytes, hash) = session.transaction(0, None);
    world.send_raw(&bytes).await;
    let mut body = session.proof(hash);
    body["paymentRequirements"]["extra"]
        .as_object_mut()
        .unwrap()
        .remove("paymentFlow");
    assert_eq!(
        world.facilitator.settle(&body).await.reason(),
        "session_flow_required"
    );
    let mut dearer = session.proof(hash);
    dearer["paymentRequirements"]["amount"] = "11".into();
    let refused = world.facilitator.settle(&dearer).await;
    assert_eq!(refused.reason(), "session_requirements_mismatch");
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert!(
        settled.succeeded(),
        "the money is not stranded: {}",
        settled.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_transfer_step_moves_money_once() {
    for step in [
        "recorded",
        "broadcast",
        "mined",
        "resultrecorded",
        "granted",
    ] {
        let setup = Setup {
            failpoint: Some(step),
            ..Setup::default()
        };
        let mut world = setup.build().await;
        let payer = world.payer_with_gas().await;
        let session = open(&world, &payer, 12).await;
        let (bytes, hash) = session.transaction(0, None);
        let path = format!("/sessions/{}/transfer?wait=20", session.id);
        let submitted = world.facilitator.post(&path, &raw(&bytes)).await;
        if step == "granted" {
            assert_eq!(submitted.unwrap().body["state"], "paid", "{step}");
            drop(world.facilitator.try_settle(&session.proof(hash)).await);
        }
        world.facilitator.wait_for_end().await;
        world.facilitator.restart(None).await;
        let view = session.outcome(&world.facilitator).await;
        assert_eq!(
            (&view["state"], &view["transaction"]),
            (&json!("paid"), &json!(hash)),
            "{step}"
        );
        let settled = eventually("the grant", Duration::from_secs(30), async || {
            let answer = world.facilitator.settle(&session.proof(hash)).await;
            answer.succeeded().then_some(answer)
        })
        .await;
        assert_eq!(settled.transaction(), hash.to_string(), "{step}");
        assert_eq!(
            world.chain.transfers_to(TEST_USDC, PAYEE).await.len(),
            1,
            "{step}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_transfer_is_recorded_and_never_granted() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    world.chain.automine(false).await;
    let session = open(&world, &payer, 10).await;
    let (bytes, hash) = session.transaction(0, None);
    let path = format!("/sessions/{}/transfer", session.id);
    let taken = world.facilitator.post(&path, &raw(&bytes)).await.unwrap();
    assert_eq!(taken.body["state"], "submitted", "{}", taken.body);
    world.chain.call("evm_increaseTime", json!([400])).await;
    eventually(
        "the bytes in the pool",
        Duration::from_secs(20),
        async || {
            let pending = world.chain.pending_count(payer.address()).await;
            (pending == 1).then_some(())
        },
    )
    .await;
    world.resume_mining().await;
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert_eq!(
        (settled.reason(), settled.transaction()),
        ("session_expired", hash.to_string())
    );
    let view = session.read(&world.facilitator).await;
    assert_eq!(
        (&view["state"], &view["reason"]),
        (&json!("expired"), &json!("session_expired"))
    );
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["state"], "settled", "{row}");
    let late = session.submit(&world.facilitator, &raw(&bytes)).await;
    assert_eq!(late.body["state"], "expired", "{}", late.body);
    let other = open(&world, &payer, 10).await;
    world.chain.call("evm_increaseTime", json!([400])).await;
    world.chain.mine(1).await;
    let refused = eventually("the session's end", Duration::from_secs(20), async || {
        let (unsent, _) = other.transaction(1, None);
        let view = other.read(&world.facilitator).await;
        (view["state"] == "expired").then_some(())?;
        Some(other.submit(&world.facilitator, &raw(&unsent)).await)
    })
    .await;
    assert_eq!(
        (refused.status, refused.body["code"].as_str()),
        (410, Some("session_expired"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_or_reverted_transfer_fails() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer, 10).await;
    let (bytes, _) = session.transaction(0, None);
    let (instead, _) = session.transaction(
        0,
        Some(transfer_calldata(PAYEE, "1".parse().unwrap(), B256::ZERO)),
    );
    world.send_raw(&instead).await;
    let failed = session.submit(&world.facilitator, &raw(&bytes)).await;
    assert_eq!(
        (&failed.body["state"], &failed.body["reason"]),
        (&json!("failed"), &json!("transfer_not_found")),
        "{}",
        failed.body
    );
    assert_eq!(failed.body["moneyMayMove"], false);

    let pauper = new_account();
    let wei = U256::from(10).pow(U256::from(18));
    world
        .chain
        .call("anvil_setBalance", json!([pauper.address(), wei]))
        .await;
    let session = open(&world, &pauper, 10).await;
    let (bytes, hash) = session.transaction(0, None);
    let failed = session.submit(&world.facilitator, &raw(&bytes)).await;
    assert_eq!(
        (&failed.body["state"], &failed.body["reason"]),
        (&json!("failed"), &json!("session_transfer_mismatch")),
        "{}",
        failed.body
    );
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert_eq!(
        (settled.reason(), settled.transaction()),
        ("session_transfer_mismatch", hash.to_string())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_counts_once_confirmed_and_survives_reorg() {
    let setup = Setup::default().with("X402D_CONFIRMATIONS", "3");
    let world = setup.build().await;
    let payer = world.payer_with_gas().await;
    world.chain.mine(5).await;
    let session = open(&world, &payer, 10).await;
    assert_eq!(session.opened["confirmations"], 3);
    let (bytes, hash) = session.transaction(0, None);
    let path = format!("/sessions/{}/transfer", session.id);
    let taken = world.facilitator.post(&path, &raw(&bytes)).await.unwrap();
    assert_eq!(taken.body["state"], "submitted");
    let in_a_block = async || {
        let row = world
            .facilitator
            .get(&format!(
                "/payments/{}",
                taken.body["paymentId"].as_str().unwrap()
            ))
            .await;
        (row.body["state"] == "mined").then_some(())
    };
    eventually("a block", Duration::from_secs(20), in_a_block).await;
    assert_eq!(session.read(&world.facilitator).await["state"], "submitted");
    world.chain.reorg(1).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    eventually("the transfer again", Duration::from_secs(30), async || {
        let arrived = world.chain.usdc(PAYEE).await == U256::from(10);
        arrived.then_some(())
    })
    .await;
    world.chain.mine(3).await;
    let paid = session.outcome(&world.facilitator).await;
    assert_eq!(paid["state"], "paid", "{paid}");
    let settled = world.facilitator.settle(&session.proof(hash)).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unmined_transfers_delay_no_other() {
    let world = World::new().await;
    for _ in 0..230 {
        // This payer has no funds: its bytes can never be mined.
        let session = open(&world, &new_account(), 5).await;
        let (bytes, _) = session.transaction(0, None);
        let path = format!("/sessions/{}/transfer", session.id);
        let taken = world.facilitator.post(&path, &raw(&bytes)).await.unwrap();
        assert_eq!(taken.body["state"], "submitted", "{}", taken.body);
    }
    let session = open(&world, &world.payer_with_gas().await, 700).await;
    let (bytes, hash) = session.transaction(0, None);
    session.submit(&world.facilitator, &raw(&bytes)).await;
    let paid = session.outcome(&world.facilitator).await;
    assert_eq!(paid["state"], "paid", "{paid}");
    assert_eq!(paid["transaction"], hash.to_string());
}
