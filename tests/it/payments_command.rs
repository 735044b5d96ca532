//! `x402d payments`: the history for people, for bookkeepers and for scripts, and the way out of quarantine.

use std::time::Duration;

use alloy::primitives::Address;
use serde_json::Value;

use crate::support::{Answer, Purchase, Setup, World, eventually, run};

const PAYEE: Address = Address::repeat_byte(0x5d);
const OTHER: Address = Address::repeat_byte(0x5e);

fn id(settled: &Answer) -> String {
    settled.body["extra"]["paymentId"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn queryable() -> World {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    setup.build().await
}

/// Answers to two settlements: a cent to one payee, then one and a half dollars to another.
async fn two_payments(world: &World) -> (Answer, Answer) {
    let payer = world.payer().await;
    let cent = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 10_000).body())
        .await;
    assert!(cent.succeeded(), "{cent:?}");
    let dollar = world
        .facilitator
        .settle(&Purchase::new(&payer, OTHER, 1_500_000).body())
        .await;
    assert!(dollar.succeeded(), "{dollar:?}");
    (cent, dollar)
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_listed_with_filters() {
    let world = queryable().await;
    let (_, dollar) = two_payments(&world).await;
    let dollar_id = id(&dollar);
    let listed = world.command(&["payments", "list"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(
        lines[1].contains("1.5 USDC") && lines[1].contains(&dollar_id),
        "{listed}"
    );
    assert!(
        lines[2].contains("0.01 USDC") && lines[2].contains("base-sepolia"),
        "{listed}"
    );
    let payee = OTHER.to_string();
    let hash = dollar.transaction();
    for filter in [
        &["--payee", payee.as_str()][..],
        &["--transaction", &hash],
        &["--min-amount", "1", "--network", "base-sepolia"],
        &["--limit", "1"],
        &["--from", "2026-01-01", "--payee", &payee],
    ] {
        let arguments = [&["payments", "list", "--json"][..], filter].concat();
        let listed: Value = serde_json::from_str(&world.command(&arguments)).unwrap();
        let payments = listed["payments"].as_array().unwrap();
        assert_eq!(payments.len(), 1, "{filter:?}: {listed}");
        assert_eq!(payments[0]["id"], dollar_id.as_str(), "{filter:?}");
        assert_eq!(payments[0]["amountShown"], "1.5 USDC");
    }
    for none in [
        &["--state", "failed"][..],
        &["--to", "2001-01-01"],
        &["--quarantined"],
    ] {
        let arguments = [&["payments", "list"][..], none].concat();
        assert_eq!(world.command(&arguments), "no payments\n", "{none:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_shown_and_history_exported() {
    let world = queryable().await;
    let (cent, dollar) = two_payments(&world).await;
    let (cent_id, dollar_id) = (id(&cent), id(&dollar));
    let shown = world.command(&["payments", "show", &cent_id]);
    for part in [
        "0.01 USDC",
        "base-sepolia (eip155:84532)",
        "https://sepolia.basescan.org/tx/0x",
        "queued",
        "inflight",
        "success answered to request",
        "accepted",
        "mined in block",
        "gas paid",
        " ETH",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = world.command(&["payments", "show", &cent_id, "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["payment"]["transaction"], cent.transaction().as_str());
    assert_eq!(shown["attempts"][0]["mined"]["succeeded"], true, "{shown}");

    let table = world.command(&["payments", "export"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("accepted (UTC),state,amount,token,network,"),
        "{table}"
    );
    assert!(lines[1].contains(",1.5,USDC,base-sepolia,0x"), "{table}");
    assert!(lines[2].contains(",0.01,USDC,base-sepolia,0x"), "{table}");
    assert!(
        lines[2].trim_end().ends_with(&format!("{cent_id},10000")),
        "{table}"
    );
    let payee = OTHER.to_string();
    let objects = world.command(&["payments", "export", "--json", "--payee", &payee]);
    let object: Value = serde_json::from_str(&objects).unwrap();
    assert_eq!(object["id"], dollar_id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_payment_is_found_and_released() {
    let world = queryable().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let body = Purchase::new(&payer, PAYEE, 10_000).body();
    let mut waiting = world.facilitator.spawn_settle(&body);
    world.wait_until_sent(1).await;
    sqlx::query(
        "update payments set quarantined_at = now(), quarantine_reason = 'a contradiction'",
    )
    .execute(&mut world.database.connection().await)
    .await
    .unwrap();
    world.resume_mining().await;
    let listed: Value =
        serde_json::from_str(&world.command(&["payments", "list", "--quarantined", "--json"]))
            .unwrap();
    let id = listed["payments"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["payments"][0]["quarantine"], "a contradiction");
    let said = world.command(&["payments", "release", &id]);
    assert!(
        said.contains("a contradiction") && said.contains("released"),
        "{said}"
    );
    assert_eq!(
        world.command(&["payments", "list", "--quarantined"]),
        "no payments\n"
    );
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    let settled = if answer.succeeded() {
        answer
    } else {
        eventually(
            "the payment to be decided",
            Duration::from_secs(30),
            async || {
                let answer = world.facilitator.settle(&body).await;
                answer.succeeded().then_some(answer)
            },
        )
        .await
    };
    world.assert_transferred_once(PAYEE, &settled, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_command_names_what_is_wrong() {
    let world = World::new().await;
    let (name, place) = world.database.variable();
    let absent = "01a21f87-0c6e-7d3a-9b1f-5d2c3e4f5a6b";
    for (arguments, expected) in [
        (&["show", "7"][..], "expected a payment's id"),
        (&["show", absent], "there is no payment"),
        (&["release", absent], "there is no payment"),
        (&["list", "--state", "done"], "expected one of queued"),
        (&["list", "--from", "yesterday"], "expected a day such as"),
        (
            &["list", "--network", "bass"],
            "expected a network such as base",
        ),
        (&["list", "--min-amount", "1"], "--network"),
        (
            &["list", "--min-amount", "0.0000001", "--network", "base"],
            "with 6 decimals at most",
        ),
        (&["list", "--limit", "0"], "1..=1000"),
    ] {
        let arguments = [&["payments"], arguments].concat();
        let output = run(&arguments, &[(name, place.as_str())], "");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(expected),
            "{arguments:?}: {said}"
        );
    }
}
