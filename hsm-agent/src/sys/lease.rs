//! File leases: proof that nobody else has a file open (write lease) or open for writing (read
//! lease), and word when somebody wants to (`F_SETLEASE`, `fcntl(2)`).
//!
//! A lease belongs to the open file description. While it is held, a conflicting `open` waits in
//! the kernel until the lease is dropped, at most `/proc/sys/fs/lease-break-time` seconds. So
//! nobody must be kept waiting: [`BreakWatch`] drops a broken lease at once and notes it, and the
//! holder of the lease learns at its next step that it lost ([`Lease::intact`]).
//!
//! Invariant: a [`Lease`] that answers `true` to [`Lease::intact`] or runs a closure in
//! [`Lease::while_intact`] has been held without a gap since [`Lease::take`].

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use std::time::{Duration, Instant};

use super::check;
use super::signal::{SignalFd, lease_break_signal};

/// What a lease excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// Nobody has the file open for writing.
    Read,
    /// Nobody else has the file open at all.
    Write,
}

impl LeaseKind {
    fn raw(self) -> libc::c_int {
        match self {
            Self::Read => libc::F_RDLCK,
            Self::Write => libc::F_WRLCK,
        }
    }
}

/// Sets a lease without word of its breaking. `Ok(false)`: somebody has the file open in a way
/// that the lease would exclude. A second call on a held lease checks the conflict anew.
pub fn set(fd: impl AsFd, kind: LeaseKind) -> io::Result<bool> {
    match fcntl(fd.as_fd(), libc::F_SETLEASE, kind.raw()) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Drops the lease; one that is gone already is no error.
pub fn unset(fd: impl AsFd) -> io::Result<()> {
    match fcntl(fd.as_fd(), libc::F_SETLEASE, libc::F_UNLCK) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(e),
    }
}

fn is_set(fd: BorrowedFd<'_>, kind: LeaseKind) -> bool {
    fcntl(fd, libc::F_GETLEASE, 0).is_ok_and(|now| now == kind.raw())
}

fn fcntl(fd: BorrowedFd<'_>, cmd: libc::c_int, arg: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the commands used in this module take an int argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), cmd, arg) })
}

