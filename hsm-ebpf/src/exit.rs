//! The end of a thread: its opens are over, and if its process is trusted, its number is put down. The end of a
//! process: the entry of a server is cleared.
//!
//! The kernel leaves a run out that interrupts another one on the same processor (in `__bpf_trace_run`): so nothing may
//! rely on it. An open that is not counted down keeps the second net; who is not put down has another thread end
//! (`Maps::serve`); a server that is gone is found to be (`coverage::server`).

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use hsm_common::filter::{Counter, TRUST_SERVER};

use crate::atomic;
use crate::counters::count;
use crate::maps::SERVER;
use crate::task::Task;
use crate::under_way;

/// `sched_process_exit(struct task_struct *p)`, called for every thread, by itself. Of a server the first thread
/// of its process counts: the agent's outlives its others.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn server_gone(context: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's first argument.
    let task = unsafe { Task::new(context.arg(0)) };
    under_way::end_of(task);
    let Some(trust) = task.introduce() else { return 0 };
    if !task.is_leader() || trust.flags & TRUST_SERVER == 0 {
        return 0;
    }
    if let Some(server) = SERVER.get_ptr_mut(0) {
        // SAFETY: an array's values live as long as the map. Atomic: another server may register in between.
        if unsafe { atomic::replace(&raw mut (*server).serial, trust.serial, 0) } {
            count(Counter::ServerGone);
        }
    }
    0
}
