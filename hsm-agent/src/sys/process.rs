//! Limits and identity of the own process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of descriptors to the hard one: each waiting reader needs one.
/// Returns the limit in force.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
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

/// The effective user of a process, as long as it exists.
pub fn uid(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|m| m.uid())
}

/// When a process started, in clock ticks after boot: with its number the identity of a process
/// (field 22 of `/proc/PID/stat`).
pub fn start_ticks(pid: u32) -> std::io::Result<u64> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => std::io::Error::from_raw_os_error(libc::ESRCH),
        _ => e,
    })?;
    parse_start(&text).ok_or_else(|| std::io::Error::other("/proc/PID/stat has another form"))
}

/// The command name, field 2, can contain anything, also blanks and parentheses.
fn parse_start(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Whether any thread of the process may be mapping a file or executing one right now. A mapping can
/// grow later (`mremap`) without any event, so whoever maps needs the whole file. `true` when the
/// kernel does not tell.
pub fn may_be_mapping(pid: i32) -> bool {
    /// `mmap`, `mmap2`, `execve` of 32-bit programs. Their numbers mean harmless calls in 64-bit
    /// ones.
    const COMPAT: [i64; 3] = [90, 192, 11];
    const NATIVE: [i64; 3] = [libc::SYS_mmap, libc::SYS_execve, libc::SYS_execveat];
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let mapping = |thread: std::fs::DirEntry| {
        let Ok(text) = std::fs::read_to_string(thread.path().join("syscall")) else { return true };
        // "running", or a number and its arguments. Whoever waits for our answer is not running.
        let number = text.split_whitespace().next().and_then(|n| n.parse::<i64>().ok());
        number.is_some_and(|n| NATIVE.contains(&n) || COMPAT.contains(&n))
    };
    threads.flatten().any(mapping)
}

/// Whether this process has the number by which the whole machine knows it: kernel programs know no
/// other.
pub fn in_initial_pid_namespace() -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    /// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
    const INITIAL: u64 = 0xEFFF_FFFC;
    Ok(std::fs::metadata("/proc/self/ns/pid")?.ino() == INITIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_behind_any_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("17 (a) S 1 (b) {fields}\n");
        assert_eq!(parse_start(stat.as_bytes()), Some(22));
        assert_eq!(parse_start(b"17 (a) S"), None);
        assert_eq!(parse_start(b""), None);
    }

    #[test]
    fn the_own_start_is_told_and_a_missing_process_is_named() {
        assert!(start_ticks(std::process::id()).expect("the own process") > 0);
        let error = start_ticks(u32::MAX).expect_err("no such process");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }
}
