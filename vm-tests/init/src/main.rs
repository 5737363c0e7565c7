//! The guest's first process.
//!
//! ```text
//! initramfs: this program as /init, nothing else
//!   1  /dev /proc /sys, the output ports; says `up`
//!   2  root: overlay of the host's root (9p, read-only) and a tmpfs     mounts
//!   3  job directory (9p), scratch disk, bpffs, cgroup2, tracefs...     mounts
//!   4  that becomes `/`; loopback up; says `started`                    network
//!   5  runs the job, waits for it and for every orphan; says `ended`    job
//!   6  powers off
//! ```
//!
//! Invariant: whatever goes wrong is said on the control port and ends in a power-off; this program
//! never returns, because the kernel panics when its first process does.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hsm_vm_init::{CONTROL, Event};
use rustix::system::{RebootCommand, reboot};

mod job;
mod mounts;
mod network;

/// How long the kernel may take to find the virtio devices.
const DEVICES_LIMIT: Duration = Duration::from_secs(10);

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the first process of a test guest; it is of no use elsewhere");
        std::process::exit(1);
    }
    if let Err(error) = run() {
        // Without a control port the console is all there is.
        eprintln!("init: {error:#}");
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("init: power off: {error}");
    }
    loop {
        thread::park();
    }
}

/// Everything from the first mount to the last report.
fn run() -> Result<()> {
    mounts::first()?;
    let mut control = port(CONTROL)?;
    let mut say = |event: Event| control.write_all(event.to_line().as_bytes());
    say(Event::Up)?;
    let event = match work(&mut say) {
        Ok(event) => event,
        Err(error) => Event::Failed(format!("{error:#}")),
    };
    Ok(say(event)?)
}

fn work(say: &mut impl FnMut(Event) -> std::io::Result<()>) -> Result<Event> {
    let job = mounts::root()?;
    rustix::system::sethostname(b"hsm-guest").context("setting the host name")?;
    network::loopback_up().context("setting the loopback interface up")?;
    let child = job::start(&job)?;
    say(Event::Started)?;
    let begin = Instant::now();
    let code = job::wait(&child)?;
    let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Event::Ended { code, millis })
}

/// Opens a virtio-serial port by its name; the kernel may still be finding it.
fn port(name: &str) -> Result<File> {
    let end = Instant::now() + DEVICES_LIMIT;
    loop {
        if let Some(path) = port_path(name) {
            let open = File::options().read(true).write(true).open(&path);
            return open.with_context(|| format!("opening {}", path.display()));
        }
        if Instant::now() > end {
            bail!("there is no virtio-serial port {name}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn port_path(name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|port| {
        let path = PathBuf::from("/sys/class/virtio-ports").join(port).join("name");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == name)
    });
    Some(PathBuf::from("/dev").join(names.first()?))
}
