//! The agent's side of the shared maps. Their layout is [`hsm_common::filter`]'s.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use bytemuck::{Pod, Zeroable};
use hsm_common::filter::{self, Server, Trust, Wait};

use super::counters::{self, Counts};
use super::{BpfError, Requests, pin};
use crate::sys::process;
use crate::sys::task_storage::TaskStorage;

pub use hsm_common::filter::Uuid;

/// What the programs do about marked files of a covered file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Refuse what nobody watches; never ask. An open passes only while the file system carries a
    /// watch for opens *and* a server is registered ([`Maps::serve`]): a watch alone could be
    /// somebody else's.
    Guard,
    /// Ask the server for a watch on the inode.
    Filter,
}

impl Mode {
    fn code(self) -> u32 {
        match self {
            Self::Guard => filter::MODE_GUARD,
            Self::Filter => filter::MODE_FILTER,
        }
    }
}

/// The agent's side of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The file is online; a truncation's recall is done.
    Online,
    /// There is a watch on the inode now.
    Watched,
    /// Refuse with this (positive) error number.
    Refuse(i32),
    /// Still at work. Any value that differs from the last one renews the opener's patience.
    Beat(u32),
}

/// Update only what is there: `<linux/bpf.h>`.
const BPF_EXIST: u64 = 2;

type Table<K, V> = Mutex<HashMap<MapData, K, V>>;

/// The pinned maps.
pub struct Maps {
    dir: PathBuf,
    filesystems: Table<Uuid, u32>,
    classes: Mutex<Array<MapData, u64>>,
    trusted: TaskStorage<{ size_of::<Trust>() }>,
    server: Mutex<Array<MapData, [u8; size_of::<Server>()]>>,
    waits: Table<u64, [u8; size_of::<Wait>()]>,
    counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Maps {
    /// The maps of programs that are pinned below `base` and have this version's layout. `None`:
    /// there are none, see [`Guard::install`](super::Guard::install).
    pub fn open(base: &Path) -> Result<Option<Self>, BpfError> {
        pin::current(base)?.map(|dir| Self::open_in(&dir)).transpose()
    }

    /// Opens the maps that are pinned in `dir`.
    pub(super) fn open_in(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            dir: dir.to_owned(),
            filesystems: Mutex::new(open(dir, filter::FILESYSTEMS)?),
            classes: Mutex::new(open(dir, filter::CLASSES)?),
            trusted: task_storage(dir, filter::TRUSTED)?,
            server: Mutex::new(open(dir, filter::SERVER)?),
            waits: Mutex::new(open(dir, filter::WAITS)?),
            counters: open(dir, filter::COUNTERS)?,
        })
    }

    /// Covers a file system, mounted or not; changes the mode of one that is covered.
    pub fn cover(&self, uuid: Uuid, mode: Mode) -> Result<(), BpfError> {
        if uuid == Uuid::default() {
            return Err(BpfError::NoUuid);
        }
        // The programs look at the class first.
        lock(&self.classes)
            .set(filter::class(&uuid), 1, 0)
            .map_err(failed(filter::CLASSES, "covering a file system"))?;
        lock(&self.filesystems)
            .insert(uuid, mode.code(), 0)
            .map_err(failed(filter::FILESYSTEMS, "covering a file system"))
    }

    /// Stops covering a file system. `false`: it was not covered.
    pub fn uncover(&self, uuid: Uuid) -> Result<bool, BpfError> {
        let result = lock(&self.filesystems).remove(&uuid);
        absent_is_false(result)
            .map_err(failed(filter::FILESYSTEMS, "no longer covering a file system"))
    }

    /// The covered file systems.
    pub fn covered(&self) -> Result<Vec<(Uuid, Mode)>, BpfError> {
        covered(&lock(&self.filesystems))
    }

    /// The file systems that are covered by the maps in `dir`, which may lack maps of this version.
    pub(super) fn covered_in(dir: &Path) -> Result<Vec<(Uuid, Mode)>, BpfError> {
        covered(&open(dir, filter::FILESYSTEMS)?)
    }

    /// Lets a process open marked files as it likes, change hsm's attributes, and be asked about
    /// by nobody. Ends with the process, and is not inherited by its children.
    pub fn exempt(&self, pid: u32) -> Result<(), BpfError> {
        self.trust(pid, |trust| trust.flags |= filter::TRUST_EXEMPT)
    }

    /// Takes the exemption back. `false`: there was none.
    pub fn unexempt(&self, pid: u32) -> Result<bool, BpfError> {
        let mut was = false;
        self.trust(pid, |trust| {
            was = trust.flags & filter::TRUST_EXEMPT != 0;
            trust.flags &= !filter::TRUST_EXEMPT;
        })?;
        Ok(was)
    }

    /// Whether a process is exempt.
    pub fn is_exempt(&self, pid: u32) -> Result<bool, BpfError> {
        let trust = self.trust_of(&open_process(pid)?, pid)?;
        Ok(trust.flags & filter::TRUST_EXEMPT != 0)
    }

    /// Declares a process to be the one that serves requests, in either mode. Ends with the
    /// process; while nobody serves, whoever would ask is refused at once with `EAGAIN`.
    pub fn serve(&self, pid: u32) -> Result<(), BpfError> {
        let serial = rand::random::<u64>() | 1;
        self.trust(pid, |trust| {
            trust.flags |= filter::TRUST_SERVER;
            trust.serial = serial;
        })?;
        self.set_server(Server { serial, pid, reserved: 0 })?;
        // The program that runs at the end of a process finds the serial number from now on. Has
        // the end begun before, it may have run in between.
        if process::is_ending(pid) {
            self.set_server(Server::zeroed())?;
            let source = io::Error::from_raw_os_error(libc::ESRCH);
            return Err(BpfError::Process { pid, source });
        }
        Ok(())
    }

    /// The process that serves requests, as [`serve`](Self::serve) was told.
    pub fn server(&self) -> Result<Option<u32>, BpfError> {
        let bytes = lock(&self.server).get(&0, 0).map_err(failed(filter::SERVER, "reading"))?;
        let server: Server = bytemuck::pod_read_unaligned(&bytes);
        Ok((server.serial != 0).then_some(server.pid))
    }

    fn set_server(&self, server: Server) -> Result<(), BpfError> {
        lock(&self.server)
            .set(0, bytes(&server), 0)
            .map_err(failed(filter::SERVER, "registering the server"))
    }

    fn trust(&self, pid: u32, change: impl FnOnce(&mut Trust)) -> Result<(), BpfError> {
        let process = open_process(pid)?;
        let mut trust = self.trust_of(&process, pid)?;
        change(&mut trust);
        self.trusted
            .set(&process, &bytes(&trust))
            .map_err(|source| BpfError::Process { pid, source })
    }

    fn trust_of(&self, process: &OwnedFd, pid: u32) -> Result<Trust, BpfError> {
        let value = self.trusted.get(process);
        let value = value.map_err(|source| BpfError::Process { pid, source })?;
        Ok(value.map_or(Trust::default(), |bytes| bytemuck::pod_read_unaligned(&bytes)))
    }

    /// The requests. There is one queue: two readers would take each other's.
    pub fn requests(&self) -> Result<Requests, BpfError> {
        Requests::open(map(&self.dir, filter::REQUESTS)?)
    }

    /// Answers a request. `false`: the opener has left, and nothing was changed.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<bool, BpfError> {
        let wait = match answer {
            Answer::Online => Wait { verdict: filter::ANSWER_ONLINE, beat: 0 },
            Answer::Watched => Wait { verdict: filter::ANSWER_WATCHED, beat: 0 },
            Answer::Refuse(errno) => Wait { verdict: -errno.clamp(1, 4095), beat: 0 },
            Answer::Beat(beat) => Wait { verdict: 0, beat },
        };
        absent_is_false(lock(&self.waits).insert(id, bytes(&wait), BPF_EXIST))
            .map_err(failed(filter::WAITS, "answering a request"))
    }

    /// Number of openers that wait now.
    pub fn waiting(&self) -> Result<usize, BpfError> {
        let map = lock(&self.waits);
        map.keys()
            .try_fold(0, |count, key| key.map(|_| count + 1))
            .map_err(failed(filter::WAITS, "counting"))
    }

    /// What the programs counted since they were first installed.
    pub fn counters(&self) -> Result<Counts, BpfError> {
        counters::read(&self.counters)
    }
}

