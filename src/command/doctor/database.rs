//! The database: whether the ledger is safe there, and whether it is of this version.

use std::time::Duration;

use crate::clock::{Clock as _, SystemClock};
use crate::command::finding::Finding;
use crate::command::shown::{count, length};
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError, ServerFacts};
use crate::telemetry::causes;

/// The oldest version of Postgres that is maintained by its makers.
const VERSION_OLD: u32 = 140_000;
/// A difference between the clocks of this machine and the server that is worth a look.
const CLOCK_OFF: Duration = Duration::from_secs(5);

/// What was found, and what other checks need of it.
#[derive(Debug, Default)]
pub(super) struct Examined {
    pub(super) findings: Vec<Finding>,
    /// The schema is of this version, so that statements can be run.
    pub(super) readable: bool,
    /// Processes whose leases run, if that is known.
    pub(super) running: Option<usize>,
    /// There is or was a key of scope `admin`.
    pub(super) has_admin_key: bool,
}

pub(super) async fn examine(ledger: &Ledger, config: Option<&Config>) -> Examined {
    let mut examined = Examined::default();
    match ledger.server_facts().await {
        Ok(server) => {
            examined.findings = server_findings(&server, &ledger.database());
            if let Err(error) = content(ledger, (&server, config), &mut examined).await {
                let failed = Finding::wrong("schema", causes(&error));
                examined.findings.push(failed);
            }
        }
        Err(error) => examined
            .findings
            .push(Finding::wrong("server", causes(&error))),
    }
    examined
}

fn server_findings(server: &ServerFacts, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is = format!("{name}: Postgres {}", server.version);
    findings.push(if server.version_number < VERSION_OLD {
        Finding::warning(
            "server",
            is,
            "upgrade: that version gets no corrections any more",
        )
    } else {
        Finding::ok("server", is)
    });
    if server.read_only {
        let read_only = Finding::wrong(
            "writes",
            "the server takes no writes: it is a standby, or set to read-only",
        );
        findings.push(
            read_only.with_fix(
                "point DATABASE_URL at the primary, or end default_transaction_read_only",
            ),
        );
    } else {
        findings.push(Finding::ok("writes", "are taken"));
    }
    for setting in &server.unsafe_settings {
        let says = format!(
            "{setting} is off: after a crash commits can be missing, and with them which payments were sent"
        );
        let fix = format!("set {setting} = on");
        findings.push(Finding::warning("settings", says, &fix));
    }
    if server.unsafe_settings.is_empty() {
        findings.push(Finding::ok("settings", "commits are durable"));
    }
    if server.pooled {
        findings.push(Finding::ok("pooler", "in transaction mode; that works"));
    }
    let off = (SystemClock.now() - server.now).unsigned_abs();
    findings.push(if off > CLOCK_OFF {
        Finding::warning(
            "clock",
            format!("this machine and the database differ by {}", length(off)),
            "have NTP set both; x402d goes by the database's",
        )
    } else {
        Finding::ok("clock", "this machine and the database agree")
    });
    findings
}

async fn content(
    ledger: &Ledger,
    (server, config): (&ServerFacts, Option<&Config>),
    examined: &mut Examined,
) -> Result<(), LedgerError> {
    let missing = ledger.missing_migrations().await?;
    if missing > 0 {
        let missing = count(u64::try_from(missing).unwrap_or_default(), "migration");
        let says = format!("lacks {missing} of this version");
        examined.findings.push(Finding::warning(
            "schema",
            says,
            "start this version of the service, or run `x402d migrate`",
        ));
        return Ok(());
    }
    examined
        .findings
        .push(Finding::ok("schema", "is of this version"));
    examined.readable = true;
    let running = ledger.running_processes().await?.len();
    examined.running = Some(running);
    examined.has_admin_key = ledger.has_had_admin_key().await?;
    let each = config.map_or(0, |config| config.database_connections_max);
    let processes = u32::try_from(running).unwrap_or(u32::MAX).max(1);
    let needed = each.saturating_mul(processes);
    if needed > server.max_connections && !server.pooled {
        examined.findings.push(Finding::warning(
            "limits",
            format!(
                "{} of x402d may use {needed} connections, and the server has {}",
                if processes == 1 {
                    "1 process".to_owned()
                } else {
                    format!("{processes} processes")
                },
                server.max_connections
            ),
            "raise max_connections of the server, or lower database_connections_max",
        ));
    }
    let quarantined: u64 = ledger
        .backlog()
        .await?
        .iter()
        .map(|one| one.quarantined)
        .sum();
    if quarantined > 0 {
        examined.findings.push(Finding::warning(
            "payments",
            format!("{} in quarantine", count(quarantined, "payment")),
            "look at `x402d payments list --quarantined`",
        ));
    }
    Ok(())
}
