//! `x402d backup`, `restore` and `psql`: Postgres's own programs on the database of the ledger, wherever it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use percent_encoding::percent_decode_str;
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

/// What psql is told.
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
        let mut program = program("psql", &url)?;
        if !options.write {
            program.env("PGOPTIONS", "-c default_transaction_read_only=on");
        }
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
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
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

/// A program of Postgres that connects to `url`. Its password is not among the arguments, which everybody on the machine can read.
fn program(name: &str, url: &str) -> Result<Command, CommandError> {
    let path = ProcessEnvironment.get("PATH").map(OsString::from);
    let found = postgres_program(name, path).ok_or_else(|| {
        format!(
            "{name} is not installed: install Postgres's client programs (Debian: apt-get install postgresql-client)"
        )
    })?;
    let (url, password) = without_password(url)?;
    let mut command = Command::new(found);
    command.arg("--dbname").arg(url.as_str());
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    Ok(command)
}

/// The URL as libpq takes it, and its password.
fn without_password(url: &str) -> Result<(Url, Option<String>), CommandError> {
    // The error of the parser could quote the password.
    let mut url: Url = url
        .parse()
        .map_err(|_| "DATABASE_URL: expected postgres://…")?;
    let mut password = match url.password() {
        Some(encoded) => Some(percent_decode_str(encoded).decode_utf8()?.into_owned()),
        None => None,
    };
    url.set_password(None).ok();
    let mut kept = Vec::new();
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "password" => password = Some(value.into_owned()),
            // Settings of x402d's own driver, which libpq refuses.
            "statement-cache-capacity" => {}
            _ => kept.push((name.into_owned(), value.into_owned())),
        }
    }
    url.set_query(None);
    if !kept.is_empty() {
        url.query_pairs_mut().extend_pairs(kept);
    }
    Ok((url, password))
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
    fn password_is_taken_out_of_the_url() {
        for (url, without, password) in [
            (
                "postgres://a:p%40w@h:1/d",
                "postgres://a@h:1/d",
                Some("p@w"),
            ),
            (
                "postgres://a@h/d?password=p&sslmode=require&statement-cache-capacity=0",
                "postgres://a@h/d?sslmode=require",
                Some("p"),
            ),
            (
                "postgres://x@localhost:5432/d?host=/run/x402d",
                "postgres://x@localhost:5432/d?host=%2Frun%2Fx402d",
                None,
            ),
        ] {
            let (stripped, found) = without_password(url).unwrap();
            assert_eq!((stripped.as_str(), found.as_deref()), (without, password));
        }
        let error = without_password("postgres://a:secret@h:port/d").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
