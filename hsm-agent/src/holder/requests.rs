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
//! Who opens a marked file may find that the second program, which looks at the open when it is through, is not
//! attached. The holder attaches it then (`hsm_common::filter::UnderWay`); only the engine detaches it.
//!
//! Another configuration can look for another marker, and has other programs then, with maps of their own.
//! The newest set of programs is served. Whoever still waits in a program of an older one is refused, unless
//! his recall is under way; a set is known by the number of its map in the kernel, which is part of a
//! request's identity here: each set counts its requests from one.
//!
//! Whatever goes wrong here ends in a denial: the program waits for no longer than its own limit,
//! and the second program refuses who passed the first by mistake.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hsm_common::filter::{
    KIND_ARM, KIND_QUERY, KIND_RECALL, KIND_WANTED, KIND_WATCH, Request, Uuid,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::OFlags;
use rustix::time::Timespec;

use super::pending::{Origin, Question, Unanswered};
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

/// How often it is looked whether anybody still waits in a set of programs that is not served any more.
const RETIRING: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The kernel programs and the file systems that they ask about.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// The newest last, which is served; before it those that somebody still waits in.
    sets: Mutex<Vec<Arc<Set>>>,
    covered: Mutex<Vec<Covered>>,
    /// Changes with every beat.
    beats: AtomicU32,
}

/// One set of programs.
#[derive(Debug)]
struct Set {
    maps: Maps,
    /// Where they are pinned: the maps' path leads through this descriptor.
    _directory: OwnedFd,
    /// Readable when there is a newer one.
    retired: OwnedFd,
}

/// A file system that the programs ask about.
#[derive(Debug, Clone)]
struct Covered {
    /// The set of programs whose requests these are; zero: none.
    set: u32,
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

/// Serves the requests of the programs that are pinned in `directory`, and of no others from now on.
/// `engine` is its process id.
pub(super) fn serve(
    shared: &Arc<Shared>,
    directory: Option<OwnedFd>,
    engine: i32,
) -> io::Result<()> {
    let directory = directory.ok_or(io::ErrorKind::InvalidInput)?;
    let base = PathBuf::from(format!("{}", inode::proc_path(directory.as_fd()).to_string_lossy()));
    let maps = Maps::open(&base).map_err(io::Error::other)?;
    let maps = maps.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let programs = &shared.programs;
    if programs.newest().is_none_or(|newest| newest.maps.id() != maps.id()) {
        let requests = maps.requests().map_err(io::Error::other)?;
        let own = std::process::id();
        // First exempt, then in service: whoever waits for us must not include us.
        maps.exempt(own).map_err(io::Error::other)?;
        maps.serve().map_err(io::Error::other)?;
        let retired = eventfd(0, EventfdFlags::CLOEXEC)?;
        let set = Arc::new(Set { maps, _directory: directory, retired });
        tracing::debug!(?set, "serving kernel programs");
        programs.replace(Arc::clone(&set));
        let (thread, of) = (Arc::clone(shared), Arc::clone(&set));
        let thread = std::thread::Builder::new()
            .name("requests".into())
            .spawn(move || take_requests(&thread, &of, requests));
        if let Err(error) = thread {
            programs.forget(&set);
            return Err(error);
        }
    }
    programs.exempt(engine)
}

impl Programs {
    fn covered(&self) -> MutexGuard<'_, Vec<Covered>> {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sets(&self) -> MutexGuard<'_, Vec<Arc<Set>>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set that is served.
    fn newest(&self) -> Option<Arc<Set>> {
        self.sets().last().cloned()
    }

    /// This set is served from now on.
    fn replace(&self, set: Arc<Set>) {
        let mut sets = self.sets();
        for older in sets.iter() {
            // A full counter is readable as well.
            let _ = rustix::io::write(&older.retired, &1u64.to_ne_bytes());
        }
        sets.push(set);
    }

    /// Nobody waits in it.
    fn forget(&self, set: &Set) {
        self.sets().retain(|other| other.maps.id() != set.maps.id());
    }

