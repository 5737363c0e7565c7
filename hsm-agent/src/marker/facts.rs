//! What the attributes of an inode mean together: the one place that derives a file's state.
//!
//! Marker and map decide residency, the record decides the rest, and a marker speaks only for the
//! inode that it was written for. [`judge`] is pure; [`Attributes::facts`](super::Attributes::facts)
//! reads what it judges. Nothing here opens the file: the inode's generation comes out of its
//! handle, so that looking recalls nothing.

use super::{
    ArchivedCopy, Marker, MarkerError, MarkerState, Owner, PolicyFlags, Record, RecordError,
    ResidencyMap,
};
use crate::core::{FileState, ObjectId};
use crate::sys::inode::Stat;

/// The three attributes, undecoded. `None`: absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawAttributes {
    /// Marker.
    pub marker: Option<Vec<u8>>,
    /// Record.
    pub record: Option<Vec<u8>>,
    /// Residency map. Counts only beside a marker.
    pub map: Option<Vec<u8>>,
}

/// What is known of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where its data is.
    pub state: FileState,
    /// Its owner's wishes.
    pub policy: PolicyFlags,
    /// The object that marker or record names.
    pub object: Option<ObjectId>,
    /// The record's copy.
    pub copy: Option<ArchivedCopy>,
    /// Anything worth a sentence; mostly empty.
    pub detail: String,
}

/// Why nothing can be said. Never a reason to take the file for online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// The marker makes no sense.
    #[error("unreadable marker: {0}")]
    Marker(#[from] MarkerError),
    /// There is no marker, and the record makes no sense.
    #[error("unreadable record: {0}")]
    Record(#[from] RecordError),
    /// The marker was written for another inode and copied here. The file's own data may be the
    /// only copy of it, or none: access to it is denied.
    #[error(
        "the marker belongs to another file and was copied here; if this file's own data is right, \
         remove the attribute"
    )]
    Foreign,
}

/// Judges a file by its attributes. Without `generation` (a file system whose handles are not known)
/// it is not checked whom marker and record belong to.
pub fn judge(raw: &RawAttributes, stat: &Stat, generation: Option<u64>) -> Result<Facts, Unjudged> {
    let record = raw.record.as_deref().map(Record::decode).transpose();
    let Some(bytes) = &raw.marker else {
        return Ok(unmarked(&record?.unwrap_or_default(), stat, generation));
    };
    let marker = Marker::decode(bytes)?;
    if generation.is_some_and(|generation| marker.owner != Owner::of(stat.ino, generation)) {
        return Err(Unjudged::Foreign);
    }
    let mut detail = String::new();
    // The marker alone says that data is missing and where it is.
    let record = record.unwrap_or_else(|error| {
        detail = format!("unreadable record: {error}");
        None
    });
    let state = marked(&marker, raw.map.as_deref(), &mut detail);
    let record = record.unwrap_or_default();
    let (policy, object, copy) = (record.policy, Some(marker.object), record.archived);
    Ok(Facts { state, policy, object, copy, detail })
}

fn marked(marker: &Marker, map: Option<&[u8]>, detail: &mut String) -> FileState {
    match (marker.state, map.map(|bytes| ResidencyMap::decode(bytes, marker))) {
        (MarkerState::Lost, _) => FileState::Lost,
        (MarkerState::Partial, Some(Ok(_))) => FileState::Partial,
        (MarkerState::Partial, Some(Err(error))) => {
            *detail = format!("counts as wholly offline: {error}");
            FileState::Offline
        }
        (MarkerState::Partial, None) | (MarkerState::Offline, _) => FileState::Offline,
    }
}

fn unmarked(record: &Record, stat: &Stat, generation: Option<u64>) -> Facts {
    let state = match &record.archived {
        None => FileState::Resident,
        Some(copy) => {
            let now = stat.version(generation.unwrap_or(copy.version.generation));
            if now.same_data_times(&copy.version) { FileState::Archived } else { FileState::Dirty }
        }
    };
    let object = record.archived.map(|copy| copy.object);
    let (policy, copy) = (record.policy, record.archived);
    Facts { state, policy, object, copy, detail: String::new() }
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
