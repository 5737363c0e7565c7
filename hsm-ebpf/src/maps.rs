//! The maps; their layout is `hsm_common::filter`'s.

use aya_ebpf::btf_maps::{Array, HashMap, InodeStorage, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::macros::btf_map;
use hsm_common::filter::{
    Cached, Counter, Coverage, MAX_ANSWERS, MAX_FILESYSTEMS, MAX_WAITS, RING_BYTES, Reply, Request,
    Server, Trust, UUID_CLASSES, UnderWay, Uuid,
};
use hsm_common::resident::Resident;

use crate::task_storage::TaskStorage;
use crate::told::Told;

/// Covered file systems.
#[btf_map]
pub static FILESYSTEMS: PerCpuHashMap<Uuid, Coverage, { MAX_FILESYSTEMS as usize }> =
    PerCpuHashMap::new();

/// Classes of UUIDs with a covered file system among them.
#[btf_map]
pub static CLASSES: Array<u64, { UUID_CLASSES as usize }> = Array::new();

/// What processes are trusted with.
#[btf_map]
pub static TRUSTED: TaskStorage<Trust> = TaskStorage::new();

/// Opens that have passed the first program, of files that are not known to be online.
#[btf_map]
pub static UNDER_WAY: TaskStorage<UnderWay> = TaskStorage::new();

/// How many threads have one.
#[btf_map]
pub static IN_FLIGHT: Array<u64, 1> = Array::new();

/// Whether the program behind `file_post_open` is attached.
#[btf_map]
pub static ARMED: Array<u64, 1> = Array::new();

/// Who serves requests.
#[btf_map]
pub static SERVER: Array<Server, 1> = Array::new();

/// Questions to the server.
#[btf_map]
pub static REQUESTS: RingBuf<Request, { RING_BYTES as usize }> = RingBuf::new();

/// Those who wait for an answer, each with its beat.
#[btf_map]
pub static WAITS: HashMap<u64, u64, { MAX_WAITS as usize }> = HashMap::new();

/// The answers.
#[btf_map]
pub static ANSWERS: HashMap<u64, Reply, { MAX_ANSWERS as usize }> = HashMap::new();

/// Cached verdicts.
#[btf_map]
pub static VERDICTS: InodeStorage<Cached> = InodeStorage::new();

/// Files whose marker's removal is not durable.
#[btf_map]
pub static HELD: InodeStorage<u64> = InodeStorage::new();

/// What is local of partial files.
#[btf_map]
pub static RESIDENT: InodeStorage<Resident> = InodeStorage::new();

/// What happened.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// What of it was told of late. Not pinned: each set of programs minds its own.
#[btf_map]
pub static TOLD: PerCpuArray<Told, 1> = PerCpuArray::new();

/// The last request's number. A map, not a global: it is kept when the programs are replaced.
#[btf_map]
pub static NUMBERS: Array<u64, 1> = Array::new();

/// Where the kernel puts a marker's bytes. Nobody reads them, so writers need not agree.
#[btf_map]
pub static SCRATCH: Array<[u8; 64], 1> = Array::new();
