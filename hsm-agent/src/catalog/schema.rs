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

/// KiB of cache of the writer: holds all pages that a release batch of 1024 files dirties.
const WRITER_CACHE_KIB: i64 = 8 << 10;

/// Pages of 4 KiB in the log before it is folded into the database. Keys come in no order, so a
/// page is dirtied by many batches: folding rarely writes it once (1000, SQLite's default, halved
/// the rate of a rebuild).
const CHECKPOINT_PAGES: i64 = 8 << 10;

/// Step `n` upgrades a database of version `n` to `n + 1`; 0 is the empty database.
const MIGRATIONS: [&str; 1] = [include_str!("schema_1.sql")];

/// The connection that creates, upgrades and writes.
pub(super) fn open_writer(path: &Path) -> Result<Connection, CatalogError> {
    create_private(path)?;
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let failed = CatalogError::at(path, "opening");
    conn.pragma_update(None, "journal_mode", "wal").map_err(&failed)?;
    conn.pragma_update(None, "synchronous", "full").map_err(&failed)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(&failed)?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB).map_err(&failed)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    upgrade(&tx, path, &MIGRATIONS)?;
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

/// Runs the steps that the database has not seen, or says why this build must not touch it.
fn upgrade(tx: &Transaction<'_>, path: &Path, migrations: &[&str]) -> Result<(), CatalogError> {
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
    let known = migrations.len() as i64;
    let steps = usize::try_from(found).ok().and_then(|n| migrations.get(n..));
    let Some(steps) = steps else {
        return Err(CatalogError::Newer { path: path.to_owned(), found, known });
    };
    if steps.is_empty() {
        return Ok(());
    }
    let failed = CatalogError::at(path, "upgrading the schema");
    steps.iter().try_for_each(|step| tx.execute_batch(step)).map_err(&failed)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(&failed)?;
    tx.pragma_update(None, "user_version", known).map_err(&failed)
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

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE a (x); INSERT INTO a VALUES (1);";
    const SECOND: &str = "ALTER TABLE a ADD COLUMN y; UPDATE a SET x = x + 1;";

    fn upgraded(conn: &mut Connection, steps: &[&str]) -> Result<(), CatalogError> {
        let tx = conn.transaction().expect("begin");
        upgrade(&tx, Path::new("test.db"), steps)?;
        tx.commit().map_err(CatalogError::at(Path::new("test.db"), "committing"))
    }

    fn state(conn: &Connection) -> (i64, i64) {
        let version = conn.pragma_query_value(None, "user_version", |row| row.get(0));
        let x = conn.query_row("SELECT x FROM a", [], |row| row.get(0));
        (version.expect("version"), x.expect("row"))
    }

    #[test]
    fn each_step_runs_once() {
        let mut conn = Connection::open_in_memory().expect("open");
        upgraded(&mut conn, &[FIRST]).expect("create");
        assert_eq!(state(&conn), (1, 1));
        upgraded(&mut conn, &[FIRST, SECOND]).expect("upgrade");
        assert_eq!(state(&conn), (2, 2));
        upgraded(&mut conn, &[FIRST, SECOND]).expect("nothing to do");
        assert_eq!(state(&conn), (2, 2));
        let older = upgraded(&mut conn, &[FIRST]);
        assert!(matches!(older, Err(CatalogError::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_step_that_fails_leaves_the_old_version() {
        let mut conn = Connection::open_in_memory().expect("open");
        upgraded(&mut conn, &[FIRST]).expect("create");
        let broken = format!("{SECOND} INSERT INTO nowhere VALUES (1);");
        upgraded(&mut conn, &[FIRST, &broken]).expect_err("no such table");
        assert_eq!(state(&conn), (1, 1));
    }
}
