//! Requests of the kernel programs (tier lsm-filter): an open of a marked inode that nobody watches
//! waits, briefly, in the program until a watch is on it; fanotify then does the long wait.
//!
//! To put that watch in place needs no judgement, so the holder does it, also while there is no
//! engine. The one request that needs a recall joins the table of unanswered events and goes to the engine
//! like any other: for truncate(2) by path, where fanotify has looked before the program runs, and for an
//! open by overlayfs, which the second program does not see.
//!
//! A truncation that comes without a path (nfsd) cannot wait: it is refused, and the file is recalled for its
//! next attempt.
//!
//! Whatever goes wrong here ends in a denial: the program waits for no longer than its own limit,
//! and the second program refuses who passed the first by mistake.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hsm_common::filter::{KIND_QUERY, KIND_RECALL, KIND_WANTED, KIND_WATCH, Request, Uuid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use super::pending::{Origin, Unanswered};
use super::protocol::{EventFrame, MAX_NAME};
use super::shared::Shared;
use crate::bpf::{Answer, Maps, Requests};
use crate::failpoint::{Point, reach};
use crate::intercept::WATCHED;
use crate::sys::fanotify::{EventMask, Group, MarkTarget, Verdict};
use crate::sys::handle::InodeNumbers;
use crate::sys::{fsuuid, handle, inode, process, xattr};

/// A program needs less than that to finish writing a request, once it runs.
const UNFINISHED: Duration = Duration::from_micros(50);

/// The kernel programs and the file systems that they ask about.
#[derive(Debug, Default)]
pub(super) struct Programs {
    maps: OnceLock<Maps>,
    covered: Mutex<Vec<Covered>>,
    /// Changes with every beat.
    beats: AtomicU32,
}

/// A file system that the programs ask about.
#[derive(Debug, Clone)]
struct Covered {
    uuid: Uuid,
    /// Device as the kernel programs tell it.
    device: u32,
    number: u32,
    group: Arc<Group>,
    root: Arc<OwnedFd>,
    marker: CString,
}

/// What a request comes to.
enum Outcome {
    Answer(Answer),
    /// The engine answers.
    Later,
}

/// Serves the requests of the programs that are pinned in `directory`. `engine` is its process id.
pub(super) fn serve(
    shared: &Arc<Shared>,
    directory: Option<OwnedFd>,
    engine: i32,
) -> io::Result<()> {
    let programs = &shared.programs;
    if programs.maps.get().is_none() {
        let directory = directory.ok_or(io::ErrorKind::InvalidInput)?;
        let base =
            PathBuf::from(format!("{}", inode::proc_path(directory.as_fd()).to_string_lossy()));
        let maps = Maps::open(&base).map_err(io::Error::other)?;
        let maps = maps.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let requests = maps.requests().map_err(io::Error::other)?;
        let own = std::process::id();
        // First exempt, then in service: whoever waits for us must not include us.
        maps.exempt(own).map_err(io::Error::other)?;
        maps.serve(own).map_err(io::Error::other)?;
        let maps = programs.maps.get_or_init(|| maps);
        tracing::debug!(?maps, "serving kernel programs");
        let shared = Arc::clone(shared);
        std::thread::Builder::new()
            .name("requests".into())
            .spawn(move || take_requests(&shared, requests))?;
    }
    programs.exempt(engine)
}

impl Programs {
    fn covered(&self) -> MutexGuard<'_, Vec<Covered>> {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The programs pass over this process from now on, until it ends.
    pub(super) fn exempt(&self, pid: i32) -> io::Result<()> {
        match (self.maps.get(), u32::try_from(pid)) {
            (Some(maps), Ok(pid)) if pid > 0 => maps.exempt(pid).map_err(io::Error::other),
            _ => Ok(()),
        }
    }

    /// Requests about the file system of `root` belong to this group.
    pub(super) fn cover(
        &self,
        shared: &Shared,
        number: u32,
        marker: &[u8; MAX_NAME],
        root: Option<OwnedFd>,
    ) -> io::Result<()> {
        let root = Arc::new(root.ok_or(io::ErrorKind::InvalidInput)?);
        let uuid = fsuuid::of(&*root)?;
        let device = inode::kernel_device(&*root)?;
        let group = shared.groups().get(number as usize).map(|(_, g)| Arc::clone(g));
        let group = group.ok_or(io::ErrorKind::NotFound)?;
        let marker = marker.iter().copied().take_while(|b| *b != 0).collect::<Vec<u8>>();
        let marker = CString::new(marker).map_err(io::Error::other)?;
        let mut covered = self.covered();
        let known = covered.iter().any(|c| c.uuid == uuid && c.number == number);
        covered.retain(|c| c.uuid != uuid);
        covered.push(Covered { uuid, device, number, group, root, marker });
        drop(covered);
        match self.maps.get() {
            // An open that began before this watch was in place may have found somebody else's: it is to
            // find another serial number when it is through.
            Some(maps) if !known => maps.serve(std::process::id()).map_err(io::Error::other),
            _ => Ok(()),
        }
    }

    /// Answers a request that went to the engine.
    pub(super) fn answer(&self, request: u64, verdict: Verdict) {
        let answer = match verdict {
            Verdict::Allow => Answer::Online,
            Verdict::Deny(errno) => Answer::Refuse(errno),
        };
        self.tell(request, answer);
    }

    /// Renews the patience of those whose requests are with the engine. The engine has its own
    /// deadline for a recall without progress.
    pub(super) fn beat(&self, requests: impl Iterator<Item = u64>) {
        let beat = self.beats.fetch_add(1, Ordering::Relaxed);
        requests.for_each(|request| self.tell(request, Answer::Beat(beat)));
    }

