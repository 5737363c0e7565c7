//! Limits and identity of the own process.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, getrlimit, set_dumpable_behavior,
    setrlimit,
};

/// Raises the soft limit of descriptors to the hard one: each waiting reader needs one.
/// Returns the limit in force.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// From here on this process leaves no core dump, whatever it dies of, and nobody without CAP_SYS_PTRACE looks
/// into it: it has keys of stores, and file content. The flag is what counts, also where the kernel pipes
/// dumps into a program; the limit is for who looks at it. Both end with the next `execve`, or are inherited.
pub fn leave_no_dump() -> std::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Numbers of the descriptors that this process has open.
pub fn descriptors() -> std::io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(numbers)
}

/// Gives the calling thread the lowest real-time priority, not inherited by children: it runs as soon as
/// it has something to do, before all ordinary threads. Needs CAP_SYS_NICE.
#[expect(unsafe_code, reason = "a system call without a safe wrapper elsewhere")]
pub fn run_before_others() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` outlives the call; 0 is the calling thread.
    super::check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

/// Gives the kernel back what the allocator keeps of freed memory.
#[expect(unsafe_code, reason = "a library call without a safe wrapper elsewhere")]
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it only touches memory that is free.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The executable of a process, for messages and for `range_programs`.
pub fn executable(pid: i32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The short command name of a process.
pub fn command(pid: i32) -> String {
    std::fs::read(format!("/proc/{pid}/comm"))
        .map(|b| String::from_utf8_lossy(b.trim_ascii_end()).into_owned())
        .unwrap_or_default()
}

/// The effective user of a process, as long as it exists. (The real one would make all users of a file
/// server like Samba, which changes the effective one, root.)
pub fn uid(pid: i32) -> Option<u32> {
    match std::fs::metadata(format!("/proc/{pid}")).ok()?.uid() {
        // Also the owner of the directory of a process that may not be traced, whoever it belongs to.
        0 => uid_in_status(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?),
        uid => Some(uid),
    }
}

/// The line `Uid:` of `/proc/PID/status`: real, effective, saved, of the file system.
fn uid_in_status(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A descriptor for a process: whatever gets its number later, this stays the one.
pub fn open(pid: u32) -> std::io::Result<OwnedFd> {
    let invalid = || std::io::Error::from_raw_os_error(libc::ESRCH);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(invalid)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process behind a descriptor of [`open`] has ended: all its threads have.
pub fn has_ended(process: &OwnedFd) -> bool {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&NOW)).is_ok_and(|ready| ready > 0)
}

/// Which PID namespace this process belongs to: process numbers of another one are not to be compared. Zero: the
/// kernel does not tell.
pub fn namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Whether the end of a process has begun (`PF_EXITING`), or is over.
pub fn is_ending(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/stat")).map_or(true, |stat| flags_say_ending(&stat))
}

/// Field 9 of `/proc/PID/stat`. The command name, field 2, can contain anything, also blanks and
/// parentheses.
fn flags_say_ending(stat: &[u8]) -> bool {
    const PF_EXITING: u64 = 4;
    let flags = || -> Option<u64> {
        let end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = str::from_utf8(stat.get(end + 1..)?).ok()?;
        rest.split_ascii_whitespace().nth(9 - 3)?.parse().ok()
    };
    flags().is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Whether any thread of the process may be mapping, executing or truncating a file right now, of which a stock
/// kernel tells no more than of a read. A mapping can grow later (`mremap`) without any event, and what is cut
/// off has no bytes: each needs the whole file. `true` when the
/// kernel does not tell: of a thread that runs it tells nothing. The one that waits for our answer does not
/// run, but for the moment between its event and its sleep; so who runs is looked at again.
pub fn may_be_mapping_or_cutting(pid: i32) -> bool {
    const LOOKS: u32 = 20;
    const PAUSE: Duration = Duration::from_micros(100);
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let Ok(mut threads) = threads.map(|t| t.map(|t| t.path())).collect::<Result<Vec<_>, _>>()
    else {
        return true;
    };
    for _ in 0..LOOKS {
        // Whoever is seen in another call once is not the one who waits.
        let mut running = Vec::new();
        for thread in threads {
            match is_mapping_or_cutting(&thread) {
                Some(true) => return true,
                Some(false) => {}
                None => running.push(thread),
            }
        }
        if running.is_empty() {
            return false;
        }
        threads = running;
        std::thread::sleep(PAUSE);
    }
    true
}

/// `None`: the thread runs.
fn is_mapping_or_cutting(thread: &Path) -> Option<bool> {
    /// `mmap`, `mmap2`, `execve`, `truncate`, `truncate64` of 32-bit programs. Their numbers mean harmless calls in
    /// 64-bit ones. (`ftruncate` takes a descriptor for writing, which others see.)
    const COMPAT: [i64; 5] = [90, 192, 11, 92, 193];
    const NATIVE: [i64; 4] =
        [libc::SYS_mmap, libc::SYS_execve, libc::SYS_execveat, libc::SYS_truncate];
    // "running", or a number and its arguments.
    let Ok(text) = std::fs::read_to_string(thread.join("syscall")) else { return Some(true) };
    let number = text.split_whitespace().next().and_then(|n| n.parse::<i64>().ok())?;
    Some(NATIVE.contains(&number) || COMPAT.contains(&number))
}

/// How many threads a process has, if it exists.
pub fn threads(pid: i32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // A directory with one below it for each.
    Some(std::fs::metadata(format!("/proc/{pid}/task")).ok()?.nlink().saturating_sub(2))
}

/// Whether a descriptor of a process only names a file (`O_PATH`) and cannot read it. `false` when
/// the kernel does not tell.
pub fn only_names_a_file(pid: &str, descriptor: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"));
    info.is_ok_and(|info| flags_say_path(&info))
}

/// The line `flags:` of `/proc/PID/fdinfo/FD`, in octal.
fn flags_say_path(info: &str) -> bool {
    let line = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = line.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH.cast_unsigned() != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_leaves_no_dump_says_so() {
        // In a process of its own: the flag stays.
        if std::env::var_os("HSM_TEST_LEAVE_NO_DUMP").is_some() {
            leave_no_dump().unwrap();
            let now = rustix::process::dumpable_behavior().unwrap();
            assert_eq!(now, DumpableBehavior::NotDumpable);
            assert_eq!(getrlimit(Resource::Core).current, Some(0));
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "sys::process::tests::a_process_that_leaves_no_dump_says_so"]);
        let output = again.env("HSM_TEST_LEAVE_NO_DUMP", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn descriptors_that_only_name_a_file_are_told_apart() {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        let own = std::process::id().to_string();
        let open =
            |flags| std::fs::File::options().read(true).custom_flags(flags).open("/").unwrap();
        for (flags, expected) in [(libc::O_PATH, true), (0, false)] {
            let file = open(flags);
            assert_eq!(only_names_a_file(&own, &file.as_raw_fd().to_string()), expected);
        }
        assert!(!flags_say_path("pos:\t0\nflags:\twhat\n") && !flags_say_path(""));
    }

    #[test]
    fn the_effective_user_counts_also_of_who_may_not_be_traced() {
        assert_eq!(uid_in_status("Name:\tUid: 7\nUid:\t1\t2\t3\t4\nGid:\t9\n"), Some(2));
        assert_eq!(uid_in_status("Uid:\t1\n"), None);
        assert_eq!(
            uid(std::process::id().cast_signed()),
            Some(rustix::process::geteuid().as_raw())
        );
        assert_eq!(uid(i32::MAX), None);
    }

    #[test]
    fn flags_are_read_behind_any_name() {
        let stat = |flags: u32| format!("17 (a) S 1 (b) S 1 1 1 0 -1 {flags} 0 0\n");
        assert!(!flags_say_ending(stat(0x0040_0040).as_bytes()));
        assert!(flags_say_ending(stat(0x0040_0044).as_bytes()));
        assert!(flags_say_ending(b"17 (a) S"), "what is not understood is no living process");
    }

    #[test]
    fn threads_are_counted() {
        let own = std::process::id().cast_signed();
        let waiting: Vec<_> = (0..40).map(|_| std::thread::spawn(std::thread::park)).collect();
        assert!(threads(own).unwrap() > 40);
        waiting.iter().for_each(|thread| thread.thread().unpark());
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(threads(i32::MAX), None);
    }

    #[test]
    fn the_own_process_lives_and_a_missing_one_does_not() {
        assert!(!is_ending(std::process::id()));
        assert!(is_ending(u32::MAX));
        let error = open(u32::MAX).expect_err("no such process");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        assert!(open(std::process::id()).is_ok());
    }

    #[test]
    fn a_process_has_ended_when_it_is_over() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        let process = open(child.id()).expect("a child");
        assert!(!has_ended(&process));
        drop(child.stdin.take());
        child.wait().expect("a child");
        assert!(has_ended(&process));
        assert_ne!(namespace(), 0);
    }
}
