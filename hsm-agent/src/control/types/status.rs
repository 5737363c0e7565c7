//! What the agent tells about itself, about blocked readers, and about single files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Reason, WirePath};
use crate::core::{FileState, ObjectId};
use crate::marker::{Facts, PolicyFlags};
use crate::sys::inode::Stat;

/// The agent as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Process of the engine, which answers here. `None` for callers who are not root.
    pub engine_pid: Option<u32>,
    /// Process of the holder.
    pub holder_pid: Option<u32>,
    /// What the kernel programs counted since they were installed, by name. Empty: there are none.
    #[serde(default)]
    pub programs: Vec<ProgramCount>,
    /// Seconds since the engine started.
    pub uptime_seconds: u64,
    /// Times that the holder started the engine again.
    pub engine_restarts: u64,
    /// Who waits for recalls, and how many may.
    #[serde(default)]
    pub queue: Queue,
    /// Every managed file system.
    pub pools: Vec<PoolStatus>,
}

impl Status {
    /// What everybody may know: no process ids, no places of stores, no users.
    pub fn reduced(mut self) -> Self {
        self.engine_pid = None;
        self.holder_pid = None;
        self.queue.users.clear();
        for pool in &mut self.pools {
            pool.store.description = None;
            pool.store.error = None;
        }
        self
    }
}

/// The recalls of all pools, and who waits for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Recalls that run.
    pub running: u64,
    /// `limits.recalls`.
    pub most_running: u64,
    /// `limits.recalls_per_user`.
    pub most_running_per_user: u64,
    /// `limits.local_recalls_per_user`.
    pub most_local_per_user: u64,
    /// Readers who wait.
    pub waiting: u64,
    /// `limits.waiting`, as far as there are descriptors.
    pub most_waiting: u64,
    /// `limits.waiting_per_user`, as far as there are descriptors.
    pub most_waiting_per_user: u64,
    /// Recalls of jobs that are queued.
    pub bulk_queued: u64,
    /// Every user with something in it, by number. Empty for callers who are not root.
    pub users: Vec<UserQueue>,
}

/// One user's part of the [`Queue`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserQueue {
    /// The user.
    pub uid: u32,
    /// Recalls that were begun on his account.
    pub running: u64,
    /// Recalls that wait for their turn. One that several users asked for counts for each.
    pub queued: u64,
    /// Blocked readers.
    pub waiting: u64,
}

/// One counter of the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCount {
    /// What was counted.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Name in the configuration.
    pub name: String,
    /// Mount point.
    pub mount: PathBuf,
    /// File system type, as in /proc/mounts.
    pub fs_type: String,
    /// Interceptor tier in use, for example `user-filter`.
    pub tier: String,
    /// Why this tier and no better one.
    pub tier_reason: String,
    /// Where the copies are.
    pub store: StoreStatus,
    /// Files and bytes by state, as the catalogue knows them.
    pub states: Vec<StateCount>,
    /// What happened since the engine started.
    pub counters: PoolCounters,
    /// How long readers waited.
    pub recall_latency: Latency,
    /// Objects that no file refers to, kept until their retention ends.
    pub retired_objects: u64,
}

/// The store of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Kind and place, without secrets. `None` for callers who are not root.
    pub description: Option<String>,
    /// Whether the last check or request worked; `None` before the first.
    pub ok: Option<bool>,
    /// The last error, when `ok` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Files in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCount {
    /// The state.
    pub state: FileState,
    /// Files in it.
    pub files: u64,
    /// Their logical bytes.
    pub bytes: u64,
}

/// Counters of one pool since the engine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCounters {
    /// Permission events that the kernel raised.
    pub events: u64,
    /// Events answered with an error.
    pub denials: u64,
    /// Of these, because too many readers waited (`limits.waiting`, `limits.waiting_per_user`).
    #[serde(default)]
    pub refused: u64,
    /// Recalls that brought a file or range back.
    pub recalls: u64,
    /// Recalls that failed.
    pub recalls_failed: u64,
    /// Recalls under way now.
    pub in_flight: u64,
    /// Bytes brought back.
    pub bytes_recalled: u64,
    /// Files archived.
    pub archived: u64,
    /// Bytes archived.
    pub bytes_archived: u64,
    /// Files released.
    pub released: u64,
    /// Bytes released.
    pub bytes_released: u64,
}

/// Time from event to answer of recalls, microseconds. `None` before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50_us: Option<u64>,
    /// 99th percentile.
    pub p99_us: Option<u64>,
}

/// One process that waits for data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// Number for `hsm waiters abort`.
    pub id: u64,
    /// Pool of the file.
    pub pool: String,
    /// The blocked process.
    pub pid: u32,
    /// Its user, if the process still exists.
    pub uid: Option<u32>,
    /// Its command name, if the process still exists.
    pub command: Option<String>,
    /// The file, as far as its path is known.
    #[serde(flatten)]
    pub path: WirePath,
    /// Waiting for so many milliseconds.
    pub since_ms: u64,
    /// What it waits for: `queued`, `fetching`, `syncing`, `retrying` …
    pub phase: String,
    /// Bytes of the wanted range that are back.
    pub bytes_done: u64,
    /// Bytes of the wanted range.
    pub bytes_total: u64,
}

/// Where one file's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReport {
    /// The file.
    #[serde(flatten)]
    pub path: WirePath,
    /// Its state.
    pub state: FileState,
    /// Must stay local.
    pub pinned: bool,
    /// Must not be archived.
    pub noarchive: bool,
    /// Logical size.
    pub size: u64,
    /// Bytes that it takes locally (allocated blocks).
    pub local_bytes: u64,
    /// The copy in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectId>,
    /// When the copy was made, seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<i64>,
    /// Anything worth a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl StateReport {
    /// Of what is known of the file.
    pub fn new(path: WirePath, facts: Facts, stat: &Stat) -> Self {
        Self {
            path,
            state: facts.state,
            pinned: facts.policy.contains(PolicyFlags::PINNED),
            noarchive: facts.policy.contains(PolicyFlags::NOARCHIVE),
            size: stat.size,
            local_bytes: stat.allocated,
            object: facts.object,
            archived_at: facts.copy.map(|copy| copy.archived_at_ns.div_euclid(1_000_000_000)),
            detail: facts.detail,
        }
    }
}

/// A path that could not be looked at. The others of the request can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathError {
    /// The path.
    #[serde(flatten)]
    pub path: WirePath,
    /// Why.
    pub reason: Reason,
    /// Why, for people.
    pub detail: String,
}

/// The answer for one path of a state request; in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateEntry {
    /// The file's state.
    File(StateReport),
    /// Why there is none.
    Error(PathError),
}
