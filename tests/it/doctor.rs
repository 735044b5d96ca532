//! `x402d doctor`: broken set-ups, each of which it names with what to do.

use std::net::TcpListener;
use std::process::Output;

use alloy::primitives::U256;
use serde_json::{Value, json};

use crate::support::{Chain, Setup, World};

/// An account that owns nothing.
const EMPTY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b786901";

fn doctor(world: &World, further: &[(&str, &str)], toml: &str) -> Output {
    let anywhere = [("X402D_LISTEN", "127.0.0.1:0")];
    world.configured(&["doctor"], &[&anywhere[..], further].concat(), toml)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The lines with this word in front, each with the fix below it.
fn findings(text: &str, word: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.iter().enumerate().filter_map(|(index, line)| {
        let is_found = line.starts_with(&format!("  {word} "));
        let fix = lines
            .get(index + 1)
            .filter(|line| line.trim().starts_with("fix: "));
        is_found.then(|| format!("{line} {}", fix.copied().unwrap_or_default()))
    });
    found.collect()
}

/// One finding of `word` has all these parts, and the exit code tells a failure.
fn assert_found(output: &Output, word: &str, parts: &[&str]) {
    let text = stdout(output);
    let found = findings(&text, word);
    let has_all = |finding: &&String| parts.iter().all(|part| finding.contains(part));
    assert!(
        found.iter().any(|finding| has_all(&finding)),
        "{parts:?} is missing in {text}"
    );
    let failed = word != "warn";
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{text}");
    let last = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(last.contains("problem"), failed, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_set_up_has_no_problem() {
    let world = World::new().await;
    let output = doctor(&world, &[], "");
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "configuration\n  ok ",
        "database\n  ok ",
        "Postgres ",
        "are taken",
        "is of this version",
        "network base-sepolia (eip155:84532)",
        "chain id 84532",
        "RPC URL number 1 answers in",
        "state overrides",
        "in a call for logs",
        "gas for ",
        "as on the chain",
        "the service runs",
        "0 problems",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert_eq!(findings(&text, "WRONG"), [""; 0]);
    let json = stdout(&world.configured(&["doctor", "--json"], &[], ""));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["parts"][0]["findings"][0]["outcome"], "agrees",
        "{json}"
    );
}

/// Variables and file of a wrong configuration, and the word and parts of the line that names it.
type Case<'a> = (&'a [(&'a str, &'a str)], String, &'a str, &'a [&'a str]);

#[tokio::test(flavor = "multi_thread")]
async fn wrong_configurations_are_named_with_their_fix() {
    let world = World::new().await;
    let network = "[networks.base-sepolia]\n";
    let token = format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{:?}\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\n",
        alloy::primitives::Address::repeat_byte(0xaa)
    );
    let cases: [Case<'_>; 9] = [
        (
            &[("X402D_PAYEE", "0x12")],
            String::new(),
            "WRONG",
            &["X402D_PAYEE"],
        ),
        (
            &[("X402D_ADMIN_TOKEN", "abc")],
            String::new(),
            "WRONG",
            &["admin_token", "openssl rand"],
        ),
        (
            &[("X402D_RPC_URL", "http://127.0.0.1:9/secret")],
            String::new(),
            "UNKNOWN",
            &["chain", "cannot be reached"],
        ),
        (
            &[("X402D_NETWORK", "polygon-amoy")],
            String::new(),
            "WRONG",
            &["serves chain 84532, configured is chain 80002"],
        ),
        (
            &[("X402D_SIGNER_KEYS", EMPTY)],
            String::new(),
            "WRONG",
            &["signer", "has 0 ETH", "refill it"],
        ),
        (
            &[],
            format!("{network}max_fee_wei = 100000000\npriority_fee_wei = 1\n"),
            "WRONG",
            &["gas", "raise max_fee_wei"],
        ),
        (
            &[],
            token,
            "WRONG",
            &["token", "there is no contract", "correct assets"],
        ),
        (
            &[("DATABASE_URL", "postgres://a@127.0.0.1:9/a")],
            String::new(),
            "WRONG",
            &["server", "127.0.0.1:9"],
        ),
        (
            &[],
            "database_connections_max = 9999\n".to_owned(),
            "warn",
            &["9999 connections", "raise max_connections"],
        ),
    ];
    for (variables, toml, word, parts) in cases {
        let output = doctor(&world, variables, &toml);
        assert_found(&output, word, parts);
        assert!(!stdout(&output).contains("secret"), "{output:?}");
    }
}

async fn queryable() -> World {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    setup.build().await
}

async fn sql(connection: &mut sqlx::PgConnection, statement: &str) {
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    sqlx::raw_sql(statement).execute(connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn troubles_of_signers_are_named_with_their_fix() {
    let mut world = queryable().await;
    let signer = Chain::signers(1)[0].address;
    let named = signer.to_checksum(None);
    let resume = format!("x402d signers resume {named} --network base-sepolia");
    world.command(&["signers", "pause", &named]);
    assert_found(
        &doctor(&world, &[], ""),
        "warn",
        &["lane", &named, "paused by the operator", &resume],
    );
    world.command(&["signers", "resume", &named]);
    world.facilitator.terminate().await;
    let mut connection = world.database.connection().await;
    sql(
        &mut connection,
        "update lanes set stopped_reason = 'nonce 7 is foreign'",
    )
    .await;
    assert_found(
        &doctor(&world, &[], ""),
        "WRONG",
        &["stopped: nonce 7 is foreign", "find the cause", &resume],
    );
    sql(&mut connection, "update lanes set stopped_reason = null").await;

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = doctor(&world, &[("X402D_LISTEN", &address)], "");
    assert_found(
        &output,
        "WRONG",
        &["cannot listen", &address, "choose another address"],
    );

    let nonce = json!([signer, U256::from(5)]);
    world.chain.call("anvil_setNonce", nonce).await;
    assert_found(
        &doctor(&world, &[], ""),
        "WRONG",
        &["nonces up to 4", "use the key for nothing else"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn troubles_of_the_database_are_named_with_their_fix() {
    let mut world = queryable().await;
    world.facilitator.terminate().await;
    let mut connection = world.database.connection().await;
    let read_only = |value: &str| {
        format!(
            "do $$ begin execute format('alter database %I set default_transaction_read_only = {value}', current_database()); end $$"
        )
    };
    sql(&mut connection, &read_only("on")).await;
    assert_found(
        &doctor(&world, &[], ""),
        "WRONG",
        &["takes no writes", "check DATABASE_URL"],
    );
    sql(&mut connection, &read_only("off")).await;

    let newest =
        "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)";
    sql(&mut connection, newest).await;
    assert_found(
        &doctor(&world, &[], ""),
        "warn",
        &["lacks 1 migration", "x402d migrate"],
    );
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'x', true, 'x', 1)";
    sql(&mut connection, newer).await;
    assert_found(
        &doctor(&world, &[], ""),
        "WRONG",
        &["made by a newer x402d"],
    );
}
