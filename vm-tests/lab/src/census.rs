//! What a run left on the machine: mounts, loop devices and processes that name its directory.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::pace::patience;

/// One line per thing below `dir` that is still there.
pub fn leftovers(dir: &Path) -> Vec<String> {
    let mut left = mounts(dir);
    left.extend(loop_devices(dir));
    left.extend(processes(dir).into_iter().map(|(pid, line)| format!("process {pid}: {line}")));
    left
}

/// As [`leftovers`], but gives the kernel time: a namespace's mounts go away asynchronously.
pub fn leftovers_after(dir: &Path, limit: Duration) -> Vec<String> {
    let end = Instant::now() + patience(limit);
    loop {
        let left = leftovers(dir);
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn mounts(dir: &Path) -> Vec<String> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|b| *b == b'\n')
        .filter(|line| contains(line, dir.as_os_str().as_bytes()))
        .map(|line| format!("mount: {}", String::from_utf8_lossy(line)))
        .collect()
}

fn loop_devices(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let file = fs::read(entry.path().join("loop/backing_file")).ok()?;
            contains(&file, dir.as_os_str().as_bytes()).then(|| {
                let name = entry.file_name();
                format!("loop device {}: {}", name.display(), String::from_utf8_lossy(&file).trim())
            })
        })
        .collect()
}

/// Processes of the program `hsm` whose command line names something below `dir`.
pub fn processes(dir: &Path) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // A zombie has no executable any more: it is dead, only not waited for.
            let exe = fs::read_link(entry.path().join("exe")).ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let ours = exe.file_name()?.as_bytes().starts_with(b"hsm");
            (ours && contains(&line, dir.as_os_str().as_bytes()))
                .then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_needle_only_where_it_is() {
        assert!(contains(b"/var/tmp/hsm-lab-1/image", b"/var/tmp/hsm-lab-1"));
        assert!(!contains(b"/var/tmp/hsm-lab-2/image", b"/var/tmp/hsm-lab-1"));
    }

    #[test]
    fn a_fresh_directory_has_left_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    }
}
