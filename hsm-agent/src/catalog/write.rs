//! Changes to the index: one batch, one transaction.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::rows::state_number;
use super::{Catalog, CatalogError, FileRow, IntentId, Writer};
use crate::core::{FileKey, ObjectId};
use crate::failpoint::{Point, reach};

/// Changes that become visible together or not at all, applied in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Files that are gone or have nothing to be said about.
    pub removes: Vec<FileKey>,
    /// Objects that no inode refers to any more, each with the time since when (nanoseconds since
    /// the epoch). Retiring an object again restarts its retention time.
    pub retired: Vec<(ObjectId, i64)>,
    /// New or changed files. The object of such a row is taken off the garbage list.
    pub upserts: Vec<FileRow>,
    /// Objects that turned out to be in use.
    pub unretired: Vec<ObjectId>,
    /// Intents whose outcome this batch records.
    pub finished: Vec<IntentId>,
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
    if batch.upserts.is_empty() || !any.exists([])? {
        return Ok(false);
    }
    let mut find = conn.prepare_cached("SELECT 1 FROM retired WHERE object = ?")?;
    for object in batch.upserts.iter().filter_map(|row| row.object) {
        if find.query_row([object.0], |_| Ok(())).optional()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn apply(tx: &Transaction<'_>, batch: &Batch, instance: i64) -> rusqlite::Result<()> {
    let mut remove = tx.prepare_cached("DELETE FROM files WHERE key = ?")?;
    batch.removes.iter().try_for_each(|key| remove.execute([key.to_blob()]).map(drop))?;
    retire(tx, &batch.retired)?;
    upsert(tx, &batch.upserts, instance)?;
    let used = batch.upserts.iter().filter_map(|row| row.object);
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

fn upsert(tx: &Transaction<'_>, rows: &[FileRow], instance: i64) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(UPSERT)?;
    for row in rows {
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
