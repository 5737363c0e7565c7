//! Changes to the index: one batch, one transaction.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::rows::state_number;
use super::{Catalog, CatalogError, FileRow, IntentId, Writer};
use crate::core::{FileKey, ObjectId};
use crate::failpoint::{Point, reach};

/// Changes that become visible together or not at all, applied in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Objects that no inode refers to any more, each with the time since when (nanoseconds since
    /// the epoch). Retiring an object again restarts its retention time.
    pub retired: Vec<(ObjectId, i64)>,
    /// Rows of files that are gone or have nothing to be said about, each with the object that it named. One that
    /// names another by now stays: whoever put that there came later.
    pub gone: Vec<(FileKey, Option<ObjectId>)>,
    /// New or changed files, from who holds the claim on them. The object of such a row is taken off the
    /// garbage list; the one that the file had before, if it is another, is put on it.
    pub upserts: Vec<FileRow>,
    /// The same, from who has only looked: by now somebody may have archived the file again.
    pub notes: Vec<Note>,
    /// Objects that turned out to be in use.
    pub unretired: Vec<ObjectId>,
    /// Intents whose outcome this batch records.
    pub finished: Vec<IntentId>,
}

/// What somebody saw of a file without a claim on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What he saw.
    pub row: FileRow,
    /// The object that the index named before he looked. If it names another one now, that is news, and the
    /// note counts for nothing.
    pub known: Option<ObjectId>,
}

/// What a transaction waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The device has it. A power cut cannot undo it, nor anything before it.
    Device,
    /// The kernel has it: survives a killed process, and a power cut may undo it.
    Kernel,
}

impl Writer {
    /// Runs `work` in one transaction; an error undoes all of it.
    pub(super) fn transaction<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let level = if durability == Durability::Device { "full" } else { "normal" };
        self.conn.pragma_update(None, "synchronous", level)?;
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&tx)?;
        reach(Point::CatalogApplied);
        tx.commit()?;
        reach(Point::CatalogCommitted);
        Ok(result)
    }
}

impl Catalog {
    /// Applies a batch atomically.
    pub fn commit(&self, batch: &Batch) -> Result<(), CatalogError> {
        if *batch == Batch::default() {
            return Ok(());
        }
        let mut writer = self.writer();
        let write = |writer: &mut Writer| {
            let revives = !batch.unretired.is_empty() || revives(&writer.conn, batch)?;
            let durability = if revives { Durability::Device } else { Durability::Kernel };
            writer.transaction(durability, |tx| apply(tx, batch, self.instance))
        };
        write(&mut writer).map_err(self.failed("writing"))
    }

    /// Empties the index for a rebuild. Intents and retired objects stay: no inode could tell them.
    pub fn clear_files(&self) -> Result<(), CatalogError> {
        self.writer()
            .transaction(Durability::Device, |tx| {
                tx.execute_batch("DELETE FROM files; UPDATE meta SET complete = 0;")
            })
            .map_err(self.failed("clearing the index"))
    }
}

/// Whether the batch brings an object back that is on the garbage list.
fn revives(conn: &Connection, batch: &Batch) -> rusqlite::Result<bool> {
    let mut any = conn.prepare_cached("SELECT 1 FROM retired LIMIT 1")?;
    let rows = || batch.upserts.iter().chain(batch.notes.iter().map(|note| &note.row));
    if rows().next().is_none() || !any.exists([])? {
        return Ok(false);
    }
    let mut find = conn.prepare_cached("SELECT 1 FROM retired WHERE object = ?")?;
    for object in rows().filter_map(|row| row.object) {
        if find.query_row([object.0], |_| Ok(())).optional()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn apply(tx: &Transaction<'_>, batch: &Batch, instance: i64) -> rusqlite::Result<()> {
    let mut forget = tx.prepare_cached("DELETE FROM files WHERE key = ? AND object IS ?")?;
    batch.gone.iter().try_for_each(|(key, object)| {
        forget.execute(params![key.to_blob(), object.map(|o| o.0)]).map(drop)
    })?;
    retire(tx, &batch.retired)?;
    let mut rows: Vec<_> = batch.upserts.iter().collect();
    for note in &batch.notes {
        if is_news(tx, note)? {
            rows.push(&note.row);
        }
    }
    upsert(tx, &rows, instance)?;
    let used = rows.iter().filter_map(|row| row.object);
    let mut unretire = tx.prepare_cached("DELETE FROM retired WHERE object = ?")?;
    used.chain(batch.unretired.iter().copied())
        .try_for_each(|object| unretire.execute([object.0]).map(drop))?;
    let mut finish = tx.prepare_cached("DELETE FROM intents WHERE id = ?")?;
    batch.finished.iter().try_for_each(|id| finish.execute([id.0]).map(drop))
}

fn retire(tx: &Transaction<'_>, retired: &[(ObjectId, i64)]) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO retired (object, since_ns) VALUES (?, ?)
         ON CONFLICT DO UPDATE SET since_ns = max(since_ns, excluded.since_ns)",
    )?;
    retired
        .iter()
        .try_for_each(|(object, since)| insert.execute(params![object.0, since]).map(drop))
}

/// Whether the index still names the object that it did before somebody looked, or does not know the file.
fn is_news(tx: &Transaction<'_>, note: &Note) -> rusqlite::Result<bool> {
    let mut find = tx.prepare_cached("SELECT object FROM files WHERE key = ?")?;
    let named = find.query_row([note.row.key.to_blob()], |row| row.get::<_, Option<[u8; 16]>>(0));
    Ok(named.optional()?.is_none_or(|named| named.map(ObjectId) == note.known))
}

fn upsert(tx: &Transaction<'_>, rows: &[&FileRow], instance: i64) -> rusqlite::Result<()> {
    let mut retire = tx.prepare_cached(RETIRE_REPLACED)?;
    let mut insert = tx.prepare_cached(UPSERT)?;
    for row in rows {
        retire.execute(params![row.key.to_blob(), row.object.map(|object| object.0)])?;
        insert.execute(params![
            row.key.to_blob(),
            row.object.map(|object| object.0),
            state_number(row.state),
            row.version.generation.cast_signed(),
            row.version.size.cast_signed(),
            row.version.mtime_ns,
            row.version.ctime_ns,
            row.local_bytes.map(u64::cast_signed),
            row.path_hint,
            row.archived_at_ns,
            instance,
        ])?;
    }
    Ok(())
}

/// The object that a row is about to forget.
const RETIRE_REPLACED: &str = "\
    INSERT INTO retired (object, since_ns)
    SELECT object, CAST(unixepoch('subsec') * 1e9 AS INTEGER) FROM files
     WHERE key = ?1 AND object IS NOT NULL AND object IS NOT ?2
    ON CONFLICT DO NOTHING";

/// An update, not `INSERT OR REPLACE`: a replaced row would escape the trigger that counts it out.
const UPSERT: &str = "\
    INSERT INTO files (key, object, state, generation, size, mtime_ns, ctime_ns, local_bytes,
                       path_hint, archived_at_ns, instance)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        object = excluded.object, state = excluded.state, generation = excluded.generation,
        size = excluded.size, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns,
        local_bytes = excluded.local_bytes, path_hint = excluded.path_hint,
        archived_at_ns = excluded.archived_at_ns, instance = excluded.instance";
