//! A file's row, and how our types are stored in columns.

use rusqlite::Row;
use rusqlite::types::{FromSqlError, Type};

use crate::core::{DataVersion, FileKey, FileState, ObjectId};

/// What the index knows about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// The file.
    pub key: FileKey,
    /// The copy in the store, if there is one.
    pub object: Option<ObjectId>,
    /// Where the bytes are.
    pub state: FileState,
    /// The file as it was when this row was written. `ctime_ns` is read *after* our own attribute
    /// writes: while the inode's ctime still equals it and the rest matches the record, the file is
    /// unchanged; otherwise its content must be compared before it is released. Of an earlier boot
    /// or mount it reads as [`FileRow::UNKNOWN_CTIME`].
    pub version: DataVersion,
    /// Bytes that are local, if they were counted.
    pub local_bytes: Option<u64>,
    /// A path that the file had, for people; never used to find it.
    pub path_hint: Vec<u8>,
    /// When the copy was made, nanoseconds since the epoch.
    pub archived_at_ns: Option<i64>,
}

/// The columns that [`FileRow::read`] expects, in its order.
pub(super) const COLUMNS: &str = "key, object, state, generation, size, mtime_ns, ctime_ns, \
                                  local_bytes, path_hint, archived_at_ns, instance";

impl FileRow {
    /// A ctime that no inode has.
    pub const UNKNOWN_CTIME: i64 = i64::MIN;

    /// `instance`: the one whose ctimes count.
    pub(super) fn read(row: &Row<'_>, instance: i64) -> rusqlite::Result<Self> {
        let is_current = row.get::<_, i64>(10)? == instance;
        Ok(Self {
            key: key(row, 0)?,
            object: row.get::<_, Option<[u8; 16]>>(1)?.map(ObjectId),
            state: state(row, 2)?,
            version: DataVersion {
                generation: row.get::<_, i64>(3)?.cast_unsigned(),
                size: row.get::<_, i64>(4)?.cast_unsigned(),
                mtime_ns: row.get(5)?,
                ctime_ns: if is_current { row.get(6)? } else { Self::UNKNOWN_CTIME },
            },
            local_bytes: row.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
            path_hint: row.get(8)?,
            archived_at_ns: row.get(9)?,
        })
    }
}

/// The numbers are stored: never change one.
pub(super) fn state_number(state: FileState) -> i64 {
    match state {
        FileState::Resident => 0,
        FileState::Archived => 1,
        FileState::Offline => 2,
        FileState::Partial => 3,
        FileState::Dirty => 4,
        FileState::Lost => 5,
    }
}

/// Every state, at the index of its number.
pub(super) const STATES: [FileState; 6] = [
    FileState::Resident,
    FileState::Archived,
    FileState::Offline,
    FileState::Partial,
    FileState::Dirty,
    FileState::Lost,
];

pub(super) fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<FileState> {
    let number: i64 = row.get(column)?;
    usize::try_from(number)
        .ok()
        .and_then(|n| STATES.get(n).copied())
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number))
}

pub(super) fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<FileKey> {
    let value = row.get_ref(column)?;
    let blob = value.as_blob().map_err(|error| bad(column, error))?;
    FileKey::from_blob(blob).ok_or_else(|| bad(column, FromSqlError::OutOfRange(blob.len() as i64)))
}

fn bad(column: usize, error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error))
}
