//! Detects a pooler in transaction mode in front of the server.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};
use tokio::time::timeout;

/// A session that is not shared answers at once.
const LIMIT: Duration = Duration::from_secs(2);
/// Other users of a busy pooler may take the server process that would have shown it, so it is tried several times.
const TRIES: u32 = 3;

/// Whether two sessions share server processes. A second session begins a transaction while the first is idle. Behind a pooler in
/// transaction mode it gets the process that served the first one, or the first one gets another process afterwards, or waits for one.
/// Without a pooler each session keeps its own process. If the second one has to wait, nothing is known; the first lost prepared statement
/// shows it then.
pub(super) async fn shares_sessions(first: &mut PgConnection, second: &mut PgConnection) -> bool {
    for _ in 0..TRIES {
        match timeout(LIMIT, begin_beside(first, second)).await {
            Ok(Ok((before, beside))) if before == beside => return true,
            Ok(Ok((before, _))) => match timeout(LIMIT, backend(first)).await {
                Ok(Ok(after)) if before == after => {}
                Ok(Ok(_)) | Err(_) => return true,
                Ok(Err(_)) => return false,
            },
            Ok(Err(_)) | Err(_) => return false,
        }
        if sqlx::raw_sql("rollback")
            .execute(&mut *second)
            .await
            .is_err()
        {
            return false;
        }
    }
    false
}

/// The process of the first session, and the one in which the second session has begun a transaction.
async fn begin_beside(
    first: &mut PgConnection,
    second: &mut PgConnection,
) -> Result<(i32, i32), sqlx::Error> {
    let before = backend(first).await?;
    sqlx::raw_sql("begin").execute(&mut *second).await?;
    Ok((before, backend(second).await?))
}

async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("select pg_backend_pid()")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}
