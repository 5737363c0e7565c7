//! Asking the agent, and waiting for its answer.
//!
//! A program cannot sleep until it is woken. It looks in turns: for its reply, at the
//! inode's mask, whether it is killed, at the server and at the clock, and lets others run in between.
//! The wait keeps a grace period of the kernel from ending, so it is short: it lasts until there
//! is a watch, and fanotify does the long waiting.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_iter_num};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use hsm_common::filter::{
    ANSWER_ONLINE, ANSWER_WATCHED, Counter, KIND_RECALL, KIND_WANTED, Request,
};

use crate::atomic;
use crate::counters::{count, count_many};
use crate::coverage::{is_registered, is_served};
use crate::maps::{ANSWERS, NUMBERS, REQUESTS, WAITS};
use crate::object::{Inode, SuperBlock};
use crate::settings::setting;
use crate::task::{self, Task};
use crate::told;
use crate::under_way;

/// Try again.
pub const EAGAIN: i32 = 11;
/// Seen by nobody: the caller is being killed.
const ERESTARTSYS: i32 = 512;
/// `-ENOENT`.
const GONE: i32 = -2;
/// Each takes a quarter of a second where it fails.
const TRIES: usize = 4;
/// Largest error number that a hook may return.
const MAX_ERRNO: i32 = 4095;

/// In one of so many turns, the server itself is looked at, and not only its entry. By chance: the verifier would
/// follow a counter turn by turn.
const LOOKS: u32 = 64;

/// Turns of the inner loop: the kernel's limit.
const INNER: i32 = 1 << 23;
/// Turns of the outer loop. Together more than any limit of time allows.
const OUTER: i32 = 1 << 10;

unsafe extern "C" {
    /// Linux 6.4.
    fn bpf_iter_num_new(iter: *mut bpf_iter_num, start: i32, end: i32) -> i32;
    /// Linux 6.4.
    fn bpf_iter_num_next(iter: *mut bpf_iter_num) -> *const i32;
    /// Linux 6.4.
    fn bpf_iter_num_destroy(iter: *mut bpf_iter_num);
}

/// What came of it. A number, and no enumeration with an error in one of its variants: the compiler would leave
/// that place of the others undefined, and the verifier does not let it be copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Answer(i32);

impl Answer {
    /// The file is online.
    pub const ONLINE: Self = Self(1);
    /// What was waited for is there: somebody watches the inode now, or the second program is attached.
    pub const WATCHED: Self = Self(2);
    /// Nobody could tell: nobody serves, no room, no progress.
    pub const NOBODY: Self = Self(3);
    /// There is none yet.
    const NONE: Self = Self(0);

    /// Refuse with this (negative) error.
    #[inline(always)]
    const fn refuse(error: i32) -> Self {
        Self(error)
    }

    /// The (negative) error to refuse with; zero if it is another answer.
    #[inline(always)]
    pub fn refusal(self) -> i32 {
        // The bounds are known here; the verifier has lost them where the compiler keeps the number on the stack.
        let error = black_box(self.0);
        if error >= 0 {
            0
        } else if error >= -MAX_ERRNO {
            error
        } else {
            -EAGAIN
        }
    }

    /// What a hook fails with that is not content with it.
    #[inline(always)]
    pub fn error(self) -> i32 {
        let refusal = self.refusal();
        if refusal != 0 { refusal } else { -EAGAIN }
    }

    /// The hook's result where only an online file passes.
    #[inline(always)]
    pub fn needs_online(self) -> i32 {
        if self == Self::ONLINE { 0 } else { self.error() }
    }
}

/// What ends a wait besides the server's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Nothing.
    Answered,
    /// Anybody's watch on the inode.
    Watched,
    /// The second program is attached.
    Armed,
}

/// Asks, and waits as long as there is progress, or until somebody watches the inode, if that helps.
#[inline(always)]
pub fn ask(inode: Inode, sb: SuperBlock, kind: u32) -> Answer {
    ask_until(inode, sb, kind, if kind == KIND_RECALL { Until::Answered } else { Until::Watched })
}

/// Asks, and waits as long as there is progress.
#[inline(always)]
pub fn ask_until(inode: Inode, sb: SuperBlock, kind: u32, until: Until) -> Answer {
    if !is_served() {
        count(Counter::DeniedNoServer);
        told::unserved(inode);
        return Answer::NOBODY;
    }
    let Some(id) = next_number() else { return Answer::NOBODY };
    if WAITS.insert(&id, &0, u64::from(BPF_NOEXIST)).is_err() {
        count(Counter::DeniedFull);
        told::full(inode);
        return Answer::NOBODY;
    }
    let answer =
        if submit(id, inode, sb, kind) { wait(id, inode, kind, until) } else { Answer::NOBODY };
    // In this order: an answer that comes too late for the second finds no entry, and the agent takes it back.
    remove(|| WAITS.remove(&id));
    remove(|| ANSWERS.remove(&id));
    answer
}

/// Takes an entry away that nobody else takes. The kernel gives up on a lock whose holder does not run; what
/// stayed would stay for ever.
#[inline(always)]
fn remove(mut remove: impl FnMut() -> Result<(), i32>) {
    for _ in 0..TRIES {
        match remove() {
            Ok(()) | Err(GONE) => return,
            Err(_) => {}
        }
    }
}

