//! The configuration as the rest of the program sees it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use hsm_common::marker::MARKER_XATTR;
use serde::Deserialize;

use crate::core::Subtrees;
use crate::store::StoreConfig;
use crate::store::object::Compression;

/// Form of the agent's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object per line.
    Json,
}

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Directory of the catalogues. Never on a managed file system.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Directory of the kernel programs, on a bpf file system.
    pub bpf_dir: PathBuf,
    /// Filter in the syntax of `tracing`.
    pub log: String,
    /// Form of the log.
    pub log_format: LogFormat,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/hsm".into(),
            socket: "/run/hsm/hsm.sock".into(),
            bpf_dir: "/sys/fs/bpf/hsm".into(),
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

impl AgentConfig {
    /// Where it is remembered which file system a pool lies on.
    pub fn uuid_path(&self, pool: &str) -> PathBuf {
        self.state_dir.join(format!("{pool}.uuid"))
    }

    /// Where the catalogue of a pool is.
    pub fn catalog_path(&self, pool: &str) -> PathBuf {
        self.state_dir.join(format!("{pool}.db"))
    }

    /// Where the identity of a pool's local store is remembered. Beside the catalogue and not in it:
    /// the catalogue can be made anew at any time, also while the store is away.
    pub fn store_identity_path(&self, pool: &str) -> PathBuf {
        self.state_dir.join(format!("{pool}.store"))
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Chunk buffers of all recalls together.
    pub recall_memory: ByteSize,
    /// Chunks in flight per recall.
    pub recall_parallel: u32,
    /// Recalls at once.
    pub recalls: u32,
    /// Of these, for users who have one running already.
    pub recalls_per_user: u32,
    /// Of these, from local stores. Absent: twice the processors.
    pub local_recalls_per_user: Option<u32>,
    /// Readers who wait at once.
    pub waiting: u32,
    /// Of these, of one user.
    pub waiting_per_user: u32,
    /// Worker threads for archive, release and bulk recall.
    pub bulk_jobs: u32,
    /// After this the blocked reader gets an error.
    #[serde(with = "humantime_serde")]
    pub recall_deadline: Duration,
    /// Files that share one durability step of a release.
    pub release_batch: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            recall_memory: ByteSize::mib(32),
            recall_parallel: 4,
            recalls: 16,
            recalls_per_user: 12,
            local_recalls_per_user: None,
            waiting: 32_768,
            waiting_per_user: 16_384,
            bulk_jobs: 2,
            recall_deadline: Duration::from_secs(5 * 60),
            release_batch: 1024,
        }
    }
}

/// How much of a file an access brings back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecallMode {
    /// What the tier does best: the chunks that are read in tier mark-filter, otherwise all of it.
    #[default]
    Auto,
    /// All of it: before the open returns, or in tier mark-filter before the first access does.
    Whole,
    /// The chunks that are read; in tier user-filter for programs that are known to read ranges.
    Range,
}

/// Which way of noticing accesses a pool asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierChoice {
    /// The best one that this kernel and this pool's other options allow.
    #[default]
    Auto,
    /// Only this one.
    MarkFilter,
    /// Only this one.
    LsmFilter,
    /// Only this one.
    UserFilter,
}

/// How a new object is checked before the record says that it exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// The store's own acknowledgement.
    #[default]
    None,
    /// Read back and compared.
    Readback,
}

/// Who may read ranges of an offline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangePrograms {
    /// These executables.
    Only(Vec<PathBuf>),
    /// Everyone.
    All,
}

/// Who always gets whole files, at open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholePrograms(pub Vec<PathBuf>);

impl WholePrograms {
    /// Whether an executable is among them: by its path, or by its name where only that is given.
    pub fn name(&self, program: &Path) -> bool {
        self.0.iter().any(|listed| {
            listed == program
                || listed.components().count() == 1
                    && program.file_name() == Some(listed.as_os_str())
        })
    }
}

/// GNU tar looks at the change time of what it has read, which a recall by ranges moves: "file
/// changed as we read it", and exit code 1.
impl Default for WholePrograms {
    fn default() -> Self {
        Self(vec!["tar".into()])
    }
}

/// One `[[pool]]`: a managed file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: String,
    /// The mount point.
    pub mount: PathBuf,
    /// Where below it files are archived and released.
    pub directories: Subtrees,
    /// How accesses are noticed.
    pub tier: TierChoice,
    /// How much an access brings back.
    pub recall: RecallMode,
    /// Who may read ranges with [`RecallMode::Range`]. In tier mark-filter an empty list means everybody.
    pub range_programs: RangePrograms,
    /// Who gets whole files even so.
    pub whole_programs: WholePrograms,
    /// Smaller files always come back whole.
    pub range_min_size: ByteSize,
    /// Let readers go on as soon as the data is in place, before it is durable.
    pub early_answer: bool,
    /// On a full file system, release archived files so that a recall has room.
    pub emergency_release: bool,
    /// Smaller files are not archived.
    pub min_size: ByteSize,
    /// Of new objects.
    pub compression: Compression,
    /// Of new objects.
    pub verify: Verify,
    /// Name of the marker attribute.
    pub marker: String,
    /// How long objects are kept that no file refers to.
    pub retention: Duration,
    /// Where the bytes go.
    pub store: StoreConfig,
}

impl PoolConfig {
    /// Whether a program may read ranges; `unlisted`: where the kernel asks about holes, so that
    /// everybody may if nobody is listed.
    pub fn lets_read_ranges(&self, program: &Path, unlisted: bool) -> bool {
        match &self.range_programs {
            RangePrograms::Only(list) if !list.is_empty() => {
                list.iter().any(|path| path == program)
            }
            RangePrograms::Only(_) if !unlisted => false,
            RangePrograms::Only(_) | RangePrograms::All => !self.whole_programs.name(program),
        }
    }
}

/// Default of [`PoolConfig::marker`].
pub(super) const DEFAULT_MARKER: &str = MARKER_XATTR;
