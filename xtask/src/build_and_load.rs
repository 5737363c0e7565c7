//! `cargo xtask build-and-load`: builds everything, and tries the kernel programs on the running kernel.
//!
//! The work is done by `hsm-agent/examples/load_programs`, which has the same programs inside as `hsm`. It
//! leaves nothing behind. With `--kernel` it runs in a guest with that kernel instead.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::ebpf;
use crate::kernel::Series;
use crate::vm;

/// Options of `cargo xtask build-and-load`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask build-and-load                   # on this kernel; needs root\n  \
    cargo xtask build-and-load --kernel stock    # in the guest\n  \
    cargo xtask build-and-load --kernel patched  # in the guest with the fanotify patches\n\n\
    Exit code 0: the best tier can be had.")]
pub(crate) struct Options {
    /// In a guest with this kernel, not on the running one
    #[arg(long, value_enum)]
    kernel: Option<Series>,
}

/// Builds, loads, tells.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ebpf::build(false)?;
    let program = vm::example("load_programs")?;
    if let Some(series) = options.kernel {
        let machine = vm::Machine::with_kernel(series);
        return vm::command(&machine, &[program.display().to_string()]);
    }
    let status = Command::new(&program).status().context("starting load_programs")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
