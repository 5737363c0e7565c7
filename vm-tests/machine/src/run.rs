//! Starts QEMU, listens to it, and ends it.
//!
//! ```text
//! reader per socket ──► channel ──► one loop: Watch, output ──► Outcome
//! ```
//! QEMU gets SIGKILL when the thread that started it ends (`setpriv --pdeathsig`), so not even a
//! killed caller leaves a guest behind. The run's directory goes with the run.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hsm_vm_init::{CONTROL, Event, JOB_FILE, Job, STDERR, STDOUT};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock::tsc_khz;
use crate::cpio::initramfs;
use crate::plan::{CONSOLE, Layout, SOCKETS, Vm};
use crate::watch::{End, Limits, Outcome, Watch};

/// How often limits are looked at while nothing is heard.
const TICK: Duration = Duration::from_millis(100);

/// From SIGTERM, with which QEMU puts a person's terminal back, to SIGKILL.
const TERM_LIMIT: Duration = Duration::from_secs(2);

/// What the initramfs has besides the init program.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "root"];

/// Which of the job's outputs, or the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The job's standard output.
    Stdout,
    /// The job's standard error.
    Stderr,
    /// A line of the kernel's console, without its end.
    Console,
}

/// What a run needs besides the guest itself.
pub struct Session<'a> {
    /// A directory on a disk; the run makes one of its own in it.
    pub base: &'a Path,
    /// The job directory, if the caller wants to read what the job wrote there.
    pub job_dir: Option<&'a Path>,
    /// Set by somebody who wants the run to end.
    pub stop: &'a AtomicBool,
    /// Gets all output as it comes.
    pub output: &'a mut dyn FnMut(Output, &[u8]),
}

impl Vm {
    /// Boots the guest, runs the job, waits until QEMU is gone.
    pub fn run(&self, job: &Job, session: &mut Session<'_>) -> Result<Outcome> {
        let dir = tempfile::Builder::new()
            .prefix("hsm-vm-")
            .tempdir_in(session.base)
            .with_context(|| format!("making a directory in {}", session.base.display()))?;
        let layout = self.prepare(dir.path(), job, session.job_dir)?;
        let heard = listen(&layout)?;
        let errors = dir.path().join("qemu.log");
        let mut guest = Guest::start(self, &layout, job.terminal.is_some(), &errors)?;
        let outcome = self.attend(&mut guest, &layout, &heard, session)?;
        if outcome.end == End::Crashed && outcome.boot.is_none() {
            explain(&errors)?;
        }
        dir.close().context("removing the run's directory")?;
        Ok(outcome)
    }

    /// Everything that QEMU wants to find.
    fn prepare(&self, dir: &Path, job: &Job, job_dir: Option<&Path>) -> Result<Layout> {
        let own = dir.join("job");
        fs::create_dir(&own)?;
        let layout = Layout { dir: dir.to_path_buf(), job: job_dir.map_or(own, PathBuf::from) };
        let init = fs::read(&self.init).with_context(|| self.init.display().to_string())?;
        fs::write(layout.initramfs(), initramfs(&init, &DIRECTORIES))?;
        fs::write(layout.job.join(JOB_FILE), serde_json::to_vec(job)?)
            .with_context(|| layout.job.display().to_string())?;
        let scratch = layout.scratch();
        File::create_new(&scratch)?.set_len(self.scratch_bytes)?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,nodiscard", "-O", "^has_journal"])
            .arg(&scratch)
            .output()
            .context("starting mkfs.ext4 (package e2fsprogs)")?;
        ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
        Ok(layout)
    }

    fn attend(
        &self,
        guest: &mut Guest,
        layout: &Layout,
        heard: &Receiver<Heard>,
        session: &mut Session<'_>,
    ) -> Result<Outcome> {
        let mut watch = Watch::new(Limits { boot: self.boot_limit, job: self.job_limit });
        let (mut killed, mut interrupted, mut gone) = (false, false, false);
        loop {
            match heard.recv_timeout(TICK) {
                Ok(what) => apply(what, &mut watch, guest.begin.elapsed(), session.output),
                Err(RecvTimeoutError::Timeout) => {}
                // Every reader has come to the end of what QEMU left.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !gone && guest.is_gone()? {
                gone = true;
                release_readers(layout);
            }
            interrupted |= session.stop.load(Ordering::SeqCst);
            if !killed && !gone && (interrupted || watch.must_kill(guest.begin.elapsed())) {
                killed = true;
                guest.end()?;
            }
        }
        guest.end()?;
        Ok(watch.finish(killed, interrupted))
    }
}

fn apply(what: Heard, watch: &mut Watch, now: Duration, output: &mut dyn FnMut(Output, &[u8])) {
    match what {
        Heard::Event(event) => watch.event(event, now),
        Heard::Line(line) => {
            watch.console(&line, now);
            output(Output::Console, line.as_bytes());
        }
        Heard::Bytes(which, bytes) => output(which, &bytes),
    }
}

