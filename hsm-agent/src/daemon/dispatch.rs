//! Events into the state machine, its effects out of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::canary;
use super::metrics::add;
use super::pool::{FileRef, Pool};
use super::room::Room;
use super::waiters::{Waiting, Who};
use crate::config::RecallMode;
use crate::core::{Access, Effect, Event, Job, Look, Owner, Recalled, Ticket, Want};
use crate::failpoint::{Point, reach};
use crate::holder::protocol::EventFrame;
use crate::intercept::Tier;
use crate::marker::{InodeFd, MarkerState};
use crate::recall::{Recall, RecallError, RecallOutcome, recall};
use crate::sys::fanotify::{EventMask, Verdict};
use crate::sys::{handle, inode, lease, process};

impl Pool {
    /// Somebody waits in the kernel.
    pub fn take_event(self: &Arc<Self>, frame: EventFrame, fd: OwnedFd) {
        add(&self.metrics.events, 1);
        reach(Point::EventTaken);
        let fd = Arc::new(fd);
        let key = match handle::of_fd(&*fd) {
            Ok(key) => key,
            Err(error) => {
                let file = self.name_of(fd.as_fd());
                tracing::error!(%error, file = %file.display(), "no file handle; denied");
                self.answer_kernel(&frame, None, Verdict::Deny(libc::EIO));
                return;
            }
        };
        if self.canary.is(&key) {
            self.answer_kernel(&frame, None, Verdict::Deny(canary::ERRNO));
            return;
        }
        let file = FileRef { key, event: Some(Arc::clone(&fd)), pid: Some(frame.pid) };
        let Some(want) = self.want(&frame, &fd, &file) else {
            self.answer_kernel(&frame, None, Verdict::Allow);
            return;
        };
        if self.is_cut(&frame) {
            self.cutters.asks(&file.key);
        }
        let ticket = self.waiters.add(Who::Kernel(frame, fd), file.clone());
        self.apply(&file, Event::Access(Access { ticket, want }));
        self.line_up(ticket, &file, frame.pid);
    }

    /// Whoever was not answered at once waits under his user's name from now on, and lifts the recall to his
    /// place in the queue; or there is no room for more of his. The user decides about order only, never
    /// about access: a process that has ended since, whose number somebody else may have by now, is one who
    /// does not wait any more.
    fn line_up(self: &Arc<Self>, ticket: Ticket, file: &FileRef, pid: i32) {
        if !self.waiters.has(ticket) {
            return;
        }
        let uid = user_of(pid);
        match self.crowd.enter(uid) {
            Some(place) => self.waiters.settle_in(ticket, place),
            None => {
                tracing::debug!(uid, pid, "too many readers wait; denied");
                add(&self.metrics.refused, 1);
                self.abandon(ticket, libc::EAGAIN);
                return;
            }
        }
        self.workers.join(&(self.number, file.key.clone()), Owner::User(uid));
    }

    /// What this access needs. `None`: nothing yet; its content accesses will be asked about.
    fn want(&self, frame: &EventFrame, fd: &OwnedFd, file: &FileRef) -> Option<Want> {
        if !self.reads_ranges() {
            return Some(Want::Whole);
        }
        let Ok(stat) = inode::stat(fd) else { return Some(Want::Whole) };
        let executable = stat.mode & 0o111 != 0;
        let small = stat.size < self.config.range_min_size.as_u64();
        if executable || small || !self.may_read_ranges(frame) {
            return Some(Want::Whole);
        }
        let content = frame.mask.contains(EventMask::PRE_ACCESS);
        match frame.range {
            // An open alone moves nothing; but the marker must be good, and the file not settling.
            None if !content => {
                let marker = self.attributes.marker(InodeFd::Open(fd.as_fd()));
                let known = matches!(marker, Ok(Some(m)) if m.state != MarkerState::Lost);
                // A writer might truncate at open, which raises no event of its own. (In tier mark-filter
                // that waits elsewhere.)
                let told = self.interceptor.tier() == Tier::MarkFilter || reads_only(fd);
                let may_wait = known && !self.is_busy(file) && told;
                if may_wait { None } else { Some(Want::Whole) }
            }
            Some(range) if self.only_reads(frame, fd) => {
                // Buffers reach past the end of the file; nothing is there to recall.
                let end = range.offset.saturating_add(range.count).min(stat.size);
                let nothing = range.offset >= end && !self.is_busy(file);
                if nothing { None } else { Some(Want::Range(range.offset.min(end)..end)) }
            }
            _ => Some(Want::Whole),
        }
    }

