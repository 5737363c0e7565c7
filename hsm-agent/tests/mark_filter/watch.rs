//! A group that fails closed, its filter, its mark, and who allows what it is asked: in a thread, or in
//! a process that can be killed (`mark_filter --helper BASE DIRECTORY`).

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::{Answer, Filter, Maps, Settings};
use hsm_agent::sys::fanotify::{
    Class, Event, EventMask, Group, GroupOptions, MarkTarget, Verdict, events,
};
use hsm_agent::sys::handle;
use hsm_common::filter::{KIND_WATCH, Request};
use hsm_lab::run::{Run, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::kernel_lab::{Lab, wait_for};

const ASKED: EventMask = EventMask::PRE_ACCESS.union(EventMask::PRE_MODIFY);

/// An event, as far as it matters here: whether it says that the content may change, its first byte
/// and how many.
pub(crate) type Seen = (bool, u64, u64);

/// The watch of a whole file system.
pub(crate) struct Watch {
    group: Arc<Group>,
    pub(crate) filter: Filter,
    root: File,
    seen: Arc<Mutex<Vec<Seen>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watch {
    /// Attaches and marks, in the order of an agent.
    pub(crate) fn begin(lab: &Lab, name: &str) -> Result<Self> {
        Self::of(&lab.settings, lab.fs.path(), name)
    }

    fn of(settings: &Settings, path: &Path, name: &str) -> Result<Self> {
        let group = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
        let filter = Filter::attach(settings, name, group.as_fd())?;
        let root = File::open(path)?;
        group.filter_filesystem(root.as_fd(), ASKED)?;
        filter.retire_others()?;
        let (group, seen) = (Arc::new(group), Arc::new(Mutex::new(Vec::new())));
        let end = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (group, seen, end) = (Arc::clone(&group), Arc::clone(&seen), Arc::clone(&end));
            move || allow(&group, &seen, &end)
        });
        Ok(Self { group, filter, root, seen, end, thread: Some(thread) })
    }

    /// What was asked since the last time.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// So much must have been asked since the last time.
    pub(crate) fn expect(&self, wanted: &[Seen], what: &str) -> Result<()> {
        let seen = self.seen();
        ensure!(seen == wanted, "{what}: events {seen:?}, not {wanted:?}");
        Ok(())
    }

    /// Puts the watch for opens on an inode, as the holder does.
    fn of_an_open(&self, request: &Request) -> Result<Answer> {
        ensure!(request.kind == KIND_WATCH, "not served here: {request:?}");
        let (ino, generation, subvolume) = (request.ino, request.generation, request.subvolume);
        let numbers = handle::InodeNumbers { ino, generation, subvolume };
        let key = handle::from_numbers(&self.root, numbers)?;
        let path = handle::open(&self.root, &key, OFlags::PATH)?;
        self.group.watch_inode(MarkTarget::Path(path.as_fd()), EventMask::OPEN_PERM)?;
        Ok(Answer::Watched)
    }

    /// Puts the mark back.
    pub(crate) fn mark(&self) -> Result<()> {
        Ok(self.group.filter_filesystem(self.root.as_fd(), ASKED)?)
    }

    /// Takes the mark away.
    pub(crate) fn unmark(&self) -> Result<()> {
        Ok(self.group.unwatch_filesystem(self.root.as_fd(), ASKED)?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A case may have done so; and without, the file system would refuse everything from now on.
        let _ = self.unmark();
        self.end.store(true, Ordering::SeqCst);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the listener failed: {error:#}");
        }
    }
}

fn allow(group: &Group, seen: &Mutex<Vec<Seen>>, end: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; 4096];
    let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !end.load(Ordering::SeqCst) {
        poll(&mut [PollFd::new(group, PollFlags::IN)], Some(&patience))?;
        let length = match group.read(&mut buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e.into()),
        };
        for event in events(&buffer[..length]) {
            let event = event?;
            if event.mask.contains(EventMask::OPEN_PERM) {
                let fd = event_fd(&event);
                group.answer(event.fd, Verdict::Allow)?;
                drop(fd);
                continue;
            }
            let range = event.range.context("an event without a range")?;
            let modifies = event.mask.contains(EventMask::PRE_MODIFY);
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push((modifies, range.offset, range.count));
            drop(seen);
            let fd = event_fd(&event);
            group.answer(event.fd, Verdict::Allow)?;
            drop(fd);
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "takes ownership of an event descriptor")]
fn event_fd(event: &Event) -> Option<OwnedFd> {
    // SAFETY: the kernel installed this descriptor for whoever read the event, and only this takes it.
    (event.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(event.fd) })
}

/// The helper: watches until it is killed.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let [base, path] = args else {
        eprintln!("--helper BASE DIRECTORY");
        return ExitCode::FAILURE;
    };
    match watch_for_ever(Path::new(base), Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn watch_for_ever(base: &Path, path: &Path) -> Result<()> {
    let settings = Settings { base: base.to_owned(), ..Settings::default() };
    let maps = Maps::open(base)?.context("nothing is pinned")?;
    // The guard lets nobody else open a marked file without fanotify asking: an event's descriptor.
    maps.exempt(std::process::id())?;
    let watch = Watch::of(&settings, path, "pool")?;
    let mut requests = maps.requests()?;
    // Says that the watch is there.
    maps.serve()?;
    loop {
        poll(&mut [PollFd::new(&requests, PollFlags::IN)], None)?;
        while let Some(request) = requests.next() {
            let answer = watch.of_an_open(&request).unwrap_or(Answer::Refuse(libc::EAGAIN));
            maps.answer(request.id, answer)?;
        }
        drop(watch.seen());
    }
}

/// Starts the helper.
pub(crate) fn elsewhere(lab: &Lab) -> Result<Running> {
    let program = std::env::current_exe()?;
    let paths = [lab.settings.base.as_path(), lab.fs.path()];
    let mut process = Run::new(program).args(["--helper"]).args(paths).start()?;
    wait_for(|| {
        ensure!(process.is_running()?, "the listener did not start");
        Ok(lab.maps.server()?.is_some())
    })?;
    Ok(process)
}
