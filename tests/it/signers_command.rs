//! `x402d signers`: a signer is paused, drained and resumed while the service runs, also with several processes.

use std::process::Output;
use std::time::Duration;

use alloy::primitives::Address;
use serde_json::Value;
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Chain, Facilitator, Permit2Purchase, Purchase, Setup, World, eventually, run,
};

const PAYEE: Address = Address::repeat_byte(0x5b);
/// How soon every process knows of a pause or its end.
const NOTICED: Duration = Duration::from_secs(10);

fn signers(count: usize) -> Setup {
    let setup = Setup {
        signers: count,
        queryable: true,
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "2")
}

fn address(index: usize) -> String {
    Chain::signers(index + 1)[index].address.to_checksum(None)
}

/// What the command says without success.
fn refused(world: &World, arguments: &[&str]) -> String {
    let (name, place) = world.database.variable();
    let output = run(arguments, &[(name, place.as_str())], "");
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

async fn until_settled(facilitator: &Facilitator, body: &Value) -> Answer {
    eventually("success", Duration::from_secs(30), async || {
        let answer = facilitator.settle(body).await;
        answer.succeeded().then_some(answer)
    })
    .await
}

/// Waits until a process refuses new payments because the signer is paused.
async fn until_refused(facilitator: &Facilitator, body: &Value) {
    eventually("the pause to be noticed", NOTICED, async || {
        let answer = facilitator.verify(body).await;
        let told = answer.body.to_string();
        (answer.status == 503 && told.contains("paused by the operator")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_signer_finishes_what_it_sent_and_takes_nothing_new() {
    let world = signers(1).build().await;
    let replica = world.replica().await;
    let payer = world.payer().await;
    let signer = address(0);
    world.chain.automine(false).await;
    let sent = Purchase::new(&payer, PAYEE, 11).body();
    let pending = world.facilitator.settle(&sent).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");

    let said = world.command(&["signers", "pause", &signer]);
    assert!(
        said.contains("is paused") && said.contains("1 transaction"),
        "{said}"
    );
    assert!(
        world
            .command(&["signers", "pause", &signer])
            .contains("already")
    );
    let later = Purchase::new(&payer, PAYEE, 12).body();
    for process in [&world.facilitator, &replica] {
        until_refused(process, &later).await;
        let ready = process.get("/readyz").await;
        assert!(
            ready.body.to_string().contains("paused by the operator"),
            "{ready:?}"
        );
    }
    let listed = world.command(&["signers", "list"]);
    assert!(
        listed.contains("paused") && listed.contains("base-sepolia"),
        "{listed}"
    );
    world.resume_mining().await;
    let settled = until_settled(&world.facilitator, &sent).await;
    assert_eq!(settled.transaction(), pending.transaction());
    let mined = world
        .chain
        .transaction_count(Chain::signers(1)[0].address)
        .await;
    assert_eq!(mined, 1, "nothing else was sent");

    let said = world.command(&["signers", "resume", &signer, "--network", "base-sepolia"]);
    assert!(said.contains("is resumed"), "{said}");
    until_settled(&replica, &later).await;
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_signer_is_resumed_without_sql() {
    let world = signers(1).build().await;
    let signer = address(0);
    sqlx::query("update lanes set stopped_reason = 'nonce 7 was used by a foreign transaction'")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    let body = Purchase::new(&world.payer().await, PAYEE, 13).body();
    eventually("the stop to be noticed", NOTICED, async || {
        (world.facilitator.verify(&body).await.status == 503).then_some(())
    })
    .await;
    let listed = world.command(&["signers", "list", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["signers"][0]["state"], "stopped", "{listed}");
    let said = world.command(&["signers", "resume", &signer]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("is stopped: nonce 7 was used"), "{said}");
    assert!(lines[1].contains("is resumed"), "{said}");
    until_settled(&world.facilitator, &body).await;
    let said = world.command(&["signers", "resume", &signer]);
    assert!(said.contains("neither stopped nor paused"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_is_drained_under_load_and_no_payment_fails() {
    // Long: a payment that cannot be sent in time is refused, with or without a drain.
    let world = signers(2).with("X402D_SETTLE_WAIT", "25").build().await;
    let replica = world.replica().await;
    let payer = world.approved_payer().await;
    let first = Chain::signers(2)[0].address;
    let named = |number: u64| {
        let payment = Permit2Purchase::upto(&payer, PAYEE, 100 + number);
        payment
            .with(|signed| signed.witness.facilitator = Some(first))
            .body()
    };
    let bodies: Vec<Value> = (0..12).map(named).collect();
    let waiting: Vec<_> = bodies
        .iter()
        .map(|body| world.facilitator.spawn_settle(body))
        .collect();
    let (name, place) = world.database.variable();
    let signer = address(0);
    let mut drain = tokio::task::spawn_blocking(move || -> Output {
        run(
            &["signers", "drain", &signer],
            &[(name, place.as_str())],
            "",
        )
    });
    let mut sold = 0;
    let output = loop {
        let body = Purchase::new(&payer, PAYEE, 1_000 + sold).body();
        let process = if sold % 2 == 0 {
            &world.facilitator
        } else {
            &replica
        };
        let answer = process.settle(&body).await;
        let pending = answer.reason() == "settlement_pending";
        assert!(answer.succeeded() || pending, "{answer:?}");
        sold += 1;
        if drain.is_finished() {
            break (&mut drain).await.unwrap();
        }
    };
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("is drained and paused"), "{said}");
    for (mut one, body) in waiting.into_iter().zip(&bodies) {
        let answer = one.join_next().await.unwrap().unwrap().unwrap();
        // What came when the gate was closed already was not accepted.
        if answer.reason() == "settlement_pending" {
            until_settled(&world.facilitator, body).await;
        } else {
            assert!(answer.succeeded() || answer.status == 503, "{answer:?}");
        }
    }
    assert!(sold > 0);
    let mined = world.chain.transaction_count(first).await;
    assert_eq!(world.chain.pending_count(first).await, mined);
    // What was accepted was sent: nothing waits, and nothing was refused for the drain.
    let open = "select count(*) from payments where state in ('queued', 'inflight', 'refused') and signer = $1";
    let open: i64 = sqlx::query_scalar(open)
        .bind(first.as_slice())
        .fetch_one(&mut world.database.connection().await)
        .await
        .unwrap();
    assert_eq!(open, 0);
    let body = Purchase::new(&payer, PAYEE, 5_000).body();
    until_settled(&replica, &body).await;
    assert_eq!(world.chain.transaction_count(first).await, mined);
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_when_somebody_resumes_the_signer() {
    let one_at_a_time = Setup {
        toml: "[networks.base-sepolia]\ninflight_max = 1\n".to_owned(),
        ..signers(1)
    };
    let world = one_at_a_time.build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let bodies: Vec<Value> = (0..3)
        .map(|number| Purchase::new(&payer, PAYEE, 21 + number).body())
        .collect();
    // The first is under way until a block comes, and the others wait in the queue for it.
    for body in &bodies {
        world.facilitator.settle(body).await;
    }
    let signer = address(0);
    let (name, place) = world.database.variable();
    let drain = tokio::task::spawn_blocking({
        let signer = signer.clone();
        move || {
            run(
                &["signers", "drain", &signer],
                &[(name, place.as_str())],
                "",
            )
        }
    });
    eventually("the drain to begin", NOTICED, async || {
        let listed = world.command(&["signers", "list"]);
        listed.contains("draining").then_some(())
    })
    .await;
    world.command(&["signers", "resume", &signer]);
    let output = drain.await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("somebody else resumed"), "{said}");
    world.resume_mining().await;
    for body in &bodies {
        until_settled(&world.facilitator, body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signers_command_names_what_is_wrong() {
    let world = signers(1).build().await;
    let signer = address(0);
    let stranger = PAYEE.to_checksum(None);
    let unknown = refused(&world, &["signers", "pause", &stranger]);
    assert!(unknown.contains("is no signer of this ledger"), "{unknown}");
    let elsewhere = refused(&world, &["signers", "pause", &signer, "--network", "base"]);
    assert!(
        elsewhere.contains("expected --network base-sepolia"),
        "{elsewhere}"
    );
    sqlx::query(
        "insert into lanes (network, signer, next_nonce, epoch, lease_until) select 'eip155:8453', signer, 0, 1, now() from lanes",
    )
    .execute(&mut world.database.connection().await)
    .await
    .unwrap();
    let ambiguous = refused(&world, &["signers", "drain", &signer]);
    assert!(
        ambiguous.contains("say which with --network"),
        "{ambiguous}"
    );

    let payer = world.payer().await;
    world.chain.automine(false).await;
    let body = Purchase::new(&payer, PAYEE, 14).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let network = ["--network", "base-sepolia", "--timeout", "5s"];
    let arguments = [&["signers", "drain", &signer][..], &network].concat();
    let late = refused(&world, &arguments);
    for part in ["not drained within 5s", "1 transaction", "signers resume"] {
        assert!(late.contains(part), "{late}");
    }
    world.resume_mining().await;
    until_settled(&world.facilitator, &body).await;
}
