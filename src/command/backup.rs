//! `x402d backup`, `restore` and `psql`: Postgres's own programs on the database of the ledger, wherever it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::process::Command;
use url::Url;

use crate::command::database::{LedgerOptions, refuse_other_version};
use crate::command::shown::count;
use crate::command::{CommandError, say};
use crate::config::{Environment as _, ProcessEnvironment};
use crate::embedded::postgres_program;
use crate::ledger::Ledger;

/// Who may read a backup: it has signatures and the hashes of keys.
const FILE_MODE: u32 = 0o600;

/// A backup, and the ledger it is of or for.
#[derive(Debug, Args)]
pub(super) struct BackupOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    /// The file of the backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// How psql is run.
#[derive(Debug, Args)]
pub(super) struct PsqlOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    /// Let statements write. Without it the session is read-only: a change that the service does not know of can lose money.
    #[arg(long)]
    write: bool,
    /// Arguments of psql, behind `--`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Writes a backup, also while the service runs: it is the ledger at one moment.
pub(super) async fn backup(options: BackupOptions) -> Result<(), CommandError> {
    let BackupOptions { ledger, file } = options;
    let place = ledger.place().await?;
    let url = place.url().to_owned();
    let work = async |ledger: &Ledger| {
        refuse_other_version(ledger).await?;
        dump(&url, &file).await?;
        let size = fs::metadata(&file)?.len();
        say(&format!(
            "{} is backed up to {} ({}); `x402d restore` puts it into a new database",
            ledger.database(),
            file.display(),
            count(size, "byte")
        ));
        Ok(())
    };
    place.finish(work).await
}

/// Puts a backup into a database that has no ledger.
pub(super) async fn restore(options: BackupOptions) -> Result<(), CommandError> {
    let BackupOptions { ledger, file } = options;
    let read = File::open(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let place = ledger.place_or_new().await?;
    let url = place.url().to_owned();
    let work = async |ledger: &Ledger| {
        let name = ledger.database();
        if ledger.missing_migrations().await? < Ledger::migrations() {
            return Err(format!("{name} has a ledger already: a backup is restored into a new database, so that nothing is lost").into());
        }
        let mut program = program("pg_restore", &url)?;
        program
            .args(["--no-owner", "--no-privileges"])
            .args(["--single-transaction", "--exit-on-error"])
            .stdin(read);
        succeed("pg_restore", program).await?;
        say(&format!(
            "{name} has the ledger of {}. What happened after the backup is not in it: before you start the service, read \"Backup and \
             restore\" in docs/operating.md",
            file.display()
        ));
        Ok(())
    };
    place.finish(work).await
}

/// Runs psql on the ledger's database, and ends as it ends.
pub(super) async fn psql(options: PsqlOptions) -> Result<ExitCode, CommandError> {
    let place = options.ledger.place().await?;
    let url = place.url().to_owned();
    let work = async |_: &Ledger| {
        let mut program = psql_program(&url, options.write).await?;
        let status = program.args(&options.arguments).status().await?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    };
    place.finish(work).await
}

/// The whole file or none: a backup that broke off must not look like one.
async fn dump(url: &str, file: &Path) -> Result<(), CommandError> {
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if file.exists() {
        return Err(format!("{} exists: name another file", file.display()).into());
    }
    // One that broke off before. What is there may be a link, or open to others.
    fs::remove_file(&partial).ok();
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&partial)
        .map_err(failed)?;
    let mut program = program("pg_dump", url)?;
    program
        .args(["--format=custom", "--no-owner", "--no-privileges"])
        .stdout(written.try_clone()?);
    if let Err(error) = succeed("pg_dump", program).await {
        fs::remove_file(&partial).ok();
        return Err(error);
    }
    written.sync_all().map_err(failed)?;
    fs::rename(&partial, file).map_err(failed)?;
    Ok(())
}

/// A program of Postgres that connects to `url`.
fn program(name: &str, url: &str) -> Result<Command, CommandError> {
    let path = ProcessEnvironment.get("PATH").map(OsString::from);
    let found = postgres_program(name, path).ok_or_else(|| {
        format!(
            "{name} is not installed: install Postgres's client programs (Debian: apt-get install postgresql-client)"
        )
    })?;
    let mut command = Command::new(found);
    let url = LibpqUrl::of(url)?;
    command.arg("--dbname").arg(url.text);
    command.env("PGOPTIONS", url.options.join(" "));
    if let Some(password) = url.password {
        command.env("PGPASSWORD", password);
    }
    Ok(command)
}

