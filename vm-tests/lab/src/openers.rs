//! Who has files open: what somebody needs who asks why a release was refused.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More lines help nobody.
const MOST: usize = 40;

/// Descriptors of all processes on these files, with their flags (`O_PATH` is 010000000: such a one counts for no
/// lease); and leases on them.
pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> String {
    let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let wanted: HashMap<(u64, u64), PathBuf> =
        files.into_iter().filter_map(|path| Some((inode(path)?, path.to_owned()))).collect();
    let mut lines = Vec::new();
    for process in entries(Path::new("/proc")) {
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        for link in entries(&process.join("fd")) {
            let Some(file) = inode(&link).and_then(|inode| wanted.get(&inode)) else { continue };
            let number = link.file_name().unwrap_or_default();
            let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("?");
            lines.push(format!(
                "{} ({}), flags {}: {}",
                link.display(),
                comm.trim(),
                flags.trim(),
                file.display()
            ));
        }
    }
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    lines.extend(locks.lines().filter(|line| line.contains("LEASE")).map(str::to_owned));
    let count = lines.len();
    lines.truncate(MOST);
    format!("--- who has them open: {count} ---\n{}\n---", lines.join("\n"))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody ever opened it: a child of another test has no copy.
        assert!(!of([dir.path()]).contains("flags"), "{}", of([dir.path()]));
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        let file = fs::File::open(&path).unwrap();
        assert!(of([&*path]).contains("flags 0"), "{}", of([&*path]));
        drop(file);
    }
}