    /// Whether this pool recalls ranges at all.
    fn reads_ranges(&self) -> bool {
        match (self.interceptor.tier(), self.config.recall) {
            // Nobody may have a marked file open.
            (Tier::LsmFilter, _) | (_, RecallMode::Whole) => false,
            (Tier::UserFilter, mode) => mode == RecallMode::Range,
            (Tier::MarkFilter, RecallMode::Auto | RecallMode::Range) => true,
        }
    }

    /// Whether this program may. Where the kernel asks about every way to find holes, everybody may who
    /// is not left out by a list. Who cannot be told gets all.
    fn may_read_ranges(&self, frame: &EventFrame) -> bool {
        let Some(program) = process::executable(frame.pid) else { return false };
        self.config.lets_read_ranges(&program, self.interceptor.tier() == Tier::MarkFilter)
    }

    /// Whether this access to a range cannot change anything, and needs no more than the range: a mapping is
    /// asked about like a read, and can grow later without being asked about; so is a truncate(2).
    fn only_reads(&self, frame: &EventFrame, fd: &OwnedFd) -> bool {
        let counts = frame.range.is_some_and(|range| range.count > 0);
        let reads = match self.interceptor.tier() {
            Tier::MarkFilter => !frame.mask.contains(EventMask::PRE_MODIFY),
            // Writes and fallocate cannot be told from reads; but with a read lease nobody has the
            // file open for writing.
            Tier::UserFilter | Tier::LsmFilter => reads_only(fd),
        };
        counts && reads && !process::may_be_mapping_or_cutting(frame.pid)
    }

    /// Whether this may be a `truncate(2)`, whose caller nothing else shows.
    fn is_cut(&self, frame: &EventFrame) -> bool {
        self.interceptor.tier() == Tier::UserFilter && frame.may_be_a_cut()
    }

    fn is_busy(&self, file: &FileRef) -> bool {
        self.inflight().is_busy(&file.key)
    }

    /// A user's recall: answered by message once the data is durable.
    pub fn recall_for_user(self: &Arc<Self>, file: &FileRef) -> mpsc::Receiver<Verdict> {
        let (tell, told) = mpsc::channel();
        let ticket = self.waiters.add(Who::User(tell), file.clone());
        self.apply(file, Event::Access(Access { ticket, want: Want::Whole }));
        told
    }

