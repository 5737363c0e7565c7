//! The intent log: what was about to be done, durable before it is done.

use rusqlite::{Connection, Row, params};

use super::rows::key;
use super::write::Durability;
use super::{Catalog, CatalogError};
use crate::core::{FileKey, ObjectId};

/// Number of an intent; not reused while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntentId(pub i64);

/// What is being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntentOp {
    /// An object is being written. Undone by deleting the object, unless the record names it.
    Archive,
    /// Marker first, then the data goes. Completed or undone by what the inode says.
    Release,
}

/// An operation that is about to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIntent {
    /// What will be done.
    pub op: IntentOp,
    /// The file.
    pub key: FileKey,
    /// The object that is written or relied on.
    pub object: ObjectId,
    /// When, nanoseconds since the epoch.
    pub started_ns: i64,
    /// A path of the file, for people.
    pub path_hint: Vec<u8>,
}

/// An operation whose outcome is not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Its number, to finish it with.
    pub id: IntentId,
    /// What was begun.
    pub what: NewIntent,
}

impl Catalog {
    /// Writes intents in one transaction and returns once they are on the device.
    /// The ids come in the order of `intents`.
    pub fn begin(&self, intents: &[NewIntent]) -> Result<Vec<IntentId>, CatalogError> {
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = self.writer();
        let first = writer.next_intent;
        writer
            .transaction(Durability::Device, |conn| insert(conn, first, intents))
            .map_err(self.failed("writing intents"))?;
        let next = first + intents.len() as i64;
        writer.next_intent = next;
        Ok((first..next).map(IntentId).collect())
    }

    /// Every operation that has begun and whose outcome is not recorded, oldest first.
    pub fn open_intents(&self) -> Result<Vec<Intent>, CatalogError> {
        const SQL: &str =
            "SELECT id, op, key, object, started_ns, path_hint FROM intents ORDER BY id";
        let reader = self.reader();
        let read = || {
            reader.prepare_cached(SQL)?.query_map([], intent)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("reading intents"))
    }
}

/// One more than any number in use.
pub(super) fn next_id(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT coalesce(max(id), 0) + 1 FROM intents", [], |row| row.get(0))
}

fn insert(conn: &Connection, first: i64, intents: &[NewIntent]) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO intents (id, op, key, object, started_ns, path_hint) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    for (id, intent) in (first..).zip(intents) {
        insert.execute(params![
            id,
            op_number(intent.op),
            intent.key.to_blob(),
            intent.object.0,
            intent.started_ns,
            intent.path_hint,
        ])?;
    }
    Ok(())
}

/// The numbers are stored: never change one.
fn op_number(op: IntentOp) -> i64 {
    match op {
        IntentOp::Archive => 0,
        IntentOp::Release => 1,
    }
}

fn intent(row: &Row<'_>) -> rusqlite::Result<Intent> {
    let op = match row.get(1)? {
        0 => IntentOp::Archive,
        1 => IntentOp::Release,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(1, other)),
    };
    let what = NewIntent {
        op,
        key: key(row, 2)?,
        object: ObjectId(row.get(3)?),
        started_ns: row.get(4)?,
        path_hint: row.get(5)?,
    };
    Ok(Intent { id: IntentId(row.get(0)?), what })
}
