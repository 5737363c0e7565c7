//! The garbage list: objects that no inode refers to, until their retention time is over.
//!
//! An object on the list is offered for deletion only while the index covers the whole file system
//! and neither a row nor an intent names it: whoever lists wrongly costs space, never data.

use rusqlite::params;

use super::write::Durability;
use super::{Catalog, CatalogError};
use crate::core::ObjectId;

impl Catalog {
    /// Declares that the index covers the whole file system (a scan has just ended), or does not.
    /// A new or cleared catalogue does not.
    pub fn set_complete(&self, complete: bool) -> Result<(), CatalogError> {
        self.writer()
            .transaction(Durability::Device, |tx| {
                tx.execute("UPDATE meta SET complete = ?", [complete]).map(drop)
            })
            .map_err(self.failed("writing"))
    }

    /// Whether the index covers the whole file system.
    pub fn is_complete(&self) -> Result<bool, CatalogError> {
        self.reader()
            .query_row("SELECT complete FROM meta", [], |row| row.get(0))
            .map_err(self.failed("reading"))
    }

    /// Objects that were retired before `ns` (nanoseconds since the epoch) and may be deleted from
    /// the store. None while the index is not complete. Reads the whole index: not for hot paths.
    pub fn retired_before(&self, ns: i64) -> Result<Vec<ObjectId>, CatalogError> {
        const SQL: &str = "\
            SELECT object FROM retired WHERE since_ns < ? AND (SELECT complete FROM meta)
               AND object NOT IN (SELECT object FROM intents)
               AND object NOT IN (SELECT object FROM files WHERE object IS NOT NULL)";
        let reader = self.reader();
        let read = || {
            let mut select = reader.prepare_cached(SQL)?;
            let rows = select.query_map(params![ns], |row| row.get(0).map(ObjectId))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("reading retired objects"))
    }

    /// Number of objects on the list, whether or not they may be deleted.
    pub fn retired_count(&self) -> Result<u64, CatalogError> {
        self.reader()
            .query_row("SELECT count(*) FROM retired", [], |row| row.get::<_, i64>(0))
            .map(i64::cast_unsigned)
            .map_err(self.failed("counting retired objects"))
    }

    /// Takes objects off the list that are deleted from the store.
    pub fn forget_retired(&self, objects: &[ObjectId]) -> Result<(), CatalogError> {
        self.writer()
            .transaction(Durability::Kernel, |tx| {
                let mut delete = tx.prepare_cached("DELETE FROM retired WHERE object = ?")?;
                objects.iter().try_for_each(|object| delete.execute([object.0]).map(drop))
            })
            .map_err(self.failed("forgetting retired objects"))
    }
}
