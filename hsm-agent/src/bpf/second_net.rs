//! The second net: the program behind `file_post_open`, which is attached only while it can matter
//! (`hsm_common::filter::UnderWay` says when, and why that is right).
//!
//! It is pinned as a program with its set, and as a link, which attaches it, beside that:
//!
//! ```text
//! links-<object>/guard_post_open   the program
//! links-<object>/second_net        its link, while it is attached
//! ```
//!
//! `ARMED` is set after the link is pinned and cleared before it is removed, both under a lock on the maps'
//! directory, so that it never says more than is so. Whoever dies in between leaves programs that refuse marked files until
//! the next one arms.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use hsm_common::filter::{ARMED, IN_FLIGHT};

use super::maps::{failed, lock};
use super::{BpfError, Maps, kernel, pin};
use crate::sys::bpf;

/// The program.
pub(super) const PROGRAM: &str = "guard_post_open";
/// Its link.
pub(super) const LINK: &str = "second_net";

/// Whoever dies with the link in hand is still detaching it when his lock is gone already.
const DETACHING: Duration = Duration::from_millis(500);

/// What came of an attempt to disarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disarmed {
    /// It is not attached any more.
    Yes,
    /// So many threads are, or may be, between the two programs.
    InFlight(u64),
    /// Somebody else serves, or nobody.
    NotServing,
}

impl Maps {
    /// Makes sure that the second net is attached. When this returns, every open on the machine that comes to
    /// its place is looked at.
    pub fn arm(&self) -> Result<(), BpfError> {
        if self.is_armed()? {
            return Ok(());
        }
        let _lock = pin::lock(self.dir())?;
        self.arm_locked()
    }

    pub(super) fn arm_locked(&self) -> Result<(), BpfError> {
        for set in self.sets()? {
            attach(&set)?;
        }
        self.set_armed(true)
    }

    /// Detaches the second net, unless it can matter. To be called by the engine of the holder `server`, when no release
    /// goes on and none is left open. May wait for the kernel.
    pub fn disarm(&self, server: u32) -> Result<Disarmed, BpfError> {
        let _lock = pin::lock(self.dir())?;
        // Looked at under the lock: a new agent arms before it serves, and that comes after the old one's end.
        if self.server()? != Some(server) {
            return Ok(Disarmed::NotServing);
        }
        self.set_armed(false)?;
        // Against an opener, who counts himself, takes a full barrier too, and looks whether it is armed.
        fence(Ordering::SeqCst);
        let in_flight = self.in_flight()?;
        if in_flight != 0 {
            self.set_armed(true)?;
            return Ok(Disarmed::InFlight(in_flight));
        }
        for set in self.sets()? {
            detach(&set)?;
        }
        Ok(Disarmed::Yes)
    }

    /// Whether it is attached for sure.
    pub fn is_armed(&self) -> Result<bool, BpfError> {
        let armed = lock(&self.armed).get(&0, 0).map_err(failed(ARMED, "reading"))?;
        Ok(armed != 0)
    }

    /// How many threads are, or may be, between the two programs with a marked file.
    pub fn in_flight(&self) -> Result<u64, BpfError> {
        lock(&self.in_flight).get(&0, 0).map_err(failed(IN_FLIGHT, "reading"))
    }

    /// Opens may be under way that other programs have let pass, and that nobody has counted. Before any program
    /// uses these maps.
    pub(super) fn count_unknown(&self) -> Result<(), BpfError> {
        let result = lock(&self.in_flight).set(0, 1, 0);
        result.map_err(failed(IN_FLIGHT, "counting what is not known"))
    }

    fn set_armed(&self, armed: bool) -> Result<(), BpfError> {
        let result = lock(&self.armed).set(0, u64::from(armed), 0);
        result.map_err(failed(ARMED, "arming or disarming"))
    }

    /// The sets of programs on these maps: more than one while another one replaces the first.
    fn sets(&self) -> Result<Vec<std::path::PathBuf>, BpfError> {
        let version = self.dir().parent().unwrap_or(Path::new("/"));
        let sets = pin::complete_sets(version)?;
        if sets.is_empty() {
            return Err(BpfError::NotInstalled { base: version.to_owned() });
        }
        Ok(sets)
    }
}

/// Attaches a set's second net and pins the link, unless that is so already.
fn attach(set: &Path) -> Result<(), BpfError> {
    let (program, link) = (set.join(PROGRAM), set.join(LINK));
    if link.exists() {
        return Ok(());
    }
    let failed = |doing| pin::failed(&link, doing);
    let program = bpf::open_pinned(&program).map_err(pin::failed(&program, "opening a program"))?;
    let patience = Instant::now() + DETACHING;
    let attached = loop {
        match bpf::attach_lsm(program.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => break result.map_err(failed("attaching the second net"))?,
        }
    };
    bpf::pin(attached.as_fd(), &link).map_err(failed("pinning the second net"))
}

/// Detaches it. With the last descriptor closed here, and no file any more, that is done when this returns; the
/// file's removal alone would have it done some time later.
fn detach(set: &Path) -> Result<(), BpfError> {
    let path = set.join(LINK);
    let link = match bpf::open_pinned(&path) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(pin::failed(&path, "opening the second net")(e)),
    };
    fs::remove_file(&path).map_err(pin::failed(&path, "removing the second net"))?;
    drop(link);
    Ok(())
}

/// Whether this kernel detaches a program without waiting for every task to have left all of its code. Where it waits
/// it lets nothing be attached meanwhile, and an opener who waits for that is himself a task that it waits for: he would
/// be refused. Since Linux 7.0 it does not wait on x86.
pub fn can_disarm() -> bool {
    cfg!(target_arch = "x86_64")
        && kernel::types().is_ok_and(|types| types.function("update_ftrace_direct_del").is_some())
}
