//! Reading the index.

use std::ops::ControlFlow;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{COLUMNS, STATES, state_number};
use super::{Catalog, CatalogError, FileRow};
use crate::core::{FileKey, FileState};

/// Rows that one hold of the reading connection covers, so that long walks let others in.
const PAGE: usize = 1024;

/// Files of one state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateTotals {
    /// Number of files.
    pub files: u64,
    /// Sum of their sizes; approximate beyond 2^63.
    pub bytes: u64,
}

/// Number and bytes of the files in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals([StateTotals; STATES.len()]);

impl Totals {
    /// Of one state.
    pub fn of(&self, state: FileState) -> StateTotals {
        self.0.get(state_number(state) as usize).copied().unwrap_or_default()
    }

    /// Of each state.
    pub fn iter(&self) -> impl Iterator<Item = (FileState, StateTotals)> {
        STATES.into_iter().zip(self.0)
    }
}

impl Catalog {
    /// The row of a file.
    pub fn get(&self, key: &FileKey) -> Result<Option<FileRow>, CatalogError> {
        get(&self.reader(), key, self.instance).map_err(self.failed("reading"))
    }

    /// The rows of many files, in the order of `keys`, all from one moment.
    pub fn get_many(&self, keys: &[FileKey]) -> Result<Vec<Option<FileRow>>, CatalogError> {
        let reader = self.reader();
        let read = || {
            let tx = reader.unchecked_transaction()?;
            keys.iter()
                .map(|key| get(&tx, key, self.instance))
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("reading"))
    }

    /// Up to `limit` rows behind `after`, in the order of their stored keys.
    pub fn page(
        &self,
        after: Option<&FileKey>,
        limit: usize,
    ) -> Result<Vec<FileRow>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM files WHERE key > ? ORDER BY key LIMIT ?");
        let after = after.map(FileKey::to_blob).unwrap_or_default();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let reader = self.reader();
        let read = || {
            reader
                .prepare_cached(&sql)?
                .query_map(params![after, limit], |row| FileRow::read(row, self.instance))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(self.failed("reading"))
    }

    /// Calls `visit` for every file in one of `states` (none given: in any) until it breaks.
    /// The catalogue may change meanwhile; a file that is there all the time is visited once.
    pub fn for_each(
        &self,
        states: &[FileState],
        mut visit: impl FnMut(FileRow) -> ControlFlow<()>,
    ) -> Result<(), CatalogError> {
        let mut after = None;
        loop {
            let rows = self.page(after.as_ref(), PAGE)?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.key.clone());
            let wanted = |row: &FileRow| states.is_empty() || states.contains(&row.state);
            if rows.into_iter().filter(wanted).try_for_each(&mut visit).is_break() {
                return Ok(());
            }
        }
    }

    /// Number and bytes of the files in each state, without a scan.
    pub fn totals(&self) -> Result<Totals, CatalogError> {
        let reader = self.reader();
        let read = || {
            let mut all = Totals::default();
            let mut select = reader.prepare_cached("SELECT state, files, bytes FROM totals")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let state = super::rows::state(row, 0)?;
                all.0[state_number(state) as usize] =
                    StateTotals { files: unsigned(row, 1)?, bytes: unsigned(row, 2)? };
            }
            Ok(all)
        };
        read().map_err(self.failed("reading totals"))
    }
}

fn get(conn: &Connection, key: &FileKey, instance: i64) -> rusqlite::Result<Option<FileRow>> {
    let sql = format!("SELECT {COLUMNS} FROM files WHERE key = ?");
    conn.prepare_cached(&sql)?
        .query_row([key.to_blob()], |row| FileRow::read(row, instance))
        .optional()
}

/// A sum that may have become a float.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(match row.get_ref(column)? {
        ValueRef::Real(sum) => sum as u64,
        _ => u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0),
    })
}
