//! One guest from kernel to outcome: everything that suite, command and shell share.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use hsm_machine::run::{Output, Session};
use hsm_machine::{Accel, End, Job, Outcome, Vm};

use super::{Machine, binaries};
use crate::kernel::{self, Flavour};
use crate::process::{root, target_dir};
use crate::setup;
use crate::steps::note;

/// Two to four seconds is usual; a busy host is slower.
const BOOT_LIMIT: Duration = Duration::from_secs(30);

/// Sparse: only what is written takes room on the host.
const SCRATCH_BYTES: u64 = 8 << 30;

/// Environment variables that mean the same in the guest, besides all `HSM_` and `RUST_` ones.
const ENVIRONMENT: &[&str] =
    &["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TERM", "XDG_CACHE_HOME"];

/// A guest that can be run.
pub(crate) struct Guest<'a> {
    machine: &'a Machine,
    vm: Vm,
    console_log: PathBuf,
    stop: Arc<AtomicBool>,
}

impl<'a> Guest<'a> {
    /// Builds and installs what is missing.
    pub(crate) fn new(machine: &'a Machine) -> Result<Self> {
        let qemu = setup::qemu()?;
        let kernel = kernel::ensure(Flavour { series: machine.series(), debug: machine.debug })?;
        let init = binaries::init()?;
        let vm = Vm {
            qemu,
            kernel,
            init,
            accel: accel(machine)?,
            smp: machine.smp,
            memory_mib: machine.memory,
            icount: machine.icount,
            preempt: machine.preempt,
            kernel_args: machine.kernel_arg.clone(),
            scratch_bytes: SCRATCH_BYTES,
            boot_limit: if machine.debug { 2 * BOOT_LIMIT } else { BOOT_LIMIT },
            job_limit: machine.job_limit(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).context("signal handler")?;
        }
        let console_log = console_log()?;
        Ok(Self { machine, vm, console_log, stop })
    }

    /// How many times slower than the host the guest is, for time limits (`HSM_SLOW`).
    fn slowness(&self) -> u32 {
        let translated = if self.vm.accel == Accel::Tcg { 5 } else { 1 };
        translated * if self.machine.debug { 3 } else { 1 }
    }

    /// No time limit on the job: a person ends it.
    pub(crate) fn without_limit(mut self) -> Self {
        self.vm.job_limit = Duration::MAX;
        self
    }

    /// Runs a job; a guest that did not come up gets a second try.
    pub(crate) fn run(
        &mut self,
        job: &Job,
        job_dir: Option<&Path>,
        output: &mut dyn FnMut(Output, &[u8]),
    ) -> Result<Outcome> {
        let first = self.once(job, job_dir, output);
        let may_be_kvm = self.vm.accel == Accel::Kvm && self.machine.accel.is_none();
        let why = match first {
            Ok(outcome) if outcome.end != End::NoUserSpace => return Ok(outcome),
            Ok(_) => format!("within {:?}", self.vm.boot_limit),
            // QEMU itself may die of a KVM that does not do what it says.
            Err(error) if may_be_kvm => format!("({error:#})"),
            Err(error) => return Err(error),
        };
        if may_be_kvm {
            note(&format!("THE GUEST DID NOT BOOT with KVM {why}; now with TCG"));
            remember_that_kvm_fails()?;
            self.vm.accel = Accel::Tcg;
        } else {
            note(&format!("THE GUEST DID NOT BOOT {why}; killed, trying once more"));
        }
        self.once(job, job_dir, output)
    }

    fn once(
        &self,
        job: &Job,
        job_dir: Option<&Path>,
        output: &mut dyn FnMut(Output, &[u8]),
    ) -> Result<Outcome> {
        let mut job = job.clone();
        job.env.push(("HSM_SLOW".to_owned(), self.slowness().to_string()));
        let log = &self.console_log;
        let mut console = BufWriter::new(File::create(log)?);
        let base = std::env::var_os("HSM_LAB_DIR").map_or("/var/tmp".into(), PathBuf::from);
        let mut problem = None;
        let mut sink = |which: Output, bytes: &[u8]| {
            if which == Output::Console {
                let line = [bytes, b"\n"].concat();
                problem = console.write_all(&line).err().or(problem.take());
                if self.machine.console {
                    eprint!("    | {}", String::from_utf8_lossy(&line));
                }
            }
            output(which, bytes);
        };
        let mut session = Session { base: &base, job_dir, stop: &self.stop, output: &mut sink };
        let outcome = self.vm.run(&job, &mut session)?;
        problem.map_or(Ok(()), Err).with_context(|| log.display().to_string())?;
        console.flush()?;
        if !worth_keeping(&outcome) {
            fs::remove_file(log).with_context(|| log.display().to_string())?;
        }
        Ok(outcome)
    }

