//! Maps of values that belong to processes (`BPF_MAP_TYPE_TASK_STORAGE`) or inodes
//! (`BPF_MAP_TYPE_INODE_STORAGE`), which aya has no types for.
//!
//! The key is a descriptor, a pidfd or one of a file; `O_PATH` will do, the kernel asks for nothing that
//! the file can do. The value is kept in the kernel's process or inode itself, and goes with it: that of
//! an inode when it leaves memory, which it does not while somebody has it open.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `BPF_MAP_LOOKUP_ELEM` of `<linux/bpf.h>`.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
/// `BPF_MAP_UPDATE_ELEM`.
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
/// `BPF_MAP_DELETE_ELEM`.
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
/// `BPF_OBJ_GET_INFO_BY_FD`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// `BPF_MAP_TYPE_TASK_STORAGE`.
const BPF_MAP_TYPE_TASK_STORAGE: u32 = 29;

/// `BPF_MAP_TYPE_INODE_STORAGE`.
const BPF_MAP_TYPE_INODE_STORAGE: u32 = 28;

/// The part of `union bpf_attr` that the calls on a map's elements read.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The first members of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

/// A map of values of `N` bytes that belong to objects of the kernel.
#[derive(Debug)]
pub struct LocalStorage<const KIND: u32, const N: usize>(OwnedFd);

/// Values of processes.
pub type TaskStorage<const N: usize> = LocalStorage<BPF_MAP_TYPE_TASK_STORAGE, N>;

/// Values of inodes.
pub type InodeStorage<const N: usize> = LocalStorage<BPF_MAP_TYPE_INODE_STORAGE, N>;

impl<const KIND: u32, const N: usize> LocalStorage<KIND, N> {
    /// Takes the map; an error when it is none, or its values have another size.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let mut info = MapInfo::default();
        let attr =
            InfoAttr { fd: map.as_raw_fd().cast_unsigned(), len: 16, info: (&raw mut info) as u64 };
        // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
        unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
        if info.kind == KIND && info.value_size as usize == N {
            Ok(Self(map))
        } else {
            let found = format!(
                "a map of type {KIND} with values of {N} bytes was expected, not of type {} with {}",
                info.kind, info.value_size
            );
            Err(io::Error::other(found))
        }
    }

    /// The value of an object; `None`: it has none.
    pub fn get(&self, object: impl AsFd) -> io::Result<Option<[u8; N]>> {
        let key = object.as_fd().as_raw_fd();
        let mut value = [0; N];
        let attr = self.attr(&key, (&raw mut value) as u64);
        // SAFETY: the kernel reads a descriptor and writes a value, whose size was checked.
        match unsafe { call(BPF_MAP_LOOKUP_ELEM, &attr) } {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets the value of an object. A program that looks finds the old one or this one, whole; or, by chance of a
    /// moment, none where there was one: the kernel puts a new element into the place of the old one.
    pub fn set(&self, object: impl AsFd, value: &[u8; N]) -> io::Result<()> {
        let key = object.as_fd().as_raw_fd();
        let attr = self.attr(&key, (&raw const *value) as u64);
        // SAFETY: the kernel reads a descriptor and a value, whose size was checked.
        unsafe { call(BPF_MAP_UPDATE_ELEM, &attr) }
    }

    /// Takes the value away. `false`: there was none.
    pub fn delete(&self, object: impl AsFd) -> io::Result<bool> {
        let key = object.as_fd().as_raw_fd();
        // SAFETY: the kernel reads a descriptor, and no value.
        match unsafe { call(BPF_MAP_DELETE_ELEM, &self.attr(&key, 0)) } {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn attr(&self, key: &i32, value: u64) -> ElementAttr {
        let map_fd = self.0.as_raw_fd().cast_unsigned();
        ElementAttr { map_fd, reserved: 0, key: (&raw const *key) as u64, value, flags: 0 }
    }
}

/// `bpf(2)`.
///
/// # Safety
/// The attributes have the layout of the call, and the pointers in them are valid for it.
unsafe fn call<T>(number: libc::c_int, attr: &T) -> io::Result<()> {
    // SAFETY: the caller's promise; the size tells how much of the union there is.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, &raw const *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_map_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("a file");
        let file = OwnedFd::from(file);
        assert!(TaskStorage::<16>::new(file.try_clone().expect("another")).is_err());
        assert!(InodeStorage::<8>::new(file).is_err());
    }
}
