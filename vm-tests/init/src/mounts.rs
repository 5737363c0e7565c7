//! The guest's file tree: the host's, with everything written kept in the guest's memory.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hsm_vm_init::{HOST_TAG, JOB_DIR, JOB_FILE, JOB_TAG, Job, SCRATCH_DIR};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::DEVICES_LIMIT;

/// Where the new root is put together.
const ROOT: &str = "/root";

/// The scratch disk is the only virtio-blk device.
const SCRATCH_DEVICE: &str = "/dev/vda";

/// The largest 9p message: fewer round trips, each of which is slow without KVM.
const P9_BYTES: u32 = 512 << 10;

/// Kernel file systems below the new root: type, place, options. All are in the guest's kernel, so
/// one that cannot be mounted is an error.
const KERNEL: &[(&str, &str, &str)] = &[
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("mqueue", "/dev/mqueue", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", "mode=700"),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("debugfs", "/sys/kernel/debug", ""),
    ("securityfs", "/sys/kernel/security", ""),
    ("configfs", "/sys/kernel/config", ""),
    ("fusectl", "/sys/fs/fuse/connections", ""),
    ("nfsd", "/proc/fs/nfsd", ""),
];

/// What this program itself needs to find its ports and disks.
pub(crate) fn first() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        attach(kind, kind, place, "")?;
    }
    Ok(())
}

/// Puts the new root together, goes there, and reads the job.
pub(crate) fn root() -> Result<Job> {
    overlay()?;
    for place in ["/dev", "/proc", "/sys"] {
        let target = below(place)?;
        mount_move(place, &target).with_context(|| format!("moving {place}"))?;
    }
    for (kind, place, options) in KERNEL {
        attach(kind, kind, &below(place)?, options)?;
    }
    no_fair_servers()?;
    let job_dir = below(JOB_DIR)?;
    attach("9p", JOB_TAG, &job_dir, &p9("cache=mmap"))?;
    scratch()?;
    let file = Path::new(&job_dir).join(JOB_FILE);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let job = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    switch().context("making the new root the root")?;
    Ok(job)
}

/// Switches the scheduler's deadline servers for ordinary tasks off: on a host that starves a
/// virtual CPU, Linux 7.3 warns about their timer (`dl_task_timer`, `hrtimer_forward`). They only
/// protect against realtime tasks, of which there are none here.
fn no_fair_servers() -> Result<()> {
    let servers = below("/sys/kernel/debug/sched/fair_server")?;
    for cpu in fs::read_dir(&servers).with_context(|| servers.clone())? {
        let file = cpu?.path().join("runtime");
        fs::write(&file, "0").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The host does not change what it shows while the guest runs, so everything may be cached; what
/// is written goes to memory.
fn overlay() -> Result<()> {
    for place in ["/lower", "/upper", ROOT] {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
    }
    attach("9p", HOST_TAG, "/lower", &p9("cache=loose"))?;
    attach("tmpfs", "tmpfs", "/upper", "mode=755")?;
    fs::create_dir_all("/upper/up").context("/upper/up")?;
    fs::create_dir_all("/upper/work").context("/upper/work")?;
    let options = "lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work";
    attach("overlay", "overlay", ROOT, options)
}

fn scratch() -> Result<()> {
    let end = Instant::now() + DEVICES_LIMIT;
    // The device node is where the rest of /dev was moved to.
    let device = format!("{ROOT}{SCRATCH_DEVICE}");
    while !Path::new(&device).exists() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    attach("ext4", &device, &below(SCRATCH_DIR)?, "")
}

fn p9(more: &str) -> String {
    format!("trans=virtio,version=9p2000.L,msize={P9_BYTES},{more}")
}

/// A place below the new root, made if it is missing.
fn below(place: &str) -> Result<String> {
    let path = format!("{ROOT}{place}");
    if !Path::new(&path).is_dir() {
        fs::create_dir_all(&path).with_context(|| path.clone())?;
    }
    Ok(path)
}

fn attach(kind: &str, source: &str, place: &str, options: &str) -> Result<()> {
    let data = CString::new(options)?;
    mount(source, place, kind, MountFlags::empty(), Some(data.as_c_str()))
        .with_context(|| format!("mounting {kind} ({source}) on {place} with {options:?}"))
}

/// Moves the new root over the old one. Only `chroot` would leave every process in a chroot, and
/// such a process may not make user namespaces.
fn switch() -> Result<()> {
    rustix::process::chdir(ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}