    /// What came of a run, for people: times, and everything that went wrong.
    pub(crate) fn explain(&self, outcome: &Outcome) -> String {
        let mut text = match &outcome.end {
            End::Ended { code, ran } => {
                format!("ended with {code} after {:.1} s", ran.as_secs_f64())
            }
            End::NoUserSpace => "DID NOT BOOT, twice".to_owned(),
            End::Failed(why) => format!("COULD NOT BE SET UP: {why}"),
            End::Crashed => "CRASHED before the job's end".to_owned(),
            End::TimedOut(limit) => format!("KILLED: the job did not end within {limit:?}"),
            End::Interrupted => "interrupted; the guest is gone".to_owned(),
        };
        if let Some((up, started)) = outcome.boot {
            let (up, started) = (up.as_secs_f64(), started.as_secs_f64());
            text += &format!("; booted in {up:.1} s, mounted in {started:.1} s");
        }
        text += &format!(" ({}, {} CPUs)", self.vm.accel, self.vm.smp);
        if outcome.power_off_failed {
            text += "\nTHE GUEST DID NOT POWER OFF and was killed";
        }
        if let Some(complaint) = &outcome.complaint {
            text += "\nTHE GUEST'S KERNEL COMPLAINED:\n  ";
            text += &complaint.excerpt.join("\n  ");
        }
        if worth_keeping(outcome) {
            text += &format!("\nall that the kernel said: {}", self.console_log.display());
        }
        text
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn interrupted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A job in the project's directory with the caller's environment.
pub(crate) fn job(command: Vec<String>) -> Result<Job> {
    let ours = |key: &str| {
        ENVIRONMENT.contains(&key) || key.starts_with("HSM_") || key.starts_with("RUST_")
    };
    let mut env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| ours(key) && key != "HSM_LAB_DIR")
        .collect();
    // The root of the guest is in its memory; images belong on a disk.
    env.push(("HSM_LAB_DIR".to_owned(), hsm_machine::SCRATCH_DIR.to_owned()));
    let dir = root().canonicalize()?.display().to_string();
    Ok(Job { command, env, dir, terminal: None })
}

/// Whether what the kernel said may explain something.
fn worth_keeping(outcome: &Outcome) -> bool {
    let ordinary = matches!(outcome.end, End::Ended { .. } | End::Interrupted);
    !(ordinary && outcome.is_clean())
}

/// One per process: two guests at a time, say of two file systems, must not write into one file.
fn console_log() -> Result<PathBuf> {
    let dir = target_dir()?.join("vm");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir.join(format!("console-{}.log", std::process::id())))
}

fn accel(machine: &Machine) -> Result<Accel> {
    if let Some(option) = machine.accel {
        return Ok(option.into());
    }
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let kvm = usable && !machine.icount && fs::read(kvm_fails()?).ok() != Some(boot_id()?);
    Ok(if kvm { Accel::Kvm } else { Accel::Tcg })
}

/// Holds the host's boot id while guests do not boot with its KVM: asked again after a reboot.
fn kvm_fails() -> Result<PathBuf> {
    Ok(setup::cache_dir()?.join("vm/kvm-fails"))
}

fn remember_that_kvm_fails() -> Result<()> {
    let path = kvm_fails()?;
    fs::create_dir_all(path.parent().context("no parent")?)?;
    fs::write(&path, boot_id()?).with_context(|| path.display().to_string())
}

fn boot_id() -> Result<Vec<u8>> {
    Ok(fs::read("/proc/sys/kernel/random/boot_id")?)
}
