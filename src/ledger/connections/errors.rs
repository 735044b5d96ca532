//! Classification of database errors: their effect on a connection or on all of them, and their text for the operator.

use std::borrow::Cow;
use std::io::{self, ErrorKind};

use sqlx::postgres::PgConnectOptions;
use url::Url;

/// SQLSTATE of a write to a read-only server.
const READ_ONLY: &str = "25006";
/// SQLSTATEs: the server ends this connection, has crashed, or does not accept connections now.
const SERVER_GONE: &[&str] = &["57P01", "57P02", "57P03"];
/// SQLSTATEs: a prepared statement is missing, exists already, or is another one.
const MISSING_STATEMENT: &[&str] = &["26000", "42P05", "08P01"];
/// SQLSTATE: a statement was prepared before the schema changed.
const OUTDATED_PLAN: &str = "0A000";

/// The server that `DATABASE_URL` names takes no writes.
#[derive(Debug, thiserror::Error)]
#[error("it takes no writes: it is a standby, or set to read-only")]
struct ReadOnly;

/// A text with the server's name, as the source of an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("the database at {0}")]
struct Described(String);

/// The SQLSTATE of an error.
pub(in crate::ledger) fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    code(error).is_some_and(|code| codes.contains(&code.as_ref()))
}

/// Parses a `DATABASE_URL`. An error does not repeat it, because it may contain a password.
pub(in crate::ledger) fn options_of(url: &str) -> Result<PgConnectOptions, String> {
    const EXPECTED: &str =
        "DATABASE_URL: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE, got ";
    let parsed = Url::parse(url.trim())
        .map_err(|problem| format!("{EXPECTED}a text that is not a URL ({problem})"))?;
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        let scheme = parsed.scheme();
        return Err(format!(
            "{EXPECTED}one that begins with {scheme}:; the ledger needs Postgres"
        ));
    }
    let options: Result<PgConnectOptions, _> = url.trim().parse();
    let options = options.map_err(|_| format!("{EXPECTED}one with a part that cannot be read"))?;
    // Some poolers refuse to set `extra_float_digits`, and x402d has no floats.
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

/// The database and its server. Without a name in the URL the database has the name of the role.
pub(in crate::ledger) fn database_of(options: &PgConnectOptions) -> String {
    let name = options
        .get_database()
        .unwrap_or_else(|| options.get_username());
    format!("the database {name} at {}", name_of(options))
}

/// A time-out of ours.
pub(super) fn timed_out(what: String) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(ErrorKind::TimedOut, Described(what)))
}

/// The server takes no writes.
pub(super) fn read_only() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(ErrorKind::ReadOnlyFilesystem, ReadOnly))
}

/// The error with a description. Keeps the kind where it matters: read-only or not.
pub(super) fn described(error: &sqlx::Error, what: String) -> sqlx::Error {
    let kind = if is_read_only(error) {
        ErrorKind::ReadOnlyFilesystem
    } else {
        ErrorKind::ConnectionRefused
    };
    sqlx::Error::Io(io::Error::new(kind, Described(what)))
}

/// Whether the error says that the server takes no writes.
pub(in crate::ledger) fn is_read_only(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Io(error) = error {
        return error.kind() == ErrorKind::ReadOnlyFilesystem;
    }
    has_code(error, &[READ_ONLY])
}

/// Whether another attempt to connect may succeed.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
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
    // 53300 is too many connections; a pooler answers with class 08 while it does not reach its server.
    has_code(error, SERVER_GONE)
        || has_code(error, &["53300", READ_ONLY])
        || code(error).is_some_and(|code| code.starts_with("08"))
}

/// Whether the connection must not be used again.
pub(super) fn breaks_connection(error: &sqlx::Error) -> bool {
    let lost = matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)
    );
    lost || affects_all_connections(error)
        || shows_pooler(error)
        || has_code(error, &[OUTDATED_PLAN])
        || code(error).is_some_and(|code| code.starts_with("08"))
}

/// Whether the error affects all connections to the same server.
pub(super) fn affects_all_connections(error: &sqlx::Error) -> bool {
    has_code(error, SERVER_GONE) || is_read_only(error)
}

/// Whether the session is not the one in which the statement was prepared.
pub(super) fn shows_pooler(error: &sqlx::Error) -> bool {
    has_code(error, MISSING_STATEMENT)
}

/// The error's text, without the position in Postgres's source.
pub(super) fn message_of(error: &sqlx::Error) -> String {
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

/// Says for the operator why the database cannot be used, and what to do.
pub(in crate::ledger) fn explain(error: &sqlx::Error, options: &PgConnectOptions) -> String {
    let server = name_of(options);
    let (role, database) = (options.get_username(), options.get_database());
    let database = database.unwrap_or(role);
    if let sqlx::Error::Io(inner) = error
        && names_server(inner)
    {
        // The text names the server already.
        return format!("cannot use {inner}; check DATABASE_URL");
    }
    let message = message_of(error);
    let advice = match code(error).as_deref() {
        Some("28P01" | "28000") => "check user and password".to_owned(),
        Some("3D000") => format!("create it: createdb {database}"),
        Some("42501") => {
            format!("let the role own the database: alter database {database} owner to {role}")
        }
        None if matches!(error, sqlx::Error::Tls(_)) => "see sslmode in DATABASE_URL".to_owned(),
        None if message.contains("lookup") => "is the name of the host right?".to_owned(),
        Some(_) | None => String::new(),
    };
    let advice = if advice.is_empty() {
        advice
    } else {
        format!("; {advice}")
    };
    format!("cannot use the database at {server}, which DATABASE_URL names: {message}{advice}")
}

fn names_server(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Described>())
        .is_some()
}
