//! Signals as descriptors.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// A set of blocked signals, read from a descriptor.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

/// One signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Number.
    pub number: i32,
    /// `si_fd`: for the signals of leases, the descriptor that holds the lease.
    pub fd: RawFd,
}

/// The real-time signal that carries lease breaks; real-time, so that breaks queue up.
pub fn lease_break_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

/// Blocks `signals` in this thread and all threads that it starts from now on.
pub fn block(signals: &[i32]) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

/// Blocks `signals` and nothing else: what the parent had blocked is inherited otherwise.
pub fn block_only(signals: &[i32]) -> io::Result<()> {
    mask(libc::SIG_SETMASK, signals)
}

fn mask(how: libc::c_int, signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised; a null old set is allowed.
    let ret = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(ret)) }
}

impl SignalFd {
    /// Blocks `signals` in this thread and reads them from a descriptor instead. Signals that are
    /// directed to a thread are seen only when that thread reads.
    pub fn new(signals: &[i32], nonblock: bool) -> io::Result<Self> {
        block(signals)?;
        let set = set_of(signals);
        let flags = libc::SFD_CLOEXEC | if nonblock { libc::SFD_NONBLOCK } else { 0 };
        // SAFETY: `set` is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = check(unsafe { libc::signalfd(-1, &raw const set, flags) })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The next signal.
    pub fn read(&self) -> io::Result<Signal> {
        const LEN: usize = size_of::<libc::signalfd_siginfo>();
        let mut buf = [0u8; LEN];
        let n = rustix::io::read(&self.fd, &mut buf)?;
        if n != LEN {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let word = |at: usize| i32::from_ne_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]]);
        Ok(Signal {
            number: word(std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo)),
            fd: word(std::mem::offset_of!(libc::signalfd_siginfo, ssi_fd)),
        })
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a zeroed sigset_t is a valid argument of sigemptyset, which initialises it.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: `set` is a valid sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for s in signals {
        // SAFETY: `set` is initialised; an invalid number only makes the call fail.
        unsafe { libc::sigaddset(&raw mut set, *s) };
    }
    set
}