/// QEMU's own words are the only explanation of a guest that never was.
fn explain(errors: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(&fs::read(errors)?).trim().to_owned();
    ensure!(text.is_empty(), "QEMU: {text}");
    Ok(())
}

/// A running QEMU; killed when dropped.
struct Guest {
    child: Child,
    begin: Instant,
}

impl Guest {
    fn start(vm: &Vm, layout: &Layout, terminal: bool, errors: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&vm.qemu);
        command.args(vm.arguments(layout, terminal, tsc_khz())).stderr(File::create(errors)?);
        if !terminal {
            // Ctrl-C is for the caller, who ends the guest in order.
            command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        }
        let begin = Instant::now();
        let child = command.spawn().context("starting setpriv (package util-linux)")?;
        Ok(Self { child, begin })
    }

    fn is_gone(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// SIGTERM, then SIGKILL; nothing if it is gone.
    fn end(&mut self) -> Result<()> {
        if self.is_gone()? {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        let end = Instant::now() + TERM_LIMIT;
        while Instant::now() < end {
            if self.is_gone()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Only on an error path; the error is what matters.
        drop(self.end());
    }
}

enum Heard {
    Event(Event),
    Line(String),
    Bytes(Output, Vec<u8>),
}

/// One reader per socket. All of them end when QEMU's side is closed.
fn listen(layout: &Layout) -> Result<Receiver<Heard>> {
    // Bounded: a guest that floods its output waits for us.
    let (sender, heard) = sync_channel(256);
    for socket in SOCKETS {
        let path = layout.socket(socket);
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        let sender = sender.clone();
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                read(socket, stream, &sender);
            }
        });
    }
    Ok(heard)
}

/// A QEMU that ended early never connected; readers that still wait for it find an empty stream.
fn release_readers(layout: &Layout) {
    for socket in SOCKETS {
        drop(UnixStream::connect(layout.socket(socket)));
    }
}

/// An error of the stream or of the channel is its end: the watch draws the conclusion.
fn read(socket: &str, stream: UnixStream, sender: &SyncSender<Heard>) {
    match socket {
        CONSOLE => lines(stream, |line| sender.send(Heard::Line(line)).is_ok()),
        CONTROL => lines(stream, |line| match Event::from_line(&line) {
            Ok(event) => sender.send(Heard::Event(event)).is_ok(),
            Err(error) => {
                let event = Event::Failed(format!("the guest said {line:?}: {error}"));
                sender.send(Heard::Event(event)).is_ok()
            }
        }),
        STDOUT => bytes(stream, Output::Stdout, sender),
        STDERR => bytes(stream, Output::Stderr, sender),
        _ => {}
    }
}

fn lines(stream: UnixStream, mut each: impl FnMut(String) -> bool) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { return };
        if !each(String::from_utf8_lossy(line.trim_ascii_end()).into_owned()) {
            return;
        }
    }
}

fn bytes(mut stream: UnixStream, which: Output, sender: &SyncSender<Heard>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || sender.send(Heard::Bytes(which, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

/// Fails unless `qemu` is at least this version; older ones boot PVH kernels badly.
pub fn check_version(qemu: &Path, least: u32) -> Result<()> {
    let output = Command::new(qemu).arg("--version").output();
    let output = output.with_context(|| format!("starting {}", qemu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match major(&text) {
        Some(version) if version >= least => Ok(()),
        Some(version) => bail!("{} is QEMU {version}; {least} or newer is needed", qemu.display()),
        None => bail!("{} does not tell its version: {text:?}", qemu.display()),
    }
}

fn major(text: &str) -> Option<u32> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn a_program_that_is_not_qemu_is_an_outcome_or_an_error_but_never_a_success() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("init");
        fs::write(&file, b"x").unwrap();
        let vm = Vm {
            qemu: "/bin/false".into(),
            kernel: file.clone(),
            init: file,
            accel: crate::Accel::Tcg,
            smp: 1,
            memory_mib: 64,
            icount: false,
            preempt: None,
            kernel_args: Vec::new(),
            scratch_bytes: 16 << 20,
            boot_limit: Duration::from_secs(5),
            job_limit: Duration::from_secs(5),
        };
        let job = Job { command: Vec::new(), env: Vec::new(), dir: "/".into(), terminal: None };
        let stop = AtomicBool::new(false);
        let mut session =
            Session { base: base.path(), job_dir: None, stop: &stop, output: &mut |_, _| {} };
        let outcome = vm.run(&job, &mut session).unwrap();
        assert_eq!(outcome.end, crate::End::Crashed);
        let left: Vec<_> = fs::read_dir(base.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the file of this test: {left:?}");
    }
}
