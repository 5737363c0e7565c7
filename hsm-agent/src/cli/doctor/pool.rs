//! Checks of one pool: its file system, events on it, released files that nobody guards.

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use walkdir::WalkDir;

use crate::cli::output;
use crate::cli::paths::describe;
use crate::core::Subtrees;
use crate::sys::probe::{self, Support};
use crate::sys::xattr;

use super::mounts::{self, Mount};
use super::report::Check;

/// File systems that hsm was built and tested for.
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// The search for released files is a sample: the doctor must not take minutes.
const SAMPLE_FILES: usize = 100_000;
const SAMPLE_TIME: Duration = Duration::from_secs(3);

/// Is there a file system that hsm can manage?
pub(super) fn file_system(mount: &Path) -> Check {
    judge_mount(mount, mounts::mounted_on(mount))
}

fn judge_mount(point: &Path, found: io::Result<Option<Mount>>) -> Check {
    const NAME: &str = "file system";
    let shown = output::path(point);
    let mount = match found {
        Ok(Some(mount)) => mount,
        Ok(None) => {
            let fact = format!("nothing is mounted on {shown}");
            return Check::fail(NAME, fact, "mount it, or set `mount` to the real mount point");
        }
        Err(error) => {
            let fact = format!("/proc/self/mountinfo: {}", describe(&error));
            return Check::fail(NAME, fact, "mount /proc");
        }
    };
    if !FILE_SYSTEMS.contains(&mount.fs_type.as_str()) {
        let fact = format!("{shown} is {}", mount.fs_type);
        return Check::fail(NAME, fact, format!("use one of {}", FILE_SYSTEMS.join(", ")));
    }
    let fact = format!("{shown} is {} ({})", mount.fs_type, mount.options.join(","));
    if mount.has("ro") {
        let remedy = "recalls must write: mount it read-write somewhere, and name that mount";
        return Check::fail(NAME, fact, remedy);
    }
    Check::ok(NAME, fact)
}

/// The agent must not wait for itself: what it writes has to be on another file system.
pub(super) fn apart(mount: &Path, own: &[&Path]) -> Option<Check> {
    let inside = own.iter().find(|path| {
        mounts::same_file_system(mount, mounts::existing(path)).is_ok_and(|same| same)
    })?;
    let fact = format!("{} is on the managed file system itself", output::path(inside));
    Some(Check::fail("own files", fact, "put it on another file system"))
}

/// Is each of the directories that the pool is limited to where the pool can find it?
pub(super) fn directories(mount: &Path, subtrees: &Subtrees) -> Option<Check> {
    const NAME: &str = "directories";
    if subtrees.is_everything() {
        return None;
    }
    let missing = subtrees.directories().iter().find_map(|directory| {
        let error = find_directory(mount, directory).err()?;
        Some((mount.join(directory), error))
    });
    Some(match missing {
        Some((path, error)) => {
            let fact = format!("{}: {}", output::path(&path), describe(&error));
            let remedy = "nothing is archived there: make the directory, or correct `directories` \
                          (no symbolic link leads on, nor does another mount)";
            Check::warn(NAME, fact, remedy)
        }
        None => Check::ok(NAME, format!("all {} are there", subtrees.directories().len())),
    })
}

/// As the walk of a job finds it.
fn find_directory(mount: &Path, directory: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(mount, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, directory, flags, Mode::empty(), resolve)?;
    Ok(())
}

/// Can pre-content events be had there?
pub(super) fn pre_content(mount: &Path) -> Check {
    judge_pre_content(probe::pre_content(mount))
}

fn judge_pre_content(support: io::Result<Support>) -> Check {
    const NAME: &str = "fanotify";
    match support {
        Ok(Support::Yes) => Check::ok(NAME, "pre-content events work"),
        Ok(Support::No) => {
            let fact = "the kernel has no pre-content events for this file system";
            Check::fail(NAME, fact, "use Linux 6.14 or newer and ext4, xfs or btrfs")
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::fail(NAME, "not permitted to try", "run `hsm doctor` as root")
        }
        Err(error) => {
            let fact = format!("the trial failed: {}", describe(&error));
            Check::fail(NAME, fact, "see that the mount point is readable")
        }
    }
}

/// While no agent runs, a released file reads as zeros on a stock kernel. Is there one?
pub(super) fn unguarded(mount: &Path, marker: &CStr) -> Check {
    const NAME: &str = "released files";
    let (looked, complete, example) = sample(mount, marker);
    match example {
        Some(path) => {
            let path = output::path(&path);
            let fact = format!("no agent guards them: {path} and maybe more READ AS ZEROS now");
            let remedy = "start the agent before anything reads them, or unmount the file system";
            Check::warn(NAME, fact, remedy)
        }
        None if complete => {
            Check::ok(NAME, format!("none among {}", output::count(looked, "file", "files")))
        }
        None => Check::warn(
            NAME,
            format!("none among the first {looked} files; the rest was not looked at"),
            "start the agent before anything reads this file system",
        ),
    }
}

