//! The agent's side of the shared maps. Their layout is [`hsm_common::filter`]'s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use bytemuck::Pod;
use hsm_common::filter::{self, Cached, Reply, Server, Trust};
use hsm_common::resident::Resident;

use super::counters::{self, Counts};
use super::{BpfError, Requests, Residency, pin};
use crate::sys::local_storage::{InodeStorage, LocalStorage, TaskStorage};
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
    /// A group that fails closed has a mark on the file system ([`Filter`](super::Filter)), for
    /// FAN_PRE_ACCESS *and* FAN_PRE_MODIFY: that is how it is known. Pass what the mark asks about,
    /// whether anybody serves or not (the mark of a dead group denies by itself); without the mark,
    /// refuse. Opens with `O_TRUNC` and those of overlayfs, which the mark does not see, ask the server to
    /// recall the file, and are refused while nobody serves.
    ///
    /// A mark for both events of another program that stays after ours was taken away on purpose
    /// (FAN_MARK_REMOVE) would be taken for ours: uncover a file system, or change its mode, before its
    /// mark is removed.
    Mark,
}

impl Mode {
    fn code(self) -> u32 {
        match self {
            Self::Guard => filter::MODE_GUARD,
            Self::Filter => filter::MODE_FILTER,
            Self::Mark => filter::MODE_MARK,
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

/// Insert only what is not there: `<linux/bpf.h>`.
const BPF_NOEXIST: u64 = 1;
/// Update only what is there: `<linux/bpf.h>`.
const BPF_EXIST: u64 = 2;

/// Threads that end until the number of their process is known; one should do.
const INTRODUCTIONS: u32 = 1000;
/// Pause between them.
const INTERRUPTED: Duration = Duration::from_millis(1);

type Table<K, V> = Mutex<HashMap<MapData, K, V>>;
type Coverages = PerCpuHashMap<MapData, Uuid, u32>;

/// The pinned maps.
pub struct Maps {
    dir: PathBuf,
    id: u32,
    filesystems: Mutex<Coverages>,
    classes: Mutex<Array<MapData, u64>>,
    trusted: TaskStorage<{ size_of::<Trust>() }>,
    trusting: Mutex<()>,
    registering: Mutex<()>,
    server: Mutex<Array<MapData, [u8; size_of::<Server>()]>>,
    waits: Table<u64, u64>,
    answers: Table<u64, [u8; size_of::<Reply>()]>,
    verdicts: InodeStorage<{ size_of::<Cached>() }>,
    held: InodeStorage<{ size_of::<u64>() }>,
    resident: InodeStorage<{ size_of::<Resident>() }>,
    counters: PerCpuArray<MapData, u64>,
    pub(super) armed: Mutex<Array<MapData, u64>>,
    pub(super) in_flight: Mutex<Array<MapData, u64>>,
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
        let server = map(dir, filter::SERVER)?;
        let id = server.info().map_err(failed(filter::SERVER, "identifying"))?.id();
        let server = Map::from_map_data(server).and_then(Array::try_from);
        Ok(Self {
            dir: dir.to_owned(),
            id,
            filesystems: Mutex::new(open(dir, filter::FILESYSTEMS)?),
            classes: Mutex::new(open(dir, filter::CLASSES)?),
            trusted: local_storage(dir, filter::TRUSTED)?,
            trusting: Mutex::new(()),
            registering: Mutex::new(()),
            server: Mutex::new(server.map_err(failed(filter::SERVER, "opening"))?),
            waits: Mutex::new(open(dir, filter::WAITS)?),
            answers: Mutex::new(open(dir, filter::ANSWERS)?),
            verdicts: local_storage(dir, filter::VERDICTS)?,
            held: local_storage(dir, filter::HELD)?,
            resident: local_storage(dir, filter::RESIDENT)?,
            counters: open(dir, filter::COUNTERS)?,
            armed: Mutex::new(open(dir, filter::ARMED)?),
            in_flight: Mutex::new(open(dir, filter::IN_FLIGHT)?),
        })
    }

    /// The kernel's number for these maps (for that of `SERVER`): those that another set of programs of the
    /// same name has later are told from them by it, as long as somebody has them open.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where the maps are pinned.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Covers a file system, mounted or not; changes the mode of one that is covered.
    pub fn cover(&self, uuid: Uuid, mode: Mode) -> Result<(), BpfError> {
        if uuid == Uuid::default() {
            return Err(BpfError::NoUuid);
        }
        let covering = |map| failed(map, "covering a file system");
        // The programs look at the class first.
        lock(&self.classes).set(filter::class(&uuid), 1, 0).map_err(covering(filter::CLASSES))?;
        on_all_processors(mode.code())
            .and_then(|values| lock(&self.filesystems).insert(uuid, values, 0))
            .map_err(covering(filter::FILESYSTEMS))
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
        let map = Map::from_map_data(map(dir, filter::FILESYSTEMS)?);
        match map.map_err(listing())? {
            // Until version 4.
            Map::HashMap(map) => {
                let map = HashMap::<_, Uuid, u32>::try_from(Map::HashMap(map)).map_err(listing())?;
                let modes = map.iter().map(|entry| entry.map(|(uuid, code)| (uuid, mode(code))));
                modes.collect::<Result<_, _>>().map_err(listing())
            }
            map => covered(&map.try_into().map_err(listing())?),
        }
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

    /// Declares this process to be the one that serves requests, in any mode. Ends with the
    /// process; while nobody serves, whoever would ask is refused at once with `EAGAIN`.
    pub fn serve(&self) -> Result<(), BpfError> {
        let _one_at_a_time = lock(&self.registering);
        let pid = std::process::id();
        let own = open_process(pid)?;
        let serial = self.trust_server(&own, pid, |_| {})?;
        let number = self.introduce(&own, pid)?;
        self.set_server(Server { serial, pid, number, namespace: process::namespace() })
    }

    /// Declares the process that serves other maps, if one does, to serve these as well.
    pub(super) fn adopt(&self, from: &Self) -> Result<(), BpfError> {
        let Some(server) = from.living()? else { return Ok(()) };
        let pid = server.pid;
        let refused = |why: &str| BpfError::Process { pid, source: io::Error::other(why) };
        if server.namespace == 0 || server.namespace != process::namespace() {
            return Err(refused("it has this number in another PID namespace"));
        }
        // From here on it is the same process, whatever becomes of the number.
        let process = open_process(pid)?;
        let trust = from.trust_of(&process, pid)?;
        if !trust.is_server(server.serial) {
            return Err(refused("it is not the one that served"));
        }
        let serial = self.trust_server(&process, pid, |ours| {
            ours.flags |= trust.flags;
            ours.number = server.number;
        })?;
        self.set_server(Server { serial, ..server })
    }

    /// Until the entry with the new serial number is there, the older one stands.
    fn trust_server(
        &self,
        process: &OwnedFd,
        pid: u32,
        change: impl FnOnce(&mut Trust),
    ) -> Result<u64, BpfError> {
        let serial = rand::random::<u64>() | 1;
        self.trust_process(process, pid, |trust| {
            trust.flags |= filter::TRUST_SERVER;
            trust.previous = trust.serial;
            trust.serial = serial;
            change(trust);
        })?;
        Ok(serial)
    }

    /// Has a program tell the kernel's own number of this process: the one at a thread's end, which may be left out.
    fn introduce(&self, own: &OwnedFd, pid: u32) -> Result<u32, BpfError> {
        let failed = |source| BpfError::Process { pid, source };
        for turn in 0..INTRODUCTIONS {
            let number = self.trust_of(own, pid)?.number;
            if number != 0 {
                return Ok(number);
            }
            if turn > 0 {
                // Whom the thread's end interrupted is to go on.
                thread::sleep(INTERRUPTED);
            }
            let thread = thread::Builder::new().name("introduced".into()).spawn(|| ());
            // It cannot panic.
            let _ = thread.map_err(failed)?.join();
        }
        Err(failed(io::Error::other("the programs do not see its threads end")))
    }

    /// The process that serves requests, as [`serve`](Self::serve) was told. Where it cannot be told whether it still
    /// lives, it does.
    pub fn server(&self) -> Result<Option<u32>, BpfError> {
        Ok(self.living()?.map(|server| server.pid))
    }

    fn living(&self) -> Result<Option<Server>, BpfError> {
        let mut server = self.registered()?;
        // Who registers anew, and anew again, between two looks seems to be gone.
        while server.serial != 0 && self.is_over(&server) {
            let now = self.registered()?;
            if now.serial == server.serial {
                return Ok(None);
            }
            server = now;
        }
        Ok((server.serial != 0).then_some(server))
    }

    /// Whether anybody is registered in maps of another layout, which begins with the serial number in all that there
    /// were. Whether he lives is not known.
    pub(super) fn is_served_in(dir: &Path) -> Result<bool, BpfError> {
        let path = dir.join(filter::SERVER);
        if !path.try_exists().map_err(pin::failed(&path, "looking for a server"))? {
            return Ok(false);
        }
        let map = map(dir, filter::SERVER)?;
        let info = map.info().map_err(failed(filter::SERVER, "examining"))?;
        match info.value_size() {
            16 => serial_in::<16>(map),
            24 => serial_in::<24>(map),
            _ => Ok(u64::MAX),
        }
        .map(|serial| serial != 0)
    }

    /// Whether the process has ended for sure. A process number says nothing in another PID namespace.
    fn is_over(&self, server: &Server) -> bool {
        if server.namespace == 0 || server.namespace != process::namespace() {
            return false;
        }
        match process::open(server.pid) {
            // There is none, or a thread that is not its process's first has the number.
            Err(error) => {
                matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
            }
            Ok(process) => {
                let trust = self.trust_of(&process, server.pid);
                process::has_ended(&process) || trust.is_ok_and(|t| !t.is_server(server.serial))
            }
        }
    }

    fn registered(&self) -> Result<Server, BpfError> {
        let bytes = lock(&self.server).get(&0, 0).map_err(failed(filter::SERVER, "reading"))?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }

    fn set_server(&self, server: Server) -> Result<(), BpfError> {
        lock(&self.server)
            .set(0, bytes(&server), 0)
            .map_err(failed(filter::SERVER, "registering the server"))
    }

    fn trust(&self, pid: u32, change: impl FnOnce(&mut Trust)) -> Result<(), BpfError> {
        self.trust_process(&open_process(pid)?, pid, change)
    }

    fn trust_process(
        &self,
        process: &OwnedFd,
        pid: u32,
        change: impl FnOnce(&mut Trust),
    ) -> Result<(), BpfError> {
        let _one_at_a_time = lock(&self.trusting);
        let before = self.trust_of(process, pid)?;
        let mut trust = before;
        change(&mut trust);
        if trust == before {
            return Ok(());
        }
        self.trusted
            .set(process, &bytes(&trust))
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

    /// Answers a request. `false`: the opener has left, and nothing is left of it. The first answer stands.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<bool, BpfError> {
        let verdict = match answer {
            Answer::Online => filter::ANSWER_ONLINE,
            Answer::Watched => filter::ANSWER_WATCHED,
            Answer::Refuse(errno) => -errno.clamp(1, 4095),
            Answer::Beat(beat) => return self.beat(id, beat),
        };
        // Nearly everybody who waits for a watch has seen it by now.
        if !self.beat(id, 0)? {
            return Ok(false);
        }
        match lock(&self.answers).insert(id, bytes(&Reply::new(id, verdict)), BPF_NOEXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.map_err(failed(filter::ANSWERS, "answering a request"))?,
        }
        // Who leaves after this look takes the answer away.
        if self.beat(id, 0)? {
            return Ok(true);
        }
        absent_is_false(lock(&self.answers).remove(&id))
            .map_err(failed(filter::ANSWERS, "taking back an answer"))?;
        Ok(false)
    }

    /// `false`: nobody waits under this number. That is certain: an update looks under the lock of the map, while a
    /// mere look could miss an element that is being replaced.
    fn beat(&self, id: u64, beat: u32) -> Result<bool, BpfError> {
        absent_is_false(lock(&self.waits).insert(id, u64::from(beat), BPF_EXIST))
            .map_err(failed(filter::WAITS, "telling of progress"))
    }

    /// Has accesses to the file asked about although it has no marker: to be called before the marker is
    /// removed, and with [`forget`](Self::forget) before it is set. The descriptor may be `O_PATH`.
    ///
    /// It is kept with the inode in memory: whoever holds a file keeps it open until
    /// [`unhold`](Self::unhold), or the kernel may forget it. It outlives the caller; the next agent, asked
    /// about a file without a marker, makes sure that the removal is durable and lets go.
    pub fn hold(&self, file: BorrowedFd<'_>) -> Result<(), BpfError> {
        self.held.set(file, &1u64.to_ne_bytes()).map_err(stored(filter::HELD, "holding a file"))
    }

    /// Has the programs look at the file again, whatever they know of it. The descriptor may be `O_PATH`.
    pub fn forget(&self, file: BorrowedFd<'_>) -> Result<(), BpfError> {
        let result = self.verdicts.delete(file).map(drop);
        result.map_err(stored(filter::VERDICTS, "having a file looked at again"))
    }

    /// The removal of the marker is durable. Does nothing if the file is not held.
    pub fn unhold(&self, file: BorrowedFd<'_>) -> Result<(), BpfError> {
        self.held.delete(file).map(drop).map_err(stored(filter::HELD, "letting go of a file"))
    }

    /// Lets reads of what is local of a partial file pass without a question. To be called when those
    /// bytes are in the file and their bits durable; the map before is replaced as a whole.
    ///
    /// The descriptor may be `O_PATH`. The kernel forgets it with the inode, and when a marker is set.
    pub fn set_resident(&self, file: BorrowedFd<'_>, what: &Residency) -> Result<(), BpfError> {
        self.resident
            .set(file, &bytes(&what.0))
            .map_err(stored(filter::RESIDENT, "telling what is local of a file"))
    }

    /// Has every access asked about. To be called under the lease that proves that nobody has the file
    /// open, before data is taken away. Does nothing if nothing was told.
    pub fn clear_resident(&self, file: BorrowedFd<'_>) -> Result<(), BpfError> {
        let result = self.resident.delete(file).map(drop);
        result.map_err(stored(filter::RESIDENT, "telling that nothing is local of a file"))
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

fn covered(map: &Coverages) -> Result<Vec<(Uuid, Mode)>, BpfError> {
    let modes = map.iter().map(|entry| {
        entry.map(|(uuid, codes)| (uuid, mode(codes.first().copied().unwrap_or_default())))
    });
    modes.collect::<Result<_, _>>().map_err(listing())
}

fn mode(code: u32) -> Mode {
    match code {
        filter::MODE_FILTER => Mode::Filter,
        filter::MODE_MARK => Mode::Mark,
        _ => Mode::Guard,
    }
}

fn on_all_processors(code: u32) -> Result<PerCpuValues<u32>, MapError> {
    let count = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    PerCpuValues::try_from(vec![code; count]).map_err(MapError::IoError)
}

fn listing() -> impl Fn(MapError) -> BpfError {
    failed(filter::FILESYSTEMS, "listing")
}

fn map(dir: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(dir.join(name)).map_err(failed(name, "opening"))
}

fn open<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &'static str) -> Result<M, BpfError> {
    let opened = Map::from_map_data(map(dir, name)?).and_then(M::try_from);
    opened.map_err(failed(name, "opening"))
}

fn local_storage<const KIND: u32, const N: usize>(
    dir: &Path,
    name: &'static str,
) -> Result<LocalStorage<KIND, N>, BpfError> {
    let fd = map(dir, name)?.fd().as_fd().try_clone_to_owned();
    fd.and_then(LocalStorage::new).map_err(|source| BpfError::Pin {
        path: dir.join(name),
        doing: "opening a map of local storage",
        source,
    })
}

fn stored(map: &'static str, doing: &'static str) -> impl Fn(io::Error) -> BpfError {
    move |source| BpfError::Storage { map, doing, source }
}

fn serial_in<const N: usize>(map: MapData) -> Result<u64, BpfError> {
    let read = || -> Result<[u8; N], MapError> {
        Array::<_, [u8; N]>::try_from(Map::from_map_data(map)?)?.get(&0, 0)
    };
    let value = read().map_err(failed(filter::SERVER, "reading"))?;
    Ok(value.first_chunk().map_or(u64::MAX, |serial| u64::from_ne_bytes(*serial)))
}

fn open_process(pid: u32) -> Result<OwnedFd, BpfError> {
    process::open(pid).map_err(|source| BpfError::Process { pid, source })
}

fn bytes<T: Pod, const N: usize>(value: &T) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(bytemuck::bytes_of(value));
    bytes
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
