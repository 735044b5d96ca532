//! What an operator sees of each trouble: the figures, the alert that fires on them, the event, and what `status` or `doctor` says. The table
//! of docs/operating.md says the same.

use std::fs;
use std::process::Command;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::events::payment_id;
use crate::misbehaving_tokens::{DOES_NOTHING, settle_in_mode, world_with_odd_token};
use crate::support::{
    Caller, Chain, Fault, Purchase, Setup, World, eventually, free_port, new_account,
};

const PAYEE: Address = Address::repeat_byte(0x7b);
/// What is read from the chain and the ledger shows after its interval, and other tests on the server hold the feed back.
const SHOWN: Duration = Duration::from_secs(90);
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/alerts.yml");

async fn figures(caller: &Caller) -> String {
    let answer = reqwest::get(format!("{}/metrics", caller.url())).await;
    answer.unwrap().text().await.unwrap()
}

/// The sum of the series that begin so and have this label.
fn sum(figures: &str, name: &str, label: &str) -> Option<f64> {
    let lines = figures.lines();
    let lines = lines.filter(|line| line.starts_with(name) && line.contains(label));
    let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap());
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.into_iter().sum())
}

/// The figures, once the series are as expected.
async fn until(world: &World, name: &str, label: &str, expected: impl Fn(f64) -> bool) -> String {
    eventually(name, SHOWN, async || {
        let figures = figures(&world.facilitator).await;
        let is_so = sum(&figures, name, label).is_some_and(&expected);
        is_so.then_some(figures)
    })
    .await
}

