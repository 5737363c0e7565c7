//! Room for a recall on a full file system: archived files are released, and the recall is tried again.
//!
//! This is `hsm release` for files that nobody named, the least recently read first, with everything that a
//! release checks: pins, writers, leases, versions, the object. Nothing becomes offline that could not have become so
//! by that command, and nothing is released that was not archived before. What cannot be helped this way is told
//! to the reader as before: ENOSPC. (As on an ext4 that is full to its last block: then no file gets a marker.
//! What users fill leaves the blocks that it reserves for root.)

use std::collections::{BinaryHeap, HashSet};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use super::outcome::Candidate;
use super::pool::{FileRef, Pool};
use crate::control::types::Outcome;
use crate::core::{FileKey, FileState, Want};
use crate::recall::Recall;
use crate::release::release;
use crate::sys::{handle, inode};

/// At least so much is made free at once: whoever needs room will need more.
const STEP: u64 = 64 << 20;
/// Of a recall whose size is known only from above (holes of the archived file), a part at a time.
const PARTS: u64 = 8;
/// Beside its data a file needs extents, and an xattr may need a block.
const SLACK: u64 = 1 << 20;
/// Files that are looked at more closely, of those that were archived first.
const CANDIDATES: usize = 4096;
/// Files of one release: whoever opens one of them meanwhile waits for all.
const AT_ONCE: usize = 64;
/// A reader waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// The attempts for one recall.
pub(super) struct Room<'a> {
    pool: &'a Arc<Pool>,
    job: &'a Recall,
    first: bool,
    round: u32,
    until: Instant,
    tried: HashSet<FileKey>,
}

impl<'a> Room<'a> {
    pub(super) fn new(pool: &'a Arc<Pool>, job: &'a Recall) -> Self {
        let until = Instant::now() + PATIENCE.min(pool.recall_deadline / 2);
        Self { pool, job, first: true, round: 0, until, tried: HashSet::new() }
    }

    /// Whether there is more room than when the recall failed: then it is worth another attempt.
    pub(super) fn make(&mut self) -> bool {
        if !self.pool.config.emergency_release || self.is_over() {
            return false;
        }
        match self.try_make() {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "no room could be made for a recall");
                false
            }
        }
    }

    fn is_over(&self) -> bool {
        self.pool.stopping.load(Ordering::SeqCst) || Instant::now() > self.until
    }

    fn try_make(&mut self) -> Result<bool> {
        let wanted = self.wanted()?;
        // One at a time: what the one has made free may do for the next.
        let _alone = self.pool.room.lock().unwrap_or_else(PoisonError::into_inner);
        // What the failed recall gave back is there for others only then: freed extents wait for the journal, or
        // for a transaction. And a marker may need a block.
        self.sync()?;
        let before = available(self.pool)?;
        // Somebody else may have made room meanwhile. (Or all of it is there and cannot be had: that is seen
        // at the next attempt.)
        if std::mem::take(&mut self.first) && before >= wanted {
            return Ok(true);
        }
        let goal = goal(before, wanted, self.round);
        self.round += 1;
        let (mut files, mut bytes) = (0_u64, 0_u64);
        let mut refused = None;
        let mut coldest = self.coldest()?;
        while before + bytes < goal && !coldest.is_empty() && !self.is_over() {
            let rest = goal - before - bytes;
            let batch: Vec<_> = coldest.drain(..enough(&coldest, rest)).collect();
            for outcome in release(self.pool, &batch, false, &|| self.is_over()) {
                if outcome.outcome == Outcome::Done {
                    files += 1;
                    bytes += outcome.bytes;
                } else {
                    refused = Some(outcome.detail);
                }
            }
        }
        self.sync()?;
        let after = available(self.pool)?;
        let done = if files == 0 { "nothing could be" } else { "archived files were" };
        tracing::warn!(
            pool = self.pool.config.name, files, bytes, before, after, wanted,
            refused = refused.as_deref(), file = %self.pool.describe(&self.job.file).display(),
            "the file system is full: {done} released for a recall"
        );
        Ok(after > before && files > 0)
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(self.pool.own_root()?).context("syncfs")
    }

    /// Bytes that the recall may need, from above.
    fn wanted(&self) -> Result<u64> {
        let path = self.pool.open_path(&self.job.file).context("the file")?;
        let stat = inode::stat(&path).context("the file")?;
        let data = match &self.job.want {
            Want::Whole => stat.size.saturating_sub(stat.allocated),
            Want::Range(range) => range.end - range.start,
        };
        Ok(data + SLACK)
    }

    /// What may be released and was not tried yet, the least recently read first.
    fn coldest(&mut self) -> Result<Vec<Candidate>> {
        let mut oldest = BinaryHeap::new();
        self.pool.catalog.for_each(&[FileState::Archived], |row| {
            if !self.tried.contains(&row.key) {
                oldest.push((row.archived_at_ns, row.key.to_blob(), row.key));
            }
            if oldest.len() > CANDIDATES {
                oldest.pop();
            }
            ControlFlow::Continue(())
        })?;
        let keys = oldest.into_iter().map(|(_, _, key)| key);
        let mut files: Vec<_> = keys.filter_map(|key| self.candidate(key)).collect();
        files.sort_by_key(|file| file.stat.atime_ns);
        Ok(files)
    }

    /// `None`: gone, without data, or not below the pool's directories.
    fn candidate(&mut self, key: FileKey) -> Option<Candidate> {
        self.tried.insert(key.clone());
        let path = handle::open(&self.pool.root, &key, OFlags::PATH).ok()?;
        let stat = inode::stat(&path).ok()?;
        let name = self.pool.name_of(path.as_fd());
        let relative = name.strip_prefix(self.pool.mount()).ok()?;
        let belongs = self.pool.config.directories.cover(relative);
        let file = FileRef { key, event: None, pid: None };
        (belongs && stat.allocated > 0).then_some(Candidate {
            file,
            path,
            name,
            stat,
            named: false,
        })
    }
}

/// What root may take, nearly.
fn available(pool: &Pool) -> Result<u64> {
    let stat = rustix::fs::fstatvfs(&pool.root).context("statvfs")?;
    Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
}

/// How much shall be available. What a recall needs is known only from above: large ones get it in parts,
/// each twice the last.
fn goal(before: u64, wanted: u64, round: u32) -> u64 {
    let step = (wanted / PARTS).max(STEP);
    before.saturating_add(step.saturating_mul(1 << round.min(PARTS as u32)))
}

/// The number of files at the front that have `bytes`, as far as one batch takes them.
fn enough(files: &[Candidate], bytes: u64) -> usize {
    let mut sum = 0;
    let more = |file: &&Candidate| {
        let more = sum < bytes;
        sum += file.stat.allocated;
        more
    };
    files.iter().take(AT_ONCE).take_while(more).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_grow_until_everything_that_may_be_needed_is_there() {
        assert_eq!(goal(5, 1, 0), 5 + STEP, "small recalls make room for the next, too");
        let wanted = 80 * STEP;
        let rounds: Vec<_> = (0..4).map(|round| goal(0, wanted, round) / STEP).collect();
        assert_eq!(rounds, [10, 20, 40, 80]);
        assert_eq!(goal(u64::MAX - 1, u64::MAX, 40), u64::MAX, "no overflow");
    }
}
