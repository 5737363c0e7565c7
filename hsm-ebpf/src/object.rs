//! The kernel's structures: typed pointers with the few members that the programs look at.
//!
//! Offsets come from the running kernel's type information, see [`crate::settings`]. The verifier
//! knows them as constants and checks every access against the same type information; it follows
//! `file.f_inode` and `dentry.d_inode` as pointers that the kernel's functions accept.

use aya_ebpf::bindings::inode as RawInode;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use hsm_common::filter::{ABSENT, Uuid};

use crate::settings::setting;
use crate::task::Task;

/// Type bits of a mode.
const S_IFMT: u16 = 0o170_000;
/// A regular file.
const S_IFREG: u16 = 0o100_000;

/// `FS_OPEN_PERM` of `<linux/fsnotify_backend.h>`: somebody is asked about opens.
const FS_OPEN_PERM: u32 = 0x0001_0000;

/// `FS_PRE_ACCESS` of the same: somebody is asked about accesses to the content.
const FS_PRE_ACCESS: u32 = 0x0010_0000;
/// `FS_PRE_MODIFY` of the kernel's patches: somebody is told which of them may change it.
const FS_PRE_MODIFY: u32 = 0x0020_0000;

/// `O_TRUNC` of `<asm-generic/fcntl.h>`.
const O_TRUNC: u32 = 0o1000;

/// `FMODE_NONOTIFY` of `<linux/fs.h>`.
const FMODE_NONOTIFY: u32 = 1 << 25;
/// `FMODE_NONOTIFY_PERM` of `<linux/fs.h>`.
const FMODE_NONOTIFY_PERM: u32 = 1 << 26;

/// `FMODE_BACKING` of `<linux/fs.h>`.
const FMODE_BACKING: u32 = 1 << 24;
/// `MNT_NS_INTERNAL` of the kernel's `fs/mount.h`: `ERR_PTR(-EINVAL)`.
const MNT_NS_INTERNAL: u64 = (-22i64).cast_unsigned();

/// `BTRFS_SUPER_MAGIC` of `<linux/magic.h>`.
const BTRFS_MAGIC: u64 = 0x9123_683e;
/// `XFS_SUPER_MAGIC` of `<linux/magic.h>`.
const XFS_MAGIC: u64 = 0x5846_5342;

macro_rules! object {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name(*const u8);

        impl $name {
            /// Reads a member.
            #[inline(always)]
            fn get<T: Copy>(self, offset: u32) -> T {
                // SAFETY: the verifier checks offset and size against the structure.
                unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() }
            }
        }
    };
}

macro_rules! argument {
    ($($name:ident)*) => {
        $(impl $name {
            /// Takes a program's argument.
            ///
            /// # Safety
            /// The argument is a pointer to this structure.
            #[inline(always)]
            pub unsafe fn new(argument: *const u8) -> Self {
                Self(argument)
            }
        })*
    };
}

argument! { File Dentry Path Attributes }

object! {
    /// `struct file`.
    File
}
object! {
    /// `struct dentry`.
    Dentry
}
object! {
    /// `struct path`.
    Path
}
object! {
    /// `struct inode`.
    Inode
}
object! {
    /// `struct super_block`.
    SuperBlock
}
object! {
    /// `struct iattr`.
    Attributes
}

impl File {
    /// For the kernel's functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *const u8 {
        self.0
    }

    /// The inode.
    #[inline(always)]
    pub fn inode(self) -> Inode {
        Inode(self.get(setting!(offsets.file_inode)))
    }

    /// Whether fanotify never asks about this open: a listener's own event descriptor.
    #[inline(always)]
    pub fn is_silent(self) -> bool {
        let mode: u32 = self.get(setting!(offsets.file_mode));
        mode & (FMODE_NONOTIFY | FMODE_NONOTIFY_PERM) == FMODE_NONOTIFY
    }

    /// Whether fanotify asks about accesses to the content of this open file: decided between the two
    /// programs of an open, for good.
    #[inline(always)]
    pub fn is_asked_about(self) -> bool {
        let mode: u32 = self.get(setting!(offsets.file_mode));
        let silent = mode & (FMODE_NONOTIFY | FMODE_NONOTIFY_PERM);
        silent == 0 || silent == FMODE_NONOTIFY | FMODE_NONOTIFY_PERM
    }

    /// Whether the open empties the file. fanotify does not ask about that.
    #[inline(always)]
    pub fn is_emptied(self) -> bool {
        let flags: u32 = self.get(setting!(offsets.file_flags));
        flags & O_TRUNC != 0
    }
}

impl File {
    /// Whether another file system (overlayfs) opens this one for itself, to read it or to copy it up.
    /// `file_post_open` does not follow then.
    #[inline(always)]
    pub fn is_beneath(self) -> bool {
        let mode: u32 = self.get(setting!(offsets.file_mode));
        if mode & FMODE_BACKING != 0 {
            return true;
        }
        let path = setting!(offsets.file_path) + setting!(offsets.path_mount);
        let inside = probe((self.0 as u64).wrapping_add(u64::from(path)));
        let mount = inside.wrapping_sub(u64::from(setting!(offsets.mount_inside)));
        let namespace = mount.wrapping_add(u64::from(setting!(offsets.mount_namespace)));
        probe(namespace) == MNT_NS_INTERNAL
    }

