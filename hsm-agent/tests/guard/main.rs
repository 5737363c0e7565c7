//! The kernel programs, in a kernel that runs them: loaded, pinned, and tried on real file systems.
//!
//! Needs root, and a kernel with BPF LSM that lets programs be loaded: `cargo xtask vm run -- TEST`
//! where the host refuses. A machine that cannot run them says so in capitals, and every test counts
//! as ignored; `HSM_REQUIRE_LSM=1` makes that a failure.

use std::process::ExitCode;

use hsm_agent::bpf::{self, Probe};

mod cases;
mod counts;
#[path = "../kernel_lab/mod.rs"]
mod kernel_lab;
mod server;

const SUITE: kernel_lab::Suite = kernel_lab::Suite {
    whose: "GUARD'S",
    in_guest: "cargo xtask vm run",
    required_by: "HSM_REQUIRE_LSM",
    lacking,
    content: || b"#!/bin/sh\nexit 0\n".to_vec(),
    helper: server::main,
    cases: cases::ALL,
    aside: &[],
};

fn main() -> ExitCode {
    SUITE.main()
}

fn lacking() -> Option<String> {
    match bpf::probe() {
        Ok(Probe::Available) => None,
        Ok(other) => Some(other.to_string()),
        Err(error) => Some(error.to_string()),
    }
}
