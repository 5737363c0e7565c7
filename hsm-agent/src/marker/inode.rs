//! Marker, record and map on the inode itself.
//!
//! Reading tells three cases apart and never guesses: absent, valid, unreadable. Unreadable is an
//! error that the caller turns into a denial.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;

use super::{
    Facts, MAP_XATTR, MapError, Marker, MarkerError, RECORD_XATTR, RawAttributes, Record,
    RecordError, ResidencyMap, Unjudged, judge,
};
use crate::core::FileKey;
use crate::sys::inode::Stat;
use crate::sys::xattr;

/// Why an attribute of the inode says nothing.
#[derive(Debug, thiserror::Error)]
pub enum InodeError {
    /// The kernel would not give or take the attribute.
    #[error("the extended attribute {name} cannot be {action}: {source}")]
    Io {
        /// Attribute.
        name: String,
        /// read, set or removed.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The marker is there and makes no sense.
    #[error("the marker is not readable: {0}")]
    Marker(#[from] MarkerError),
    /// The record is there and makes no sense.
    #[error("the record is not readable: {0}")]
    Record(#[from] RecordError),
    /// The residency map is there and makes no sense.
    #[error("the residency map is not readable: {0}")]
    Map(#[from] MapError),
    /// All of them are there, and together they say nothing.
    #[error(transparent)]
    Unjudged(#[from] Unjudged),
}

/// A descriptor on an inode: as opened, or `O_PATH` (then calls go through `/proc/self/fd`).
#[derive(Debug, Clone, Copy)]
pub enum InodeFd<'a> {
    /// Opened for IO.
    Open(BorrowedFd<'a>),
    /// Opened with `O_PATH`.
    Path(BorrowedFd<'a>),
}

/// The names of the attributes of one pool.
#[derive(Debug, Clone)]
pub struct Attributes {
    marker: CString,
    record: CString,
    map: CString,
}

/// What one look at the names of all attributes of an inode tells, and what our own ones say.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The marker; `None` exactly when there is none.
    pub marker: Option<Marker>,
    /// The record.
    pub record: Option<Record>,
    /// Whether there is a residency map, of whatever time.
    pub map: bool,
    /// Names of the attributes that are not ours.
    pub others: Vec<CString>,
}

impl Attributes {
    /// With the configured name of the marker.
    pub fn new(marker: &str) -> io::Result<Self> {
        let name = |s: &str| CString::new(s).map_err(io::Error::other);
        Ok(Self { marker: name(marker)?, record: name(RECORD_XATTR)?, map: name(MAP_XATTR)? })
    }

    fn is_own(&self, name: &CStr) -> bool {
        [&self.marker, &self.record, &self.map].iter().any(|own| own.as_c_str() == name)
    }

    /// The marker; `None` exactly when there is none.
    pub fn marker(&self, fd: InodeFd<'_>) -> Result<Option<Marker>, InodeError> {
        let value = get(fd, &self.marker)?;
        Ok(value.map(|v| Marker::decode(&v)).transpose()?)
    }

    /// The record.
    pub fn record(&self, fd: InodeFd<'_>) -> Result<Option<Record>, InodeError> {
        let value = get(fd, &self.record)?;
        Ok(value.map(|v| Record::decode(&v)).transpose()?)
    }

    /// The residency map that belongs to `marker`. A map of another release counts as none.
    pub fn map(&self, fd: InodeFd<'_>, marker: &Marker) -> Result<ResidencyMap, InodeError> {
        let empty = || ResidencyMap::empty(marker.epoch, marker.size, marker.chunk_shift);
        match get(fd, &self.map)? {
            None => Ok(empty()?),
            // Damaged or stale: nothing is known to be resident, so everything is recalled again.
            Some(v) => ResidencyMap::decode(&v, marker).or_else(|error| {
                tracing::warn!(%error, "residency map not used");
                Ok(empty()?)
            }),
        }
    }

    /// What the attributes mean together. `key` is the inode's handle.
    pub fn facts(
        &self,
        fd: InodeFd<'_>,
        stat: &Stat,
        key: Option<&FileKey>,
    ) -> Result<Facts, InodeError> {
        let (marker, record) = (get(fd, &self.marker)?, get(fd, &self.record)?);
        let map = if marker.is_some() { get(fd, &self.map)? } else { None };
        let raw = RawAttributes { marker, record, map };
        Ok(judge(&raw, stat, key.and_then(FileKey::generation))?)
    }

    /// Everything at once. Most files have no attributes at all, and one call says so. (With the
    /// capabilities of the agent the list holds whatever can be read by name: `kernel_facts`.)
    pub fn seen(&self, fd: InodeFd<'_>) -> Result<Seen, InodeError> {
        let names = match fd {
            InodeFd::Open(fd) => xattr::list(fd),
            InodeFd::Path(fd) => xattr::list_at_path(fd),
        };
        let names = names.map_err(failed(&self.marker, "read"))?;
        let has = |own: &CString| names.contains(own);
        let marker = if has(&self.marker) { self.marker(fd)? } else { None };
        let record = if has(&self.record) { self.record(fd)? } else { None };
        let map = has(&self.map);
        let others = names.into_iter().filter(|name| !self.is_own(name)).collect();
        Ok(Seen { marker, record, map, others })
    }

    /// Sets the marker.
    pub fn set_marker(&self, fd: InodeFd<'_>, marker: &Marker) -> Result<(), InodeError> {
        set(fd, &self.marker, &marker.encode())
    }

    /// Removes the marker; `false`: there was none.
    pub fn remove_marker(&self, fd: InodeFd<'_>) -> Result<bool, InodeError> {
        remove(fd, &self.marker)
    }

    /// Sets the record; an empty one is removed.
    pub fn set_record(&self, fd: InodeFd<'_>, record: &Record) -> Result<(), InodeError> {
        if record.is_empty() {
            return remove(fd, &self.record).map(drop);
        }
        set(fd, &self.record, &record.encode())
    }

    /// Sets the residency map.
    pub fn set_map(&self, fd: InodeFd<'_>, map: &ResidencyMap) -> Result<(), InodeError> {
        set(fd, &self.map, &map.encode())
    }

    /// Removes the residency map.
    pub fn remove_map(&self, fd: InodeFd<'_>) -> Result<bool, InodeError> {
        remove(fd, &self.map)
    }
}

fn failed(name: &CStr, action: &'static str) -> impl FnOnce(io::Error) -> InodeError {
    let name = name.to_string_lossy().into_owned();
    move |source| InodeError::Io { name, action, source }
}

fn get(fd: InodeFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>, InodeError> {
    match fd {
        InodeFd::Open(fd) => xattr::get(fd, name),
        InodeFd::Path(fd) => xattr::get_at_path(fd, name),
    }
    .map_err(failed(name, "read"))
}

fn set(fd: InodeFd<'_>, name: &CStr, value: &[u8]) -> Result<(), InodeError> {
    match fd {
        InodeFd::Open(fd) => xattr::set(fd, name, value),
        InodeFd::Path(fd) => xattr::set_at_path(fd, name, value),
    }
    .map_err(failed(name, "set"))
}

fn remove(fd: InodeFd<'_>, name: &CStr) -> Result<bool, InodeError> {
    match fd {
        InodeFd::Open(fd) => xattr::remove(fd, name),
        InodeFd::Path(fd) => xattr::remove_at_path(fd, name),
    }
    .map_err(failed(name, "removed"))
}
