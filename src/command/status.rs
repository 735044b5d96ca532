//! `x402d status`: one page for people and cron, from the ledger and the chains. It changes nothing, and ends with 0 when all is well, 1 when
//! something needs attention and 2 when nothing can be sold.

mod networks;
mod page;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use self::networks::{NetworkStatus, SignerStatus};
use crate::command::database::{Database, LedgerOptions, refuse_other_version};
use crate::command::shown::{count, length};
use crate::command::{CommandError, say};
use crate::config::{Config, ProcessEnvironment};
use crate::ledger::{Backlog, LaneView, Ledger, RunningProcess};
use crate::telemetry::causes;

#[derive(Debug, Args)]
pub(super) struct StatusOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Payments go on, and the operator should look at it.
    Degraded,
    /// Nothing can be sold.
    Down,
}

/// Something that needs attention.
#[derive(Debug, Serialize)]
struct Problem {
    level: Level,
    says: String,
}

/// What the ledger says.
struct Known {
    now: OffsetDateTime,
    processes: Vec<RunningProcess>,
    lanes: Vec<LaneView>,
    backlog: Vec<Backlog>,
}

/// The whole page.
#[derive(Debug, Default)]
struct Status {
    /// Running processes, if the ledger could be asked.
    processes: Option<usize>,
    networks: Vec<NetworkStatus>,
    signers: Vec<SignerStatus>,
    problems: Vec<Problem>,
}

pub(super) async fn run(options: StatusOptions) -> Result<ExitCode, CommandError> {
    let json = options.ledger.json;
    let status = match read(&options.ledger).await {
        Ok(status) => status,
        Err(error) => Status {
            problems: vec![Problem {
                level: Level::Down,
                says: causes(&*error),
            }],
            ..Status::default()
        },
    };
    let level = status.level();
    say(&if json {
        json!({
            "status": level,
            "processes": status.processes,
            "problems": status.problems,
            "networks": status.networks,
            "signers": status.signers,
        })
        .to_string()
    } else {
        page::page(&status)
    });
    Ok(match level {
        Level::Ok => ExitCode::SUCCESS,
        Level::Degraded => ExitCode::from(1),
        Level::Down => ExitCode::from(2),
    })
}

impl Status {
    fn level(&self) -> Level {
        let levels = self.problems.iter().map(|problem| problem.level);
        levels.max().unwrap_or(Level::Ok)
    }
}

async fn read(options: &LedgerOptions) -> Result<Status, CommandError> {
    let config = Config::read(&options.flags(), &ProcessEnvironment)?;
    let (url, data_dir) = (config.database_url.as_ref(), config.data_dir.as_deref());
    let database = Database::open_existing(url, data_dir).await?;
    let read = read_on(&config, database.url()).await;
    database.close().await?;
    read
}

async fn read_on(config: &Config, url: &str) -> Result<Status, CommandError> {
    let (ledger, _) = Ledger::connect(url, 1).await?;
    let read = match known(&ledger).await {
        Ok(known) => status(config, &ledger, known).await,
        Err(error) => Err(error),
    };
    ledger.close().await;
    read
}

async fn known(ledger: &Ledger) -> Result<Known, CommandError> {
    refuse_other_version(ledger).await?;
    let server = ledger.server_facts().await?;
    if server.read_only {
        return Err("the database takes no writes: it is a standby, or set to read-only".into());
    }
    Ok(Known {
        now: server.now,
        processes: ledger.running_processes().await?,
        lanes: ledger.lanes().await?,
        backlog: ledger.backlog().await?,
    })
}

async fn status(config: &Config, ledger: &Ledger, known: Known) -> Result<Status, CommandError> {
    let mut status = Status {
        processes: Some(known.processes.len()),
        ..Status::default()
    };
    if known.processes.is_empty() {
        status.problems.push(Problem {
            level: Level::Down,
            says: "no process of x402d runs on this database: start `x402d serve`".to_owned(),
        });
    }
    let mut selling = 0_usize;
    for network in &config.networks {
        let budget = networks::budget(ledger, network).await?;
        let read = networks::read(network, &known, budget).await;
        selling += usize::from(read.network.can_sell);
        status.networks.push(read.network);
        status.signers.extend(read.signers);
        let problems = read.problems.into_iter();
        status.problems.extend(problems.map(|says| Problem {
            level: Level::Degraded,
            says,
        }));
    }
    match webhooks(ledger).await {
        Ok(problems) => status.problems.extend(problems),
        Err(error) => status.problems.push(Problem {
            level: Level::Degraded,
            says: format!(
                "what receivers of webhooks did not take cannot be read: {}",
                causes(error.as_ref())
            ),
        }),
    }
    if selling == 0 && !known.processes.is_empty() {
        status.problems.push(Problem {
            level: Level::Down,
            says: "nothing can be sold on any network".to_owned(),
        });
    }
    Ok(status)
}

/// Receivers that do not take their events. Their URLs may be secret.
async fn webhooks(ledger: &Ledger) -> Result<Vec<Problem>, CommandError> {
    let failing = ledger.failing_receivers().await?;
    let problems = failing.into_iter().map(|one| Problem {
        level: Level::Degraded,
        says: format!(
            "webhook {}: {} not taken for {}: {}; see `x402d webhooks deliveries {}`",
            one.receiver,
            count(one.waiting, "event"),
            length(one.since),
            one.problem,
            one.receiver
        ),
    });
    Ok(problems.collect())
}
