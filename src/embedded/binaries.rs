//! Finds the installed Postgres server.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use super::account::Account;
use super::error::EmbeddedError;

/// `postgres --version` opens no file; a program that takes longer hangs.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// The two programs of one installed server, and its major version.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
    pub(super) major: u32,
}

/// The folders to look in, in this order; within one of the latter two, the newest version first.
#[derive(Debug)]
pub(super) struct Places {
    /// The search path of the process.
    pub(super) path: Option<OsString>,
    /// Debian's folder, with one below it for each version.
    pub(super) debian: PathBuf,
    /// Homebrew's folders, with one below each for each formula.
    pub(super) homebrew: Vec<PathBuf>,
}

impl Places {
    /// The usual places of distributions.
    pub(super) fn usual(path: Option<OsString>) -> Self {
        let homebrew = [
            "/opt/homebrew/opt",
            "/usr/local/opt",
            "/home/linuxbrew/.linuxbrew/opt",
        ];
        Self {
            path,
            debian: PathBuf::from("/usr/lib/postgresql"),
            homebrew: homebrew.map(PathBuf::from).to_vec(),
        }
    }

    /// Finds a server that the account can run; with `wanted`, one of that major version.
    pub(super) async fn find(
        &self,
        account: &Account,
        wanted: Option<(u32, &Path)>,
    ) -> Result<Binaries, EmbeddedError> {
        let mut installed = BTreeSet::new();
        let mut closed = None;
        for (initdb, postgres) in self.folders().iter().filter_map(|folder| programs(folder)) {
            let Some(major) = major_version(account, &postgres).await else {
                closed = closed.or_else(|| account.find_closed_folder(&postgres));
                continue;
            };
            if wanted.is_none_or(|(wanted, _)| wanted == major) {
                return Ok(Binaries {
                    initdb,
                    postgres,
                    major,
                });
            }
            installed.insert(major);
        }
        Err(match (wanted, closed) {
            (Some((wanted, cluster)), _) if !installed.is_empty() => {
                EmbeddedError::PostgresVersion {
                    cluster: cluster.to_path_buf(),
                    wanted,
                    installed: installed
                        .iter()
                        .map(u32::to_string)
                        .collect::<Vec<_>>()
                        .join(", "),
                }
            }
            (_, Some(closed)) => closed,
            (_, None) => EmbeddedError::PostgresMissing,
        })
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self
            .path
            .as_deref()
            .map(std::env::split_paths)
            .into_iter()
            .flatten()
            .collect();
        folders.extend(below(&self.debian, ""));
        folders.extend(
            self.homebrew
                .iter()
                .flat_map(|homebrew| below(homebrew, "postgresql")),
        );
        folders
    }
}

/// A client program of Postgres, such as `pg_dump`: from the search path `path`, else beside an installed server.
pub fn postgres_program(name: &str, path: Option<OsString>) -> Option<PathBuf> {
    let folders = Places::usual(path).folders();
    let mut programs = folders.into_iter().map(|folder| folder.join(name));
    programs.find(|program| program.is_file())
}

/// The `bin` folders of the versions below `parent`, the newest first.
fn below(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort_by_key(|name| std::cmp::Reverse(first_number(name)));
    names
        .into_iter()
        .map(|name| parent.join(name).join("bin"))
        .collect()
}

/// Both programs, with links resolved: Postgres finds its own files relative to its real path.
fn programs(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let program = |name: &str| {
        fs::canonicalize(folder.join(name))
            .ok()
            .filter(|program| program.is_file())
    };
    Some((program("initdb")?, program("postgres")?))
}

/// Asks the program for its major version; `None` if the account cannot run it.
async fn major_version(account: &Account, postgres: &Path) -> Option<u32> {
    let mut command = account.command(postgres);
    command.arg("--version").kill_on_drop(true);
    let output = timeout(VERSION_LIMIT, command.output()).await.ok()?.ok()?;
    first_number(&String::from_utf8_lossy(&output.stdout))
}

/// The first number in a text such as `postgres (PostgreSQL) 15.13` or `postgresql@16`.
pub(super) fn first_number(text: &str) -> Option<u32> {
    let from = text.find(|letter: char| letter.is_ascii_digit())?;
    let digits: String = text
        .chars()
        .skip(from)
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Places {
        Places {
            path: None,
            debian: PathBuf::from("/nonexistent"),
            homebrew: Vec::new(),
        }
    }

    #[tokio::test]
    async fn missing_postgres_error_names_package_and_alternative() {
        let account = Account::choose(Path::new("/nonexistent")).unwrap();
        let message = nowhere()
            .find(&account, None)
            .await
            .unwrap_err()
            .to_string();
        for part in [
            "apt-get install postgresql",
            "brew install postgresql",
            "DATABASE_URL",
        ] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[tokio::test]
    async fn cluster_of_a_missing_version_is_refused_with_versions() {
        let account = Account::choose(Path::new("/nonexistent")).unwrap();
        let usual = Places::usual(std::env::var_os("PATH"));
        let found = usual.find(&account, None).await.unwrap();
        let message = usual
            .find(&account, Some((7, Path::new("/c"))))
            .await
            .unwrap_err()
            .to_string();
        assert!(message.contains("made by Postgres 7"), "{message}");
        assert!(message.contains(&found.major.to_string()), "{message}");
    }

    #[test]
    fn newest_version_of_a_folder_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["postgresql@9", "postgresql@16", "redis@17"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found = below(folder.path(), "postgresql");
        assert_eq!(
            found,
            ["postgresql@16", "postgresql@9"].map(|name| folder.path().join(name).join("bin"))
        );
    }
}
