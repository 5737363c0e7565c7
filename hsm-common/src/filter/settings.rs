//! What the programs are told once: names, limits, where the kernel keeps what.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

/// Longest attribute name of [`Settings`], with its terminating NUL.
pub const NAME_LEN: usize = 64;

/// A NUL-terminated attribute name, filled up with NULs.
pub type Name = [u8; NAME_LEN];

/// `name` as the programs want it; `None` when it is empty, too long, or contains a NUL.
pub const fn name(name: &str) -> Option<Name> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= NAME_LEN {
        return None;
    }
    let mut padded = [0; NAME_LEN];
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == 0 {
            return None;
        }
        padded[at] = bytes[at];
        at += 1;
    }
    Some(padded)
}

/// What the programs are told when they are loaded (read-only data: constants to the verifier).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Name of the marker attribute.
    pub marker: Name,
    /// Name of the record attribute.
    pub record: Name,
    /// Name of the residency map attribute.
    pub map: Name,
    /// Longest wait of an open without progress, in nanoseconds.
    pub open_limit: u64,
    /// Longest wait for a [`KIND_RECALL`](super::KIND_RECALL) without progress, in nanoseconds.
    pub recall_limit: u64,
    /// Longest wait of a kernel thread, which cannot yield its CPU, in nanoseconds.
    pub spin_limit: u64,
    /// Where the running kernel keeps what the programs look at.
    pub offsets: Offsets,
    /// Zero: what an odd number of offsets leaves.
    pub reserved: [u32; Offsets::MEMBERS.len() % 2],
    /// Numbers of the system calls that read a range of a file and are over then; [`ABSENT`] where there
    /// are fewer.
    pub reads: [u32; READS],
}

/// Room in [`Settings::reads`].
pub const READS: usize = 10;

/// A structure member that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident = $path:literal $need:ident,)*) => {
        /// Byte offsets of structure members in the running kernel, from its type information
        /// (Rust programs have no relocations for them).
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct Offsets {
            $($(#[$doc])* pub $field: u32,)*
        }

        impl Offsets {
            /// Where each field comes from: `structure.member`, and whether the programs can do
            /// without it ([`ABSENT`]). In the order of the fields.
            pub const MEMBERS: &[Member] = &[
                $(Member { path: $path, needed: need!($need) },)*
            ];
        }
    };
}

macro_rules! need {
    (needed) => {
        true
    };
    (optional) => {
        false
    };
}

/// One entry of [`Offsets::MEMBERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Type and member, as in `inode.i_mode`.
    pub path: &'static str,
    /// Whether the programs cannot do without.
    pub needed: bool,
}

offsets! {
    /// The inode that was opened.
    file_inode = "file.f_inode" needed,
    /// Open mode.
    file_mode = "file.f_mode" needed,
    /// Flags of the open.
    file_flags = "file.f_flags" needed,
    /// Mount and directory entry of the opened file.
    file_path = "file.f_path" needed,
    /// Inode number.
    inode_ino = "inode.i_ino" needed,
    /// Type and permissions.
    inode_mode = "inode.i_mode" needed,
    /// Superblock.
    inode_sb = "inode.i_sb" needed,
    /// Generation.
    inode_generation = "inode.i_generation" needed,
    /// Size in bytes.
    inode_size = "inode.i_size" needed,
    /// Events that somebody watches this inode for.
    inode_mask = "inode.i_fsnotify_mask" needed,
    /// Device number.
    sb_device = "super_block.s_dev" needed,
    /// UUID.
    sb_uuid = "super_block.s_uuid" needed,
    /// Type of the file system.
    sb_magic = "super_block.s_magic" needed,
    /// Events that somebody watches the file system for.
    sb_mask = "super_block.s_fsnotify_mask" needed,
    /// Inode of a directory entry.
    dentry_inode = "dentry.d_inode" needed,
    /// Directory entry of a path.
    path_dentry = "path.dentry" needed,
    /// Mount of a path.
    path_mount = "path.mnt" needed,
    /// What of a mount its paths point to.
    mount_inside = "mount.mnt" needed,
    /// Namespace that a mount belongs to.
    mount_namespace = "mount.mnt_ns" needed,
    /// What an attribute change changes.
    iattr_valid = "iattr.ia_valid" needed,
    /// The new size.
    iattr_size = "iattr.ia_size" needed,
    /// First thread of the process.
    task_leader = "task_struct.group_leader" needed,
    /// Whether its end has begun, among other things.
    task_flags = "task_struct.flags" needed,
    /// Address space; null for a kernel thread.
    task_mm = "task_struct.mm" needed,
    /// Signals that wait for the thread.
    task_pending = "task_struct.pending" needed,
    /// The set among pending signals.
    pending_set = "sigpending.signal" needed,
    /// The path that the thread is following; null when it follows none.
    task_walk = "task_struct.nameidata" needed,
    /// How far it has come: at last, what it opens.
    walk_path = "nameidata.path" needed,
    /// First byte of the process's arguments: an address that is mapped.
    mm_arg_start = "mm_struct.arg_start" needed,
    /// Number of the system call, on x86.
    regs_orig_ax = "pt_regs.orig_ax" optional,
    /// Number of the system call, on arm64.
    regs_syscallno = "pt_regs.syscallno" optional,
    /// The generic inode inside btrfs' own.
    btrfs_vfs_inode = "btrfs_inode.vfs_inode" optional,
    /// Subvolume of an inode.
    btrfs_inode_root = "btrfs_inode.root" optional,
    /// Key of a subvolume's root.
    btrfs_root_key = "btrfs_root.root_key" optional,
    /// Object id in a key.
    btrfs_key_objectid = "btrfs_key.objectid" optional,
}

const _: () = {
    assert!(size_of::<Offsets>() == 4 * Offsets::MEMBERS.len());
    assert!(offset_of!(Settings, open_limit) == 3 * NAME_LEN);
    assert!(offset_of!(Settings, offsets) == 3 * NAME_LEN + 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_a_nul() {
        let padded = name("trusted.hsm").expect("valid");
        assert_eq!(&padded[..12], b"trusted.hsm\0");
        assert!(padded[12..].iter().all(|&byte| byte == 0));
        const LONG: &str = "x23456789012345678901234567890123456789012345678901234567890123x";
        assert_eq!(LONG.len(), NAME_LEN);
        assert!(name(&LONG[1..]).is_some());
        assert_eq!(name(LONG), None);
        assert_eq!(name(""), None);
        assert_eq!(name("a\0b"), None);
    }

    #[test]
    fn members_are_named_as_structure_and_member() {
        for member in Offsets::MEMBERS {
            assert_eq!(member.path.split('.').count(), 2, "{}", member.path);
        }
    }
}
