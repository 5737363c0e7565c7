//! What is told in the agent's log: who was refused what, and why. Never anything about an access that
//! passes.
//!
//! The records go into a ring buffer (aya-log's `AYA_LOGS`) that is pinned with the other maps, so that they
//! outlive their reader: what was refused while there was no agent is read by the next one. Nobody waits for a
//! reader: a record that finds no room is dropped. Each refusal is counted besides ([`crate::counters`]),
//! whether it is told or not.
//!
//! A program that tries again and again must not cost more than its refusals: a processor tells
//! [`MOST`] of them in a second and only counts the others. The budget is kept without a lock. Programs
//! that preempt each other can spend a little more of it.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::warn;

use crate::maps::TOLD;
use crate::object::Inode;
use crate::task;

/// A second, in nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// Records of one processor in a second at most.
const MOST: u32 = 10;

/// A processor's budget.
#[repr(C)]
pub struct Told {
    /// When its second began.
    begin: u64,
    /// Records since then.
    records: u32,
    /// Refusals since the last record.
    untold: u32,
}

/// How many were not told since the last record; `None`: nor is this one.
#[inline(always)]
fn untold() -> Option<u32> {
    let told = TOLD.get_ptr_mut(0)?;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a per-CPU array's values live as long as the map. Volatile: a program that sleeps can be
    // preempted by another one on the same CPU.
    unsafe {
        let (begin, records) = (&raw mut (*told).begin, &raw mut (*told).records);
        let untold = &raw mut (*told).untold;
        if now - begin.read_volatile() >= SECOND {
            begin.write_volatile(now);
            records.write_volatile(0);
        }
        if records.read_volatile() >= MOST {
            untold.write_volatile(untold.read_volatile() + 1);
            return None;
        }
        records.write_volatile(records.read_volatile() + 1);
        let before = untold.read_volatile();
        untold.write_volatile(0);
        Some(before)
    }
}

macro_rules! told {
    ($($(#[$doc:meta])* $name:ident: $text:tt;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name(inode: Inode) {
                /// One copy, and out of the way of what passes. Global, so that the verifier looks at it once, and
                /// not on each way that leads to it (312,607 instructions of `guard_open` in place of 48,856).
                /// Returns a number because a global function must.
                #[inline(never)]
                #[unsafe(export_name = concat!("tell_", stringify!($name)))]
                extern "C" fn tell(number: u64, device: u32) -> u32 {
                    let Some(untold) = untold() else { return 0 };
                    let (major, minor) = (device >> 20, device & 0xf_ffff);
                    warn!(&(), target: "hsm_ebpf", $text, number, major, minor, task::tgid(), untold);
                    0
                }
                tell(inode.number(), inode.superblock().device());
            }
        )*
    };
}

told! {
    /// An open of a marked file that no agent watches.
    unwatched: "refused: inode {} of device {}:{} is offline and no agent watches it (process {}, {} more untold)";
    /// An open by a listener of fanotify that nobody is asked about.
    silent: "refused: inode {} of device {}:{} is offline, and no agent is asked about this open (process {}, {} more untold)";
    /// Nobody serves requests.
    unserved: "refused: inode {} of device {}:{} is offline and no agent serves requests (process {}, {} more untold)";
    /// No room for one more request.
    full: "refused: inode {} of device {}:{} is offline, and no more can wait (process {}, {} more untold)";
    /// The agent did not answer in time.
    late: "refused: inode {} of device {}:{} is offline, and the agent did not answer in time (process {}, {} more untold)";
    /// The marker stands at the end of an open, although the open passed at its beginning.
    marked_at_end: "refused: inode {} of device {}:{} is still offline at the end of its open (process {}, {} more untold)";
    /// A size is changed that must not be.
    cut: "refused: change of the size of inode {} of device {}:{}, which is offline (process {}, {} more untold)";
    /// Somebody wants to change what is the agent's.
    attribute: "refused: change of the marker or record of inode {} of device {}:{} (process {}, {} more untold)";
}
