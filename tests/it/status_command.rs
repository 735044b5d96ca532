//! `x402d status`: what is wrong, with an exit code for cron.

use std::process::Output;
use std::time::Duration;

use alloy::primitives::Address;
use serde_json::Value;

use crate::support::{Chain, Purchase, Setup, World, eventually};

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn status(world: &World, further: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = world.configured(&["status"], further, "");
    (output.status.code(), said(&output))
}

/// Waits until the status ends with `code`, and returns the page.
async fn until(world: &World, code: i32) -> String {
    eventually("the status", Duration::from_secs(30), async || {
        let (ended, page) = status(world, &[]);
        (ended == Some(code)).then_some(page)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn status_ends_with_the_state_of_the_service() {
    let setup = Setup {
        signers: 2,
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let page = until(&world, 0).await;
    assert!(page.starts_with("ok: 1 process\n"), "{page}");
    let [first, second] = [0, 1].map(|index| Chain::signers(2)[index].address.to_checksum(None));
    for part in [
        "base-sepolia",
        " ms",
        first.as_str(),
        &second,
        "working",
        " ETH",
        "no limit",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let json = said(&world.configured(&["status", "--json"], &[], ""));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["status"], "ok", "{json}");
    assert_eq!(json["networks"][0]["canSell"], true, "{json}");
    assert!(
        json["signers"][1]["paymentsLeft"].as_u64() > Some(300),
        "{json}"
    );

    let urls = format!("{},http://127.0.0.1:9/secret-path", world.proxy.url());
    let (code, page) = status(&world, &[("X402D_RPC_URL", &urls)]);
    assert_eq!(code, Some(1), "{page}");
    assert!(
        page.contains("RPC URL number 2") && page.contains("no answer"),
        "{page}"
    );
    assert!(!page.contains("secret-path"), "{page}");

    world.command(&["signers", "pause", &first]);
    let page = until(&world, 1).await;
    let says = format!("{first} on base-sepolia is paused by the operator");
    assert!(
        page.starts_with("degraded: ") && page.contains(&says),
        "{page}"
    );
    world.command(&["signers", "pause", &second]);
    let page = until(&world, 2).await;
    assert!(
        page.contains("nothing can be sold on any network"),
        "{page}"
    );
    world.command(&["signers", "resume", &first]);
    world.command(&["signers", "resume", &second]);
    until(&world, 0).await;

    sqlx::query("update lanes set stopped_reason = 'a test' where signer = $1")
        .bind(Chain::signers(1)[0].address.as_slice())
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    let page = until(&world, 1).await;
    assert!(page.contains("is stopped: a test"), "{page}");

    world.facilitator.terminate().await;
    let page = until(&world, 2).await;
    assert!(page.contains("no process of x402d runs"), "{page}");
    let (code, page) = status(&world, &[("DATABASE_URL", "postgres://a@127.0.0.1:9/a")]);
    assert_eq!(code, Some(2), "{page}");
    assert!(
        page.starts_with("down\n") && page.contains("127.0.0.1:9"),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn spent_budget_means_that_nothing_can_be_sold() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, Address::repeat_byte(0x57), 1).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
    let budget = "[networks.base-sepolia.budget]\nwei_per_day = \"1wei\"\n";
    let spent = world.configured(&["status"], &[], budget);
    assert_eq!(spent.status.code(), Some(2), "{}", said(&spent));
    for part in ["gas budget of 24 hours is spent", "nothing can be sold"] {
        assert!(said(&spent).contains(part), "{}", said(&spent));
    }
}