/// psql, which cannot write unless it is allowed to.
async fn psql_program(url: &str, write: bool) -> Result<Command, CommandError> {
    const READ_ONLY: &str = "-c default_transaction_read_only=on";
    if write {
        return program("psql", url);
    }
    let read_only = || -> Result<Command, CommandError> {
        let mut psql = program("psql", url)?;
        let options = LibpqUrl::of(url)?.options;
        psql.env(
            "PGOPTIONS",
            [&options[..], &[READ_ONLY.to_owned()]].concat().join(" "),
        );
        Ok(psql)
    };
    let mut asking = read_only()?;
    asking.args(["-XqtAc", "show default_transaction_read_only"]);
    let told = asking.stderr(Stdio::inherit()).output().await?;
    // A pooler may leave the options of a session out.
    if told.stdout.trim_ascii() != b"on" {
        return Err("the session would not be read-only: something between here and the database leaves its options out; connect to the database itself, or allow writes with --write".into());
    }
    read_only()
}

/// A URL of the configuration as libpq takes it.
#[derive(Debug, PartialEq, Eq)]
struct LibpqUrl {
    /// Without what is below. It has no password, because everybody on the machine can read the arguments of a program.
    text: String,
    password: Option<String>,
    /// Options of the session.
    options: Vec<String>,
}

impl LibpqUrl {
    fn of(url: &str) -> Result<Self, CommandError> {
        // The error of the parser could quote the password.
        let mut url: Url = url
            .parse()
            .map_err(|_| "DATABASE_URL: expected postgres://…")?;
        let mut password = match url.password() {
            Some(encoded) => Some(percent_decode_str(encoded).decode_utf8()?.into_owned()),
            None => None,
        };
        url.set_password(None).ok();
        let (mut kept, mut options) = (Vec::new(), Vec::new());
        for (name, value) in url.query_pairs() {
            // x402d's driver knows some under more names than libpq, and one that libpq does not have.
            let name = match name.as_ref() {
                "ssl-mode" => "sslmode",
                "ssl-ca" | "ssl-root-cert" => "sslrootcert",
                "ssl-cert" => "sslcert",
                "ssl-key" => "sslkey",
                other => other,
            };
            match name {
                "password" => password = Some(value.into_owned()),
                "options" => options.push(value.into_owned()),
                "statement-cache-capacity" => {}
                _ => match name
                    .strip_prefix("options[")
                    .and_then(|name| name.strip_suffix(']'))
                {
                    Some(setting) => options.push(format!("-c {setting}={value}")),
                    // Not as a form, whose `+` for a space libpq does not know.
                    None => kept.push(format!(
                        "{name}={}",
                        utf8_percent_encode(&value, NON_ALPHANUMERIC)
                    )),
                },
            }
        }
        url.set_query((!kept.is_empty()).then(|| kept.join("&")).as_deref());
        Ok(Self {
            text: url.into(),
            password,
            options,
        })
    }
}

async fn succeed(name: &str, mut program: Command) -> Result<(), CommandError> {
    let status = program.status().await?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{name} failed ({status}); what it says stands above").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_one_of_libpq_without_password() {
        for (url, text, password, options) in [
            (
                "postgres://a:p%40w@h:1/d",
                "postgres://a@h:1/d",
                Some("p@w"),
                &[][..],
            ),
            (
                "postgres://a@h/d?password=p&ssl-mode=require&statement-cache-capacity=0",
                "postgres://a@h/d?sslmode=require",
                Some("p"),
                &[],
            ),
            (
                "postgres://x@localhost:5432/d?host=/run/x402d&application_name=a%20b",
                "postgres://x@localhost:5432/d?host=%2Frun%2Fx402d&application_name=a%20b",
                None,
                &[],
            ),
            (
                "postgres://a@h/d?options=-c%20search_path%3Dx&options[work_mem]=4MB",
                "postgres://a@h/d",
                None,
                &["-c search_path=x", "-c work_mem=4MB"],
            ),
        ] {
            let found = LibpqUrl::of(url).unwrap();
            assert_eq!(
                (found.text.as_str(), found.password.as_deref()),
                (text, password)
            );
            assert_eq!(found.options, options);
        }
        let error = LibpqUrl::of("postgres://a:secret@h:port/d").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
