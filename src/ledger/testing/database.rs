//! Databases for tests.
//!
//! `#[sqlx::test]` is not used: it applies every migration for every test, and its pool is not the one of [`Ledger`], whose connections
//! would still be open when it drops the database. Here the schema is made once, each database is a copy of it, and the next test gets
//! the database of an ended one with empty tables.

use std::sync::Mutex;
use std::{env, thread};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::{Duration, OffsetDateTime};
use tokio::runtime;
use tokio::sync::OnceCell;
use url::Url;
use uuid::Uuid;

use crate::ledger::Ledger;

/// The databases of tests. The rest of a name is a UUID v7, which tells its age.
const PREFIX: &str = "x402d_ledger_";
/// No test process runs for as long: an older database is one of an ended process.
const AGE_MAX: Duration = Duration::hours(1);
/// The databases of ended tests.
static FREE: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Empties a database. What the migrations have inserted stays.
const EMPTY: &str = "
    select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid();
    do $$
    declare
        name text;
    begin
        perform set_config('session_replication_role', 'replica', true);
        for name in
            select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
                and relname not in ('payment_transitions', '_sqlx_migrations')
        loop
            execute format('delete from %I', name);
        end loop;
    end
    $$";

fn server() -> Url {
    let url = env::var("DATABASE_URL").expect(
        "DATABASE_URL: the tests of the ledger need a Postgres server on which they may create databases, \
         for instance postgres://postgres@127.0.0.1/postgres",
    );
    url.parse().expect("DATABASE_URL is not a URL")
}

pub(super) fn url_of(database: &str) -> String {
    let mut url = server();
    url.set_path(database);
    url.into()
}

async fn administrate(statement: String) {
    let mut server = PgConnection::connect(server().as_str()).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut server);
    done.await.unwrap();
    server.close().await.unwrap();
}

/// Drops a database with its connections. A thread of its own, because `drop` cannot wait for a future.
pub(super) fn remove(name: String) {
    let dropping = thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let statement = format!("drop database if exists \"{name}\" with (force)");
        runtime.unwrap().block_on(administrate(statement));
    });
    // The next run drops what could not be dropped.
    dropping.join().ok();
}

/// The migrated database that all others are copies of; made once per run.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let made = TEMPLATE.get_or_init(|| async {
        drop_abandoned().await;
        let name = format!("{PREFIX}{}", Uuid::now_v7().simple());
        administrate(format!("create database \"{name}\"")).await;
        let (ledger, _task) = Ledger::connect(&url_of(&name), 5).await.unwrap();
        ledger.migrate().await.unwrap();
        // A database with a connection cannot be copied.
        ledger.close().await;
        let alone = "select pg_terminate_backend(pid) from pg_stat_activity where datname =";
        administrate(format!("{alone} '{name}'")).await;
        name
    });
    made.await
}

/// Drops the databases of ended test processes.
async fn drop_abandoned() {
    let mut server = PgConnection::connect(server().as_str()).await.unwrap();
    let names: Vec<String> =
        sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1)")
            .bind(PREFIX)
            .fetch_all(&mut server)
            .await
            .unwrap();
    let now: OffsetDateTime = sqlx::query_scalar("select now()")
        .fetch_one(&mut server)
        .await
        .unwrap();
    for name in names {
        let id = name
            .strip_prefix(PREFIX)
            .and_then(|id| id.parse::<Uuid>().ok());
        let made_at = id
            .and_then(|id| id.get_timestamp())
            .map(|at| at.to_unix().0);
        let too_old = (now - AGE_MAX).unix_timestamp().unsigned_abs();
        if made_at.is_some_and(|made_at| made_at < too_old) {
            let statement = format!("drop database if exists \"{name}\" with (force)");
            let dropped = sqlx::raw_sql(AssertSqlSafe(statement));
            // Another run may be dropping it too.
            dropped.execute(&mut server).await.ok();
        }
    }
}

/// The name of a migrated database with empty tables that no other test uses.
pub(super) async fn empty() -> String {
    let template = template().await;
    let free = FREE.lock().unwrap().pop();
    if let Some(database) = free {
        let mut connection = PgConnection::connect(&url_of(&database)).await.unwrap();
        let emptied = sqlx::raw_sql(EMPTY).execute(&mut connection).await;
        emptied.unwrap();
        connection.close().await.unwrap();
        return database;
    }
    let database = format!("{PREFIX}{}", Uuid::now_v7().simple());
    let create = format!("create database \"{database}\" template \"{template}\"");
    administrate(create).await;
    database
}

/// Leaves the database of an ended test to the next one.
pub(super) fn release(database: String) {
    FREE.lock().unwrap().push(database);
}
