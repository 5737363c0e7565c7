//! The filter of tier `mark-filter`, in a kernel that has filters: loaded, pinned, replaced, and tried
//! on real file systems.
//!
//! Needs root, BPF LSM, and a kernel with the patches of docs/KERNEL-PATCHES.md:
//! `cargo xtask vm run --kernel patched -- TEST`. A machine that cannot run them says so in capitals, and every test counts
//! as ignored; `HSM_REQUIRE_FILTER=1` makes that a failure.

use std::process::ExitCode;

use hsm_agent::bpf;

mod cases;
mod cost;
#[path = "../kernel_lab/mod.rs"]
mod kernel_lab;
mod watch;

const SUITE: kernel_lab::Suite = kernel_lab::Suite {
    whose: "FILTER'S",
    in_guest: "cargo xtask vm run --kernel patched",
    required_by: "HSM_REQUIRE_FILTER",
    lacking: || bpf::filter_probe().err(),
    // None of it is zero.
    content: || vec![b'x'; SIZE as usize],
    helper: watch::main,
    cases: cases::ALL,
    aside: &[("--cost", cost::CASE)],
};

/// Bytes of every file.
const SIZE: u64 = 8 << 20;

fn main() -> ExitCode {
    SUITE.main()
}
