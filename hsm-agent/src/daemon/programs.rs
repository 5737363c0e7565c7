//! The kernel programs as the engine uses them: loaded before anything is watched, told about each
//! file system once its watch is in place.
//!
//! Order, so that nobody waits in vain or slips through:
//! 1. The programs are installed. Those of an earlier agent stay until the new ones are attached; a
//!    file system that is covered already stays covered, and its offline files are denied meanwhile.
//! 2. The holder and this engine are passed over, and the holder serves requests.
//! 3. Per file system: the holder learns which group watches go to, and only then the programs ask.
//!
//! A pool in tier user-filter is covered as well, in a mode in which nobody waits for an answer: when holder and
//! engine are gone, and with them the watch on the file system, its offline files stay closed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::link::Link;
use super::second_net::SecondNet;
use crate::bpf::{self, Filter, Guard, Maps, Settings, Uuid};
use crate::config::{AgentConfig, Config, PoolConfig};
use crate::control::ProgramCount;
use crate::intercept::{MarkFilter, Tier};
use crate::sys::fanotify::Group;
use crate::sys::{fsuuid, process};

/// What the kernel lets us do.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    maps: Option<Arc<Maps>>,
    /// Where file systems are remembered.
    state: AgentConfig,
    /// The marker that the programs look for.
    marker: String,
    /// Why there are none.
    why_not: String,
    /// Whether the kernel has our patches.
    patches: Result<(), String>,
}

impl Programs {
    /// Installs the programs and has the holder serve them. A kernel that cannot is no error: the
    /// pools then have a lesser tier, or the configuration insists and the agent does not start.
    pub(super) fn prepare(config: &Config, link: &Link) -> Self {
        let marker = config.programs_marker().unwrap_or_default().to_owned();
        let state = config.agent.clone();
        let patches = bpf::filter_probe();
        let mut this = Self { maps: None, state, marker, why_not: String::new(), patches };
        if config.pools.is_empty() {
            return this;
        }
        let installed = this.install(config, link);
        // What reading the kernel's type information took is not needed again.
        process::give_back_memory();
        match installed {
            Ok(maps) => this.maps = Some(Arc::new(maps)),
            Err(why) => {
                tracing::warn!(
                    "no kernel programs: {why}. Offline files are protected only as long as the \
                     agent's holder process lives"
                );
                this.why_not = why;
            }
        }
        this
    }

    fn install(&self, config: &Config, link: &Link) -> Result<Maps, String> {
        let base = &config.agent.bpf_dir;
        let maps = Guard::install(&self.settings()).map_err(|e| e.to_string())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(base, flags, Mode::empty())
            .map_err(|e| format!("{}: {e}", base.display()))?;
        link.serve_programs(directory.as_fd())
            .map_err(|e| format!("the holder cannot serve them: {e}"))?;
        if let Err(error) = bpf::listen(base) {
            tracing::warn!(%error, "what the kernel programs refuse is not told in this log");
        }
        Ok(maps)
    }

    fn settings(&self) -> Settings {
        Settings {
            base: self.state.bpf_dir.clone(),
            marker: self.marker.clone(),
            ..Settings::default()
        }
    }

    /// The second of the programs that look at opens.
    pub(super) fn second_net(&self) -> Arc<SecondNet> {
        Arc::new(SecondNet::new(self.maps.clone()))
    }

    /// Whether the kernel has our patches, or what it lacks.
    pub(super) fn patches(&self) -> Result<(), &str> {
        self.patches.as_ref().map(drop).map_err(String::as_str)
    }

    /// Tier mark-filter for a pool: its filter is tied to the group, before the group watches anything.
    pub(super) fn mark_filter(
        &self,
        pool: &PoolConfig,
        group: Group,
        root: OwnedFd,
    ) -> Result<MarkFilter, String> {
        let maps = self.maps.as_ref().ok_or_else(|| self.why_not.clone())?;
        let filter = Filter::attach(&self.settings(), &pool.name, group.as_fd())
            .map_err(|e| e.to_string())?;
        Ok(MarkFilter::new(group, root, Arc::clone(maps), filter))
    }

    /// The UUID by which the programs can serve this pool, or why they cannot.
    pub(super) fn usable(&self, pool: &PoolConfig, root: impl AsFd) -> Result<Uuid, String> {
        if self.maps.is_none() {
            return Err(self.why_not.clone());
        }
        if pool.marker != self.marker {
            return Err(format!(
                "the programs look for one marker in all pools, {}, not for {}",
                self.marker, pool.marker
            ));
        }
        fsuuid::of(root).map_err(|e| e.to_string())
    }

    /// What the programs counted, without what never happened.
    pub(super) fn counts(&self) -> Vec<ProgramCount> {
        let Some(maps) = &self.maps else { return Vec::new() };
        match maps.counters() {
            Ok(counts) => counts
                .iter()
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| ProgramCount { name: name.into(), count })
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the kernel programs' counters cannot be read");
                Vec::new()
            }
        }
    }

    /// Whether nobody can have an offline file of this file system open whom our mark does not ask: since the
    /// programs are there, each was opened under such a mark.
    pub(super) fn opens_were_marked(&self, usable: &Result<Uuid, String>) -> bool {
        let (Some(maps), Ok(uuid)) = (&self.maps, usable) else { return false };
        maps.covered().is_ok_and(|covered| covered.contains(&(*uuid, bpf::Mode::Mark)))
    }

    /// From now on the programs act on the file system of `root`, if they are `usable` there. Its
    /// watch is in place.
    pub(super) fn cover(
        &self,
        pool: &PoolConfig,
        tier: Tier,
        usable: Result<Uuid, String>,
        group: u32,
        root: impl AsFd,
        link: &Link,
    ) -> Result<(), String> {
        let Some(maps) = &self.maps else { return Ok(()) };
        let (uuid, mode) = match (tier, usable) {
            (Tier::UserFilter, Err(why)) => {
                tracing::warn!(pool = pool.name, "not guarded when the agent is gone: {why}");
                return Ok(());
            }
            (Tier::UserFilter, Ok(uuid)) => (uuid, bpf::Mode::Guard),
            (Tier::LsmFilter, usable) => (usable?, bpf::Mode::Filter),
            (Tier::MarkFilter, usable) => (usable?, bpf::Mode::Mark),
        };
        link.cover(group, root.as_fd(), &pool.marker)
            .map_err(|e| format!("the holder cannot serve the pool: {e}"))?;
        maps.cover(uuid, mode).map_err(|e| e.to_string())?;
        // For `hsm guard install` at the next boot, before the file system is mounted.
        if let Err(error) = bpf::remember(&self.state.uuid_path(&pool.name), &uuid) {
            tracing::warn!(
                %error,
                pool = pool.name,
                "not guarded between a reboot and the agent's next start"
            );
        }
        Ok(())
    }
}
