//! `x402d backup`, `restore` and `psql`, on a database server and on a private Postgres.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use alloy::primitives::Address;

use crate::support::{Database, Purchase, Setup, run};

const PAYEE: Address = Address::repeat_byte(0xba);

fn told(output: &Output) -> String {
    let told = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(told).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_ledger_knows_the_payments_of_its_backup() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.backup");
    let file_name = file.to_str().unwrap();
    let said = world.command(&["backup", file_name]);
    assert!(said.contains("is backed up to"), "{said}");
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);

    let (name, place) = world.database.variable();
    let again = run(&["backup", file_name], &[(name, &place)], "");
    assert!(!again.status.success() && told(&again).contains("name another file"));
    let onto = run(&["restore", file_name], &[(name, &place)], "");
    assert!(!onto.status.success() && told(&onto).contains("has a ledger already"));

    let other = Database::queryable().await;
    let (name, place) = other.variable();
    let run_there = |arguments: &[&str]| run(arguments, &[(name, &place)], "");
    let restored = run_there(&["restore", file_name]);
    assert!(restored.status.success(), "{}", told(&restored));
    let listed = told(&run_there(&["payments", "list", "--json"]));
    assert!(listed.contains(&settled.transaction()), "{listed}");

    let counted = run_there(&["psql", "--", "-tAc", "select count(*) from payments"]);
    assert_eq!(told(&counted).trim(), "1");
    let delete = ["--", "-c", "delete from refusals"];
    let refused = run_there(&[&["psql"], &delete[..]].concat());
    assert!(!refused.status.success());
    assert!(told(&refused).contains("read-only"), "{}", told(&refused));
    // Options in the URL take the place of those of the environment.
    let with_options = format!("{place}?options=-c%20search_path%3Dpublic");
    let refused = run(
        &[&["psql"], &delete[..]].concat(),
        &[(name, &with_options)],
        "",
    );
    assert!(told(&refused).contains("read-only"), "{}", told(&refused));
    let deleted = run_there(&[&["psql", "--write"], &delete[..]].concat());
    assert!(deleted.status.success(), "{}", told(&deleted));
}

#[tokio::test(flavor = "multi_thread")]
async fn private_ledger_is_backed_up_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let [first, second, file] = ["first", "second", "file"]
        .map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let on = |data_dir: &str, arguments: &[&str]| {
        let output = run(arguments, &[("X402D_DATA_DIR", data_dir)], "");
        assert!(output.status.success(), "{}", told(&output));
        told(&output)
    };
    on(&first, &["keys", "create", "ops", "--scope", "admin"]);
    on(&first, &["backup", &file]);
    on(&second, &["restore", &file]);
    assert!(on(&second, &["keys", "list"]).contains("ops"));
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "no backup").unwrap();
    let third = folder.path().join("third");
    let refused = run(
        &["restore", broken.to_str().unwrap()],
        &[("X402D_DATA_DIR", third.to_str().unwrap())],
        "",
    );
    assert!(!refused.status.success());
    assert!(
        told(&refused).contains("pg_restore failed"),
        "{}",
        told(&refused)
    );
}
