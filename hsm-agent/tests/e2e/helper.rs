//! `e2e --helper MODE ARGS`: accesses that no common program makes, in a process of their own.
//!
//! | mode | what it does |
//! | --- | --- |
//! | `mmap-hold FILE` | maps it, closes the descriptor, says `ready`, keeps the mapping |
//! | `mmap-write FILE` | says `ready` and keeps changing it through a shared mapping |
//! | `mmap-grow FILE` | maps a page, lets the mapping grow to the whole file, writes it to standard output |
//! | `handle-read FILE` | opens it by file handle, writes its bytes to standard output |
//! | `uring-read FILE` | opens it through io_uring, writes its bytes to standard output |
//! | `pread FILE OFFSET LENGTH` | writes that range to standard output |
//! | `pages FILE [write]` | opens it, says `ready`, reads the pages it is asked for, see [`pages`] |
//! | `reopen FILE`, `chroot FILE`, `sendfile FILE` | ways to its bytes, see [`accesses`] |
//! | `copy-range FILE COPY`, `clone FILE COPY` | copies it inside the kernel |
//! | `seek-data FILE` | says where the first data and the first hole are |
//! | `truncate FILE LENGTH` | cuts it by its path |
//! | `readers UID THREADS FILES` | many readers, see [`hsm_lab::readers`] |
//! | `open-loop DIR COUNT BYTES MILLISECONDS SEED` | opens and compares files at random |
//!
//! The first two and `pages` go on until their standard input ends; [`Holder`] and [`pages::Reader`] are the other side
//! of that.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

mod accesses;
pub(crate) mod pages;

/// Runs a mode; called by `main`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    match dispatch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[OsString]) -> Result<()> {
    if let [mode, rest @ ..] = args
        && mode == "readers"
    {
        return hsm_lab::readers::run(rest);
    }
    let [mode, path, rest @ ..] = args else { bail!("--helper MODE FILE ...") };
    let path = Path::new(path);
    match mode.to_str() {
        Some("mmap-hold") => mmap_hold(path),
        Some("mmap-write") => mmap_write(path),
        Some("mmap-grow") => mmap_grow(path),
        Some("handle-read") => handle_read(path),
        Some("uring-read") => uring_read(path),
        Some("pread") => pread(path, rest),
        Some("pages") => pages::serve(path, rest),
        Some("reopen") => accesses::reopen(path),
        Some("chroot") => accesses::chroot(path),
        Some("sendfile") => accesses::send(path),
        Some("copy-range") => accesses::copy_range(path, rest),
        Some("clone") => accesses::clone(path, rest),
        Some("seek-data") => accesses::seek_data(path),
        Some("truncate") => accesses::truncate(path, rest),
        Some("open-loop") => accesses::open_loop(path, rest),
        _ => bail!("unknown mode {}", mode.display()),
    }
}

fn pread(path: &Path, rest: &[OsString]) -> Result<()> {
    let number = |at: usize| -> Result<u64> {
        Ok(rest.get(at).and_then(|s| s.to_str()).context("OFFSET LENGTH")?.parse()?)
    };
    let mut bytes = vec![0; usize::try_from(number(1)?)?];
    File::open(path)?.read_exact_at(&mut bytes, number(0)?)?;
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}

fn mmap_hold(path: &Path) -> Result<()> {
    // Stays until this process ends.
    let _map = Mapping::new(path, false)?;
    println!("ready");
    wait_for_end();
    Ok(())
}

#[expect(unsafe_code, reason = "mremap is what is tested")]
fn mmap_grow(path: &Path) -> Result<()> {
    use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mremap};
    const PAGE: usize = 4096;
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    // SAFETY: a new mapping at an address that the kernel chooses; nothing else uses it.
    let small =
        unsafe { mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::SHARED, &file, 0)? };
    // SAFETY: `small` is the mapping made above, one page long; it is not used after this.
    let whole = unsafe { mremap(small, PAGE, length, MremapFlags::MAYMOVE)? };
    // SAFETY: `length` readable bytes are mapped from `whole` until this process ends, and nobody
    // writes to or truncates the file meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(whole.cast::<u8>(), length) };
    std::io::stdout().write_all(bytes)?;
    Ok(())
}

