//! Looking at the marker, and telling the names of hsm's attributes apart.

use aya_ebpf::bindings::bpf_dynptr;
use aya_ebpf::helpers::generated::{bpf_dynptr_from_mem, bpf_probe_read_kernel_str};
use hsm_common::filter::NAME_LEN;

use crate::maps::SCRATCH;
use crate::object::{Dentry, File};
use crate::settings::{map_name, marker_name, record_name};

/// No such attribute.
const ENODATA: i32 = 61;
/// The file system has no attributes.
const EOPNOTSUPP: i32 = 95;
/// The caller may not read the file, and the kernel's function asks that.
const EACCES: i32 = 13;

unsafe extern "C" {
    /// Linux 6.12; names of `security.bpf.` from 6.15 on.
    fn bpf_get_file_xattr(file: *const u8, name: *const u8, value: *mut bpf_dynptr) -> i32;
    /// Linux 6.12; names of `security.bpf.` from 6.15 on.
    fn bpf_get_dentry_xattr(dentry: *const u8, name: *const u8, value: *mut bpf_dynptr) -> i32;
}

/// What is known of the marker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// The file is online.
    Absent,
    /// The file is online, and whoever wants to change it is to ask until that is durable.
    Held,
    /// Data is missing, or something went wrong that is no proof of the contrary.
    Present,
    /// The caller has no right to read the file, and so we have none to look.
    Unreadable,
}

impl Marker {
    /// Whether nothing is missing.
    #[inline(always)]
    pub fn is_online(self) -> bool {
        matches!(self, Self::Absent | Self::Held)
    }
}

/// The marker of an open file.
#[inline(always)]
pub fn of_file(file: File) -> Marker {
    // SAFETY: a trusted pointer, a terminated name in read-only memory, an initialised dynptr.
    with_buffer(|value| unsafe { bpf_get_file_xattr(file.as_ptr(), marker_name(), value) })
}

/// The marker of a directory entry's inode.
#[inline(always)]
pub fn of_dentry(dentry: Dentry) -> Marker {
    // SAFETY: a trusted pointer, a terminated name in read-only memory, an initialised dynptr.
    with_buffer(|value| unsafe { bpf_get_dentry_xattr(dentry.as_ptr(), marker_name(), value) })
}

#[inline(always)]
fn with_buffer(get: impl FnOnce(*mut bpf_dynptr) -> i32) -> Marker {
    let Some(buffer) = SCRATCH.get_ptr_mut(0) else { return Marker::Present };
    let mut value = bpf_dynptr { __opaque: [0; 2] };
    // SAFETY: the buffer is a map's value of 64 bytes.
    unsafe { bpf_dynptr_from_mem(buffer.cast(), 64, 0, &raw mut value) };
    let result = get(&raw mut value);
    if result == -ENODATA || result == -EOPNOTSUPP {
        Marker::Absent
    } else if result == -EACCES {
        Marker::Unreadable
    } else {
        Marker::Present
    }
}

/// An attribute's name, as a hook got it.
pub struct AttributeName([u64; NAME_LEN / 8]);

impl AttributeName {
    /// Copies it from the kernel.
    #[inline(always)]
    pub fn read(name: *const u8) -> Self {
        let mut words = [0u64; NAME_LEN / 8];
        // SAFETY: the helper writes at most `NAME_LEN` bytes, the last one a NUL.
        unsafe {
            bpf_probe_read_kernel_str((&raw mut words).cast(), NAME_LEN as u32, name.cast());
        }
        Self(words)
    }

    /// Whether this is one of those that only the agent may change.
    #[inline(always)]
    pub fn is_ours(&self) -> bool {
        self.is(marker_name()) || self.is(record_name()) || self.is(map_name())
    }

    /// Whether this is the marker.
    #[inline(always)]
    pub fn is_marker(&self) -> bool {
        self.is(marker_name())
    }

    /// Whether a change of it makes cached verdicts invalid.
    #[inline(always)]
    pub fn is_state(&self) -> bool {
        self.is(marker_name()) || self.is(record_name())
    }

    #[inline(always)]
    fn is(&self, name: *const u8) -> bool {
        let mut differ = 0;
        let mut at = 0;
        while at < self.0.len() {
            // SAFETY: the names in the settings are `NAME_LEN` bytes, aligned to 8.
            differ |= self.0[at] ^ unsafe { name.cast::<u64>().add(at).read_volatile() };
            at += 1;
        }
        differ == 0
    }
}
