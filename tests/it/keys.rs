//! Keys: when one is good and stops being good, what a guess costs, and where a secret never stands.

use std::time::Duration;

use alloy::primitives::U256;
use serde_json::Value;
use sqlx::Row;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::callers::{BOTH, REVOCATION, SHOP, assert_refused, keys_only, verdict};
use crate::support::{Database, Purchase, Setup, World, eventually, run};

#[tokio::test(flavor = "multi_thread")]
async fn revocation_and_rotation_hold_on_two_replicas_within_seconds() {
    let world = keys_only().build().await;
    let replica = world.replica().await;
    let key = world.key("shop", SHOP, &[]).await;
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    let on_both = |key: &str| [world.facilitator.with_key(key), replica.with_key(key)];
    let until = async |key: &str, status: u16, since: Instant| {
        for caller in on_both(key) {
            let left = REVOCATION.saturating_sub(since.elapsed());
            eventually("the key's change to hold", left, async || {
                (caller.verify(&body).await.status == status).then_some(())
            })
            .await;
        }
    };
    until(&key, 200, Instant::now()).await;
    let said = world.command(&["keys", "rotate", "shop", "--json"]);
    let rotated: Value = serde_json::from_str(&said).unwrap();
    let newer = rotated["key"].as_str().unwrap();
    assert!(rotated["about"]["oldSecretUntil"].is_string(), "{rotated}");
    until(newer, 200, Instant::now()).await;
    until(&key, 200, Instant::now()).await;

    let said = world.command(&["keys", "rotate", "shop", "--keep", "0s", "--json"]);
    let rotated: Value = serde_json::from_str(&said).unwrap();
    let newest = rotated["key"].as_str().unwrap();
    let now = Instant::now();
    until(newest, 200, now).await;
    until(&key, 401, now).await;
    until(newer, 401, now).await;
    let settled = on_both(newest)[1].settle(&body).await;
    assert!(
        settled.succeeded(),
        "a rotated key is the same caller: {settled:?}"
    );

    world.command(&["keys", "revoke", "shop"]);
    until(newest, 401, Instant::now()).await;
    let listed: Value =
        serde_json::from_str(&world.command(&["keys", "list", "--all", "--json"])).unwrap();
    assert_eq!(listed["keys"][0]["state"], "revoked", "{listed}");
    assert!(!world.command(&["keys", "list"]).contains("shop"));
}

