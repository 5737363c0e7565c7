//! Offline files behind the kernel's NFS server, version 4.2, and its client, both in this machine.
//!
//! No daemon is needed: who may mount what is written straight into the server's caches (`/proc/net/rpc`,
//! the lines that rpc.mountd would write), and version 4 asks no port mapper. There is one server in
//! a network namespace, so one case at a time has it ([`SERVER`]), and only in the guest: a machine's own
//! server is not to be touched.
//!
//! A server's thread cannot wait in the kernel programs. It is told `EAGAIN`, tells its client to come
//! again later, and the client does so until somebody kills the program: an error that lasts is a wait. What
//! the thread wanted is recalled meanwhile, by fanotify's event or by a request of the program's.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hsm_lab::run::Running;
use hsm_lab::{Run, patience};

use super::cases;
use super::guarded::kill_agent;
use super::mounts::Mount;
use super::processes::wait_until_up;
use crate::fixture::{Needs, Pool, Sample};

cases! {
    nfs_clients_get_the_bytes_and_wait_for_the_agent; needs Guest,
}

const MIB: u64 = 1 << 20;

/// Held by the case that has the server.
static SERVER: Mutex<()> = Mutex::new(());

/// Where the kernel's server is told what to do.
const CONTROL: &str = "/proc/fs/nfsd";

/// `NFSEXP_INSECURE_PORT`, `NFSEXP_ASYNC`, `NFSEXP_NOSUBTREECHECK` and `NFSEXP_FSID` of
/// `<linux/nfsd/export.h>`. Root stays root.
const FLAGS: u32 = 0x2 | 0x10 | 0x400 | 0x2000;

/// A client's mount of the pool.
struct Nfs {
    client: Option<Mount>,
    _control: Mount,
    _server: MutexGuard<'static, ()>,
}

impl Nfs {
    fn new(pool: &Pool) -> Result<Self> {
        let server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        // The sandbox has a /proc of its own, on which this is not mounted.
        let control = Mount::new(&["-t", "nfsd"], "nfsd", CONTROL.as_ref())?;
        let mut this = Self { client: None, _control: control, _server: server };
        let path = pool.mnt().display().to_string();
        for (cache, line) in [
            ("auth.unix.ip", "nfsd 127.0.0.1 2147483647 lab".to_owned()),
            ("nfsd.export", format!("lab {path} 2147483647 {FLAGS} 65534 65534 0")),
            // What the root of version 4 is: file system number 0.
            ("nfsd.fh", format!("lab 1 \\x00000000 2147483647 {path}")),
        ] {
            tell(&format!("/proc/net/rpc/{cache}/channel"), &line)?;
        }
        tell(&format!("{CONTROL}/versions"), "-3 +4 -4.0 +4.1 +4.2")?;
        // The least that the kernel takes. Until it is over, clients may only reclaim what they had.
        tell(&format!("{CONTROL}/nfsv4leasetime"), "10")?;
        tell(&format!("{CONTROL}/nfsv4gracetime"), "10")?;
        tell(&format!("{CONTROL}/portlist"), "tcp 2049")?;
        tell(&format!("{CONTROL}/threads"), "8")?;
        // Without mount.nfs, which would have found out the addresses.
        let options = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,soft,timeo=100,retrans=2";
        let target = pool.outside("nfs");
        let client = Mount::new(&["-i", "-t", "nfs4", "-o", options], "127.0.0.1:/", &target)?;
        this.client = Some(client);
        Ok(this)
    }

    fn path(&self, file: &Sample) -> Result<PathBuf> {
        let mount = self.client.as_ref().context("not mounted")?;
        Ok(mount.0.join(file.path.file_name().context("no name")?))
    }
}

impl Drop for Nfs {
    fn drop(&mut self) {
        self.client = None;
        if let Err(error) = tell(&format!("{CONTROL}/threads"), "0").and_then(|()| flush()) {
            eprintln!("the NFS server stays: {error:#}");
        }
    }
}

/// Takes the server's hold on the exported mount away.
fn flush() -> Result<()> {
    ["nfsd.fh", "nfsd.export", "auth.unix.ip"]
        .iter()
        .try_for_each(|cache| tell(&format!("/proc/net/rpc/{cache}/flush"), "2147483647"))
}

/// The kernel takes a line as a whole or not at all.
fn tell(path: &str, line: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(path).with_context(|| path.to_owned())?;
    file.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("{line:?} to {path}"))
}

