//! A service over a ledger full of payments, without a chain.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use x402d::ledger::Ledger;

use super::{Database, Facilitator};

/// The same payments as the benchmark's, but fewer.
const FILL: &str = include_str!("../../../benches/history/fill.sql");
const ALL: &str = "generate_series(1, 100000)";
/// Any key: nothing is signed.
const KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";

/// The fields are dropped in order: the service before its database.
pub(crate) struct FilledLedger {
    pub(crate) facilitator: Facilitator,
    database: Database,
}

impl FilledLedger {
    /// A ledger with this many payments.
    pub(crate) async fn of(payments: u32) -> Self {
        let database = Database::queryable().await;
        let (_, url) = database.variable();
        let (ledger, _) = Ledger::connect(&url, 1).await.unwrap();
        ledger.migrate().await.unwrap();
        ledger.close().await;
        let fill = FILL.replace(ALL, &format!("generate_series(1, {payments})"));
        assert!(fill != FILL, "fill.sql makes {ALL}");
        let mut connection = database.connection().await;
        run(&mut connection, fill).await;
        connection.close().await.unwrap();
        let variables = vec![
            database.variable(),
            ("X402D_NETWORK", "base-sepolia".to_owned()),
            ("X402D_RPC_URL", "http://127.0.0.1:9".to_owned()),
            ("X402D_SIGNER_KEYS", KEY.to_owned()),
        ];
        let mut facilitator = Facilitator::new(variables, "");
        facilitator.spawn(None).await;
        Self {
            facilitator,
            database,
        }
    }

    /// Runs SQL on the ledger.
    pub(crate) async fn run(&self, sql: impl Into<String>) {
        run(&mut self.database.connection().await, sql.into()).await;
    }

    /// Every payment that matches the query, by pages of `limit`.
    pub(crate) async fn walk(&self, query: &str, limit: usize) -> Vec<Value> {
        let (mut rows, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/payments?{query}&limit={limit}{cursor}");
            let answer = self.facilitator.get(&path).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let page = answer.body["payments"].as_array().unwrap();
            assert!(page.len() <= limit, "{path}");
            rows.extend(page.iter().cloned());
            match answer.body["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return rows,
            }
        }
    }
}

async fn run(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .unwrap();
}