    /// [`claim`](Self::claim), trying again until `patience` ends.
    pub fn claim_patiently(
        self: &Arc<Self>,
        file: &FileRef,
        job: Job,
        patience: Instant,
    ) -> Option<Claim> {
        loop {
            let claim = self.claim(file, job);
            if claim.is_some() || Instant::now() > patience {
                return claim;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Claims the file for a job; drop the claim to give it back.
    pub fn claim(self: &Arc<Self>, file: &FileRef, job: Job) -> Option<Claim> {
        let effects = self.inflight().apply(&file.key, Event::Claim(job));
        let granted = effects.contains(&Effect::Granted);
        granted.then(|| Claim { pool: Arc::clone(self), file: file.clone(), job })
    }

    /// Takes note of an event and does what follows from it.
    pub fn apply(self: &Arc<Self>, file: &FileRef, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let effects = self.inflight().apply(&file.key, event);
            events.extend(effects.into_iter().filter_map(|e| self.perform(file, e)));
        }
    }

    fn perform(self: &Arc<Self>, file: &FileRef, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Look => return Some(Event::Looked(self.look(file))),
            Effect::Recall(want) => self.start_recall(file, want),
            Effect::Judge(access) => return self.judge(file, access),
            Effect::Answer(ticket, verdict) => self.answer(ticket, verdict),
            Effect::Unwanted => {
                let withdrawn = self.workers.withdraw(&(self.number, file.key.clone()));
                return withdrawn.then_some(Event::Withdrawn);
            }
            Effect::Granted | Effect::Refused => {}
        }
        None
    }

    /// Reads the marker. Online files are passed over from now on; that happens inside the
    /// "looking" phase, in which no release can start.
    fn look(&self, file: &FileRef) -> Look {
        let opened;
        let fd = match &file.event {
            Some(event) => InodeFd::Open(event.as_fd()),
            None => match self.open_path(file) {
                Ok(fd) => {
                    opened = fd;
                    InodeFd::Path(opened.as_fd())
                }
                Err(error) => {
                    tracing::error!(%error, key = ?file.key, "the file cannot be examined; denied");
                    return Look::Unreadable(libc::EIO);
                }
            },
        };
        let name = || match fd {
            InodeFd::Open(fd) | InodeFd::Path(fd) => self.name_of(fd),
        };
        match self.attributes.marker(fd) {
            Ok(None) => {
                self.pass_over(fd);
                Look::Online
            }
            Ok(Some(marker)) if marker.state == MarkerState::Lost => {
                tracing::error!(file = %name().display(), "the file is lost: no usable copy; denied");
                Look::Unreadable(libc::EIO)
            }
            Ok(Some(_)) => match self.keep_watch(fd) {
                Ok(()) => Look::Offline,
                Err(error) => {
                    let file = name();
                    tracing::error!(%error, file = %file.display(), "cannot be watched; denied");
                    Look::Unreadable(libc::EAGAIN)
                }
            },
            Err(error) => {
                tracing::error!(%error, file = %name().display(), "denied; `hsm state` tells more");
                Look::Unreadable(libc::EIO)
            }
        }
    }

    fn start_recall(self: &Arc<Self>, file: &FileRef, want: Want) {
        // A reader may have come while the file was being released.
        let pid = file.pid.or_else(|| self.waiters.first_blocked(&file.key));
        let owner = pid.map_or(Owner::Bulk, |pid| Owner::User(user_of(pid)));
        let (pool, file) = (Arc::clone(self), file.clone());
        let distance = self.config.store.kind.distance();
        self.workers.submit((self.number, file.key.clone()), owner, distance, move || {
            let job = Recall { file, want };
            pool.run_recall(&job);
        });
    }

    /// A full file system is made room on, if something can be released.
    fn recall_with_room(self: &Arc<Self>, job: &Recall) -> Result<RecallOutcome, RecallError> {
        let mut room = Room::new(self, job);
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return Err(RecallError::Stopping);
            }
            match recall(self, job) {
                Err(error) if error.errno() == libc::ENOSPC && room.make() => {}
                result => return result,
            }
        }
    }

    fn run_recall(self: &Arc<Self>, job: &Recall) {
        // A bug must not leave the file "recalling" for ever.
        let recalled =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.recall_with_room(job)));
        match recalled.unwrap_or(Err(RecallError::Panicked)) {
            Ok(outcome) => {
                add(&self.metrics.recalls, 1);
                add(&self.metrics.bytes_recalled, outcome.bytes);
                if let Some(settle) = &outcome.settle {
                    self.settler.announce(settle);
                }
                let settling = outcome.recalled == Recalled::Settling;
                self.apply(&job.file, Event::Recalled(Ok(outcome.recalled)));
                debug_assert_eq!(settling, outcome.settle.is_some());
                if let Some(settle) = outcome.settle {
                    self.settler.submit(settle);
                }
            }
            Err(error) => {
                add(&self.metrics.recalls_failed, 1);
                let file = self.describe(&job.file);
                let errno = error.errno();
                tracing::error!(%error, errno, file = %file.display(), "recall failed; the file stays offline");
                self.failures.note(&job.file.key, &error);
                self.apply(&job.file, Event::Recalled(Err(errno)));
            }
        }
    }

    /// The data is there, but not durable: only who provably reads may go on.
    fn judge(&self, file: &FileRef, access: Access) -> Option<Event> {
        let Some(waiting) = self.waiters.get(access.ticket) else {
            return Some(Event::Defer(access));
        };
        let reads = match &waiting.who {
            // truncate(2) does not raise the write count.
            Who::Kernel(frame, _) => {
                let modifies = frame.mask.contains(EventMask::PRE_MODIFY);
                let counts = frame.range.is_some_and(|r| r.count > 0);
                let told = self.interceptor.tier() == Tier::MarkFilter;
                let cuts = || !told && frame.may_be_a_cut() && may_cut(frame.pid);
                !modifies && (frame.mask.contains(EventMask::OPEN_PERM) || (counts && !cuts()))
            }
            // Wants it durable.
            Who::User(_) => false,
        };
        if reads && self.settler.readers_may_go_on(&file.key, self.config.early_answer) {
            self.answer(access.ticket, Verdict::Allow);
            return None;
        }
        Some(Event::Defer(access))
    }

    fn answer(&self, ticket: Ticket, verdict: Verdict) {
        let Some(waiting) = self.waiters.remove(ticket) else { return };
        let uid = waiting.uid();
        let Waiting { who, since, file, .. } = waiting;
        let waited = since.elapsed();
        match who {
            Who::Kernel(frame, _) => {
                // Shorter than any recall: it was online.
                if waited > Duration::from_micros(100) {
                    self.metrics.waited(waited);
                }
                self.answer_kernel(&frame, uid, verdict);
                if self.is_cut(&frame) {
                    self.cutters.answered(&file.key, Instant::now());
                }
            }
            // Nobody listens any more: the job was cancelled.
            Who::User(tell) => drop(tell.send(verdict)),
        }
    }

    /// `uid`: who waits, if that is known.
    fn answer_kernel(&self, frame: &EventFrame, uid: Option<u32>, verdict: Verdict) {
        if verdict != Verdict::Allow {
            add(&self.metrics.denials, 1);
        }
        let urgent = self.crowd.is_for_others(|| uid.unwrap_or_else(|| user_of(frame.pid)));
        reach(Point::EventAnswering);
        if let Err(error) = self.link.answer(frame, verdict, urgent) {
            tracing::error!(%error, "the holder does not take answers");
        }
        reach(Point::EventAnswered);
    }

    /// Denies one waiter.
    pub fn abandon(self: &Arc<Self>, ticket: Ticket, errno: i32) -> bool {
        let Some(waiting) = self.waiters.get(ticket) else { return false };
        self.apply(&waiting.file, Event::Abandon(ticket, errno));
        true
    }

    /// Who has waited too long, and sees no progress either.
    pub fn overdue(&self, slack: Duration) -> Vec<Ticket> {
        let limit = self.recall_deadline + slack;
        let stuck = |file: &FileRef| self.progress.get(&file.key).is_none_or(|p| p.idle() > limit);
        self.waiters
            .older_than(limit)
            .into_iter()
            .filter(|(_, f)| stuck(f))
            .map(|(t, _)| t)
            .collect()
    }

    /// A name for messages.
    pub fn describe(&self, file: &FileRef) -> std::path::PathBuf {
        match &file.event {
            Some(event) => self.name_of(event.as_fd()),
            None => self
                .open_path(file)
                .map(|fd| self.name_of(fd.as_fd()))
                .unwrap_or_else(|_| Path::new("(unknown)").into()),
        }
    }
}

/// The user of a process that waits. Of one that cannot be looked at (in another pid namespace, or gone),
/// root.
fn user_of(pid: i32) -> u32 {
    process::uid(pid).unwrap_or(0)
}

/// Whether this process may be in a `truncate(2)`. Of many threads that is not looked up: it takes longer than
/// what is to be gained.
fn may_cut(pid: i32) -> bool {
    const MANY: u64 = 32;
    process::threads(pid).is_none_or(|count| count > MANY)
        || process::may_be_mapping_or_cutting(pid)
}

/// Whether nobody has the file open for writing now.
fn reads_only(fd: &OwnedFd) -> bool {
    let free = lease::set(fd, lease::LeaseKind::Read).unwrap_or(false);
    free && lease::unset(fd).is_ok()
}

/// A file claimed for a job.
#[derive(Debug)]
pub struct Claim {
    pool: Arc<Pool>,
    file: FileRef,
    job: Job,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.pool.apply(&self.file, Event::Unclaim(self.job));
    }
}
