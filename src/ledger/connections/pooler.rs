//! Whether a pooler in transaction mode is between us and the server.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection as _, PgConnection, Row as _};
use tokio::time::timeout;

/// A pooler with a single server connection lets the second session wait; then it is none that shares sessions.
const LIMIT: Duration = Duration::from_secs(2);
/// Other users of a busy pooler may take the connection that would have told.
const TRIES: u32 = 3;

/// Lets a second session begin a transaction while the first is idle. Behind a pooler in transaction mode that gets the process which
/// served the first one, or the first one gets another process afterwards. Each session of its own has its own process.
pub(super) async fn shares_sessions(
    mut first: PgConnection,
    options: &PgConnectOptions,
) -> Result<bool, sqlx::Error> {
    let look = async {
        let mut second = options.connect().await?;
        for _ in 0..TRIES {
            let before = backend(&mut first).await?;
            sqlx::raw_sql("begin").execute(&mut second).await?;
            let beside = backend(&mut second).await?;
            let after = backend(&mut first).await?;
            sqlx::raw_sql("rollback").execute(&mut second).await?;
            if before == beside || before != after {
                return Ok(true);
            }
        }
        second.close().await?;
        Ok(false)
    };
    match timeout(LIMIT, look).await {
        Ok(looked) => {
            drop(timeout(LIMIT, first.close()).await);
            looked
        }
        Err(_) => Ok(false),
    }
}

async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("select pg_backend_pid()")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}
