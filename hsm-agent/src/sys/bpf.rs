//! The two system calls that finding out about BPF LSM takes.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `BPF_PROG_LOAD` of `<linux/bpf.h>`.
const BPF_PROG_LOAD: libc::c_int = 5;
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
    // SAFETY: the attributes have the kernel's layout, and the pointers in them are valid for the
    // call; the size tells how much of the union there is.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
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
