//! The configuration: read once, at the start, into one validated value.
//!
//! Flags override the environment, the environment `x402d.toml`, the file the defaults. All problems are reported at once, each with its
//! key, what was expected and what to write. No secret appears in an error or in `Debug` output.

mod access;
mod connections;
mod file;
mod keys;
mod limits;
mod network;
mod sessions;
mod variables;

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use crate::payment::AccessMode;
pub use connections::ConnectionsConfig;
use file::File;
pub use limits::LimitsConfig;
pub use network::NetworkConfig;
pub use sessions::SessionsConfig;

/// The settings of the service.
#[derive(Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The address on which the figures for Prometheus are served without a key, and nothing else; `None`: on `listen`, to the operator.
    pub metrics_listen: Option<SocketAddr>,
    /// The URL of the ledger's database; `None` runs a private server.
    pub database_url: Option<SecretString>,
    /// The folder of the private Postgres; `None` is the default one.
    pub data_dir: Option<PathBuf>,
    /// The operator's bearer token.
    pub admin_token: Option<SecretString>,
    /// How long `/settle` waits before it answers `settlement_pending`.
    pub settle_wait: Duration,
    /// For how long one `/verify` of a payment that is being settled refuses others, in seconds.
    pub verify_lease_s: u32,
    /// The longest body that is read, in bytes.
    pub body_bytes_max: usize,
    /// Callers' connections.
    pub connections: ConnectionsConfig,
    /// Connections to the database, at most.
    pub database_connections_max: u32,
    pub limits: LimitsConfig,
    /// Who may have payments verified and settled.
    pub access: AccessMode,
    pub sessions: SessionsConfig,
    /// The networks to serve; at least one.
    pub networks: Vec<NetworkConfig>,
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// Each problem, with what to do about it.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the configuration cannot be used:")?;
        self.0
            .iter()
            .try_for_each(|problem| write!(formatter, "\n  - {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// The environment variables.
pub trait Environment {
    /// The value of a variable, if it is set and not empty.
    fn get(&self, name: &str) -> Option<String>;
    /// The names of all variables.
    fn names(&self) -> Vec<String>;
}

/// The environment of the process. Nothing else reads it.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .collect()
    }
}

/// The flags of the command line that belong to the configuration.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

/// The least number of characters of the operator's token.
const ADMIN_TOKEN_LENGTH_MIN: usize = 16;
/// The file that is read if no other is named.
const DEFAULT_FILE: &str = "x402d.toml";

impl Config {
    /// Reads and validates the whole configuration. An error lists every problem.
    pub fn read(flags: &Flags, environment: &dyn Environment) -> Result<Self, ConfigError> {
        let file = read_file(flags.file.as_deref())?;
        if file.has_keys() {
            let path = flags.file.as_deref();
            keys::warn_if_open(path.unwrap_or_else(|| Path::new(DEFAULT_FILE)));
        }
        Self::validated(flags, environment, file)
    }

    /// The same from flags and environment alone.
    pub fn read_without_file(
        flags: &Flags,
        environment: &dyn Environment,
    ) -> Result<Self, ConfigError> {
        Self::validated(flags, environment, File::default())
    }

    /// Reads only the URL of the database. Fails when the file cannot be read, an unknown variable is set, or no database is named.
    pub fn read_database(
        flags: &Flags,
        environment: &dyn Environment,
    ) -> Result<SecretString, ConfigError> {
        let mut problems = variables::unknown(environment);
        let file = read_file(flags.file.as_deref())?;
        let url = environment.get("DATABASE_URL").or(file.database_url);
        match url {
            Some(url) if problems.is_empty() => return Ok(SecretString::from(url)),
            Some(_) => {}
            None => problems.push(
                "DATABASE_URL: expected the database to migrate; a private Postgres is migrated by `x402d serve` itself".to_owned(),
            ),
        }
        Err(ConfigError(problems))
    }

    /// Reads only where the ledger is: the URL of its database, or the folder of a private Postgres.
    pub fn read_ledger(
        flags: &Flags,
        environment: &dyn Environment,
    ) -> Result<(Option<SecretString>, Option<PathBuf>), ConfigError> {
        let problems = variables::unknown(environment);
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        let file = read_file(flags.file.as_deref())?;
        let url = environment.get("DATABASE_URL").or(file.database_url);
        Ok((
            url.map(SecretString::from),
            data_dir(flags, environment, file.data_dir),
        ))
    }

