//! Kills engine and holder, from whichever of the two comes to a fail point.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process};

use super::Process;
use crate::sys::process::{executable, is_ending};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    Engine,
    Holder,
    Both,
}

/// A killed process is gone long before that.
const GONE: Duration = Duration::from_secs(10);

/// Returns only if the calling process is to live: then the other one is dead.
pub(super) fn kill(own: Process, whom: Whom) {
    let suicide = whom == Whom::Both || (whom == Whom::Engine) == (own == Process::Engine);
    let others = match own {
        Process::Engine => parent(),
        Process::Holder => children(),
    };
    if whom == Whom::Both || !suicide {
        others.iter().for_each(|pid| strike(*pid));
    }
    if suicide {
        strike(getpid());
        loop {
            std::thread::park();
        }
    }
    let end = Instant::now() + GONE;
    while !others.iter().all(|pid| is_gone(*pid)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn strike(pid: Pid) {
    if let Err(error) = kill_process(pid, Signal::KILL) {
        tracing::error!(%error, ?pid, "a fail point killed nobody");
    }
}

/// Its end has begun: it takes no step any more that another process could see.
fn is_gone(pid: Pid) -> bool {
    is_ending(pid.as_raw_nonzero().get().unsigned_abs())
}

/// The holder, unless it is dead already and somebody else has become our parent.
fn parent() -> Vec<Pid> {
    getppid().into_iter().filter(|pid| is_agent(*pid)).collect()
}

/// The engine: of the holder's children (any of its threads may have started it) the one that is an
/// agent.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers: Vec<i32> = lists
        .flat_map(|list| list.split(' ').filter_map(|n| n.parse().ok()).collect::<Vec<_>>())
        .collect();
    numbers.into_iter().filter_map(Pid::from_raw).filter(|pid| is_agent(*pid)).collect()
}

fn is_agent(pid: Pid) -> bool {
    let own = executable(getpid().as_raw_nonzero().get());
    own.is_some() && own == executable(pid.as_raw_nonzero().get())
}
