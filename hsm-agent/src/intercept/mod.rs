//! Making accesses to offline files reach the agent: one trait, one implementation per tier.
//!
//! What every tier promises: from [`Interceptor::watch`] on (in tier mark-filter: once the marker is
//! set as well), nobody but the agent gets at the file's content without the agent's answer; after [`Interceptor::pass_over`] the kernel may let accesses go on
//! by itself. `pass_over` is called only while the file is known to be online and no release of
//! it can start; a release calls `watch` before it takes its lease, and a recall calls
//! [`Interceptor::keep_watch`] before it moves anything.

mod choose;
mod lsm_filter;
mod mark_filter;
mod user_filter;

use std::fmt;
use std::io;

use crate::marker::ResidencyMap;
use crate::sys::fanotify::MarkTarget;

pub use choose::{Able, Chosen, choose};
pub use lsm_filter::LsmFilter;
pub(crate) use lsm_filter::WATCHED;
pub use mark_filter::{MarkFilter, let_go};
pub use user_filter::UserFilter;

/// How accesses are told apart, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Kernel with our patches: a program on the mark of the file system looks at the marker, and only
    /// accesses to offline files are asked about, with their range.
    MarkFilter,
    /// Stock kernel with BPF LSM, 6.15 or newer: a program at every open looks at the marker and has
    /// the agent put a watch on the one inode that is offline.
    LsmFilter,
    /// Stock kernel, 6.14 or newer: every first open of an inode asks the agent, which then tells
    /// the kernel to pass over it as long as it stays in memory.
    UserFilter,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MarkFilter => "mark-filter",
            Self::LsmFilter => "lsm-filter",
            Self::UserFilter => "user-filter",
        })
    }
}

/// The part that makes accesses to offline files reach the agent.
pub trait Interceptor: Send + Sync + fmt::Debug {
    /// Which one this is.
    fn tier(&self) -> Tier;

    /// Begins to watch the file system. May be called again on a watched one: it then also drops
    /// every earlier [`Self::pass_over`].
    fn attach(&self) -> io::Result<()>;

    /// The file is online: the kernel need not ask any more.
    fn pass_over(&self, file: MarkTarget<'_>) -> io::Result<()>;

    /// The kernel must ask about this file from now on.
    fn watch(&self, file: MarkTarget<'_>) -> io::Result<()>;

    /// The file is offline and about to be recalled: the kernel must go on asking when its marker
    /// is gone, because writers wait until the marker's removal is durable.
    fn keep_watch(&self, file: MarkTarget<'_>) -> io::Result<()>;

    /// These chunks of a partial file are resident and durable: reads of them may pass without a
    /// question. Of no effect where the kernel cannot tell ranges apart.
    fn resident(&self, _: MarkTarget<'_>, _: &ResidencyMap) -> io::Result<()> {
        Ok(())
    }

    /// Takes [`Self::resident`] back. Called while nobody can get at the file, before data goes.
    fn nothing_resident(&self, _: MarkTarget<'_>) -> io::Result<()> {
        Ok(())
    }
}
