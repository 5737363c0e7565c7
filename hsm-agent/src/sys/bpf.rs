//! `bpf(2)` where aya has no call for it: finding out about BPF LSM, and programs behind a structure of
//! functions (`struct_ops`).

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_MAP_CREATE` of `<linux/bpf.h>`.
const BPF_MAP_CREATE: libc::c_int = 0;
/// `BPF_MAP_UPDATE_ELEM`.
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
/// `BPF_PROG_LOAD`.
const BPF_PROG_LOAD: libc::c_int = 5;
/// `BPF_OBJ_PIN`.
const BPF_OBJ_PIN: libc::c_int = 6;
/// `BPF_OBJ_GET`.
const BPF_OBJ_GET: libc::c_int = 7;
/// `BPF_BTF_LOAD`.
const BPF_BTF_LOAD: libc::c_int = 18;
/// `BPF_MAP_FREEZE`.
const BPF_MAP_FREEZE: libc::c_int = 22;
/// `BPF_LINK_CREATE`.
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_LINK_UPDATE`.
const BPF_LINK_UPDATE: libc::c_int = 29;
/// `BPF_LINK_DETACH`.
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_MAP_TYPE_ARRAY`.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_STRUCT_OPS`.
const BPF_MAP_TYPE_STRUCT_OPS: u32 = 26;
/// `BPF_PROG_TYPE_STRUCT_OPS`.
const BPF_PROG_TYPE_STRUCT_OPS: u32 = 27;
/// `BPF_STRUCT_OPS`, a kind of attachment.
const BPF_STRUCT_OPS: u32 = 44;
/// `BPF_F_RDONLY_PROG`.
const BPF_F_RDONLY_PROG: u32 = 1 << 7;
/// `BPF_F_LINK`.
const BPF_F_LINK: u32 = 1 << 13;
/// `BPF_F_SLEEPABLE`.
const BPF_F_SLEEPABLE: u32 = 1 << 4;
/// `BPF_PROG_TYPE_LSM`.
const BPF_PROG_TYPE_LSM: u32 = 29;
/// `BPF_LSM_MAC`.
const BPF_LSM_MAC: u32 = 27;
/// `LSM_ID_BPF` of `<linux/lsm.h>`.
const LSM_ID_BPF: u64 = 109;
/// `lsm_list_modules(2)`, since Linux 6.8; the same number on all architectures.
const SYS_LSM_LIST_MODULES: libc::c_long = 461;

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads, up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

const _: () = assert!(std::mem::offset_of!(LoadAttr, attach_btf_id) == 108);

/// Has the kernel load the LSM program `return 0` for the hook with this type id, and drops it.
pub fn load_trivial_lsm(hook: u32) -> io::Result<()> {
    /// `r0 = 0; exit`.
    const RETURN_0: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
    let mut name = [0; 16];
    name[..9].copy_from_slice(b"hsm_probe");
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_LSM,
        insn_cnt: 2,
        insns: RETURN_0.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_name: name,
        expected_attach_type: BPF_LSM_MAC,
        attach_btf_id: hook,
        ..LoadAttr::default()
    };
    // SAFETY: the attributes have the kernel's layout, and the pointers in them are valid for the call.
    unsafe { call_for_descriptor(BPF_PROG_LOAD, &attr) }.map(drop)
}

/// Has the kernel verify a program that may sleep, for one member (by its number) of the structure
/// with this type id. `instructions` are `struct bpf_insn`. An error comes with what the verifier said, if
/// it came so far.
pub fn load_struct_ops(
    name: &str,
    structure: u32,
    member: u32,
    instructions: &[[u8; 8]],
) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_STRUCT_OPS,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_flags: BPF_F_SLEEPABLE,
        prog_name: [0; 16],
        expected_attach_type: member,
        attach_btf_id: structure,
        ..LoadAttr::default()
    };
    let length = name.len().min(15);
    attr.prog_name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: the attributes have the kernel's layout, and the pointers in them are valid for the call.
    match unsafe { call_for_descriptor(BPF_PROG_LOAD, &attr) } {
        Ok(program) => return Ok(program),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Err((error, String::new()));
        }
        Err(_) => {}
    }
    // Once more, for the verifier's account.
    let mut log = vec![0u8; LOG_BYTES];
    attr.log_level = 1;
    attr.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
    attr.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: as above; the kernel writes at most `log_size` bytes to the log.
    unsafe { call_for_descriptor(BPF_PROG_LOAD, &attr) }.map_err(|error| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        (error, String::from_utf8_lossy(&log[..end]).into_owned())
    })
}

/// Room for what the verifier says; of a longer account the kernel keeps the end.
const LOG_BYTES: usize = 1 << 20;

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads, up to `btf_vmlinux_value_type_id`.
#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_value_type_id: u32,
}

const _: () = assert!(std::mem::offset_of!(MapAttr, btf_vmlinux_value_type_id) == 60);

/// An array of one value that neither programs nor we can change any more: the verifier takes its
/// bytes for constants.
pub fn create_constants(value: &[u8]) -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: u32::try_from(value.len()).map_err(io::Error::other)?,
        max_entries: 1,
        map_flags: BPF_F_RDONLY_PROG,
        ..MapAttr::default()
    };
    // SAFETY: the attributes have the kernel's layout, without pointers.
    let map = unsafe { call_for_descriptor(BPF_MAP_CREATE, &attr) }?;
    set_first(map.as_fd(), value)?;
    // SAFETY: as above.
    unsafe { call(BPF_MAP_FREEZE, &number_of(map.as_fd())) }?;
    Ok(map)
}

