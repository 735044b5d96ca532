//! `x402d doctor`: checks everything that the service depends on, and says what to do about what is wrong. It changes nothing.

mod access;
mod database;
mod disk;
mod signers;
mod webhooks;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::database::Examined;
use crate::command::database::Database;
use crate::command::finding::{Finding, Outcome};
use crate::command::networks::check;
use crate::command::shown::{count, network_name};
use crate::command::{CommandError, say};
use crate::config::{Config, ConfigError, Flags, ProcessEnvironment};
use crate::ledger::Ledger;
use crate::telemetry::causes;

#[derive(Debug, Args)]
pub(super) struct DoctorOptions {
    /// The configuration; x402d.toml in the working directory unless given.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the private Postgres keeps its data.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found about one part.
#[derive(Debug, Serialize)]
struct Section {
    part: String,
    findings: Vec<Finding>,
}

pub(super) async fn run(options: DoctorOptions) -> Result<(), CommandError> {
    let flags = Flags {
        file: options.config,
        data_dir: options.data_dir,
        ..Flags::default()
    };
    let sections = examine(&flags, options.json).await;
    if options.json {
        say(&json!({ "parts": sections }).to_string());
    }
    let findings = sections.iter().flat_map(|section| &section.findings);
    let number = |wanted: fn(Outcome) -> bool| {
        let found = findings.clone().filter(|one| wanted(one.outcome));
        u64::try_from(found.count()).unwrap_or(u64::MAX)
    };
    let failures = number(Outcome::is_failure);
    let warnings = number(|outcome| outcome == Outcome::Warning);
    let (problems, warnings) = (count(failures, "problem"), count(warnings, "warning"));
    if failures > 0 {
        return Err(format!("{problems}, {warnings}").into());
    }
    if !options.json {
        say(&format!("{problems}, {warnings}"));
    }
    Ok(())
}

/// The parts that were examined; each is printed as soon as it is.
struct Report {
    sections: Vec<Section>,
    quiet: bool,
}

impl Report {
    fn add(&mut self, part: impl Into<String>, findings: Vec<Finding>) {
        let section = Section {
            part: part.into(),
            findings,
        };
        if !self.quiet {
            say(&section.formatted());
        }
        self.sections.push(section);
    }
}

async fn examine(flags: &Flags, quiet: bool) -> Vec<Section> {
    let mut report = Report {
        sections: Vec::new(),
        quiet,
    };
    let config = Config::read(flags, &ProcessEnvironment);
    report.add("configuration", configuration(&config));
    let place = match &config {
        Ok(config) => Ok((config.database_url.clone(), config.data_dir.clone())),
        Err(_) => Config::read_ledger(flags, &ProcessEnvironment),
    };
    // Where that fails, the configuration has said so.
    let Ok((url, data_dir)) = place else {
        return report.sections;
    };
    let open = Database::open(url.as_ref(), data_dir.as_deref()).await;
    let ledger = match &open {
        Ok(open) => connect(open.url()).await,
        Err(error) => Err(causes(error.as_ref())),
    };
    if let Some(folder) = open.as_ref().ok().and_then(|open| open.place().data_dir) {
        report.add("disk", vec![disk::examine(folder)]);
    }
    examine_rest(&mut report, config.as_ref().ok(), ledger.as_ref()).await;
    if let Ok(ledger) = ledger {
        ledger.close().await;
    }
    if let Ok(open) = open
        && let Err(error) = open.close().await
    {
        report.add(
            "private Postgres",
            vec![Finding::wrong("stop", causes(error.as_ref()))],
        );
    }
    report.sections
}

async fn connect(url: &str) -> Result<Ledger, String> {
    let connected = Ledger::connect(url, 1).await;
    connected
        .map(|(ledger, _)| ledger)
        .map_err(|error| causes(&error))
}

/// Database, networks and access. A part that cannot be read is not examined.
async fn examine_rest(
    report: &mut Report,
    config: Option<&Config>,
    ledger: Result<&Ledger, &String>,
) {
    let mut examined = match ledger {
        Ok(ledger) => database::examine(ledger, config).await,
        Err(why) => Examined {
            findings: vec![Finding::wrong("server", why)],
            ..Examined::default()
        },
    };
    report.add("database", std::mem::take(&mut examined.findings));
    if let Some(ledger) = ledger.ok().filter(|_| examined.readable) {
        report.add("webhooks", webhooks::examine(ledger).await);
    }
    let Some(config) = config else { return };
    for network in &config.networks {
        let mut findings = check::check(network).await.findings;
        if let Some(ledger) = ledger.ok().filter(|_| examined.readable) {
            findings.extend(signers::examine(ledger, network).await);
        }
        let network = network.policy.network;
        let name = network_name(network);
        report.add(format!("network {name} ({network})"), findings);
    }
    report.add("access", access::examine(config, &examined).await);
}

impl Section {
    fn formatted(&self) -> String {
        let lines = self.findings.iter().map(Finding::formatted);
        format!("{}\n{}", self.part, lines.collect::<Vec<_>>().join("\n"))
    }
}

fn configuration(config: &Result<Config, ConfigError>) -> Vec<Finding> {
    let about = "settings";
    match config {
        Ok(config) => {
            let networks = config.networks.iter();
            let networks = networks.map(|network| network_name(network.policy.network));
            let networks = networks.collect::<Vec<_>>().join(", ");
            vec![Finding::ok(
                about,
                format!("can be used; networks: {networks}"),
            )]
        }
        Err(error) => {
            let problems = error.problems().iter();
            problems
                .map(|problem| Finding::wrong(about, problem))
                .collect()
        }
    }
}