fn mmap_write(path: &Path) -> Result<()> {
    let mut map = Mapping::new(path, true)?;
    let end = AtomicBool::new(false);
    println!("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_end();
            end.store(true, Ordering::SeqCst);
        });
        let mut round = 0_u64;
        while !end.load(Ordering::SeqCst) {
            round += 1;
            for page in 0..map.length / 4096 {
                map.put(page * 4096, round);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Ok(())
}

fn wait_for_end() {
    // Ends with the pipe, also when the other side was killed.
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}

/// A shared mapping of a whole file whose descriptor is closed.
struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "mmap is what is tested")]
    fn new(path: &Path, writable: bool) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let file = File::options().read(true).write(writable).open(path)?;
        let length = usize::try_from(file.metadata()?.len())?;
        let write = if writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else uses it, and
        // it is only read and written through volatile accesses inside `length`.
        let at = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ | write, MapFlags::SHARED, &file, 0)?
        };
        Ok(Self { at: at.cast(), length })
    }

    #[expect(unsafe_code, reason = "writes through the mapping are what is tested")]
    fn put(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: inside the mapping and aligned (checked above); the mapping is writable because
        // only `mmap_write` calls this, and it lives until this process ends.
        unsafe { self.at.add(offset).cast::<u64>().write_volatile(value) }
    }
}

fn handle_read(path: &Path) -> Result<()> {
    let mut file = open_by_handle(path)?;
    std::io::copy(&mut file, &mut std::io::stdout())?;
    Ok(())
}

#[expect(unsafe_code, reason = "io_uring entries name memory by address")]
fn uring_read(path: &Path) -> Result<()> {
    use io_uring::{IoUring, opcode, types};
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut ring = IoUring::new(1)?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr())
        .flags(libc::O_RDONLY | libc::O_CLOEXEC)
        .build();
    // SAFETY: `name` outlives the operation, which is waited for.
    unsafe { ring.submission().push(&entry)? };
    ring.submit_and_wait(1)?;
    let fd = ring.completion().next().context("no completion")?.result();
    ensure!(fd >= 0, "io_uring open: {}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the operation installed this descriptor for us alone.
    let mut file = unsafe { File::from_raw_fd(fd) };
    std::io::copy(&mut file, &mut std::io::stdout())?;
    Ok(())
}

/// As NFS servers do it: the path is only looked up, the file is opened by its handle.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; 128],
}

#[expect(unsafe_code, reason = "open_by_handle_at has no safe wrapper")]
fn open_by_handle(path: &Path) -> Result<File> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mount = File::open(path.parent().context("no parent")?)?;
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount_id = 0;
    let at = (&raw mut handle).cast();
    // SAFETY: `handle` begins like struct file_handle and has room for the 128 bytes it announces;
    // `name` is NUL-terminated; both outlive the call.
    let found =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), at, &raw mut mount_id, 0) };
    ensure!(found == 0, "name_to_handle_at: {}", std::io::Error::last_os_error());
    // SAFETY: the handle was filled by the call above; `mount` is open.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), at, libc::O_RDONLY) };
    ensure!(fd >= 0, "open_by_handle_at: {}", std::io::Error::last_os_error());
    // SAFETY: `fd` was just opened and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The file that the kernel opened for a listener, if it did.
#[expect(unsafe_code, reason = "events carry descriptors as numbers")]
pub(crate) fn event_file(event: hsm_agent::sys::fanotify::Event) -> Option<File> {
    // SAFETY: the event came from the kernel, which has made the descriptor for its reader alone; the
    // reader takes it here once.
    (event.fd >= 0).then(|| unsafe { File::from_raw_fd(event.fd) })
}

/// A helper that holds something until it is told to end.
pub(crate) struct Holder {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    /// Starts the mode and waits until it holds.
    pub(crate) fn start(mode: &str, file: impl AsRef<OsStr>) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--helper", mode])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the helper {mode} said {line:?}");
        Ok(Self { child, stdin })
    }

    /// Lets go and waits.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.stdin.take());
        ensure!(self.child.wait()?.success(), "the helper failed");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
