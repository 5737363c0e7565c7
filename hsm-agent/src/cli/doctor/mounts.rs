//! The mount table, as far as the doctor needs it. Parsing apart from reading.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) fs_type: String,
    /// Of the mount and of the file system.
    pub(super) options: Vec<String>,
}

impl Mount {
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// What is mounted on exactly `point`; the topmost if there are several.
pub(super) fn mounted_on(point: &Path) -> io::Result<Option<Mount>> {
    Ok(find(&std::fs::read("/proc/self/mountinfo")?, point))
}

fn find(table: &[u8], point: &Path) -> Option<Mount> {
    table.split(|b| *b == b'\n').rev().filter_map(parse).find(|mount| mount.point == point)
}

/// `36 35 98:0 /root /point opts [tag…] - fstype source superopts`, proc(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let mut options: Vec<String> = Vec::new();
    for option in [*fields.get(5)?, *fields.get(dash + 3)?].iter().flat_map(|o| split_comma(o)) {
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Some(Mount {
        point: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fs_type: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        options,
    })
}

fn split_comma(options: &[u8]) -> impl Iterator<Item = String> {
    options.split(|b| *b == b',').map(|option| String::from_utf8_lossy(option).into_owned())
}

/// Undoes `\040` and its like: three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether two paths are on one file system, as far as the device numbers tell.
pub(super) fn same_file_system(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(one)?.dev() == std::fs::metadata(other)?.dev())
}

/// The nearest directory above (or at) `path` that exists.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|p| !p.as_os_str().as_bytes().is_empty() && p.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
40 22 7:0 / /srv/a\\040b ro,noatime - xfs /dev/loop0 rw,attr2\n\
41 40 7:1 / /srv/a\\040b rw - btrfs /dev/loop1 rw,subvol=/\n";

    #[test]
    fn the_topmost_mount_of_a_point_counts() {
        let mount = find(TABLE, Path::new("/srv/a b")).expect("mounted");
        assert_eq!(mount.fs_type, "btrfs");
        assert!(mount.has("subvol=/") && !mount.has("ro"));
        let root = find(TABLE, Path::new("/")).expect("mounted");
        assert!(root.has("relatime") && root.has("errors=remount-ro"));
        assert_eq!(find(TABLE, Path::new("/srv")), None);
        assert_eq!(find(b"garbage\n1 2 - x\n", Path::new("/")), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\"), b"a\\b\\");
        assert_eq!(unescape(b"\\9z"), b"\\9z");
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(mounted_on(Path::new("/")).expect("readable").is_some());
        assert_eq!(existing(Path::new("/proc/none/such")), Path::new("/proc"));
        let same = |a: &str, b: &str| same_file_system(Path::new(a), Path::new(b)).expect("stat");
        assert!(same("/proc", "/proc/self") && !same("/proc", "/"));
    }
}
