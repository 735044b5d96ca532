//! Who is let in by the private Postgres. The same with and without `DATABASE_URL`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::geteuid;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use x402d::embedded::EmbeddedPostgres;

use crate::support::eventually;

const REFUSED: &str = "Peer authentication failed";

/// `psql` of the search path or of Debian's folder.
fn psql() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let versions = versions.map(|version| version.unwrap().path().join("bin"));
    let mut folders = std::env::split_paths(&path).chain(versions);
    folders
        .find_map(|folder| Some(folder.join("psql")).filter(|psql| psql.is_file()))
        .expect("psql")
}

/// What a connection by another user prints, with a zero if it was let in.
fn printed_by(user: &str, url: &str) -> String {
    let output = Command::new("setpriv")
        .args([&format!("--reuid={user}"), "--regid=65534"])
        .arg("--clear-groups")
        .arg(psql())
        .args(["--no-password", "--tuples-only", "--command=select 0", url])
        .env_clear()
        .current_dir("/")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap()
}

/// Takes away what keeps other users from the socket: what is tested is that the server refuses them.
fn open_doors(socket_folder: &Path) {
    let doors = [
        (socket_folder.to_owned(), 0o755),
        (socket_folder.join(".s.PGSQL.5432"), 0o777),
    ];
    for (door, mode) in doors {
        fs::set_permissions(door, Permissions::from_mode(mode)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_user_of_x402d_and_root_are_let_in() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o711)).unwrap();
    let postgres = EmbeddedPostgres::start(place.path()).await.unwrap();
    let url = postgres.url();
    let mut connection = PgConnection::connect(url).await.unwrap();
    let options: PgConnectOptions = url.parse().unwrap();
    let socket_folder = options.get_socket().unwrap();
    let found = fs::metadata(socket_folder).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o700);
    open_doors(socket_folder);

    // Root can become other users.
    if geteuid().is_root() {
        assert_eq!(printed_by("root", url).trim(), "0");
        for user in ["nobody", "daemon"] {
            let printed = printed_by(user, url);
            assert!(printed.contains(REFUSED), "{user}: {printed}");
        }
    }

    // With another name in the list, this process is the other user.
    let names = place.path().join("postgres.ident");
    fs::write(names, "x402d somebody-else x402d\n").unwrap();
    sqlx::query("select pg_reload_conf()")
        .execute(&mut connection)
        .await
        .unwrap();
    let refused = eventually("to be refused", Duration::from_secs(20), async || {
        PgConnection::connect(url).await.err()
    });
    let refused = refused.await.to_string();
    assert!(refused.contains(REFUSED), "{refused}");
    drop(connection);
    postgres.stop().await.unwrap();
}