    fn validated(
        flags: &Flags,
        environment: &dyn Environment,
        file: File,
    ) -> Result<Self, ConfigError> {
        let mut problems = variables::unknown(environment);
        let config = Self::compose(flags, environment, file, &mut problems);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(problems))
        }
    }

    fn compose(
        flags: &Flags,
        environment: &dyn Environment,
        mut file: File,
        problems: &mut Vec<String>,
    ) -> Self {
        let mut settings = Settings {
            environment,
            problems,
        };
        let listen = flags
            .listen
            .or_else(|| settings.parsed("X402D_LISTEN", "an address such as 127.0.0.1:4402"))
            .or(file.listen);
        let metrics_listen = settings
            .parsed("X402D_METRICS_LISTEN", "an address such as 127.0.0.1:9402")
            .or(file.metrics_listen);
        let wait_s = settings
            .parsed("X402D_SETTLE_WAIT", "seconds")
            .or(file.settle_wait_s)
            .unwrap_or(20);
        if !(1..=25).contains(&wait_s) {
            settings.problems.push(format!("settle_wait_s (X402D_SETTLE_WAIT): expected 1 to 25 seconds, got {wait_s}; SDKs give up after 30"));
        }
        let body_bytes_max = file.body_bytes_max.unwrap_or(64 * 1024);
        if !(1024..=1024 * 1024).contains(&body_bytes_max) {
            settings.problems.push(format!(
                "body_bytes_max: expected 1024 to 1048576, got {body_bytes_max}"
            ));
        }
        let connections = connections::read(&mut settings, &mut file);
        let database_connections_max = settings.between(
            "database_connections_max",
            file.database_connections_max,
            1..=10_000,
        );
        let verify_lease_s = settings.between("verify_lease_s", file.verify_lease_s, 1..=3600);
        let admin_token = settings.admin_token(file.admin_token);
        let limits = limits::read(&mut settings, file.limits);
        let sessions = sessions::read(&mut settings, file.sessions);
        let networks = network::read(&mut settings, file.networks);
        let access = access::read(&mut settings, &file.access, &networks);
        Self {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 4402))),
            metrics_listen,
            database_url: settings
                .environment
                .get("DATABASE_URL")
                .or(file.database_url)
                .map(SecretString::from),
            data_dir: data_dir(flags, settings.environment, file.data_dir),
            admin_token,
            settle_wait: Duration::from_secs(wait_s),
            verify_lease_s: verify_lease_s.unwrap_or(10),
            body_bytes_max,
            connections,
            database_connections_max: database_connections_max.unwrap_or(32),
            access,
            limits,
            sessions,
            networks,
        }
    }
}

fn data_dir(
    flags: &Flags,
    environment: &dyn Environment,
    in_file: Option<PathBuf>,
) -> Option<PathBuf> {
    let from_environment = || environment.get("X402D_DATA_DIR").map(PathBuf::from);
    let given = flags.data_dir.clone().or_else(from_environment);
    given.or(in_file)
}

fn read_file(named: Option<&Path>) -> Result<File, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    let problem = |text: String| ConfigError(vec![text]);
    match std::fs::read_to_string(path) {
        Ok(text) => {
            // The offending line, which toml would show, may hold a secret: only its number is shown.
            toml::from_str(&text).map_err(|error| {
                let before = error.span().and_then(|span| text.get(..span.start));
                let line = before.map(|text| text.matches('\n').count() + 1);
                let line = line
                    .map(|line| format!("line {line}: "))
                    .unwrap_or_default();
                let mut why = without_value(error.message());
                if why.starts_with("invalid unquoted key") {
                    why.push_str(
                        "; write a name with a colon in quotes: [networks.\"eip155:84532\"]",
                    );
                }
                problem(format!("{}: {line}{why}", path.display()))
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            Ok(File::default())
        }
        Err(error) => Err(problem(format!(
            "{}: cannot be read: {error}",
            path.display()
        ))),
    }
}

/// The words of TOML for serde's names of Rust types.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list such as [\"...\"]",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number without quotes or unit",
        "a map" => "a table",
        other => other,
    }
}

/// Removes the value that a message repeats: it may be a key in the wrong kind of quotes.
fn without_value(message: &str) -> String {
    let repeats = ["invalid type: ", "invalid value: "]
        .iter()
        .any(|start| message.starts_with(start));
    match message.rsplit_once(", expected ") {
        Some((found, expected)) if repeats => {
            let kind = found.split(['"', '`']).next().unwrap_or_default();
            format!("{}, expected {}", kind.trim_end(), in_plain_words(expected))
        }
        Some(_) | None => message.to_owned(),
    }
}

/// The one of `candidates` that `word` is probably a misspelling of.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = candidates.map(|known| (strsim::damerau_levenshtein(word, known), known));
    let (distance, nearest) = distances.min()?;
    (distance <= 3 && distance * 3 <= word.len()).then_some(nearest)
}

/// Reads single settings and collects their problems.
struct Settings<'a> {
    environment: &'a dyn Environment,
    problems: &'a mut Vec<String>,
}

impl Settings<'_> {
    fn parsed<T: std::str::FromStr>(&mut self, variable: &str, expected: &str) -> Option<T> {
        let text = self.environment.get(variable)?;
        let parsed = text.trim().parse().ok();
        if parsed.is_none() {
            self.problems
                .push(format!("{variable}: expected {expected}"));
        }
        parsed
    }

    fn between<T: PartialOrd + std::fmt::Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        allowed: RangeInclusive<T>,
    ) -> Option<T> {
        if let Some(value) = value.as_ref().filter(|value| !allowed.contains(value)) {
            let (least, most) = (allowed.start(), allowed.end());
            self.problems
                .push(format!("{key}: expected {least} to {most}, got {value}"));
        }
        value
    }

    /// A short token could be guessed; one that no header can hold would admit nobody.
    fn admin_token(&mut self, in_file: Option<String>) -> Option<SecretString> {
        let token = self.environment.get("X402D_ADMIN_TOKEN").or(in_file)?;
        let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_visible || token.len() < ADMIN_TOKEN_LENGTH_MIN || token.contains("change-me") {
            self.problems.push(format!(
                "admin_token (X402D_ADMIN_TOKEN): expected at least {ADMIN_TOKEN_LENGTH_MIN} random visible ASCII characters without spaces, such as those of `openssl rand -hex 24`; leave it out to admit only programs on this machine"
            ));
        }
        Some(token.into())
    }

    fn list(&self, variable: &str) -> Vec<String> {
        let text = self.environment.get(variable).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests;
