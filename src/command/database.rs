//! The database that a command works on: the configured server, or a private one.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::command::CommandError;
use crate::config::{Environment as _, ProcessEnvironment};
use crate::embedded::{EmbeddedPostgres, ScratchDatabase, default_data_dir, running_as_root};
use crate::ledger::Ledger;

/// A database, and the server or scratch database to stop with it.
#[derive(Debug)]
pub(super) struct Database {
    url: String,
    scratch: Option<ScratchDatabase>,
    embedded: Option<EmbeddedPostgres>,
}

impl Database {
    /// The database of the ledger.
    pub(super) async fn open(
        configured: Option<&SecretString>,
        data_dir: Option<&Path>,
    ) -> Result<Self, CommandError> {
        if let Some(url) = configured {
            return Ok(Self {
                url: url.expose_secret().to_owned(),
                scratch: None,
                embedded: None,
            });
        }
        let data_dir = resolve_data_dir(data_dir);
        tracing::info!(folder = %data_dir.display(), "no DATABASE_URL: running a private Postgres");
        let embedded = EmbeddedPostgres::start(&data_dir).await?;
        Ok(Self {
            url: embedded.url().to_owned(),
            scratch: None,
            embedded: Some(embedded),
        })
    }

    /// A database for one local chain.
    pub(super) async fn open_for_local_chain(
        data_dir: Option<&Path>,
    ) -> Result<Self, CommandError> {
        let configured = ProcessEnvironment
            .get("DATABASE_URL")
            .map(SecretString::from);
        let mut database = Self::open(configured.as_ref(), data_dir).await?;
        if configured.is_some() {
            // The ledger's error says what is wrong with the URL.
            let (ledger, _) = Ledger::connect(&database.url, 1).await?;
            ledger.close().await;
        }
        let scratch = ScratchDatabase::create(&database.url).await?;
        scratch.url().clone_into(&mut database.url);
        database.scratch = Some(scratch);
        Ok(database)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Stops or removes what `open` started or created.
    pub(super) async fn close(self) -> Result<(), CommandError> {
        if let Some(scratch) = self.scratch {
            scratch.remove().await;
        }
        if let Some(embedded) = self.embedded {
            embedded.stop().await?;
        }
        Ok(())
    }
}

fn resolve_data_dir(configured: Option<&Path>) -> PathBuf {
    let from_environment = ProcessEnvironment.get("X402D_DATA_DIR").map(PathBuf::from);
    let configured = configured.or(from_environment.as_deref());
    default_data_dir(
        configured,
        &|name| ProcessEnvironment.get(name),
        running_as_root(),
    )
}
