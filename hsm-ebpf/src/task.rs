//! The process in whose name a program runs.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_copy_from_user_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use hsm_common::filter::{ABSENT, READS, TRUST_EXEMPT, Trust};

use crate::maps::TRUSTED;
use crate::settings::setting;

unsafe extern "C" {
    /// Linux 6.2.
    fn bpf_rcu_read_lock();
    /// Linux 6.2.
    fn bpf_rcu_read_unlock();
    /// Linux 6.2.
    fn bpf_task_from_pid(number: i32) -> *const u8;
    /// Linux 6.2.
    fn bpf_task_release(task: *const u8);
}

/// Of all architectures.
const SIGKILL: u32 = 9;
/// `<linux/sched.h>`; `/proc/PID/stat` shows it to user space.
const PF_EXITING: u32 = 4;

/// Process number of the caller.
#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// A thread.
#[derive(Clone, Copy)]
pub struct Task(*const u8);

impl Task {
    /// The caller.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: the helper has no preconditions; its result is a trusted pointer.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    /// Takes a program's argument.
    ///
    /// # Safety
    /// The argument is a pointer to `struct task_struct`.
    #[inline(always)]
    pub unsafe fn new(argument: *const u8) -> Self {
        Self(argument)
    }

    /// For the kernel's functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn get<T: Copy>(self, offset: u32) -> T {
        read(self.0, offset)
    }

    /// The process's first thread.
    #[inline(always)]
    fn leader(self) -> Self {
        Self(self.get(setting!(offsets.task_leader)))
    }

    /// Whether this is its process's first thread.
    #[inline(always)]
    pub fn is_leader(self) -> bool {
        core::ptr::eq(self.leader().0, self.0)
    }

    /// What its process is trusted with, if with anything.
    #[inline(always)]
    pub fn trust(self) -> Option<Trust> {
        // SAFETY: the pointer is not null, and to this type. The agent replaces the value as a whole.
        self.with_trust(|trust| unsafe { trust.read_volatile() })
    }

    #[inline(always)]
    fn with_trust<T>(self, then: impl FnOnce(*mut Trust) -> T) -> Option<T> {
        // SAFETY: what is locked is unlocked below; the first thread is a pointer that the kernel
        // accepts in between.
        let trust = unsafe {
            bpf_rcu_read_lock();
            TRUSTED.get(self.leader().0)
        };
        let result = if trust.is_null() { None } else { Some(then(trust)) };
        // SAFETY: it was locked above.
        unsafe { bpf_rcu_read_unlock() };
        result
    }

    /// Puts the kernel's number of the caller's process down for who is trusted, and tells what he is trusted with.
    #[inline(always)]
    pub fn introduce(self) -> Option<Trust> {
        self.with_trust(|trust| {
            // SAFETY: not null, and of this type. The agent replaces the value as a whole; what of it is lost, the next
            // thread's end puts down again.
            unsafe {
                (&raw mut (*trust).number).write_volatile(tgid());
                trust.read_volatile()
            }
        })
    }

    /// Whether this is a kernel thread.
    #[inline(always)]
    pub fn is_kernel(self) -> bool {
        self.get::<*const u8>(setting!(offsets.task_mm)).is_null()
    }

    /// Address of the path that the thread is following now; zero when it follows none.
    #[inline(always)]
    pub fn walk(self) -> u64 {
        self.get(setting!(offsets.task_walk))
    }

    /// Whether the thread is being killed: by SIGKILL, or by what the kernel makes SIGKILL for each thread of a process.
    /// That is every signal that ends it, but for one that dumps core, one to a process that is traced, and one
    /// that comes while another is pending: these are taken when the wait is over.
    ///
    /// So does fanotify's own wait. A signal for the process is taken by a thread that the kernel chose, and what is
    /// pending does not tell which: another one that left for it would bring ERESTARTSYS home to its program, as an
    /// error number that there is not. (The thread's flag bits would tell, but their numbers differ between
    /// kernels.)
    #[inline(always)]
    pub fn is_killed(self) -> bool {
        let set = setting!(offsets.pending_set);
        let pending: u64 = self.get(setting!(offsets.task_pending) + set);
        pending & (1 << (SIGKILL - 1)) != 0
    }

    /// Whether the thread is in a system call that reads a range of a file and is over then. A mapping
    /// is not: it can grow (`mremap`) without an event, to what is not local.
    #[inline(always)]
    pub fn is_reading(self) -> bool {
        // SAFETY: a trusted pointer; the result is one to the thread's registers.
        let registers = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8;
        let number = if setting!(offsets.regs_orig_ax) != ABSENT {
            read::<u64>(registers, setting!(offsets.regs_orig_ax)) as u32
        } else if setting!(offsets.regs_syscallno) != ABSENT {
            read::<u32>(registers, setting!(offsets.regs_syscallno))
        } else {
            ABSENT
        };
        let mut found = false;
        let mut at = 0;
        while at < READS {
            found |= setting!(reads[at]) == number;
            at += 1;
        }
        found && number != ABSENT && !self.is_kernel()
    }

    /// Lets others run: reads a byte of the caller's arguments. The copy takes the address
    /// space's lock, which is a point where a kernel without preemption schedules too.
    #[inline(always)]
    pub fn yield_cpu(self) {
        let mm: *const u8 = self.get(setting!(offsets.task_mm));
        if mm.is_null() {
            return;
        }
        let address: u64 = read(mm, setting!(offsets.mm_arg_start));
        let mut byte = 0u64;
        // SAFETY: `byte` takes one byte, and the helper checks the address; what it returns does
        // not matter.
        unsafe {
            bpf_copy_from_user_task(
                (&raw mut byte).cast(),
                1,
                address as *const _,
                self.0.cast_mut().cast::<task_struct>(),
                0,
            );
        }
    }
}

/// Whether the process with this number is the server with this serial number, and its end has not begun.
#[inline(always)]
pub fn is_alive(number: u32, serial: u64) -> bool {
    // SAFETY: any number will do.
    let task = Task(unsafe { bpf_task_from_pid(number as i32) });
    if task.0.is_null() {
        return false;
    }
    let alive = task.get::<u32>(setting!(offsets.task_flags)) & PF_EXITING == 0
        && task.trust().is_some_and(|trust| trust.is_server(serial));
    // SAFETY: taken above, and not used any more.
    unsafe { bpf_task_release(task.0) };
    alive
}

/// Whether the caller opens marked files as it likes: the agent.
#[inline(always)]
pub fn is_exempt() -> bool {
    Task::current().trust().is_some_and(|trust| trust.flags & TRUST_EXEMPT != 0)
}

/// Reads a member of a kernel structure.
#[inline(always)]
fn read<T: Copy>(object: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks offset and size against the structure.
    unsafe { object.add(offset as usize).cast::<T>().read_volatile() }
}
