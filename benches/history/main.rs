//! Benchmark of the history over 100,000 payments: time of each kind of page, and memory used by the CSV of all payments.
//!
//!     DATABASE_URL=postgres://…/postgres cargo bench --bench history
//!
//! Creates a database on that server and drops it afterwards. Fails when the median of any page reaches 20 ms.
#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

mod pages;
mod table;

use std::error::Error;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use x402d::ledger::{Grouping, HistoryFilter, Ledger};

/// Upper bound for the median of a page, in microseconds.
const PAGE_LIMIT_MICROS: u128 = 20_000;
const FILL: &str = include_str!("fill.sql");

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let server = std::env::var("DATABASE_URL")
        .map_err(|_| "DATABASE_URL must name a Postgres server where a database may be made")?;
    let name = format!("x402d_bench_{}", std::process::id());
    let mut connection = PgConnection::connect(&server).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
        .execute(&mut connection)
        .await?;
    let mut url: url::Url = server.parse()?;
    url.set_path(&name);
    let measured = measure(url.as_str()).await;
    sqlx::raw_sql(AssertSqlSafe(format!("drop database {name} with (force)")))
        .execute(&mut connection)
        .await?;
    measured
}

async fn measure(url: &str) -> Outcome {
    let (ledger, _) = Ledger::connect(url, 4).await?;
    ledger.migrate().await?;
    let began = Instant::now();
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(FILL).execute(&mut connection).await?;
    sqlx::raw_sql("vacuum analyze")
        .execute(&mut connection)
        .await?;
    let row: (i64,) = sqlx::query_as("select count(*) from payments")
        .fetch_one(&mut connection)
        .await?;
    println!(
        "{} payments, filled in {} s\n",
        row.0,
        began.elapsed().as_secs()
    );
    let slowest = pages::measure(&ledger).await?;
    stats(&ledger).await?;
    ledger.close().await;
    table::measure(url).await?;
    if slowest.as_micros() >= PAGE_LIMIT_MICROS {
        return Err(format!("a page took {} ms", milliseconds(slowest)).into());
    }
    Ok(())
}

async fn stats(ledger: &Ledger) -> Outcome {
    let all = Grouping {
        day: true,
        payee: true,
        state: true,
    };
    for (name, grouping) in [
        ("by network and token", Grouping::default()),
        ("by day, payee and state too", all),
    ] {
        let began = Instant::now();
        let groups = ledger
            .stats(&HistoryFilter::default(), grouping, 1001)
            .await?;
        println!(
            "sums over all {name}: {} groups in {} ms",
            groups.len(),
            milliseconds(began.elapsed())
        );
    }
    println!();
    Ok(())
}

/// Milliseconds with two decimals.
fn milliseconds(duration: Duration) -> String {
    let micros = duration.as_micros();
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}