fn covered(map: &HashMap<MapData, Uuid, u32>) -> Result<Vec<(Uuid, Mode)>, BpfError> {
    let mode = |code| if code == filter::MODE_FILTER { Mode::Filter } else { Mode::Guard };
    map.iter()
        .map(|entry| entry.map(|(uuid, code)| (uuid, mode(code))))
        .collect::<Result<_, _>>()
        .map_err(failed(filter::FILESYSTEMS, "listing"))
}

fn map(dir: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(dir.join(name)).map_err(failed(name, "opening"))
}

fn open<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &'static str) -> Result<M, BpfError> {
    let opened = Map::from_map_data(map(dir, name)?).and_then(M::try_from);
    opened.map_err(failed(name, "opening"))
}

fn task_storage<const N: usize>(
    dir: &Path,
    name: &'static str,
) -> Result<TaskStorage<N>, BpfError> {
    let fd = map(dir, name)?.fd().as_fd().try_clone_to_owned();
    fd.and_then(TaskStorage::new).map_err(|source| BpfError::Pin {
        path: dir.join(name),
        doing: "opening a map of task storage",
        source,
    })
}

fn open_process(pid: u32) -> Result<OwnedFd, BpfError> {
    process::open(pid).map_err(|source| BpfError::Process { pid, source })
}

fn bytes<T: Pod, const N: usize>(value: &T) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(bytemuck::bytes_of(value));
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(map: &'static str, doing: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { map, doing, source: Box::new(source) }
}

fn absent_is_false(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