/// Looks for one marked file: how many were looked at, whether that was all, and the find.
fn sample(mount: &Path, marker: &CStr) -> (u64, bool, Option<std::path::PathBuf>) {
    let begin = Instant::now();
    let mut looked = 0;
    let walk = WalkDir::new(mount).same_file_system(true).into_iter().filter_map(Result::ok);
    for entry in walk.filter(|entry| entry.file_type().is_file()) {
        if looked as usize >= SAMPLE_FILES || begin.elapsed() > SAMPLE_TIME {
            return (looked, false, None);
        }
        looked += 1;
        if is_marked(entry.path(), marker) {
            return (looked, false, Some(entry.into_path()));
        }
    }
    (looked, true, None)
}

/// Anything but a clear "no marker" counts as one.
fn is_marked(path: &Path, marker: &CStr) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            use std::os::fd::AsFd;
            !matches!(xattr::get_at_path(fd.as_fd(), marker), Ok(None))
        }
        // It was removed in this moment.
        Err(rustix::io::Errno::NOENT) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Verdict;

    fn mount(fs_type: &str, options: &[&str]) -> io::Result<Option<Mount>> {
        let options = options.iter().map(ToString::to_string).collect();
        Ok(Some(Mount { point: "/m".into(), fs_type: fs_type.into(), options }))
    }

    #[test]
    fn only_known_writable_file_systems_pass() {
        let verdict = |found| judge_mount(Path::new("/m"), found).verdict;
        assert_eq!(verdict(mount("xfs", &["rw"])), Verdict::Ok);
        assert_eq!(verdict(mount("xfs", &["ro"])), Verdict::Fail);
        assert_eq!(verdict(mount("tmpfs", &["rw"])), Verdict::Fail);
        assert_eq!(verdict(Ok(None)), Verdict::Fail);
        assert_eq!(verdict(Err(io::ErrorKind::NotFound.into())), Verdict::Fail);
    }

    #[test]
    fn only_a_working_probe_passes() {
        assert_eq!(judge_pre_content(Ok(Support::Yes)).verdict, Verdict::Ok);
        assert_eq!(judge_pre_content(Ok(Support::No)).verdict, Verdict::Fail);
        let denied = judge_pre_content(Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(denied.verdict, Verdict::Fail);
        assert!(denied.remedy.is_some_and(|remedy| remedy.contains("root")));
    }

    #[test]
    fn own_files_on_the_managed_file_system_fail() {
        let dir = tempfile::tempdir().expect("tempdir");
        let inside = dir.path().join("state/not/yet");
        let check = apart(dir.path(), &[Path::new("/proc/x"), &inside]).expect("complaint");
        assert!(check.fact.contains("state/not/yet"), "{}", check.fact);
        assert_eq!(apart(dir.path(), &[Path::new("/proc")]), None);
    }

    #[test]
    fn a_directory_that_is_not_there_or_elsewhere_is_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("mkdir");
        std::os::unix::fs::symlink("a", dir.path().join("link")).expect("symlink");
        let check = |list: &[&str]| {
            directories(dir.path(), &Subtrees::new(list.iter().map(Into::into).collect()))
        };
        assert_eq!(check(&[]), None);
        assert_eq!(check(&["a/b"]).expect("a check").verdict, Verdict::Ok);
        for wrong in ["missing", "link", "link/b"] {
            let told = check(&["a", wrong]).expect("a check");
            assert!(told.verdict == Verdict::Warn && told.fact.contains(wrong), "{}", told.fact);
        }
    }

    #[test]
    fn one_marked_file_is_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        for name in ["a", "b", "sub/c"] {
            std::fs::write(dir.path().join(name), "x").expect("write");
        }
        // `user.` needs no privilege; the doctor is given the name that the pool uses.
        let marker = c"user.hsm.test";
        let check = unguarded(dir.path(), marker);
        assert_eq!((check.verdict, &*check.fact), (Verdict::Ok, "none among 3 files"));
        let victim = dir.path().join("sub/c");
        let set = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&victim, marker, b"1", set).is_err() {
            return; // no such attributes where temporary files live
        }
        let check = unguarded(dir.path(), marker);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.fact.contains("sub/c"), "{}", check.fact);
    }
}