/// A command that reads must not bring the tables of a running older service up to date, nor make a ledger where there is none.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_key_makes_a_ledger_and_no_command_migrates_one() {
    const FIRST_KEY: [&str; 5] = ["keys", "create", "ops", "--scope", "admin"];
    let reading: [&[&str]; 3] = [
        &["keys", "list"],
        &["payments", "list"],
        &["signers", "list"],
    ];
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("x402d").display().to_string();
    for arguments in reading {
        let refused = run(arguments, &[("X402D_DATA_DIR", &nowhere)], "");
        let told = [refused.stdout, refused.stderr].concat();
        let told = String::from_utf8(told).unwrap();
        assert!(!refused.status.success(), "{told}");
        assert!(
            told.contains("no ledger found") && told.contains(&nowhere),
            "{told}"
        );
    }
    assert!(!folder.path().join("x402d").exists());

    let database = Database::queryable().await;
    let (name, place) = database.variable();
    let variables = [(name, place.as_str())];
    let told = run(&["keys", "list"], &variables, "");
    assert!(String::from_utf8_lossy(&told.stderr).contains("has no ledger yet"));
    let made = run(&FIRST_KEY, &variables, "");
    assert!(made.status.success(), "{made:?}");
    let mut connection = database.connection().await;
    let older =
        "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)";
    sqlx::query(older).execute(&mut connection).await.unwrap();
    for arguments in reading.into_iter().chain([&FIRST_KEY[..]]) {
        let refused = run(arguments, &variables, "");
        let told = [refused.stdout, refused.stderr].concat();
        let told = String::from_utf8(told).unwrap();
        assert!(!refused.status.success(), "{told}");
        assert!(told.contains("lacks 1 migration"), "{arguments:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_keys_cost_no_statement_and_leave_honest_callers_alone() {
    const GUESSERS: u8 = 8;
    const GUESSES: u32 = 1_250;
    let world = keys_only().build().await;
    let key = world.key("shop", SHOP, &[]).await;
    let shop = world.facilitator.with_key(&key);
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    let url = format!("{}/verify", world.facilitator.url());
    let (id, _) = key.rsplit_once('_').unwrap();
    let mut guessing = JoinSet::new();
    for guesser in 0..GUESSERS {
        let (url, body) = (url.clone(), body.clone());
        // Half of them know the id.
        let id = if guesser % 2 == 0 {
            id.to_owned()
        } else {
            "x402d_0123456789ab".to_owned()
        };
        guessing.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            for number in 0..GUESSES {
                let guess = format!("{id}_{:064x}", U256::from(number));
                let request = client.post(&url).header("x-api-key", guess).json(&body);
                assert_eq!(request.send().await.unwrap().status(), 401);
            }
        });
    }
    let mut honest = 0;
    while guessing.try_join_next().is_none() {
        let verified = shop.verify(&body).await;
        assert!(verified.is_valid(), "{verified:?}");
        honest += 1;
    }
    guessing.join_all().await;
    assert!(honest > 0, "honest callers were served meanwhile");
    assert!(shop.settle(&body).await.succeeded());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_judged_without_the_database_as_long_as_they_are_fresh() {
    let setup = Setup {
        database_proxied: true,
        ..keys_only()
    };
    let world = setup.build().await;
    let key = world.key("shop", SHOP, &[]).await;
    let wrong = format!("{}_{}", key.rsplit_once('_').unwrap().0, "0".repeat(64));
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    world.database_proxy.as_ref().unwrap().down(true);
    let began = Instant::now();
    let guessed = world.facilitator.with_key(&wrong).verify(&body).await;
    assert_eq!(verdict(&guessed), (401, "key_invalid"));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // A revocation could be missed from here on.
    eventually(
        "old keys not to be used",
        Duration::from_secs(20),
        async || {
            let late = world.facilitator.with_key(&key).verify(&body).await;
            (verdict(&late) == (503, "keys_unavailable")).then_some(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_appears_in_no_log_answer_or_table() {
    let setup = Setup {
        queryable: true,
        ..keys_only()
    };
    let world = setup.with("X402D_LOG", "trace").build().await;
    let key = world.key("shop", SHOP, BOTH).await;
    let secret = key.rsplit_once('_').unwrap().1;
    let shop = world.facilitator.with_key(&key);
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    for path in [
        format!("/verify?key={key}"),
        format!("/settle?{key}"),
        format!("/settle?a=x402d%5F{}", &key[6..]),
    ] {
        let refused = world.facilitator.post(&path, &body).await.unwrap();
        assert_eq!(verdict(&refused), (400, "key_in_url"), "{refused:?}");
    }
    for path in [
        format!("/payments?key={key}"),
        format!("/payments?{key}=1"),
        format!("/sessions/ps_1?wait=0&k={key}"),
        format!("/{key}"),
    ] {
        let refused = world.facilitator.get(&path).await;
        assert!((400..500).contains(&refused.status), "{path}: {refused:?}");
    }
    let settled = shop.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(shop.get("/payments").await.status, 200);
    let wrong = format!("{key}0");
    assert_refused(
        &world.facilitator.with_key(&wrong),
        &body,
        (401, "key_invalid"),
    )
    .await;
    let row = world.facilitator.payment(&settled).await;
    assert!(!row.to_string().contains(secret));

    let log = world.facilitator.log();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the log is verbose"
    );
    assert!(!log.contains(secret), "in the log");
    assert!(
        !world.facilitator.answers().contains(secret),
        "in an answer"
    );
    let mut connection = world.database.connection().await;
    for table in ["keys", "payments", "grants", "events", "sessions"] {
        let select = sqlx::AssertSqlSafe(format!("select t::text as row from {table} t"));
        let rows = sqlx::query(select)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let text: Vec<String> = rows.iter().map(|row| row.get("row")).collect();
        assert!(!text.concat().contains(secret), "in {table}");
    }
    let owner = sqlx::query("select caller from payments")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(
        format!("x402d_{}_{secret}", owner.get::<String, _>("caller")),
        key
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_command_refuses_keys_that_mean_nothing() {
    let world = World::new().await;
    let (name, place) = world.database.variable();
    let payee = SHOP.to_string();
    for (arguments, expected) in [
        (&["create", "shop"][..], "--payee"),
        (
            &["create", "shop", "--scope", "admin", "--payee", &payee],
            "--scope admin",
        ),
        (
            &["create", "shop", "--payee", &payee, "--scope", "everything"],
            "expected settle",
        ),
        (&["create", "shop", "--payee", "0x5e"], "--payee"),
        (
            &["create", "shop", "--payee", &payee, "--gas-per-day", "1"],
            "0.01eth",
        ),
        (
            &["create", "shop", "--payee", &payee, "--expires", "soon"],
            "--expires",
        ),
        (&["show", "nobody"], "there is no key"),
        (&["revoke", "nobody"], "there is no key"),
        (&["rotate", "nobody"], "there is no key"),
    ] {
        let arguments: Vec<&str> = [&["keys"], arguments].concat();
        let output = run(&arguments, &[(name, place.as_str())], "");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(expected),
            "{arguments:?}: {said}"
        );
    }
    let key = world
        .key(
            "shop",
            SHOP,
            &[
                "--network",
                "base-sepolia",
                "--gas-per-day",
                "0.01eth",
                "--expires",
                "90d",
            ],
        )
        .await;
    let shown = world.command(&["keys", "show", "shop"]);
    let id = &key[6..18];
    for expected in [
        id,
        "good",
        "eip155:84532",
        "10000000000000000",
        payee.as_str(),
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    let output = run(
        &["keys", "create", "shop", "--payee", &payee],
        &[(name, place.as_str())],
        "",
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("has this name already"), "{said}");
    assert!(world.command(&["keys", "list"]).contains(id));
}