fn nfs_clients_get_the_bytes_and_wait_for_the_agent(pool: &mut Pool) -> Result<()> {
    let mut files = Vec::new();
    for name in
        ["read", "mapped", "appended", "emptied", "copied", "cut", "slow", "killed", "dead", "left"]
    {
        files.push(pool.file(name, MIB + 1)?);
    }
    pool.offline_tree(pool.mnt())?;
    let nfs = Nfs::new(pool)?;
    let (now, later) = files.split_at(6);
    read_and_write(pool, &nfs, now)?;
    wait_for_the_agent(pool, &nfs, later)
}

fn read_and_write(pool: &Pool, nfs: &Nfs, files: &[Sample]) -> Result<()> {
    let [read, mapped, appended, emptied, copied, cut] = files else { bail!("six files") };
    read.content.check(&nfs.path(read)?)?;
    let out = pool.helper("mmap-grow", [nfs.path(mapped)?])?.ok()?;
    mapped.content.check_bytes(&out.stdout)?;
    pool.sh("printf more >> \"$1\"", [nfs.path(appended)?])?;
    pool.sh("printf new > \"$1\"", [nfs.path(emptied)?])?;
    let copy = nfs.path(copied)?.with_extension("copy");
    pool.sh("cp \"$1\" \"$2\"", [nfs.path(copied)?, copy])?;
    // The server cuts without opening: nobody waits for the recall, and the client comes again.
    let name = nfs.path(cut)?.into_os_string();
    let begin = Instant::now();
    pool.helper("truncate", [name, "1000".into()])?.ok()?;
    let limit = patience(Duration::from_secs(10));
    ensure!(begin.elapsed() < limit, "cutting took {:?}", begin.elapsed());
    ensure!(fs::read(&cut.path)? == cut.content.range(0, 1000), "it was not cut");
    // What the server's side has now.
    read.check()?;
    mapped.check()?;
    let got = fs::read(&appended.path)?;
    ensure!(got.ends_with(b"more"), "the append is missing");
    appended.content.check_bytes(&got[..got.len() - 4])?;
    ensure!(fs::read(&emptied.path)? == b"new", "the new bytes are missing");
    copied.content.check(&copied.path.with_extension("copy"))
}

/// Starts reading and expects the program to be at it still.
fn waiting(nfs: &Nfs, file: &Sample) -> Result<Running> {
    let mut reader = Run::new("cat").args([nfs.path(file)?]).start()?;
    thread::sleep(Duration::from_millis(1500));
    ensure!(reader.is_running()?, "it did not wait: {}", reader.finish()?.describe());
    Ok(reader)
}

fn wait_for_the_agent(pool: &mut Pool, nfs: &Nfs, files: &[Sample]) -> Result<()> {
    let [slow, killed, dead, left] = files else { bail!("four files") };
    pool.restart_slow("512KiB")?;
    // The engine alone: the reader notices nothing but time.
    let reader = waiting(nfs, slow)?;
    ensure!(pool.agent()?.kill_engine() == 1, "no engine was killed");
    slow.content.check_bytes(&reader.finish()?.stdout)?;
    if !Needs::Programs.are_met() {
        // Nobody guards the files without the holder.
        return Ok(());
    }
    wait_until_up(pool)?;
    // Both, in the middle of a recall, and before the open.
    let in_the_middle = waiting(nfs, killed)?;
    kill_agent(pool)?;
    let afterwards = waiting(nfs, dead)?;
    // A file of its own: who opens one that another program waits for cannot be killed before that.
    let mut given_up = waiting(nfs, left)?;
    let begin = Instant::now();
    given_up.kill();
    let out = given_up.finish()?;
    ensure!(out.stdout.is_empty(), "{} bytes were read", out.stdout.len());
    ensure!(begin.elapsed() < patience(Duration::from_secs(3)), "it took {:?}", begin.elapsed());
    pool.config.store_options.retain(|line| !line.starts_with("rate_limit"));
    pool.start()?;
    dead.content.check_bytes(&afterwards.finish()?.stdout)?;
    let out = in_the_middle.finish()?;
    // An error is allowed to whom the dead agent had begun to serve.
    if out.code() == 0 {
        killed.content.check_bytes(&out.stdout)?;
    } else {
        ensure!(out.stdout.is_empty(), "{} bytes were read", out.stdout.len());
    }
    left.content.check(&nfs.path(left)?)?;
    killed.content.check(&nfs.path(killed)?)
}
