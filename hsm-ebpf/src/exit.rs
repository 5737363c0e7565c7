//! The end of a process: nobody inherits its exemption, and nobody waits for a server that is gone.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use hsm_common::filter::Counter;

use crate::counters::count;
use crate::maps::{EXEMPT, SERVER};
use crate::task::Task;

/// `sched_process_exit(struct task_struct *p)`, called for every thread. The first thread of a
/// process counts: the agent's outlives its others.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn forget_process(context: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's first argument.
    let task = unsafe { Task::new(context.arg(0)) };
    if !task.is_leader() {
        return 0;
    }
    let tgid = task.tgid();
    if EXEMPT.get_ptr(&tgid).is_some() && EXEMPT.remove(&tgid).is_ok() {
        count(Counter::Forgotten);
    }
    if let Some(server) = SERVER.get_ptr_mut(0) {
        // SAFETY: an array's values live as long as the map. Volatile: others write and read it.
        unsafe {
            let start = (&raw const (*server).start).read_volatile();
            let number = &raw mut (*server).tgid;
            if number.read_volatile() == tgid && start == task.start() {
                number.write_volatile(0);
                count(Counter::Forgotten);
            }
        }
    }
    0
}