/// A map whose value of `size` bytes has the kernel's type with this id, to be attached by a link. `types`
/// can be any type information: nothing in it is used.
pub fn create_struct_ops(value: u32, size: usize, types: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: BPF_MAP_TYPE_STRUCT_OPS,
        key_size: 4,
        value_size: u32::try_from(size).map_err(io::Error::other)?,
        max_entries: 1,
        map_flags: BPF_F_LINK,
        btf_fd: number_of(types),
        btf_vmlinux_value_type_id: value,
        ..MapAttr::default()
    };
    // SAFETY: the attributes have the kernel's layout, without pointers.
    unsafe { call_for_descriptor(BPF_MAP_CREATE, &attr) }
}

/// Type information of one type: a 32-bit integer.
pub fn load_smallest_types() -> io::Result<OwnedFd> {
    /// `struct btf_header`, an integer (`struct btf_type` and its encoding), the strings.
    const BYTES: [u32; 12] = [
        0x0001_eb9f,
        24,
        0,
        16,
        16,
        5, // magic, version 1; its length; types; strings
        1,
        1 << 24,
        4,
        32, // name, kind, bytes, bits
        u32::from_ne_bytes(*b"\0int"),
        0,
    ];
    #[repr(C)]
    struct TypesAttr {
        btf: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        log_true_size: u32,
    }
    let attr = TypesAttr {
        btf: BYTES.as_ptr() as u64,
        log: 0,
        size: 45,
        log_size: 0,
        log_level: 0,
        log_true_size: 0,
    };
    // SAFETY: the attributes have the kernel's layout, and the bytes live during the call.
    unsafe { call_for_descriptor(BPF_BTF_LOAD, &attr) }
}

/// Sets the first value of an array, or the value of a `struct_ops`. It must be as long as the map's
/// values are.
pub fn set_first(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct ElementAttr {
        map: u32,
        reserved: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0u32;
    let attr = ElementAttr {
        map: number_of(map),
        reserved: 0,
        key: (&raw const key) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attributes have the kernel's layout; key and value live during the call, and the caller's
    // value is as long as the map's.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &attr) }
}

/// The part of `union bpf_attr` that the calls on links read.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    /// A map or program for `BPF_LINK_CREATE`, a link for the others.
    object: u32,
    /// `BPF_LINK_UPDATE`: the new map. `BPF_LINK_CREATE`: zero.
    map: u32,
    /// `BPF_LINK_CREATE`: kind of attachment.
    kind: u32,
    flags: u32,
}

/// Attaches a `struct_ops`. Who closes the last descriptor of the link, and removes the last file that it
/// is pinned to, detaches it.
pub fn create_link(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = LinkAttr { object: number_of(map), kind: BPF_STRUCT_OPS, ..LinkAttr::default() };
    // SAFETY: the attributes have the kernel's layout, without pointers.
    unsafe { call_for_descriptor(BPF_LINK_CREATE, &attr) }
}

/// Attaches a program of the security modules' hooks, which may have been attached and detached before; `EBUSY`: it is
/// attached. When this returns, it runs wherever its hook is called.
pub fn attach_lsm(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = LinkAttr { object: number_of(program), kind: BPF_LSM_MAC, ..LinkAttr::default() };
    // SAFETY: the attributes have the kernel's layout, without pointers.
    unsafe { call_for_descriptor(BPF_LINK_CREATE, &attr) }
}

/// Has a link attach another `struct_ops`.
pub fn update_link(link: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkAttr { object: number_of(link), map: number_of(map), ..LinkAttr::default() };
    // SAFETY: the attributes have the kernel's layout, without pointers.
    unsafe { call(BPF_LINK_UPDATE, &attr) }
}

/// Detaches what a link has attached, whoever else has the link, and returns when it runs nowhere any
/// more.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the attributes are the link's number.
    unsafe { call(BPF_LINK_DETACH, &number_of(link)) }
}

/// The part of `union bpf_attr` that the calls on bpffs read.
#[repr(C)]
struct FileAttr {
    path: u64,
    object: u32,
    flags: u32,
}

/// Keeps a program, map or link under a path on a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = FileAttr { path: path.as_ptr() as u64, object: number_of(object), flags: 0 };
    // SAFETY: the attributes have the kernel's layout, and the path lives during the call.
    unsafe { call(BPF_OBJ_PIN, &attr) }
}

/// Opens what is pinned under a path.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = FileAttr { path: path.as_ptr() as u64, object: 0, flags: 0 };
    // SAFETY: the attributes have the kernel's layout, and the path lives during the call.
    unsafe { call_for_descriptor(BPF_OBJ_GET, &attr) }
}

fn number_of(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// `bpf(2)`, whose result is a new descriptor.
///
/// # Safety
/// As [`call`]; and the call makes a descriptor.
unsafe fn call_for_descriptor<T>(number: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { raw_call(number, attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bpf(2)`.
///
/// # Safety
/// The attributes have the layout of the call, and the pointers in them are valid for it.
unsafe fn call<T>(number: libc::c_int, attr: &T) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { raw_call(number, attr) }.map(drop)
}

/// As [`call`]; what the kernel returned.
///
/// # Safety
/// As [`call`].
unsafe fn raw_call<T>(number: libc::c_int, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise; the size tells how much of the union there is.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, &raw const *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether `bpf` is among the security modules whose hooks are called.
pub fn is_lsm_active() -> io::Result<bool> {
    let mut ids = [0u64; 64];
    let mut size = u32::try_from(size_of_val(&ids)).unwrap_or(u32::MAX);
    // SAFETY: the kernel writes at most `size` bytes to `ids`.
    let count =
        unsafe { libc::syscall(SYS_LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0u32) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(count).unwrap_or(0).min(ids.len());
    Ok(ids[..count].contains(&LSM_ID_BPF))
}
