//! Errors of the private Postgres and the local chain, each with what the operator can do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the private Postgres or the local chain could not be started, used or stopped.
///
/// The messages are for the operator: they name the folder, the package or the flag to change, and never a secret.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No Postgres server is installed where x402d looks.
    #[error(
        "no Postgres server is installed here (looked in PATH, /usr/lib/postgresql and Homebrew's folders): run \
         `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql` (macOS), or set DATABASE_URL to a \
         Postgres that runs already"
    )]
    PostgresMissing,
    /// The cluster was written by another major version than the installed ones.
    #[error(
        "the cluster in {cluster} was made by Postgres {wanted}, but only version {installed} is installed: install \
         Postgres {wanted}, or move the folder away to begin with an empty ledger"
    )]
    PostgresVersion {
        /// The folder of the cluster.
        cluster: PathBuf,
        /// The major version that can read it.
        wanted: u32,
        /// The major versions that were found, for reading.
        installed: String,
    },
    /// Postgres refuses to run as root, and there is no other account to run it as.
    #[error(
        "Postgres refuses to run as root, and there is neither a user `x402d` nor `postgres` to run it as (`nobody` is not used: other \
         services run as it): create one (`useradd --system x402d`), run x402d as another user, or set DATABASE_URL"
    )]
    NoAccount,
    /// The folder of the cluster belongs to another account than the one that runs Postgres.
    #[error(
        "{folder} does not belong to `{user}`, as whom Postgres runs: stop all x402d that use it, look into it, and if it is x402d's, run \
         `chown -hR {user} {folder}`, or set X402D_DATA_DIR to another folder",
        folder = folder.display()
    )]
    ForeignFolder {
        folder: PathBuf,
        /// The account.
        user: String,
    },
    /// Something in the folder of a cluster that is to be given to another account is not what Postgres puts there.
    #[error(
        "{path} is a link, or does not belong to the owner of its folder, so the folder is not handed to another user: move it away and start \
         again",
        path = path.display()
    )]
    StrangeEntry { path: PathBuf },
    /// A folder on the way to a needed file cannot be entered by the account that runs Postgres.
    #[error(
        "the user `{user}`, as whom Postgres runs, cannot enter {folder}: allow it with `chmod o+x {folder}`, or set \
         X402D_DATA_DIR to another folder",
        folder = folder.display()
    )]
    ClosedFolder {
        /// The account.
        user: String,
        /// The first folder that is closed.
        folder: PathBuf,
    },
    /// Another process holds the cluster's lock longer than anything x402d does with it may last.
    #[error("another x402d has held {file} for {limit:?}: end it, or set X402D_DATA_DIR to another folder", file = file.display())]
    Locked {
        /// The lock file.
        file: PathBuf,
        limit: Duration,
    },
    /// Another x402d uses the cluster, but its server process cannot be found.
    #[error(
        "another x402d uses {cluster}, but its Postgres cannot be found from here (it crashed, or runs in another \
         container): stop that x402d, or set X402D_DATA_DIR to another folder",
        cluster = cluster.display()
    )]
    InvisiblePostmaster {
        /// The folder of the cluster.
        cluster: PathBuf,
    },
    /// A program ended with a failure.
    #[error("{program} failed: {output}")]
    Failed {
        program: String,
        /// The end of what it printed.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}")]
    Late { what: String, limit: Duration },
    /// The private cluster answers, but refuses a statement.
    #[error("the private Postgres refused {what}")]
    Sql {
        /// The refused operation.
        what: &'static str,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// The server refuses to create a database for a local chain.
    #[error(
        "the database server refused to create a database for the local chain; the role needs CREATEDB (alter role NAME createdb), or \
         unset DATABASE_URL to use a private Postgres"
    )]
    Scratch(#[source] sqlx::Error),
    /// Neither `anvil` nor `npx` is installed.
    #[error(
        "no local chain is installed: put `anvil` into PATH (https://getfoundry.sh), or install Node.js with npm, with \
         which x402d fetches it; or name a network of your own with X402D_NETWORK and X402D_RPC_URL"
    )]
    AnvilMissing,
    /// The npm package has no program for this machine.
    #[error(
        "the npm package {package} has no program for this machine: put `anvil` into PATH (https://getfoundry.sh)"
    )]
    AnvilUnsupported { package: &'static str },
    /// The port of the local chain is in use.
    #[error(
        "port {port} is in use, perhaps by an earlier local chain: end that, or choose another with --chain-port"
    )]
    PortTaken { port: u16 },
    /// The local chain answered a call with an error, or not at all.
    #[error("the local chain did not answer {method} as expected: {detail}")]
    Chain {
        /// The JSON-RPC method.
        method: String,
        /// The answer instead.
        detail: String,
    },
    /// The operating system refused something.
    #[error("cannot {action}")]
    Io {
        /// The operation, with its file.
        action: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl EmbeddedError {
    /// Wraps a system error with the operation that failed; for `map_err`.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
