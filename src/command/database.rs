//! The database that a command works on: the configured server, or a private one.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::command::CommandError;
use crate::command::shown::count;
use crate::config::{Config, Environment as _, Flags, ProcessEnvironment};
use crate::embedded::{EmbeddedPostgres, ScratchDatabase, default_data_dir, running_as_root};
use crate::ledger::Ledger;
use crate::server::LedgerPlace;

/// Where the ledger is, and how to print what it has.
#[derive(Debug, Args)]
pub(super) struct LedgerOptions {
    /// The configuration that names the database; x402d.toml in the working directory unless given.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where the private Postgres keeps its data.
    #[arg(long, value_name = "FOLDER", global = true)]
    data_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl LedgerOptions {
    /// The flags of the configuration.
    pub(super) fn flags(&self) -> Flags {
        Flags {
            file: self.config.clone(),
            data_dir: self.data_dir.clone(),
            ..Flags::default()
        }
    }

    /// Does something with the ledger, whether or not the service runs. No network and no signer is needed, so only the place of the ledger
    /// is read from the configuration. Fails when there is no ledger, or one of an older version: a command leaves the tables as they are.
    pub(super) async fn on_ledger<T>(
        &self,
        work: impl AsyncFnOnce(&Ledger) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let work = async |ledger: &Ledger| {
            refuse_other_version(ledger).await?;
            work(ledger).await
        };
        self.place().await?.finish(work).await
    }

    /// The same, and makes the ledger when there is none yet.
    pub(super) async fn on_ledger_or_new<T>(
        &self,
        work: impl AsyncFnOnce(&Ledger) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let work = async |ledger: &Ledger| {
            if ledger.missing_migrations().await? == Ledger::migrations() {
                ledger.migrate().await?;
            }
            refuse_other_version(ledger).await?;
            work(ledger).await
        };
        self.place_or_new().await?.finish(work).await
    }

    /// The database of a ledger that is there already.
    pub(super) async fn place(&self) -> Result<Database, CommandError> {
        let (url, data_dir) = Config::read_ledger(&self.flags(), &ProcessEnvironment)?;
        Database::open_existing(url.as_ref(), data_dir.as_deref()).await
    }

    /// The database for a ledger that need not be there yet.
    pub(super) async fn place_or_new(&self) -> Result<Database, CommandError> {
        let (url, data_dir) = Config::read_ledger(&self.flags(), &ProcessEnvironment)?;
        Database::open(url.as_ref(), data_dir.as_deref()).await
    }
}

/// Fails unless the tables are those of this version. Bringing them up to date could stop the older processes that still run on them.
pub(super) async fn refuse_other_version(ledger: &Ledger) -> Result<(), CommandError> {
    let missing = ledger.missing_migrations().await?;
    if missing == 0 {
        return Ok(());
    }
    let lack = if missing == Ledger::migrations() {
        "has no ledger yet".to_owned()
    } else {
        format!("lacks {}", count(u64::try_from(missing)?, "migration"))
    };
    let database = ledger.database();
    Err(
        format!("{database} {lack}: start this version of the service, or run `x402d migrate`")
            .into(),
    )
}

/// A database, and the server or scratch database to stop with it.
#[derive(Debug)]
pub(super) struct Database {
    url: String,
    scratch: Option<ScratchDatabase>,
    embedded: Option<(EmbeddedPostgres, PathBuf)>,
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
            embedded: Some((embedded, data_dir)),
        })
    }

    /// The database of a ledger that is there already: unlike `open`, this creates no private Postgres.
    pub(super) async fn open_existing(
        configured: Option<&SecretString>,
        data_dir: Option<&Path>,
    ) -> Result<Self, CommandError> {
        let data_dir = resolve_data_dir(data_dir);
        if configured.is_none() && !EmbeddedPostgres::is_in(&data_dir) {
            return Err(format!(
                "no ledger found: no DATABASE_URL is set, and {} has no private Postgres; name the service's configuration with --config, or \
                 its folder with --data-dir",
                data_dir.display()
            )
            .into());
        }
        Self::open(configured, Some(&data_dir)).await
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

    pub(super) fn place(&self) -> LedgerPlace<'_> {
        let private = self.embedded.as_ref();
        LedgerPlace {
            url: &self.url,
            data_dir: private.map(|(_, folder)| folder.as_path()),
        }
    }

    /// Does something with the ledger, then closes.
    pub(super) async fn finish<T>(
        self,
        work: impl AsyncFnOnce(&Ledger) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let done = match Ledger::connect(&self.url, 1).await {
            Ok((ledger, _)) => {
                let done = work(&ledger).await;
                ledger.close().await;
                done
            }
            Err(error) => Err(error.into()),
        };
        self.close().await?;
        done
    }

    /// Stops or removes what `open` started or created.
    pub(super) async fn close(self) -> Result<(), CommandError> {
        if let Some(scratch) = self.scratch {
            scratch.remove().await;
        }
        if let Some((embedded, _)) = self.embedded {
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