/// Whether an alert fires a quarter of an hour after the figures were `before` and then `after`, as Prometheus' own tool sees it.
fn fires(alert: &str, before: &str, after: &str) -> bool {
    let of_series = |figures: &str, series: &str| {
        let mut lines = figures.lines();
        let line = lines.find(|line| {
            line.rsplit_once(' ')
                .is_some_and(|(name, _)| name == series)
        });
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
    };
    let series = after.lines().filter(|line| !line.starts_with('#'));
    let series = series.filter_map(|line| line.rsplit_once(' '));
    let inputs = series.filter(|(series, _)| !series.contains("_bucket{"));
    let inputs = inputs.map(|(series, value)| {
        let earlier = of_series(before, series).unwrap_or_else(|| value.to_owned());
        json!({"series": series, "values": format!("{earlier}x2 {value}x60")})
    });
    let expression =
        format!("count(ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}) or vector(0)");
    let test = |samples: u32| {
        json!({
            "rule_files": [RULES],
            "evaluation_interval": "15s",
            "tests": [{
                "interval": "15s",
                "input_series": inputs.clone().collect::<Vec<_>>(),
                "promql_expr_test": [{
                    "expr": format!("({expression}) > bool 0"),
                    "eval_time": "3m",
                    "exp_samples": [{"labels": "{}", "value": samples}],
                }],
            }],
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.yml");
    let says = |samples: u32| {
        fs::write(&path, test(samples).to_string()).unwrap();
        let output = Command::new("promtool")
            .args(["test", "rules"])
            .arg(&path)
            .output()
            .expect("promtool");
        (output.status.success(), output)
    };
    let (is_firing, output) = says(1);
    assert!(is_firing || says(0).0, "{output:?}");
    is_firing
}

/// The alert fires now, and did not before.
fn assert_fires(alert: &str, before: &str, after: &str) {
    assert!(fires(alert, before, after), "{alert}: {after}");
    assert!(!fires(alert, before, before), "{alert} on: {before}");
}

/// Waits until an event is told.
async fn until_told(caller: &Caller, kind: &str) -> Value {
    eventually(kind, SHOWN, async || {
        let page = caller.get(&format!("/events?types={kind}")).await;
        let events = page.body["events"].as_array()?.clone();
        events.last().cloned()
    })
    .await
}

/// What a command prints on the world's configuration, once it has this in it.
async fn until_said(world: &World, command: &str, toml: &str, part: &str) -> String {
    eventually(part, SHOWN, async || {
        let said = world.configured(&[command], &[], toml).stdout;
        let said = String::from_utf8(said).unwrap();
        said.contains(part).then_some(said)
    })
    .await
}

async fn settle_one(world: &World) -> crate::support::Answer {
    let body = Purchase::new(&world.payer().await, PAYEE, 1_000).body();
    let answer = world.facilitator.settle(&body).await;
    assert!(answer.succeeded(), "{answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_that_is_down() {
    let world = World::new().await;
    settle_one(&world).await;
    let well = figures(&world.facilitator).await;
    world.proxy.all(Fault::Unavailable);
    let down = until(&world, "x402d_rpc_silent_seconds", "", |seconds| {
        seconds > 30.0
    })
    .await;
    assert_fires("X402dRpcDown", &well, &down);
    let failed = sum(&down, "x402d_rpc_seconds_count", "outcome=\"failed\"");
    assert!(failed > Some(1.0), "{down}");
    // Of the URL nothing but its host is shown.
    assert!(down.contains("endpoint=\"127.0.0.1\""), "{down}");
    assert!(!down.contains(crate::support::SECRET), "{down}");
    let event = until_told(&world.facilitator, "network.down").await;
    assert_eq!(event["network"], "eip155:84532", "{event}");
    until_said(&world, "status", "", "RPC URL number 1").await;
    until_said(&world, "doctor", "", "UNKNOWN").await;
    world.proxy.all(Fault::None);
    until_told(&world.facilitator, "network.up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_that_runs_out_of_gas() {
    let world = Setup::default().shortened().build().await;
    settle_one(&world).await;
    let signer = Chain::signers(1)[0].address;
    let well = until(&world, "x402d_signer_hours_left", "", |hours| hours > 12.0).await;
    let low = U256::from(100_000_000_000_000_u64);
    let call = json!([signer, low]);
    world.chain.call("anvil_setBalance", call).await;
    let poor = until(&world, "x402d_signer_payments_left", "", |left| {
        left < 300.0
    })
    .await;
    assert_fires("X402dGasLow", &well, &poor);
    world
        .chain
        .call("anvil_setBalance", json!([signer, U256::ZERO]))
        .await;
    until(&world, "x402d_signer_balance_wei", "", |wei| wei < 1.0).await;
    let event = until_told(&world.facilitator, "signer.empty").await;
    assert_eq!(event["signer"], signer.to_checksum(None), "{event}");
    until_said(&world, "status", "", "refill it").await;
    until_said(&world, "doctor", "", "WRONG").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_that_is_stopped_or_paused() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let well = until(&world, "x402d_signer_stopped", "", |stopped| stopped < 1.0).await;
    let signer = Chain::signers(1)[0].address.to_checksum(None);
    world.command(&["signers", "pause", &signer]);
    let paused = until(&world, "x402d_signer_paused", "", |paused| paused > 0.0).await;
    assert!(!fires("X402dSignerStopped", &well, &paused), "{paused}");
    until_told(&world.facilitator, "signer.paused").await;
    world.command(&["signers", "resume", &signer]);
    sqlx::query("update lanes set stopped_reason = 'nonce 7 is foreign'")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    let stopped = until(&world, "x402d_signer_stopped", "", |stopped| stopped > 0.0).await;
    assert_fires("X402dSignerStopped", &well, &stopped);
    assert_eq!(sum(&stopped, "x402d_signer_paused", ""), Some(0.0));
    let event = until_told(&world.facilitator, "signer.stopped").await;
    assert_eq!(event["reason"], "nonce 7 is foreign", "{event}");
    until_said(&world, "status", "", "is stopped: nonce 7 is foreign").await;
    until_said(&world, "doctor", "", "x402d signers resume").await;
}

/// The figures of a budget that is low, once that is told. `None`: it is not. What a receipt leaves of a reservation is known a moment later.
async fn low_and_told(world: &World, label: &str) -> Option<String> {
    eventually("budget.low", SHOWN * 2, async || {
        let now = figures(&world.facilitator).await;
        if sum(&now, "x402d_budget_used_ratio", label) < Some(0.8) {
            return Some(None);
        }
        let page = world.facilitator.get("/events?types=budget.low").await;
        let is_told = page.body["events"].as_array()?.last().is_some();
        is_told.then_some(Some(now))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_that_is_nearly_used_then_spent() {
    let fees = "[networks.base-sepolia]\npriority_fee_wei = 1000000000\nmax_fee_wei = 20000000000";
    let budget = "[networks.base-sepolia.budget]\nwei_per_day = \"0.002eth\"";
    let toml = format!("{fees}\n{budget}\n");
    let setup = Setup {
        toml: toml.clone(),
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let network = "scope=\"network\"";
    let well = until(&world, "x402d_budget_used_ratio", network, |used| {
        used < 0.5
    })
    .await;
    let mut low = None;
    let refused = loop {
        let body = Purchase::new(&world.payer().await, PAYEE, 1).body();
        let answer = world.facilitator.settle(&body).await;
        if !answer.succeeded() {
            break answer;
        }
        if low.is_none() {
            low = low_and_told(&world, network).await;
        }
    };
    assert_eq!(refused.reason(), "sponsorship_exhausted", "{refused:?}");
    // It is taken for spent for a minute after the last payment that had no room.
    let spent = until(&world, "x402d_budget_exhausted", network, |is| is > 0.0).await;
    let ready = world.facilitator.get("/readyz").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    let why = ready.body["parts"][1]["detail"].as_str().unwrap();
    assert!(why.contains("gas budget of the network"), "{ready:?}");
    let low = low.expect("a budget that is low before it is spent");
    assert_fires("X402dBudgetLow", &well, &low);
    assert!(!fires("X402dNothingSold", &well, &low), "{low}");
    assert_fires("X402dNothingSold", &well, &spent);
    let gas = sum(&spent, "x402d_gas_wei_total", "purpose=\"settle\"");
    assert!(gas > Some(1e15) && gas <= Some(2e15), "{gas:?}");
    let refused = "code=\"sponsorship_exhausted\"";
    assert!(sum(&spent, "x402d_refusals_total", refused) >= Some(1.0));
    let event = until_told(&world.facilitator, "budget.exhausted").await;
    assert_eq!(event["budget"], "the network", "{event}");
    until_said(&world, "status", &toml, "of the gas budget of 24 hours").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reorg() {
    let world = World::new().await;
    let mut settled = Vec::new();
    for _ in 0..5 {
        settled.push(settle_one(&world).await);
    }
    let well = figures(&world.facilitator).await;
    world.chain.reorg(5).await;
    let after = until(&world, "x402d_reorged_blocks_total", "", |blocks| {
        blocks >= 5.0
    })
    .await;
    assert_fires("X402dReorg", &well, &after);
    assert!(!fires("X402dReorgDeep", &well, &after), "{after}");
    let event = until_told(&world.facilitator, "payment.reorged").await;
    let ids: Vec<_> = settled.iter().map(payment_id).collect();
    assert!(
        ids.iter().any(|id| event["payment"] == id.as_str()),
        "{event}"
    );
    let again = "outcome=\"settled\"";
    until(&world, "x402d_payments_total", again, |count| count > 5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantine() {
    let world = world_with_odd_token().await;
    let well = until(&world, "x402d_quarantined_payments", "", |count| {
        count < 1.0
    })
    .await;
    let (_, answer) = settle_in_mode(&world, DOES_NOTHING).await;
    let after = until(&world, "x402d_quarantined_payments", "", |count| {
        count > 0.0
    })
    .await;
    assert_fires("X402dQuarantine", &well, &after);
    let event = until_told(&world.facilitator, "payment.quarantined").await;
    assert_eq!(event["payment"], payment_id(&answer), "{event}");
    until_said(&world, "status", "", "1 payment in quarantine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_takes_no_writes() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let setup = setup.with("X402D_METRICS_LISTEN", "127.0.0.1:0");
    let world = setup.build().await;
    // A key cannot be looked up while the database is away, so that the figures are read without one.
    let log = world.facilitator.log();
    let line = log.lines().find(|line| line.contains("metrics served"));
    let line: Value = serde_json::from_str(line.unwrap()).unwrap();
    let url = format!("http://{}/metrics", line["address"].as_str().unwrap());
    let well = reqwest::get(&url).await.unwrap().text().await.unwrap();
    let mut operator = world.database.connection().await;
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut operator)
        .await
        .unwrap();
    let statements = [
        format!("alter database \"{name}\" set default_transaction_read_only = on"),
        format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'x402d' and datname = '{name}'"
        ),
    ];
    for statement in statements {
        let statement = AssertSqlSafe(statement);
        sqlx::raw_sql(statement)
            .execute(&mut operator)
            .await
            .unwrap();
    }
    let down = eventually("x402d_database_up", SHOWN, async || {
        let figures = reqwest::get(&url).await.ok()?.text().await.ok()?;
        (sum(&figures, "x402d_database_up", "") == Some(0.0)).then_some(figures)
    })
    .await;
    assert_fires("X402dDatabaseUnreachable", &well, &down);
    // Nothing can be told: events are in that database.
    until_said(&world, "status", "", "takes no writes").await;
    until_said(&world, "doctor", "", "takes no writes").await;
    assert_eq!(world.facilitator.get("/readyz").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_of_webhooks_that_is_down() {
    let world = World::new().await;
    let well = figures(&world.facilitator).await;
    let url = format!("http://127.0.0.1:{}/a-secret-path", free_port());
    let arguments = [
        "webhooks",
        "add",
        &url,
        "--events",
        "payment.*",
        "--insecure-http",
        "--allow-private",
        "--json",
    ];
    let added: Value = serde_json::from_str(&world.command(&arguments)).unwrap();
    let receiver = added["id"].as_str().unwrap();
    settle_one(&world).await;
    let failed = "outcome=\"failed\"";
    let after = until(&world, "x402d_deliveries_total", failed, |count| {
        count > 4.0
    })
    .await;
    assert_fires("X402dWebhooksFailing", &well, &after);
    for command in ["status", "doctor"] {
        let said = until_said(&world, command, "", receiver).await;
        assert!(said.contains("no connection"), "{said}");
        assert!(!said.contains("a-secret-path"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_reached() {
    let rates = "[limits]\nverify_per_second = 1\nsettle_per_second = 1000\nsessions_per_second = 1000\nunattended_per_caller = 1000\nwaits_per_caller = 1000\n";
    let setup = Setup {
        toml: format!("body_bytes_max = 4096\n{rates}"),
        ..Setup::default()
    };
    let world = setup.build().await;
    let well = figures(&world.facilitator).await;
    let body = Purchase::new(&new_account(), PAYEE, 1_000).body();
    let limited = async || {
        let mut answers = Vec::new();
        for _ in 0..400 {
            answers.push(world.facilitator.verify(&body).await.status);
        }
        answers.contains(&429)
    };
    assert!(limited().await);
    let long = "x".repeat(8_192);
    let answer = world.facilitator.post_text("/settle", long).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    let after = figures(&world.facilitator).await;
    let of = |limit: &str| {
        let label = format!("limit=\"{limit}\"");
        sum(&after, "x402d_limits_reached_total", &label)
    };
    assert!(of("verify_per_second") > Some(100.0), "{after}");
    assert_eq!(of("body_bytes_max"), Some(1.0), "{after}");
    assert_eq!(of("queue_max"), Some(0.0), "{after}");
    assert!(!fires("X402dLimitReached", &well, &after));
}
