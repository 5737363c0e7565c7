//! Writes an initramfs: a cpio archive in the "new ASCII" format that the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// `S_IFREG` and `S_IFDIR` of stat(2), with permissions.
const PROGRAM: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;

/// An archive with one program and the directories that it mounts on.
///
/// The kernel brings `/dev/console` along itself.
pub fn initramfs(init: &[u8], directories: &[&str]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(init.len() + 4096);
    for (at, name) in directories.iter().enumerate() {
        entry(&mut archive, at + 1, name, DIRECTORY, &[]);
    }
    entry(&mut archive, directories.len() + 1, "init", PROGRAM, init);
    entry(&mut archive, 0, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, inode: usize, name: &str, mode: u32, data: &[u8]) {
    let links = if mode == DIRECTORY { 2 } else { 1 };
    archive.extend_from_slice(b"070701");
    let mode = mode as usize;
    // inode, mode, uid, gid, links, mtime, size, device and its device (major, minor), name, check
    let fields = [inode, mode, 0, 0, links, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

/// Header with name, and data, each end at a multiple of four.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let archive = initramfs(b"hello init", &["dev", "proc"]);
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--no-absolute-filenames"])
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the program cpio (package cpio)");
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("init")).unwrap(), b"hello init");
        assert!(dir.path().join("proc").is_dir());
    }

    #[test]
    fn entries_are_aligned() {
        for length in 0..9 {
            assert_eq!(initramfs(&vec![1; length], &["dev"]).len() % 4, 0);
        }
    }
}