/// Has the file recalled, and does not wait.
#[inline(always)]
pub fn want(inode: Inode, sb: SuperBlock) {
    if !is_served() {
        return;
    }
    let Some(id) = next_number() else { return };
    if submit(id, inode, sb, KIND_WANTED) {
        count(Counter::RecallWanted);
    }
}

#[inline(always)]
fn next_number() -> Option<u64> {
    let number = NUMBERS.get_ptr_mut(0)?;
    // SAFETY: an array's values live as long as the map.
    Some(unsafe { atomic::add(number, 1) } + 1)
}

#[inline(always)]
fn submit(id: u64, inode: Inode, sb: SuperBlock, kind: u32) -> bool {
    let request = Request {
        id,
        uuid: sb.uuid(),
        ino: inode.number(),
        subvolume: inode.subvolume(),
        generation: inode.generation(),
        tgid: task::tgid(),
        kind,
        device: sb.device(),
    };
    let submitted = REQUESTS.output(&request, 0).is_ok();
    if submitted {
        count(Counter::Requested);
    } else {
        count(Counter::DeniedFull);
        told::full(inode);
    }
    submitted
}

/// State of a wait.
struct Patience {
    limit: u64,
    deadline: u64,
    beat: u64,
    turns: u64,
    until: Until,
}

#[inline(always)]
fn wait(id: u64, inode: Inode, kind: u32, until: Until) -> Answer {
    let task = Task::current();
    let limit = if task.is_kernel() {
        setting!(spin_limit)
    } else if kind == KIND_RECALL {
        setting!(recall_limit)
    } else {
        setting!(open_limit)
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut patience = Patience { limit, deadline: now + limit, beat: 0, turns: 0, until };
    let mut answer = Answer::NONE;
    let mut outer = MaybeUninit::<bpf_iter_num>::uninit();
    let mut inner = MaybeUninit::<bpf_iter_num>::uninit();
    // SAFETY: both iterators stay where they are on the stack, are made before they are used and
    // destroyed on the one way out of their loop.
    unsafe {
        bpf_iter_num_new(outer.as_mut_ptr(), 0, OUTER);
        while answer == Answer::NONE && !bpf_iter_num_next(outer.as_mut_ptr()).is_null() {
            bpf_iter_num_new(inner.as_mut_ptr(), 0, INNER);
            while answer == Answer::NONE && !bpf_iter_num_next(inner.as_mut_ptr()).is_null() {
                answer = turn(id, inode, task, &mut patience);
            }
            bpf_iter_num_destroy(inner.as_mut_ptr());
        }
        bpf_iter_num_destroy(outer.as_mut_ptr());
    }
    count_many(Counter::WaitTurns, patience.turns);
    if answer == Answer::NONE { Answer::NOBODY } else { answer }
}

/// Looks once.
#[inline(always)]
fn turn(id: u64, inode: Inode, task: Task, patience: &mut Patience) -> Answer {
    patience.turns += 1;
    if let Some(verdict) = reply(id) {
        return decide(verdict);
    }
    let enough = match patience.until {
        Until::Answered => false,
        Until::Watched => inode.is_watched(),
        Until::Armed => under_way::is_armed(),
    };
    if enough {
        return Answer::WATCHED;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(beat) = beat(id)
        && beat != patience.beat
    {
        patience.beat = beat;
        patience.deadline = now + patience.limit;
    }
    if now > patience.deadline {
        count(Counter::DeniedTimeout);
        told::late(inode);
        return Answer::NOBODY;
    }
    // SAFETY: the helper has no preconditions.
    let looks = unsafe { bpf_get_prandom_u32() } % LOOKS == 0;
    if !is_registered() || (looks && !is_served()) {
        count(Counter::DeniedNoServer);
        told::unserved(inode);
        return Answer::NOBODY;
    }
    if !task.is_kernel() && task.is_killed() {
        count(Counter::Killed);
        return Answer::refuse(-ERESTARTSYS);
    }
    task.yield_cpu();
    Answer::NONE
}

/// The agent's word, once there is one. Nobody changes it before this caller takes it away.
#[inline(always)]
fn reply(id: u64) -> Option<i32> {
    // SAFETY: the map's elements live as long as the map. Volatile: should it be another's element by now, it says so.
    ANSWERS.get_ptr(&id).and_then(|reply| unsafe { reply.read_volatile() }.verdict(id))
}

/// The beat, or now and then another's, or none.
#[inline(always)]
fn beat(id: u64) -> Option<u64> {
    // SAFETY: the map's elements live as long as the map; volatile, because the agent changes them.
    WAITS.get_ptr(&id).map(|beat| unsafe { beat.read_volatile() })
}

/// What the agent's word means.
#[inline(always)]
fn decide(verdict: i32) -> Answer {
    if verdict == ANSWER_ONLINE {
        Answer::ONLINE
    } else if verdict == ANSWER_WATCHED {
        Answer::WATCHED
    } else if verdict < 0 && verdict >= -MAX_ERRNO {
        count(Counter::DeniedAnswer);
        Answer::refuse(verdict)
    } else {
        Answer::NOBODY
    }
}