    /// Whether the thread has come to this file by following a path, and opens what it came to (`do_open` of
    /// the kernel's `fs/namei.c`): `file_post_open` follows then. Other openers begin with an inode in hand
    /// (`dentry_open`); nfsd calls that hook itself, the others do not.
    #[inline(always)]
    pub fn is_walked_to(self) -> bool {
        let walk = Task::current().walk();
        if walk == 0 {
            return false;
        }
        let come = walk.wrapping_add(u64::from(setting!(offsets.walk_path)));
        let opened = (self.0 as u64).wrapping_add(u64::from(setting!(offsets.file_path)));
        [setting!(offsets.path_mount), setting!(offsets.path_dentry)].iter().all(|&member| {
            let member = u64::from(member);
            probe(come.wrapping_add(member)) == probe(opened.wrapping_add(member))
        })
    }
}

impl Dentry {
    /// For the kernel's functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *const u8 {
        self.0
    }

    /// The inode, unless the entry is negative.
    #[inline(always)]
    pub fn inode(self) -> Option<Inode> {
        let inode: *const u8 = self.get(setting!(offsets.dentry_inode));
        if inode.is_null() { None } else { Some(Inode(inode)) }
    }
}

impl Path {
    /// The directory entry. Not a pointer that the kernel's attribute functions accept.
    #[inline(always)]
    pub fn dentry(self) -> Dentry {
        Dentry(self.get(setting!(offsets.path_dentry)))
    }
}

impl Inode {
    /// For the kernel's functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut RawInode {
        self.0.cast_mut().cast()
    }

    /// Whether this is a regular file: nothing else is ever marked.
    #[inline(always)]
    pub fn is_regular(self) -> bool {
        let mode: u16 = self.get(setting!(offsets.inode_mode));
        mode & S_IFMT == S_IFREG
    }

    /// The file system.
    #[inline(always)]
    pub fn superblock(self) -> SuperBlock {
        SuperBlock(self.get(setting!(offsets.inode_sb)))
    }

    /// Whether somebody is asked about opens of this very inode.
    #[inline(always)]
    pub fn is_watched(self) -> bool {
        let mask: u32 = self.get(setting!(offsets.inode_mask));
        mask & FS_OPEN_PERM != 0
    }

    /// Inode number.
    #[inline(always)]
    pub fn number(self) -> u64 {
        self.get(setting!(offsets.inode_ino))
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn size(self) -> u64 {
        self.get(setting!(offsets.inode_size))
    }

    /// Generation.
    #[inline(always)]
    pub fn generation(self) -> u32 {
        self.get(setting!(offsets.inode_generation))
    }

    /// Object id of the btrfs subvolume; zero elsewhere and where it cannot be known.
    #[inline(always)]
    pub fn subvolume(self) -> u64 {
        let inside = setting!(offsets.btrfs_vfs_inode);
        let root = setting!(offsets.btrfs_inode_root);
        let key = setting!(offsets.btrfs_root_key);
        let objectid = setting!(offsets.btrfs_key_objectid);
        if inside == ABSENT || root == ABSENT || key == ABSENT || objectid == ABSENT {
            return 0;
        }
        if self.superblock().magic() != BTRFS_MAGIC {
            return 0;
        }
        let whole = (self.0 as u64).wrapping_sub(u64::from(inside));
        let tree = probe(whole.wrapping_add(u64::from(root)));
        probe(tree.wrapping_add(u64::from(key)).wrapping_add(u64::from(objectid)))
    }
}

impl SuperBlock {
    /// UUID of the file system; zeros where it has none.
    #[inline(always)]
    pub fn uuid(self) -> Uuid {
        let at = setting!(offsets.sb_uuid);
        let halves: [u64; 2] = [self.get(at), self.get(at + 8)];
        // SAFETY: both are 16 bytes of plain old data.
        unsafe { core::mem::transmute(halves) }
    }

    /// Device number.
    #[inline(always)]
    pub fn device(self) -> u32 {
        self.get(setting!(offsets.sb_device))
    }

    /// Whether somebody is asked about every open of this file system.
    #[inline(always)]
    pub fn is_watched(self) -> bool {
        let mask: u32 = self.get(setting!(offsets.sb_mask));
        mask & FS_OPEN_PERM != 0
    }

    /// Whether somebody is asked about accesses to the content of its files, and told which of them
    /// are changes: only agents want to know that. (A stock listener's mark does not count, which goes
    /// when the listener does. Another agent's would, but it has a file system of its own.)
    #[inline(always)]
    pub fn is_content_watched(self) -> bool {
        const BOTH: u32 = FS_PRE_ACCESS | FS_PRE_MODIFY;
        let mask: u32 = self.get(setting!(offsets.sb_mask));
        mask & BOTH == BOTH
    }

    /// Whether events say that an access may change the content.
    #[inline(always)]
    pub fn tells_modifications(self) -> bool {
        let mask: u32 = self.get(setting!(offsets.sb_mask));
        mask & FS_PRE_MODIFY != 0
    }

    /// Whether this is an XFS.
    #[inline(always)]
    pub fn is_xfs(self) -> bool {
        self.magic() == XFS_MAGIC
    }

    #[inline(always)]
    fn magic(self) -> u64 {
        self.get(setting!(offsets.sb_magic))
    }
}

impl Attributes {
    /// What is to be changed: bits of `<linux/fs.h>`.
    #[inline(always)]
    pub fn valid(self) -> u32 {
        self.get(setting!(offsets.iattr_valid))
    }

    /// The new size, if that is to be changed.
    #[inline(always)]
    pub fn size(self) -> u64 {
        self.get(setting!(offsets.iattr_size))
    }
}

/// Reads a word that the verifier knows nothing about; zero where there is no memory.
#[inline(always)]
fn probe(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper reads any address and writes 8 bytes (or zeros) to `value`.
    unsafe {
        bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _);
    }
    value
}
