//! `x402d demo`, run as in a fresh clone.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Database, eventually};

fn demo(database: &Database) -> Command {
    let (variable, place) = database.variable();
    let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
    command.arg("demo").env_clear().env(variable, place);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output_text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_makes_five_payments_and_exits_0_twice() {
    let database = Database::fresh().await;
    for _ in 0..2 {
        let output = demo(&database).arg("--once").output().unwrap();
        let text = output_text(&output);
        assert!(output.status.success(), "{text}");
        assert_eq!(text.matches("paid 0.01  by").count(), 4, "{text}");
        assert_eq!(text.matches("paid 0.003 by a meter").count(), 1, "{text}");
        assert!(text.contains("holds 0.000000 USDC before"), "{text}");
        assert!(text.contains("holds 0.043000 USDC after"), "{text}");
        assert_eq!(text.matches("settled ").count(), 5, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_demo_and_its_chain() {
    let database = Database::fresh().await;
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().join("shown");
    let mut command = demo(&database);
    command.args(["--listen", "127.0.0.1:0", "--chain-port", "0"]);
    command.stdout(std::fs::File::create(&shown).unwrap());
    let mut child = command.spawn().unwrap();
    let limit = Duration::from_secs(90);
    let text = eventually("the demo to serve", limit, async || {
        let text = std::fs::read_to_string(&shown).unwrap();
        text.contains("Still serving").then_some(text)
    })
    .await;
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let status = eventually("the demo to end", limit, async || child.try_wait().unwrap()).await;
    assert!(status.success(), "{text}");
    let chain = text
        .lines()
        .find_map(|line| line.strip_prefix("chain"))
        .unwrap()
        .trim();
    assert!(reqwest::get(chain).await.is_err(), "{chain} still answers");
}
