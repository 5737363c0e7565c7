//! A test guest in QEMU: boots a kernel with the host's root read-only over 9p, runs one [`Job`],
//! and tells how it went.
//!
//! ```text
//! Vm ──► plan      QEMU's arguments                                  pure
//!   │    cpio      the initramfs: hsm-vm-init and nothing else        pure
//!   │
//!   │    clock     how fast the host's time stamp counter is
//!   └──► run       starts QEMU, feeds what it hears to
//!        watch     which says when the guest must be killed, and why  pure
//!        console   and what the kernel complained about               pure
//! ```
//!
//! Invariant: only a guest whose first process reported the job's exit code, and whose kernel did
//! not complain, counts as having run. A guest that fell silent has failed. QEMU does not outlive
//! the thread that called [`Vm::run`], however that ends.

pub mod clock;
pub mod console;
pub mod cpio;
pub mod plan;
pub mod run;
pub mod watch;

pub use console::Complaint;
pub use hsm_vm_init::{Job, SCRATCH_DIR, Terminal};
pub use plan::{Accel, Preempt, Vm};
pub use run::{Output, Session};
pub use watch::{End, Limits, Outcome};