/// Sends the break signal of leases on `fd` to thread `tid`.
fn direct_breaks(fd: BorrowedFd<'_>, tid: libc::pid_t) -> io::Result<()> {
    /// `struct f_owner_ex`.
    #[repr(C)]
    struct OwnerEx {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_OWNER_TID: libc::c_int = 0;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_SETSIG: libc::c_int = 10;
    let owner = OwnerEx { kind: F_OWNER_TID, pid: tid };
    // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex`, which `owner` is.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    fcntl(fd, F_SETSIG, lease_break_signal())?;
    Ok(())
}

#[derive(Debug)]
struct Held {
    fd: Arc<OwnedFd>,
    kind: LeaseKind,
    broken: Mutex<bool>,
}

impl Held {
    fn broken(&self) -> MutexGuard<'_, bool> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody may want the file: if the lease is not what it was, let them, and remember it.
    fn give_way(&self) {
        let mut broken = self.broken();
        if is_set(self.fd.as_fd(), self.kind) {
            return;
        }
        *broken = true;
        if let Err(error) = unset(self.fd.as_fd()) {
            tracing::warn!(%error, "a broken lease could not be dropped");
        }
    }
}

type Registry = Mutex<HashMap<RawFd, Arc<Held>>>;

/// Receives the break signals of all leases of this process, on a thread of its own.
#[derive(Debug, Clone)]
pub struct BreakWatch {
    registry: Arc<Registry>,
    tid: libc::pid_t,
}

impl BreakWatch {
    /// Starts the thread. The process must have blocked SIGIO in all its threads: that is what
    /// the kernel sends when the queue of real-time signals is full.
    pub fn start() -> io::Result<Self> {
        let registry = Arc::new(Registry::default());
        let seen = Arc::clone(&registry);
        let (ready, started) = mpsc::channel();
        std::thread::Builder::new().name("lease-breaks".into()).spawn(move || {
            let signals = SignalFd::new(&[lease_break_signal(), libc::SIGIO], false);
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            match signals {
                Ok(signals) => {
                    let _ = ready.send(Ok(tid));
                    watch(&signals, &seen);
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        })?;
        let tid = started.recv().map_err(io::Error::other)??;
        Ok(Self { registry, tid })
    }
}

fn watch(signals: &SignalFd, registry: &Registry) {
    loop {
        match signals.read() {
            Ok(signal) if signal.number == libc::SIGIO => {
                // Signals were lost: look at every lease.
                let all: Vec<_> = locked(registry).values().cloned().collect();
                all.iter().for_each(|held| held.give_way());
            }
            Ok(signal) => {
                let held = locked(registry).get(&signal.fd).cloned();
                // The number may have been reused since: only a lease that is really being
                // broken (F_GETLEASE then tells the target type) gives way.
                held.iter().for_each(|held| held.give_way());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "lease breaks cannot be read; openers may wait for the break time");
                return;
            }
        }
    }
}

fn locked(registry: &Registry) -> MutexGuard<'_, HashMap<RawFd, Arc<Held>>> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A held lease; dropped with this value.
#[derive(Debug)]
pub struct Lease {
    held: Arc<Held>,
    registry: Arc<Registry>,
}

impl Lease {
    /// Takes a lease. `Ok(None)`: somebody has the file open.
    pub fn take(fd: Arc<OwnedFd>, kind: LeaseKind, watch: &BreakWatch) -> io::Result<Option<Self>> {
        direct_breaks(fd.as_fd(), watch.tid)?;
        let number = fd.as_raw_fd();
        let held = Arc::new(Held { fd, kind, broken: Mutex::new(false) });
        // Registered first: a break right after F_SETLEASE finds it.
        locked(&watch.registry).insert(number, Arc::clone(&held));
        let lease = Self { held, registry: Arc::clone(&watch.registry) };
        let held = &lease.held;
        if !set(held.fd.as_fd(), kind)? {
            return Ok(None);
        }
        // What was said of this number before there was a lease says nothing of it.
        let mut broken = held.broken();
        *broken = !is_set(held.fd.as_fd(), kind);
        drop(broken);
        Ok(Some(lease))
    }

    /// [`Self::take`], tried again until `deadline`.
    pub fn take_patiently(
        fd: &Arc<OwnedFd>,
        kind: LeaseKind,
        watch: &BreakWatch,
        deadline: Instant,
    ) -> io::Result<Option<Self>> {
        loop {
            let lease = Self::take(Arc::clone(fd), kind, watch)?;
            if lease.is_some() || Instant::now() > deadline {
                return Ok(lease);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the lease has been held without a gap since it was taken.
    pub fn intact(&self) -> bool {
        let broken = self.held.broken();
        !*broken && is_set(self.held.fd.as_fd(), self.held.kind)
    }

    /// Takes the lease again without letting it go: fails (`false`) if anybody has raised the
    /// inode's open count since, even if he has not come to wait for the lease yet.
    pub fn retake(&self) -> io::Result<bool> {
        let broken = self.held.broken();
        let fd = self.held.fd.as_fd();
        Ok(!*broken && is_set(fd, self.held.kind) && set(fd, self.held.kind)?)
    }

    /// Runs `f` only if the lease is intact, and keeps the break watch from dropping it meanwhile.
    pub fn while_intact<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let broken = self.held.broken();
        let intact = !*broken && is_set(self.held.fd.as_fd(), self.held.kind);
        let result = intact.then(f);
        drop(broken);
        result
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        locked(&self.registry).remove(&self.held.fd.as_raw_fd());
        let _ = unset(self.held.fd.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};

    fn file() -> (tempfile::NamedTempFile, Arc<OwnedFd>) {
        let f = tempfile::NamedTempFile::new().unwrap();
        let fd: OwnedFd = File::open(f.path()).unwrap().into();
        (f, Arc::new(fd))
    }

    #[test]
    fn a_write_lease_is_refused_while_somebody_has_the_file_open() {
        let (f, fd) = file();
        // NamedTempFile itself holds the file open for writing.
        assert!(!set(&*fd, LeaseKind::Write).unwrap());
        assert!(!set(&*fd, LeaseKind::Read).unwrap());
        let path = f.into_temp_path();
        assert!(set(&*fd, LeaseKind::Write).unwrap());
        unset(&*fd).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!set(&*fd, LeaseKind::Write).unwrap());
        assert!(set(&*fd, LeaseKind::Read).unwrap());
        drop(reader);
    }

    fn breaks() -> BreakWatch {
        super::super::signal::block(&[libc::SIGIO]).unwrap();
        BreakWatch::start().unwrap()
    }

    #[test]
    fn a_broken_lease_lets_the_opener_through_at_once_and_is_noticed() {
        let watch = breaks();
        let (f, fd) = file();
        let path = f.into_temp_path();
        let lease = Lease::take(fd, LeaseKind::Read, &watch).unwrap().unwrap();
        assert!(lease.intact());
        assert!(lease.retake().unwrap());
        let start = Instant::now();
        OpenOptions::new().write(true).open(&path).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "the opener waited for the break time");
        assert!(!lease.intact());
        assert!(!lease.retake().unwrap());
        assert_eq!(lease.while_intact(|| ()), None);
    }

    /// One that was sent for an older file with the same number.
    #[test]
    fn a_late_signal_breaks_no_lease_that_holds() {
        let watch = breaks();
        let (f, fd) = file();
        let _path = f.into_temp_path();
        let lease = Lease::take(fd, LeaseKind::Write, &watch).unwrap().unwrap();
        lease.held.give_way();
        assert!(lease.intact());
        assert!(lease.retake().unwrap());
    }
}
