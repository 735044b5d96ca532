//! Times the CSV of all payments, served by a separate process, and measures the memory of that process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::{Outcome, milliseconds};

/// Any key: nothing is signed, because there is no RPC endpoint.
const KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
/// Times the CSV is read.
const RUNS: u32 = 3;

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the service on the database at `url` and reads the CSV.
pub(crate) async fn measure(url: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    let child = Command::new(env!("CARGO_BIN_EXE_x402d"))
        .arg("serve")
        .current_dir(folder.path())
        .env_clear()
        .env("DATABASE_URL", url)
        .env("X402D_LISTEN", "127.0.0.1:0")
        .env("X402D_NETWORK", "base-sepolia")
        .env("X402D_RPC_URL", "http://127.0.0.1:9")
        .env("X402D_SIGNER_KEYS", KEY)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut served = Served(child);
    let log = served.0.stderr.take().ok_or("no log")?;
    let address = address(BufReader::new(log))?;
    let process = served.0.id();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let page = format!("http://{address}/payments?limit=500");
    client.get(&page).send().await?.bytes().await?;
    println!(
        "serving process after a first page: {} KiB",
        memory(process, "VmRSS:")?
    );
    for _ in 0..RUNS {
        let (began, mut bytes, mut lines) = (Instant::now(), 0, 0);
        let table = format!("http://{address}/payments?format=csv");
        let mut answer = client.get(&table).send().await?.error_for_status()?;
        while let Some(chunk) = answer.chunk().await? {
            bytes += chunk.len();
            lines += chunk.split(|byte| *byte == b'\n').count() - 1;
        }
        println!(
            "table: {} rows, {} MiB in {} ms; at most {} KiB",
            lines - 1,
            bytes / 1024 / 1024,
            milliseconds(began.elapsed()),
            memory(process, "VmHWM:")?
        );
    }
    Ok(())
}

/// Reads the listen address from the log. A thread keeps draining the log, so that the pipe never fills.
fn address(mut log: impl BufRead + Send + 'static) -> Outcome<String> {
    let mut line = String::new();
    while log.read_line(&mut line)? > 0 {
        if line.contains("x402d listens") {
            let entry: Value = serde_json::from_str(&line)?;
            let address = entry.get("address").and_then(Value::as_str);
            let address = address.ok_or("no address in the log")?.to_owned();
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return Ok(address);
        }
        line.clear();
    }
    Err("the service ended before it listened".into())
}

fn memory(process: u32, what: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let line = line.ok_or("no such figure")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
