//! Opening, creating and upgrading the database.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::CatalogError;

/// Marks the file as ours ("HSMC"), so that another program's database is never taken for one.
const APPLICATION_ID: i64 = 0x4853_4d43;

/// Longer than any batch takes; only a backup tool or a second process ever holds the lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Step `n` upgrades a database of version `n` to `n + 1`; 0 is the empty database.
const MIGRATIONS: [&str; 1] = [include_str!("schema_1.sql")];

/// Schema version of this build.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// The connection that creates, upgrades and writes.
pub(super) fn open_writer(path: &Path) -> Result<Connection, CatalogError> {
    create_private(path)?;
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let failed = CatalogError::at(path, "opening");
    conn.pragma_update(None, "journal_mode", "wal").map_err(&failed)?;
    conn.pragma_update(None, "synchronous", "full").map_err(&failed)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    upgrade(&tx, path)?;
    tx.commit().map_err(&failed)?;
    Ok(conn)
}

/// The connection for queries; it sees the last commit.
pub(super) fn open_reader(path: &Path) -> Result<Connection, CatalogError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Path hints tell file names: nobody but the agent's user may read them. SQLite gives its
/// side files the mode of the database.
fn create_private(path: &Path) -> Result<(), CatalogError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| CatalogError::Open { path: path.to_owned(), source })
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, CatalogError> {
    let failed = CatalogError::at(path, "opening");
    let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(&failed)?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
    conn.pragma_update(None, "temp_store", "memory").map_err(&failed)?;
    conn.pragma_update(None, "trusted_schema", false).map_err(&failed)?;
    conn.set_prepared_statement_cache_capacity(32);
    Ok(conn)
}

/// Brings the schema to [`VERSION`], or says why this build must not touch it.
fn upgrade(tx: &Transaction<'_>, path: &Path) -> Result<(), CatalogError> {
    let failed = CatalogError::at(path, "reading the schema");
    let number = |pragma: &str| tx.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let found = number("user_version").map_err(&failed)?;
    let owner = number("application_id").map_err(&failed)?;
    let tables: i64 = tx
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(&failed)?;
    if owner != APPLICATION_ID && (owner, found, tables) != (0, 0, 0) {
        return Err(CatalogError::Foreign { path: path.to_owned() });
    }
    let steps = usize::try_from(found).ok().and_then(|n| MIGRATIONS.get(n..));
    let Some(steps) = steps else {
        return Err(CatalogError::Newer { path: path.to_owned(), found, known: VERSION });
    };
    if steps.is_empty() {
        return Ok(());
    }
    let failed = CatalogError::at(path, "upgrading the schema");
    steps.iter().try_for_each(|step| tx.execute_batch(step)).map_err(&failed)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(&failed)?;
    tx.pragma_update(None, "user_version", VERSION).map_err(&failed)
}

/// What [`integrity_check`] can find.
pub(super) enum CheckError {
    Sqlite(rusqlite::Error),
    Damage(String),
}

impl CheckError {
    pub(super) fn into_error(self, path: &Path) -> CatalogError {
        match self {
            Self::Sqlite(source) => CatalogError::at(path, "checking")(source),
            Self::Damage(detail) => CatalogError::Corrupt { path: path.to_owned(), detail },
        }
    }
}

/// SQLite's own check of every page and index.
pub(super) fn integrity_check(conn: &Connection) -> Result<(), CheckError> {
    let verdict: String = conn
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(CheckError::Sqlite)?;
    if verdict == "ok" { Ok(()) } else { Err(CheckError::Damage(verdict)) }
}
