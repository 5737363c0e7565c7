//! Runs a program with a time limit.
//!
//! A program that reads an offline file may be blocked in the kernel for as long as the agent
//! likes. So nothing is ever waited for without a limit; after it the program's whole process
//! group is killed, and that is an error with everything the program said until then.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::pace::patience;

/// Long enough for everything on a slow, busy machine.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// A program about to be run.
#[derive(Debug)]
pub struct Run {
    command: Command,
    limit: Duration,
    stdin: Option<Vec<u8>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
    /// What was run, for messages.
    pub line: String,
}

impl Run {
    /// A program with its arguments.
    pub fn new<S: AsRef<OsStr>>(program: S) -> Self {
        Self { command: Command::new(program), limit: DEFAULT_LIMIT, stdin: None }
    }

    /// A shell script (`sh -eu`), with `args` as `$1`, `$2`...
    pub fn shell(script: &str) -> Self {
        Self::new("sh").args(["-euc", script, "sh"])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.command.env(key, value.into());
        self
    }

    /// Runs in another directory.
    #[must_use]
    pub fn dir(mut self, dir: &std::path::Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Another time limit than [`DEFAULT_LIMIT`]; on a slow machine it is stretched ([`patience`]).
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// What the program finds on its standard input; otherwise that is empty.
    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// Runs to the end, whatever the exit code.
    pub fn output(self) -> Result<Output> {
        self.start()?.finish()
    }

    /// Runs to the end; an exit code other than 0 is an error.
    pub fn ok(self) -> Result<Output> {
        let output = self.output()?;
        if !output.status.success() {
            bail!("{}", output.describe());
        }
        Ok(output)
    }

    /// Starts it and returns.
    pub fn start(mut self) -> Result<Running> {
        let line = describe(&self.command);
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().with_context(|| format!("starting {line}"))?;
        if let (Some(bytes), Some(mut pipe)) = (self.stdin.take(), child.stdin.take()) {
            // A program that ends without reading everything is its own affair.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let limit = patience(self.limit);
        let stdout = Some(drain(child.stdout.take()));
        let stderr = Some(drain(child.stderr.take()));
        Ok(Running { child, stdout, stderr, line, started: Instant::now(), limit })
    }
}

/// A program that was started; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    line: String,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills it and everything it started.
    pub fn kill(&mut self) {
        kill_group(self.child.id());
    }

    /// Waits for its end, but not longer than its limit.
    pub fn finish(mut self) -> Result<Output> {
        let end = self.started + self.limit;
        let mut pause = Duration::from_micros(200);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                kill_group(self.child.id());
                bail!("still running after {:?}, killed: {}", self.limit, self.line);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        let read = |pipe: Option<JoinHandle<_>>| pipe.and_then(|p| p.join().ok());
        let stdout = read(self.stdout.take()).unwrap_or_default();
        let stderr = read(self.stderr.take()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(Output { status, stdout, stderr, elapsed, line: std::mem::take(&mut self.line) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only while it was not waited for: afterwards the number may be another process's.
        if let Ok(None) = self.child.try_wait() {
            kill_group(self.child.id());
            drop(self.child.wait());
        }
    }
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code, or 128 + signal as a shell says it.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Everything worth knowing about a failure.
    pub fn describe(&self) -> String {
        let head: String = self.text().chars().take(2000).collect();
        let errors: String = self.stderr.chars().take(4000).collect();
        format!("{} → {}\nstdout: {head}\nstderr: {errors}", self.line, self.status)
    }
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the output; the exit status tells the rest.
            drop(pipe.read_to_end(&mut bytes));
        }
        bytes
    })
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// SIGKILL to a process group; nobody there is fine.
pub fn kill_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _nobody_there = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// SIGKILL to one process; nobody there is fine.
pub fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _nobody_there = rustix::process::kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_code_come_back() {
        let out = Run::shell("printf '%s' \"$1\"; echo bad >&2; exit 3").args(["a b"]).output();
        let out = out.unwrap();
        assert_eq!((out.text().as_str(), out.stderr.as_str(), out.code()), ("a b", "bad\n", 3));
    }

    #[test]
    fn a_program_over_its_limit_is_killed() {
        let begin = Instant::now();
        let run = Run::new("sleep").args(["30"]).limit(Duration::from_millis(100)).output();
        assert!(run.unwrap_err().to_string().contains("killed"));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
