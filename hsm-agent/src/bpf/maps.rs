//! The agent's side of the shared maps. Their layout is [`hsm_common::filter`]'s.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use bytemuck::{Pod, Zeroable};
use hsm_common::filter::{self, Process, Wait};

use super::counters::{self, Counts};
use super::{BpfError, Requests, pin};
use crate::sys::process;

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
    exempt: Table<u32, u64>,
    server: Mutex<Array<MapData, [u8; size_of::<Process>()]>>,
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
            exempt: Mutex::new(open(dir, filter::EXEMPT)?),
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
        let map = lock(&self.filesystems);
        let mode = |code| if code == filter::MODE_FILTER { Mode::Filter } else { Mode::Guard };
        map.iter()
            .map(|entry| entry.map(|(uuid, code)| (uuid, mode(code))))
            .collect::<Result<_, _>>()
            .map_err(failed(filter::FILESYSTEMS, "listing"))
    }

    /// Lets a process open marked files as it likes, change hsm's attributes, and be asked about
    /// by nobody. Ends with the process.
    pub fn exempt(&self, pid: u32) -> Result<(), BpfError> {
        let start = start(pid)?;
        lock(&self.exempt)
            .insert(pid, start, 0)
            .map_err(failed(filter::EXEMPT, "exempting a process"))
    }

    /// Takes the exemption back. `false`: there was none.
    pub fn unexempt(&self, pid: u32) -> Result<bool, BpfError> {
        let result = lock(&self.exempt).remove(&pid);
        absent_is_false(result).map_err(failed(filter::EXEMPT, "taking an exemption back"))
    }

    /// The exempt processes.
    pub fn exempted(&self) -> Result<Vec<Process>, BpfError> {
        let map = lock(&self.exempt);
        map.iter()
            .map(|entry| entry.map(|(tgid, start)| Process { start, tgid, reserved: 0 }))
            .collect::<Result<_, _>>()
            .map_err(failed(filter::EXEMPT, "listing"))
    }

    /// Declares a process to be the one that serves requests, in either mode. Ends with the
    /// process; while nobody serves, whoever would ask is refused at once with `EAGAIN`.
    pub fn serve(&self, pid: u32) -> Result<(), BpfError> {
        let begin = start(pid)?;
        self.set_server(Process { start: begin, tgid: pid, reserved: 0 })?;
        // It may have ended before the entry was there to be cleared.
        if start(pid).ok() != Some(begin) {
            self.set_server(Process::zeroed())?;
            let source = io::Error::from_raw_os_error(libc::ESRCH);
            return Err(BpfError::Process { pid, source });
        }
        Ok(())
    }

    /// The process that serves requests.
    pub fn server(&self) -> Result<Option<Process>, BpfError> {
        let bytes = lock(&self.server).get(&0, 0).map_err(failed(filter::SERVER, "reading"))?;
        let process: Process = bytemuck::pod_read_unaligned(&bytes);
        Ok((process.tgid != 0).then_some(process))
    }

    pub(super) fn set_server(&self, process: Process) -> Result<(), BpfError> {
        lock(&self.server)
            .set(0, bytes(&process), 0)
            .map_err(failed(filter::SERVER, "registering the server"))
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

fn map(dir: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(dir.join(name)).map_err(failed(name, "opening"))
}

fn open<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &'static str) -> Result<M, BpfError> {
    let opened = Map::from_map_data(map(dir, name)?).and_then(M::try_from);
    opened.map_err(failed(name, "opening"))
}

fn start(pid: u32) -> Result<u64, BpfError> {
    process::start_ticks(pid).map_err(|source| BpfError::Process { pid, source })
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