    /// The programs pass over this process from now on, until it ends.
    pub(super) fn exempt(&self, pid: i32) -> io::Result<()> {
        match (self.newest(), u32::try_from(pid)) {
            (Some(set), Ok(pid)) if pid > 0 => set.maps.exempt(pid).map_err(io::Error::other),
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
        let newest = self.newest();
        let set = newest.as_ref().map_or(0, |set| set.maps.id());
        let mut covered = self.covered();
        let known = covered.iter().any(|c| c.uuid == uuid && c.number == number && c.set == set);
        covered.retain(|c| c.uuid != uuid);
        covered.push(Covered { set, uuid, device, number, group, root, marker });
        drop(covered);
        match newest {
            // An open that began before this watch was in place may have found somebody else's: it is to
            // find another serial number when it is through.
            Some(set) if !known => set.maps.serve().map_err(io::Error::other),
            _ => Ok(()),
        }
    }

    /// Answers a request that went to the engine.
    pub(super) fn answer(&self, question: Question, verdict: Verdict) {
        let answer = match verdict {
            Verdict::Allow => Answer::Online,
            Verdict::Deny(errno) => Answer::Refuse(errno),
        };
        self.tell(question, answer);
    }

    /// Renews the patience of those whose requests are with the engine. The engine has its own
    /// deadline for a recall without progress.
    pub(super) fn beat(&self, questions: impl Iterator<Item = Question>) {
        // Not zero, with which a wait begins.
        let beat = self.beats.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        questions.for_each(|question| self.tell(question, Answer::Beat(beat)));
    }

    fn tell(&self, question: Question, answer: Answer) {
        let set = self.sets().iter().find(|set| set.maps.id() == question.set).cloned();
        match set.map_or(Ok(false), |set| set.maps.answer(question.request, answer)) {
            Ok(true) => {}
            Ok(false) => tracing::debug!(?question, "nobody waits for this any more"),
            // Nobody is let through by silence: the program's patience ends.
            Err(error) => tracing::error!(%error, ?question, "a waiting access cannot be answered"),
        }
    }
}

/// Takes requests until the set is retired and nobody waits in it. Before everybody else: openers wait in a
/// loop that yields, and a burst of them would leave this thread one share among a thousand.
fn take_requests(shared: &Arc<Shared>, set: &Set, mut requests: Requests) {
    if let Err(error) = process::run_before_others() {
        tracing::warn!(%error, "no real-time priority; many openers at once may be told to try again");
    }
    let programs = &shared.programs;
    let mut retired = false;
    loop {
        if let Err(error) = wait(set, &requests, retired) {
            tracing::debug!(%error, "poll");
        }
        if !retired && is_readable(&set.retired) {
            retired = true;
            continue;
        }
        let mut taken = 0;
        while let Some(request) = requests.next() {
            taken += 1;
            reach(Point::HolderRequested);
            let question = Question { set: set.maps.id(), request: request.id };
            match take(shared, set, question, &request) {
                Outcome::Answer(answer) => programs.tell(question, answer),
                Outcome::Later => shared.send_pending(),
            }
        }
        if retired && taken == 0 && !set.maps.waiting().is_ok_and(|waiting| waiting > 0) {
            return programs.forget(set);
        }
        if taken == 0 {
            // A program has begun to write a request, and this thread may have taken the CPU from it:
            // the ring is readable, and nothing in it is. Without this the two would wait for ever.
            std::thread::sleep(UNFINISHED);
        }
    }
}

/// Waits for a request; for the end of service too, or, after it, not for long.
fn wait(set: &Set, requests: &Requests, retired: bool) -> rustix::io::Result<usize> {
    let request = PollFd::new(requests, PollFlags::IN);
    if retired {
        poll(&mut [request], Some(&RETIRING))
    } else {
        poll(&mut [request, PollFd::new(&set.retired, PollFlags::IN)], None)
    }
}

fn is_readable(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

fn take(shared: &Shared, set: &Set, question: Question, request: &Request) -> Outcome {
    if request.kind == KIND_ARM && !shared.is_denying() {
        return Outcome::Answer(arm(set));
    }
    let covered = shared.programs.covered().iter().find(|c| c.uuid == request.uuid).cloned();
    let is_asked = |c: &Covered| c.set == question.set && c.device == request.device;
    let Some(covered) = covered.filter(|c| is_asked(c) && !shared.is_denying()) else {
        // A snapshot with the same UUID, a pool that is not ours any more, programs that look for another
        // marker than the pool has by now, or an agent that stops.
        return Outcome::Answer(Answer::Refuse(libc::EAGAIN));
    };
    let outcome = match request.kind {
        KIND_WATCH => covered.watch(request),
        KIND_QUERY => covered.query(request),
        KIND_RECALL => covered.recall(shared, request, Origin::Program(question)),
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

/// Has every open looked at when it is through.
fn arm(set: &Set) -> Answer {
    match set.maps.arm() {
        Ok(()) => Answer::Watched,
        Err(error) => {
            tracing::error!(%error, "the second kernel program cannot be attached; an open is denied");
            Answer::Refuse(libc::EAGAIN)
        }
    }
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
        if shared.waiting() >= shared.capacity {
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
        shared.list(Unanswered::new(frame, fd, origin));
        Ok(Outcome::Later)
    }
}

fn numbers(request: &Request) -> InodeNumbers {
    InodeNumbers { ino: request.ino, generation: request.generation, subvolume: request.subvolume }
}
