//! `/metrics` and the log: a payment can be followed by its id, and what is wrong shows in the figures.

use std::process::Command;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};

use crate::support::{Caller, Fault, Purchase, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0x3e);
/// What is read from the chain and the ledger shows after its interval.
const SHOWN: Duration = Duration::from_secs(90);

async fn text(caller: &Caller) -> String {
    let answer = reqwest::get(format!("{}/metrics", caller.url())).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    answer.text().await.unwrap()
}

/// The value of the first series that begins so, rounded.
fn value(text: &str, series: &str) -> Option<i128> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    let value: f64 = line.rsplit(' ').next()?.parse().ok()?;
    format!("{value:.0}").parse().ok()
}

async fn shows(world: &World, series: &str, expected: impl Fn(i128) -> bool) {
    eventually(series, SHOWN, async || {
        let text = text(&world.facilitator).await;
        value(&text, series).filter(|value| expected(*value))
    })
    .await;
}

fn payments(outcome: &str) -> String {
    format!(
        "x402d_payments_total{{network=\"eip155:84532\",scheme=\"exact\",outcome=\"{outcome}\",code=\"\"}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_followed_by_its_id_in_figures_and_log() {
    let world = World::new().await;
    let payer = world.payer().await;
    let body = Purchase::new(&payer, PAYEE, 1_000).body();
    world.facilitator.verify(&body).await;
    let answer = world.facilitator.settle(&body).await;
    assert!(answer.succeeded(), "{answer:?}");
    for outcome in ["accepted", "sent", "settled", "granted"] {
        shows(&world, &payments(outcome), |count| count == 1).await;
    }
    for seconds in ["x402d_verify_seconds_count", "x402d_settle_seconds_count"] {
        shows(&world, seconds, |count| count == 1).await;
    }
    let id = answer.body["extra"]["paymentId"].as_str().unwrap();
    let log = world.facilitator.log();
    for event in ["accepted", "sent", "settled", "granted"] {
        let event = format!("payment {event}");
        let is_of = |line: &&str| line.contains(&event) && line.contains(id);
        assert_eq!(log.lines().filter(is_of).count(), 1, "{event}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_payment_is_counted_with_its_code_and_logged_without_a_warning() {
    let world = World::new().await;
    let body = Purchase::new(&new_account(), PAYEE, 1_000).body();
    let answer = world.facilitator.verify(&body).await;
    let code = answer.reason();
    let series = format!("x402d_refusals_total{{code=\"{code}\"}}");
    shows(&world, &series, |count| count == 1).await;
    let log = world.facilitator.log();
    let line = log.lines().find(|line| line.contains("payment refused"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(code) && line.contains("INFO"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_and_empty_signers_show() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.shortened().build().await;
    shows(&world, "x402d_signer_payments_left", |left| left > 1).await;
    shows(&world, "x402d_signer_stopped", |stopped| stopped == 0).await;
    let signers = world.facilitator.get("/signers").await.body;
    let signer = signers["signers"][0]["signer"].as_str().unwrap().to_owned();
    let said = world.command(&["signers", "pause", &signer]);
    assert!(said.contains("is paused"), "{said}");
    shows(&world, "x402d_signer_paused", |paused| paused == 1).await;
    shows(&world, "x402d_signer_stopped", |stopped| stopped == 0).await;
    let empty = json!([signer, U256::ZERO]);
    world.chain.call("anvil_setBalance", empty).await;
    shows(&world, "x402d_signer_balance_wei", |wei| wei == 0).await;
    shows(&world, "x402d_signer_payments_left", |left| left == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_that_is_down_shows() {
    let world = World::new().await;
    world.proxy.all(Fault::Unavailable);
    shows(&world, "x402d_rpc_silent_seconds", |silence| silence > 5).await;
    world.proxy.all(Fault::None);
    shows(&world, "x402d_rpc_silent_seconds", |silence| silence < 5).await;
}

/// The names of metrics in a text.
fn names(text: &str) -> Vec<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_part(letter));
    words.filter(|word| word.starts_with("x402d_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_metrics_are_those_that_are_served_and_alerts_name_no_other() {
    let setup = Setup {
        toml: "[networks.base-sepolia.budget]\nwei_per_day = \"1eth\"\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 1_000).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
    shows(&world, "x402d_signer_hours_left", |left| left > 1).await;
    let served = text(&world.facilitator).await;
    let heads = served.lines().filter(|line| line.starts_with("# TYPE "));
    let mut served: Vec<_> = heads.filter_map(|line| line.split(' ').nth(2)).collect();
    served.sort_unstable();
    let page = include_str!("../../docs/operating.md");
    let rows = page.lines().filter(|line| line.starts_with("| `x402d_"));
    let documented: Vec<_> = rows.map(|row| names(row)[0]).collect();
    // Only with a private Postgres.
    let of_private = "x402d_data_dir_free_bytes";
    let is_served = |name: &&str| *name != of_private;
    let mut as_here: Vec<_> = documented.iter().copied().filter(is_served).collect();
    as_here.sort_unstable();
    served.retain(is_served);
    assert_eq!(as_here, served);
    let of_histogram = |name: &'static str| {
        let stems = ["_bucket", "_count", "_sum"].into_iter();
        let mut stems = stems.filter_map(|end| name.strip_suffix(end));
        stems.next().unwrap_or(name)
    };
    let (alerts, board) = (
        include_str!("../../deploy/alerts.yml"),
        include_str!("../../deploy/grafana.json"),
    );
    for name in names(alerts).into_iter().chain(names(board)) {
        assert!(documented.contains(&of_histogram(name)), "{name}");
    }
    let shown: Vec<_> = names(board).into_iter().map(of_histogram).collect();
    for name in documented {
        assert!(shown.contains(&name), "{name} is not on the board");
    }
}

/// The expressions of a board.
fn expressions(board: &Value) -> Vec<String> {
    match board {
        Value::Object(members) => {
            let own = members.get("expr").and_then(Value::as_str);
            let own = own.map(str::to_owned).into_iter();
            own.chain(members.values().flat_map(expressions)).collect()
        }
        Value::Array(members) => members.iter().flat_map(expressions).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

#[test]
fn expressions_of_the_board_can_be_evaluated() {
    let board = include_str!("../../deploy/grafana.json");
    let expressions = expressions(&serde_json::from_str(board).unwrap());
    assert!(expressions.len() > 20, "{expressions:?}");
    let rules = expressions.iter().enumerate().map(|(number, expression)| {
        let expression = expression.replace("$__rate_interval", "5m");
        json!({"record": format!("expression:{number}"), "expr": expression})
    });
    let groups = json!({"groups": [{"name": "board", "rules": rules.collect::<Vec<_>>()}]});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("board.yml");
    std::fs::write(&path, groups.to_string()).unwrap();
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&path)
        .output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn own_listener_serves_the_figures_without_a_key_and_nothing_else() {
    let setup = Setup::default()
        .with("X402D_ADMIN_TOKEN", "a-token-of-sixteen-or-more")
        .with("X402D_METRICS_LISTEN", "127.0.0.1:0");
    let world = setup.build().await;
    let log = world.facilitator.log();
    let line = log.lines().find(|line| line.contains("metrics served"));
    let line: Value = serde_json::from_str(line.unwrap()).unwrap();
    let url = format!("http://{}", line["address"].as_str().unwrap());
    let answer = reqwest::get(format!("{url}/metrics")).await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(text.contains("x402d_build_info"), "{text}");
    for path in ["/", "/payments", "/readyz", "/supported", "/api/metrics"] {
        let answer = reqwest::get(format!("{url}{path}")).await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    let posted = reqwest::Client::new().post(format!("{url}/metrics"));
    assert_eq!(posted.send().await.unwrap().status(), 405);
    let guarded = format!("{}/metrics", world.facilitator.url());
    assert_eq!(reqwest::get(&guarded).await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_figures() {
    let token = "a-token-of-sixteen-or-more";
    let setup = Setup::default().with("X402D_ADMIN_TOKEN", token);
    let world = setup.build().await;
    let url = format!("{}/metrics", world.facilitator.url());
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401);
    let request = reqwest::Client::new().get(&url).bearer_auth(token);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// A pipe holds 64 KiB, and a payment writes two.
#[tokio::test(flavor = "multi_thread")]
async fn log_that_nobody_reads_stops_no_payment() {
    let mut world = World::new().await;
    world.facilitator.kill();
    world.facilitator.restart_with_unread_log().await;
    let payer = world.payer().await;
    let mut settling = tokio::task::JoinSet::new();
    for amount in 1..=150 {
        let caller = (*world.facilitator).clone();
        let body = Purchase::new(&payer, PAYEE, amount).body();
        settling.spawn(async move { caller.settle(&body).await });
    }
    for answer in settling.join_all().await {
        assert!(answer.succeeded(), "{answer:?}");
    }
}
