//! What fanotify can do here: docs/KERNEL-PATCHES.md, "How to probe".

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hsm_agent::sys::fanotify::{Class, EventMask, Group, GroupOptions, MarkTarget, Verdict};
use hsm_agent::sys::probe::{self, Support};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::report::{For, PATCHES, Report};

/// Nothing that is tried here takes long.
const LIMIT: Duration = Duration::from_secs(20);

/// Pre-content events, and what the patches add to them.
pub(crate) fn fanotify(report: &mut Report, dir: &Path) -> Result<()> {
    let support = probe::pre_content(dir)
        .map_err(|e| anyhow!("trying pre-content events on {}: {e}", dir.display()))?;
    let remedy = "Linux 6.14 or newer with CONFIG_FANOTIFY_ACCESS_PERMISSIONS; HSM_LAB_DIR on ext4, XFS, btrfs";
    report.has(
        For::All,
        "pre-content events",
        "fanotify asks before an access",
        Some(support),
        remedy,
    );
    let group = |class| Group::new(GroupOptions { class, nonblock: true });
    let closed = supported(group(Class::FailClosed).map(drop))?;
    let what = "a dead agent's marks deny";
    report.has(For::Filter, "FAN_FAIL_CLOSED", what, Some(closed), PATCHES);
    let marks = probe::mark_filters().context("trying FAN_MARK_FILTER")?;
    let what = "marks that ask a program first";
    report.has(For::Filter, "FAN_MARK_FILTER", what, Some(marks), PATCHES);
    let file = dir.join("watched");
    std::fs::write(&file, "four")?;
    let file = File::open(&file)?;
    let (modify, seek) = match support {
        Support::Yes => (Some(modify(&file)?), Some(seek(&file)?)),
        Support::No => (None, None),
    };
    report.has(For::Filter, "FAN_PRE_MODIFY", "changes told apart from reads", modify, PATCHES);
    report.has(For::Filter, "events of lseek", "who asks for holes waits, too", seek, PATCHES);
    Ok(())
}

/// `EINVAL` is the one refusal that means "I do not know this".
fn supported(result: std::io::Result<()>) -> Result<Support> {
    match result {
        Ok(()) => Ok(Support::Yes),
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(Support::No),
        Err(e) => Err(e.into()),
    }
}

/// Whether changes can be watched apart from reads. Its watch is gone when this returns, or it would have
/// to answer the next one's events.
fn modify(file: &File) -> Result<Support> {
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    let mask = EventMask::PRE_ACCESS | EventMask::PRE_MODIFY;
    supported(group.watch_inode(MarkTarget::Fd(file.as_fd()), mask))
}

/// Whether somebody who asks for data in this file raises an event.
fn seek(file: &File) -> Result<Support> {
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    group.watch_inode(MarkTarget::Fd(file.as_fd()), EventMask::PRE_ACCESS)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let seeker = std::thread::spawn(move || -> Result<()> {
        // A descriptor that was opened under the watch.
        let file = File::open(path)?;
        rustix::fs::seek(&file, SeekFrom::Data(0))?;
        Ok(())
    });
    let (mut buffer, mut seen) = ([0; 4096], Support::No);
    let end = Instant::now() + LIMIT;
    while !seeker.is_finished() {
        // Whoever waits in the group is let go with it.
        ensure!(Instant::now() < end, "an event of lseek was answered, and it did not return");
        std::thread::sleep(Duration::from_millis(1));
        let n = match group.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            n => n?,
        };
        for event in hsm_agent::sys::fanotify::events(&buffer[..n]) {
            let event = event?;
            // Its descriptor stays open as long as this program runs.
            seen = Support::Yes;
            group.answer(event.fd, Verdict::Allow)?;
        }
    }
    seeker.join().map_err(|_| anyhow!("the seeker panicked"))??;
    Ok(seen)
}
