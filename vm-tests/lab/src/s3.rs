//! A real S3 server (`s3s-fs`) on the loopback interface, which can be stopped, and can stall.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::pace::patience;
use crate::run::kill;
use crate::tools::tool;

/// The secret half of its key, for who looks whether it is told somewhere.
pub const SECRET: &str = "wJalrXUtnFEMI-e2e-secret";

/// The server, with one bucket; killed when dropped.
#[derive(Debug)]
pub struct S3Server {
    dir: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl S3Server {
    /// Starts it with its data below `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("root/bucket"))?;
        fs::write(dir.join("key"), "e2e-key")?;
        fs::write(dir.join("secret"), SECRET)?;
        let mut server = Self { dir: dir.to_path_buf(), port: free_port(), process: None };
        server.start()?;
        Ok(server)
    }

    /// The lines of `[pool.store]` that lead to it.
    pub fn store_lines(&self) -> Vec<String> {
        let file = |name| format!("{:?}", self.dir.join(name).display().to_string());
        let (key, secret) = (file("key"), file("secret"));
        vec![
            "kind = \"s3\"".to_owned(),
            format!("endpoint = \"http://127.0.0.1:{}\"", self.port),
            "bucket = \"bucket\"\nallow_http = true".to_owned(),
            format!("access_key_file = {key}\nsecret_key_file = {secret}"),
        ]
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(tool("s3s-fs")?);
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--access-key", "e2e-key", "--secret-key", SECRET]);
        command.arg(self.dir.join("root")).env("RUST_LOG", "error").stdout(Stdio::null());
        let process = self.process.insert(command.spawn()?);
        let end = Instant::now() + patience(Duration::from_secs(20));
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(process.try_wait()?.is_none(), "the S3 server ended");
            ensure!(Instant::now() < end, "the S3 server does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills it: connections are refused.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// It takes connections and requests, and answers nothing.
    pub fn stall(&self) {
        self.signal(Signal::STOP);
    }

    /// It answers again.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.process.as_ref().and_then(|p| i32::try_from(p.id()).ok()) {
            kill(pid, signal);
        }
    }
}

/// Not one that the kernel chooses: until the server listens, it could choose it again for the next. Below those that
/// it takes for connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}
