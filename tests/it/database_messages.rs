//! Messages for the operator when the database cannot be used, and the requirements of `x402d migrate`.

use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Cluster, eventually, run};

/// The message names the server, the cause and the remedy once each, and never the password.
#[tokio::test(flavor = "multi_thread")]
async fn unusable_database_is_named_with_its_cause() {
    let server = Cluster::start().await;
    let port = server.port;
    server.run_sql("create role poor login").await;
    server.run_sql("create database owned").await;
    let address = format!("127.0.0.1:{port}");
    let cases = [
        (
            "foo".to_owned(),
            vec!["DATABASE_URL", "expected postgres://"],
        ),
        (
            "mysql://root:hunter2@127.0.0.1/x".to_owned(),
            vec!["DATABASE_URL", "mysql"],
        ),
        (
            "postgres://x:hunter2@127.0.0.1:1/x".to_owned(),
            vec!["127.0.0.1:1", "connection refused"],
        ),
        (
            "postgres://x:hunter2@no-such-host.invalid:5432/x".to_owned(),
            vec!["no-such-host.invalid:5432", "lookup"],
        ),
        (
            format!("postgres://postgres:hunter2@{address}/nodb"),
            vec![&address, "\"nodb\" does not exist", "createdb nodb"],
        ),
        (
            format!("postgres://nobody:hunter2@{address}/owned"),
            vec![&address, "\"nobody\" does not exist"],
        ),
        (
            format!("postgres://poor:hunter2@{address}/owned"),
            vec![
                &address,
                "permission denied for schema public",
                "alter database owned owner to poor",
            ],
        ),
    ];
    for (url, words) in cases {
        let ended = run(&["migrate"], &[("DATABASE_URL", &url)], "");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success(), "{url}: {said}");
        let last: Vec<&str> = said
            .lines()
            .skip_while(|line| !line.starts_with("x402d: "))
            .collect();
        assert_eq!(last.len(), 1, "{url} is named once: {said}");
        for word in words {
            assert_eq!(last[0].matches(word).count(), 1, "{url}: {word}: {said}");
        }
        assert!(
            !said.contains("hunter2") && !said.contains("at line"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privilege_and_newer_schema_are_named() {
    let server = Cluster::start().await;
    server.run_sql("create role poor login").await;
    server.run_sql("create database owned").await;
    let url = format!("postgres://poor@127.0.0.1:{}/owned", server.port);
    let ended = run(
        &["dev", "--chain-port", "0", "--listen", "127.0.0.1:0"],
        &[("DATABASE_URL", &url)],
        "",
    );
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        said.contains("CREATEDB") && !said.contains("private Postgres refused"),
        "{said}"
    );

    let ours = server.url("owned");
    let ended = run(&["migrate"], &[("DATABASE_URL", &ours)], "");
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let expected = format!(
        "the database owned at 127.0.0.1:{} is up to date\n",
        server.port
    );
    assert_eq!(said, expected);
    let mut connection = PgConnection::connect(&ours).await.unwrap();
    let newer = "insert into _sqlx_migrations values (9999, 'newer', now(), true, 'x', 0)";
    sqlx::raw_sql(newer).execute(&mut connection).await.unwrap();
    let ended = run(&["migrate"], &[("DATABASE_URL", &ours)], "");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("made by a newer x402d"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migration_waits_for_lock_and_names_its_holder() {
    let server = Cluster::start().await;
    server.run_sql("create database ledger").await;
    let url = server.url("ledger");
    let mut holder = PgConnection::connect(&url).await.unwrap();
    let lock =
        "set application_name = 'nightly report'; begin; select pg_advisory_xact_lock(402402402)";
    sqlx::raw_sql(AssertSqlSafe(lock.to_owned()))
        .execute(&mut holder)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut migrating = Command::new(env!("CARGO_BIN_EXE_x402d"))
        .arg("migrate")
        .env_clear()
        .env("DATABASE_URL", &url)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    eventually(
        "the holder to be named",
        Duration::from_secs(20),
        async || {
            let said = std::fs::read_to_string(&log).unwrap();
            said.contains("nightly report").then_some(())
        },
    )
    .await;
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    let status = eventually("the end", Duration::from_mins(1), async || {
        migrating.try_wait().unwrap()
    })
    .await;
    assert!(
        status.success(),
        "{}",
        std::fs::read_to_string(&log).unwrap()
    );
}
