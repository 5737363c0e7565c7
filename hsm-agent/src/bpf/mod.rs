//! Kernel programs: linking, loading, pinning, and talking to them.
//!
//! ```text
//! built-in object ─ kfunc (calls → ids) ─ load (settings, offsets, verifier) ─ pin ─┐
//!      /sys/kernel/btf/vmlinux ─ btf ──┘                                            │
//!                        agent ── maps (cover, exempt, serve, requests, answer) ── bpffs
//!                    its log ── told (what was refused, and why) ──────────────── bpffs
//! ```
//!
//! Those of the guard are attached by aya; the filter's ([`Filter`]) belong to a group of fanotify, which
//! `struct_ops` ties them to.
//!
//! The programs are pinned and outlive every agent: a marked file without an agent is refused, not
//! read as zeros. No policy lives here, and nothing waits.

mod btf;
mod counters;
mod error;
mod filter;
mod kernel;
mod kfunc;
mod load;
mod maps;
mod object;
mod pin;
mod probe;
mod remembered;
mod requests;
mod residency;
mod second_net;
mod struct_ops;
mod told;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hsm_common::marker::{MAP_XATTR, MARKER_XATTR, RECORD_XATTR};

pub use self::btf::Btf;
pub use self::counters::Counts;
pub use self::error::{BpfError, BtfError, LinkError};
pub use self::filter::{Filter, FilterPrograms, filter_probe};
pub use self::kfunc::link;
pub use self::maps::{Answer, Maps, Mode, Uuid};
pub use self::object::object;
pub use self::pin::Status;
pub use self::probe::{Probe, probe};
pub use self::remembered::{remember, remembered};
pub use self::requests::Requests;
pub use self::residency::Residency;
pub use self::second_net::{Disarmed, can_disarm};
pub use self::told::listen;

/// Where programs and maps are pinned.
pub const BASE: &str = "/sys/fs/bpf/hsm";

/// What the programs are told when they are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory on a bpffs below which everything is pinned.
    pub base: PathBuf,
    /// Name of the marker attribute: `security.bpf.*`, or `user.*` where anybody may forge it.
    pub marker: String,
    /// Name of the record attribute.
    pub record: String,
    /// Name of the residency map attribute.
    pub map: String,
    /// How long an open waits for a watch without progress.
    pub open_limit: Duration,
    /// How long `truncate(2)`, and an open by overlayfs, wait for a recall without progress.
    pub recall_limit: Duration,
    /// How long a kernel thread spins: it cannot let others run meanwhile.
    pub spin_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base: PathBuf::from(BASE),
            marker: MARKER_XATTR.to_owned(),
            record: RECORD_XATTR.to_owned(),
            map: MAP_XATTR.to_owned(),
            open_limit: Duration::from_secs(1),
            recall_limit: Duration::from_secs(30),
            spin_limit: Duration::from_millis(5),
        }
    }
}

/// The set of pinned programs.
#[derive(Debug)]
pub struct Guard;

impl Guard {
    /// Makes sure that the built-in programs are loaded with these settings, attached and pinned.
    ///
    /// Does nothing when they are, and fails before it creates anything where the kernel does not take
    /// programs ([`BpfError::Unavailable`]). Another version is replaced: the new programs are attached
    /// before the old ones are removed; the maps stay, or their coverage and server are copied
    /// where the new ones cannot use them.
    pub fn install(settings: &Settings) -> Result<Maps, BpfError> {
        pin::install(settings)
    }

    /// What is pinned below `base`.
    pub fn status(base: &Path) -> Result<Status, BpfError> {
        pin::status(base)
    }

    /// Directory of programs of another version that somebody may rely on: a registered agent, a filtered mark.
    pub fn relied_on(base: &Path) -> Result<Option<PathBuf>, BpfError> {
        pin::relied_on(base)
    }

    /// What [`Guard::unpin`] would remove.
    pub fn pinned(base: &Path) -> Result<Vec<PathBuf>, BpfError> {
        pin::pinned(base)
    }

    /// Detaches the programs below `base`, and returns when they are; removes everything there. Returns what was
    /// removed.
    pub fn unpin(base: &Path) -> Result<Vec<PathBuf>, BpfError> {
        pin::unpin(base)
    }
}
