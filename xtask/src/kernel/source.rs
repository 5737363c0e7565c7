//! The kernel's source tree, as Debian ships it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::process::must;
use crate::steps::step;

/// The first release with all the hooks and kfuncs that the kernel programs use, and the one whose
/// facts were measured.
const PACKAGE: &str = "linux-source-7.3";

/// Where Debian keeps newer kernels; the package is source only and depends on nothing.
const SUITE: &str = "trixie-backports";

/// Trees are called `src-VERSION`.
const PREFIX: &str = "src-";

/// An unpacked tree.
pub(crate) struct Tree {
    /// Debian's version of the package.
    pub(crate) version: String,
    /// Its directory; kbuild stores it, so it must not be moved.
    pub(crate) path: PathBuf,
}

/// The tree in the cache, or a new one.
pub(crate) fn ensure(dir: &Path) -> Result<Tree> {
    let version = match newest(dir)? {
        Some(version) => version,
        None => fetch(dir)?,
    };
    let path = dir.join(format!("{PREFIX}{version}"));
    Ok(Tree { version, path })
}

/// The newest version that the cache has.
pub(crate) fn newest(dir: &Path) -> Result<Option<String>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        versions.extend(version.map(str::to_owned));
    }
    versions.sort_by_key(|version| numbers(version));
    Ok(versions.pop())
}

/// 7.3.10 is newer than 7.3.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Appears under its name only when it is whole.
fn fetch(dir: &Path) -> Result<String> {
    let apt = Apt::new(SUITE, &[SUITE])?;
    let part = dir.join("unpack");
    drop(fs::remove_dir_all(&part));
    fs::create_dir_all(&part)?;
    let version = step(&format!("downloading {PACKAGE} of Debian's {SUITE} (170 MB)"), || {
        apt.update()?;
        let version = apt.candidate(PACKAGE)?;
        apt.unpack(PACKAGE, &version, &part)?;
        Ok(version)
    })?;
    step("unpacking it (1.7 GB)", || {
        let archive = part.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
        must(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&part))?;
        fs::rename(part.join(PACKAGE), dir.join(format!("{PREFIX}{version}")))?;
        Ok(fs::remove_dir_all(&part)?)
    })?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_tree_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(dir.path()).unwrap(), None);
        for name in ["src-7.3.9-1~bpo13+1", "src-7.3.10-1~bpo13+1", "obj-stock", "unpack"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(newest(dir.path()).unwrap().as_deref(), Some("7.3.10-1~bpo13+1"));
    }
}
