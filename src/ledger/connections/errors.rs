//! What a database error means: for its connection, for all connections to the server, and in words for the operator.

use std::borrow::Cow;
use std::io::{self, ErrorKind};

use sqlx::postgres::PgConnectOptions;
use url::Url;

/// What a read-only server answers to a write.
const READ_ONLY: &str = "25006";
/// The server ends this connection, crashed, or does not accept connections now.
const SERVER_GONE: &[&str] = &["57P01", "57P02", "57P03"];
/// A named statement is not there, or one of its name is there already, or is another one.
const FOREIGN_SESSION: &[&str] = &["26000", "42P05", "08P01"];
/// A kept statement was prepared before the schema changed.
const OUTDATED_PLAN: &str = "0A000";

/// The server, or what a `DATABASE_URL` leads to, takes no writes.
#[derive(Debug, thiserror::Error)]
#[error("it takes no writes: it is a standby, or set to read-only")]
struct ReadOnly;

/// An error of the same kind, told with the server's name.
#[derive(Debug, thiserror::Error)]
#[error("the database at {0}")]
struct Retold(String);

/// The SQLSTATE of an error.
pub(in crate::ledger) fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    code(error).is_some_and(|code| codes.contains(&code.as_ref()))
}

/// Reads a `DATABASE_URL`. What is wrong with it is said without repeating it: there may be a password in it.
pub(in crate::ledger) fn options_of(url: &str) -> Result<PgConnectOptions, String> {
    const EXPECTED: &str =
        "DATABASE_URL: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE, got ";
    let parsed = Url::parse(url.trim())
        .map_err(|problem| format!("{EXPECTED}a text that is no URL ({problem})"))?;
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        let scheme = parsed.scheme();
        return Err(format!(
            "{EXPECTED}one that begins with {scheme}:; the ledger needs Postgres"
        ));
    }
    let options: Result<PgConnectOptions, _> = url.trim().parse();
    let options = options.map_err(|_| format!("{EXPECTED}one with a part that cannot be read"))?;
    // Some poolers refuse to set it, and there are no floats here.
    Ok(options.application_name("x402d").extra_float_digits(None))
}

/// Host and port, or the path of the socket.
pub(super) fn name_of(options: &PgConnectOptions) -> String {
    let port = options.get_port();
    options.get_socket().map_or_else(
        || format!("{}:{port}", options.get_host()),
        |folder| format!("{}/.s.PGSQL.{port}", folder.display()),
    )
}

/// The database and where it is; without a name in the URL it is the one that is called like the role.
pub(in crate::ledger) fn database_of(options: &PgConnectOptions) -> String {
    let name = options
        .get_database()
        .unwrap_or_else(|| options.get_username());
    format!("the database {name} at {}", name_of(options))
}

/// Something took too long.
pub(super) fn late(what: String) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(ErrorKind::TimedOut, Retold(what)))
}

/// The server takes no writes.
pub(super) fn read_only() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(ErrorKind::ReadOnlyFilesystem, ReadOnly))
}

/// The error, told with what was tried. Its kind remains where anybody looks at it.
pub(super) fn retold(error: &sqlx::Error, what: String) -> sqlx::Error {
    let kind = if takes_no_writes(error) {
        ErrorKind::ReadOnlyFilesystem
    } else {
        ErrorKind::ConnectionRefused
    };
    sqlx::Error::Io(io::Error::new(kind, Retold(what)))
}

/// Whether the server said that it takes no writes.
pub(in crate::ledger) fn takes_no_writes(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Io(error) = error {
        return error.kind() == ErrorKind::ReadOnlyFilesystem;
    }
    has_code(error, &[READ_ONLY])
}

/// Whether connecting again may succeed by itself.
pub(super) fn passes(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Io(error) = error {
        return matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::NotFound
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::UnexpectedEof
        );
    }
    // Too many connections; and what a pooler says while it does not reach its server.
    has_code(error, SERVER_GONE)
        || has_code(error, &["53300", READ_ONLY])
        || code(error).is_some_and(|code| code.starts_with("08"))
}

/// Whether the connection must not be used again.
pub(super) fn breaks(error: &sqlx::Error) -> bool {
    let lost = matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)
    );
    lost || is_about_the_server(error)
        || tells_of_a_pooler(error)
        || has_code(error, &[OUTDATED_PLAN])
        || code(error).is_some_and(|code| code.starts_with("08"))
}

/// Whether other connections to the same server are of no use either.
pub(super) fn is_about_the_server(error: &sqlx::Error) -> bool {
    has_code(error, SERVER_GONE) || takes_no_writes(error)
}

/// Whether a session is not the one that the statement was prepared in.
pub(super) fn tells_of_a_pooler(error: &sqlx::Error) -> bool {
    has_code(error, FOREIGN_SESSION)
}

/// The error itself, without the line of Postgres's source that it comes from.
pub(super) fn words(error: &sqlx::Error) -> String {
    if let sqlx::Error::Database(error) = error {
        return error.message().to_owned();
    }
    if let sqlx::Error::Io(error) = error {
        return if error.kind() == ErrorKind::ConnectionRefused {
            "connection refused".to_owned()
        } else {
            error.to_string()
        };
    }
    error.to_string()
}

/// Why the database cannot be used, and what to do about it.
pub(in crate::ledger) fn advice(error: &sqlx::Error, options: &PgConnectOptions) -> String {
    let server = name_of(options);
    let (role, database) = (options.get_username(), options.get_database());
    let database = database.unwrap_or(role);
    if let sqlx::Error::Io(inner) = error
        && is_retold(inner)
    {
        // It names the server already.
        return format!("cannot use {inner}; DATABASE_URL names it");
    }
    let said = words(error);
    let advice = match code(error).as_deref() {
        Some("28P01" | "28000") => "check user and password".to_owned(),
        Some("3D000") => format!("create it: createdb {database}"),
        Some("42501") => {
            format!("let the role own the database: alter database {database} owner to {role}")
        }
        None if matches!(error, sqlx::Error::Tls(_)) => "see sslmode in DATABASE_URL".to_owned(),
        None if said.contains("lookup") => "is the name of the host right?".to_owned(),
        Some(_) | None => String::new(),
    };
    let advice = if advice.is_empty() {
        advice
    } else {
        format!("; {advice}")
    };
    format!("cannot use the database at {server}, which DATABASE_URL names: {said}{advice}")
}

fn is_retold(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Retold>())
        .is_some()
}