    fn tell(&self, request: u64, answer: Answer) {
        let Some(maps) = self.maps.get() else { return };
        match maps.answer(request, answer) {
            Ok(true) => {}
            Ok(false) => tracing::debug!(request, "nobody waits for this any more"),
            // Nobody is let through by silence: the program's patience ends.
            Err(error) => tracing::error!(%error, request, "a waiting access cannot be answered"),
        }
    }
}

/// Takes requests for ever. Before everybody else: openers wait in a loop that yields, and a burst of
/// them would leave this thread one share among a thousand.
fn take_requests(shared: &Arc<Shared>, mut requests: Requests) {
    if let Err(error) = process::run_before_others() {
        tracing::warn!(%error, "no real-time priority; many openers at once may be told to try again");
    }
    loop {
        let mut ready = [PollFd::new(&requests, PollFlags::IN)];
        if let Err(error) = poll(&mut ready, None) {
            tracing::debug!(%error, "poll");
        }
        let mut taken = 0;
        while let Some(request) = requests.next() {
            taken += 1;
            reach(Point::HolderRequested);
            match take(shared, &request) {
                Outcome::Answer(answer) => shared.programs.tell(request.id, answer),
                Outcome::Later => shared.send_pending(),
            }
        }
        if taken == 0 {
            // A program has begun to write a request, and this thread may have taken the CPU from it:
            // the ring is readable, and nothing in it is. Without this the two would wait for ever.
            std::thread::sleep(UNFINISHED);
        }
    }
}

fn take(shared: &Shared, request: &Request) -> Outcome {
    let covered = shared.programs.covered().iter().find(|c| c.uuid == request.uuid).cloned();
    let Some(covered) = covered.filter(|c| c.device == request.device && !shared.is_denying())
    else {
        // A snapshot with the same UUID, a pool that is not ours any more, or an agent that stops.
        return Outcome::Answer(Answer::Refuse(libc::EAGAIN));
    };
    let outcome = match request.kind {
        KIND_WATCH => covered.watch(request),
        KIND_QUERY => covered.query(request),
        KIND_RECALL => covered.recall(shared, request, Origin::Program { request: request.id }),
        KIND_WANTED => covered.want(shared, request),
        other => Err(io::Error::other(format!("request of unknown kind {other}"))),
    };
    outcome.unwrap_or_else(|error| {
        // Removed since it was looked up: the opener looks again and finds nothing.
        let errno = if handle::is_stale(&error) { libc::ESTALE } else { libc::EAGAIN };
        if errno != libc::ESTALE {
            tracing::error!(%error, ?request, "a file cannot be watched; its open is denied");
        }
        Outcome::Answer(Answer::Refuse(errno))
    })
}

impl Covered {
    fn open(&self, request: &Request, flags: OFlags) -> io::Result<OwnedFd> {
        let key = handle::from_numbers(&*self.root, numbers(request))?;
        handle::open(&*self.root, &key, flags)
    }

    fn watch(&self, request: &Request) -> io::Result<Outcome> {
        let path = self.open(request, OFlags::PATH)?;
        self.group.watch_inode(MarkTarget::Path(path.as_fd()), WATCHED)?;
        reach(Point::HolderMarked);
        Ok(Outcome::Answer(Answer::Watched))
    }

    /// The program may not read the marker. That it is absent is not changed by a release that runs
    /// meanwhile: the opener counts already, and the release finds him.
    fn query(&self, request: &Request) -> io::Result<Outcome> {
        let path = self.open(request, OFlags::PATH)?;
        if xattr::get_at_path(path.as_fd(), &self.marker)?.is_none() {
            return Ok(Outcome::Answer(Answer::Online));
        }
        self.group.watch_inode(MarkTarget::Path(path.as_fd()), WATCHED)?;
        Ok(Outcome::Answer(Answer::Watched))
    }

    /// Nobody waits for this answer; who comes again while the recall goes on asks again.
    fn want(&self, shared: &Shared, request: &Request) -> io::Result<Outcome> {
        let wanted = (self.number, numbers(request));
        if shared.pending().has_wanted(wanted) {
            return Ok(Outcome::Later);
        }
        self.recall(shared, request, Origin::Wanted(wanted))
    }

    fn recall(&self, shared: &Shared, request: &Request, origin: Origin) -> io::Result<Outcome> {
        let path = self.open(request, OFlags::PATH)?;
        // In tier mark-filter it may be held: without a marker, but not for good yet. The engine knows.
        if !self.group.fails_closed() && xattr::get_at_path(path.as_fd(), &self.marker)?.is_none() {
            return Ok(Outcome::Answer(Answer::Online));
        }
        if shared.pending().len() >= shared.capacity {
            return Ok(Outcome::Answer(Answer::Refuse(libc::EAGAIN)));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        let fd = self.open(request, flags)?;
        let frame = EventFrame {
            id: 0,
            group: self.number,
            // Without a range: whoever is asked about here waits until everything is durable.
            mask: EventMask::PRE_ACCESS,
            pid: request.tgid.cast_signed(),
            range: None,
            event_fd: -1,
        };
        shared.pending().insert(Unanswered::new(frame, fd, origin));
        Ok(Outcome::Later)
    }
}

fn numbers(request: &Request) -> InodeNumbers {
    InodeNumbers { ino: request.ino, generation: request.generation, subvolume: request.subvolume }
}
