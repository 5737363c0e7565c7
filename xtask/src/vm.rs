//! `cargo xtask vm`: the end-to-end suite, a command or a shell in a guest with its own kernel.
//!
//! ```text
//! binaries   hsm, the suite and the guest's init, built on the host
//! guest      kernel + QEMU + limits; KVM where it works; retried once when it does not boot
//!   suite    the same program that `cargo test --test e2e` runs, with the same paths over 9p
//!   command  any command; shell: a terminal
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use hsm_lab::{FsKind, Tier};
use hsm_machine::{Accel, Preempt};

use crate::kernel::Series;

mod binaries;
mod command;
mod guest;
mod inside;
mod suite;

pub(crate) use binaries::example;
pub(crate) use inside::again;
pub(crate) use suite::Part;

/// Options of `cargo xtask vm`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask vm                             # the whole suite, all file systems\n  \
    cargo xtask vm --fs xfs -- cat_reads       # some cases on XFS\n  \
    cargo xtask vm --tier mark-filter          # on the kernel with the project's patches\n  \
    cargo xtask vm --debug --preempt full      # lockdep and friends\n  \
    cargo xtask vm run -- uname -a             # any command, in the project's directory\n  \
    cargo xtask vm shell                       # a shell; Ctrl-D ends it, Ctrl-A X kills it\n\n\
    The guest sees the host's files read-only; what it writes is gone with it, except in /hsm/job\n\
    (`run --job-dir`). docs/VM.md tells the rest.")]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    machine: Machine,
    /// The way in which the agent gets between a file and its reader (user-filter, lsm-filter; mark-filter,
    /// which needs the patched kernel)
    #[arg(long, default_value_t = Tier::UserFilter)]
    tier: Tier,
    /// Only on this file system (ext4, xfs, btrfs)
    #[arg(long)]
    fs: Option<FsKind>,
    /// Only tests whose name contains this
    #[arg(last = true)]
    filter: Option<String>,
}

#[derive(Subcommand)]
enum What {
    /// Runs a command in the guest; its exit code is this program's
    #[command(after_help = "Examples:\n  \
        cargo xtask vm run -- cat /proc/version\n  \
        cargo xtask vm run --smp 1 -- sh -c 'dmesg | tail'\n  \
        cargo xtask vm run --job-dir /tmp/out -- sh -c 'bpftool btf dump file \
        /sys/kernel/btf/vmlinux > /hsm/job/btf.txt'")]
    Run {
        /// A directory of the host that the command can write, as /hsm/job
        #[arg(long)]
        job_dir: Option<PathBuf>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Gives a person a shell in the guest
    #[command(after_help = "Ctrl-D or `exit` ends the shell and the guest; Ctrl-A X kills the \
        guest; Ctrl-A H shows what else there is.")]
    Shell,
}

/// Which guest.
#[derive(Args, Clone)]
pub(crate) struct Machine {
    /// Processors of the guest
    #[arg(long, global = true, default_value_t = 2)]
    smp: u32,
    /// Memory of the guest, in MiB
    #[arg(long, global = true, default_value_t = 2048)]
    memory: u32,
    /// The kernel: as Debian ships it, or with the project's patches. By default what the tier needs
    #[arg(long, global = true, value_enum)]
    kernel: Option<Series>,
    /// The kernel that checks itself (lockdep, RCU, sleeping in atomic context)
    #[arg(long, global = true)]
    debug: bool,
    /// The kernel's preemption model: full or lazy (by default lazy)
    #[arg(long, global = true)]
    preempt: Option<Preempt>,
    /// One virtual nanosecond per instruction: deterministic counts, no KVM, slower
    #[arg(long, global = true)]
    icount: bool,
    /// KVM or TCG; by default KVM where a guest boots with it
    #[arg(long, global = true, value_enum)]
    accel: Option<AccelOption>,
    /// More words for the kernel's command line
    #[arg(long, global = true, value_name = "WORD")]
    kernel_arg: Vec<String>,
    /// Minutes that the job may take
    #[arg(long, global = true, default_value_t = 60)]
    limit: u64,
    /// Show what the guest's kernel says, as it says it
    #[arg(long, global = true)]
    console: bool,
}

/// See [`Accel`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum AccelOption {
    /// By the processor
    Kvm,
    /// Translated by QEMU
    Tcg,
}

impl From<AccelOption> for Accel {
    fn from(option: AccelOption) -> Self {
        match option {
            AccelOption::Kvm => Self::Kvm,
            AccelOption::Tcg => Self::Tcg,
        }
    }
}

impl Machine {
    /// Two processors, the stock kernel.
    pub(crate) fn ordinary() -> Self {
        Self { smp: 2, icount: false, ..Self::counting() }
    }

    /// One processor whose clock counts instructions.
    pub(crate) fn counting() -> Self {
        Self {
            smp: 1,
            memory: 2048,
            kernel: None,
            debug: false,
            preempt: None,
            icount: true,
            accel: None,
            kernel_arg: Vec::new(),
            limit: 60,
            console: false,
        }
    }

    /// Two processors and this kernel.
    pub(crate) fn with_kernel(series: Series) -> Self {
        Self { kernel: Some(series), ..Self::ordinary() }
    }

    /// This machine with the kernel that a tier needs, unless somebody chose one.
    pub(crate) fn for_tier(self, tier: Tier) -> Self {
        let needed = if tier == Tier::MarkFilter { Series::Patched } else { Series::Stock };
        Self { kernel: Some(self.kernel.unwrap_or(needed)), ..self }
    }

    fn series(&self) -> Series {
        self.kernel.unwrap_or(Series::Stock)
    }

    fn job_limit(&self) -> Duration {
        Duration::from_secs(self.limit * 60)
    }
}

/// Runs a command in a guest; its exit code is the guest's.
pub(crate) fn command(machine: &Machine, command: &[String]) -> Result<ExitCode> {
    command::run(machine, None, command)
}

/// Runs what was asked for.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match &options.what {
        None => suite::run(options),
        Some(What::Run { job_dir, command }) => {
            command::run(&options.machine, job_dir.as_deref(), command)
        }
        Some(What::Shell) => command::shell(&options.machine),
    }
}
