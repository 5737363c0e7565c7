//! The recording disks: a FUSE file system with one file per disk, for loop devices.
//!
//! ```text
//! file system ── loop device ── FUSE file ── this process ── backing file
//!   write, discard → WRITE, FALLOCATE        → log, backing
//!   flush, FUA     → FSYNC                   → log
//! ```
//! Direct IO keeps the page cache out of it: what a loop device says is done has arrived here. One thread
//! answers everything, so the log's order is that of the answers. The file system under test is never
//! touched by this process while it answers.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::log::{Change, Entry, Log, Write};

/// Nothing changes but contents: the kernel may remember for as long as a run takes.
const REMEMBER: Duration = Duration::from_secs(86_400);

/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE` and `| FALLOC_FL_ZERO_RANGE`, from linux/falloc.h.
const PUNCH_HOLE: i32 = 0x03;
const ZERO_RANGE: i32 = 0x11;

/// The mounted disks; unmounted when dropped. Whoever uses them must have let go by then.
#[derive(Debug)]
pub struct Disks {
    _session: BackgroundSession,
}

impl Disks {
    /// Serves `names` as files of `mount`, each backed by the file of that name in `backing`. Disk `n`
    /// of the log is the `n`th name.
    pub fn mount(mount: &Path, backing: &Path, names: &[&'static str], log: &Log) -> Result<Self> {
        let open = |name: &&'static str| {
            let file = OpenOptions::new().read(true).write(true).open(backing.join(name))?;
            let size = file.metadata()?.size();
            Ok(Recorded { name, file, size })
        };
        let disks = names.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let server = Server { disks, log: log.clone() };
        let session = fuser::spawn_mount(server, mount, &Config::default())
            .with_context(|| format!("mounting FUSE on {}", mount.display()))?;
        Ok(Self { _session: session })
    }
}

struct Recorded {
    name: &'static str,
    file: File,
    size: u64,
}

struct Server {
    disks: Vec<Recorded>,
    log: Log,
}

/// Inode 1 is the directory, disk `n` is inode `n + 2`.
const FIRST: u64 = 2;

impl Server {
    fn disk(&self, inode: INodeNo) -> Option<(usize, &Recorded)> {
        let index = usize::try_from(u64::from(inode).checked_sub(FIRST)?).ok()?;
        Some((index, self.disks.get(index)?))
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let directory = inode == INodeNo::ROOT;
        let size = if directory { 0 } else { self.disk(inode)?.1.size };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn write_to(&self, inode: INodeNo, write: Write) -> Result<(), Errno> {
        let (index, disk) = self.disk(inode).ok_or(Errno::ENOENT)?;
        apply(&disk.file, &write).map_err(Errno::from)?;
        self.log.push(Entry::Write(index, write));
        Ok(())
    }
}

/// Changes a range of an image.
pub(crate) fn apply(image: &File, write: &Write) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match &write.change {
        Change::Data(bytes) => image.write_all_at(bytes, write.offset),
        Change::Zeros(length) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(image, flags, write.offset, *length)?)
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let index = self.disks.iter().position(|disk| OsStr::new(disk.name) == name);
        let inode = index.map(|index| INodeNo(index as u64 + FIRST));
        match inode.and_then(|inode| self.attributes(inode)) {
            Some(attributes) => reply.entry(&REMEMBER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&REMEMBER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, disk)) = self.disk(inode) else { return reply.error(Errno::ENOENT) };
        let length = u64::from(size).min(disk.size.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        match disk.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_to(inode, Write { offset, change: Change::Data(data.into()) }) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if !matches!(mode, PUNCH_HOLE | ZERO_RANGE) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        match self.write_to(inode, Write { offset, change: Change::Zeros(length) }) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some((index, _)) = self.disk(inode) else { return reply.error(Errno::ENOENT) };
        self.log.push(Entry::Flush(index));
        reply.ok();
    }
}
