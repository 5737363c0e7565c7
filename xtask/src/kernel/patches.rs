//! The project's patches on Debian's source.
//!
//! The stock tree is never touched: the stock kernel is built from it, and a patch that fails half way
//! must leave nothing behind. The patches go on a copy, which is made anew when they have changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::source::Tree;
use crate::process::must;
use crate::steps::step;

/// The patched copy is called `patched-VERSION`.
const PREFIX: &str = "patched-";

/// Beside the copy: the hash of the patches that are in it.
const STAMP: &str = ".patches";

/// A series of patches, in the order in which they are applied.
#[derive(Default)]
pub(crate) struct Patches {
    files: Vec<PathBuf>,
    texts: Vec<Vec<u8>>,
}

impl Patches {
    /// All `*.patch` of a directory, by name.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            files.extend(path.extension().is_some_and(|name| name == "patch").then_some(path));
        }
        files.sort();
        let read = |path: &PathBuf| fs::read(path).with_context(|| path.display().to_string());
        let texts = files.iter().map(read).collect::<Result<_>>()?;
        Ok(Self { files, texts })
    }

    /// Nothing is added for an empty series.
    pub(crate) fn hash_into(&self, hash: &mut blake3::Hasher) {
        for text in &self.texts {
            hash.update(blake3::hash(text).as_bytes());
        }
    }

    /// A copy of the stock tree with the patches in it.
    pub(crate) fn tree(&self, dir: &Path, stock: &Tree) -> Result<PathBuf> {
        let tree = dir.join(format!("{PREFIX}{}", stock.version));
        let stamp = dir.join(format!("{PREFIX}{}{STAMP}", stock.version));
        let mut hash = blake3::Hasher::new();
        self.hash_into(&mut hash);
        let wanted = hash.finalize().to_hex().to_string();
        if tree.is_dir() && fs::read_to_string(&stamp).is_ok_and(|has| has == wanted) {
            return Ok(tree);
        }
        step(&format!("copying the source (1.8 GB) for {} patches", self.files.len()), || {
            copy(&stock.path, &tree)?;
            self.files.iter().try_for_each(|patch| apply(patch, &tree, &stock.version))
        })?;
        fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
        Ok(tree)
    }
}

/// With its times: what no patch touches is not compiled again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| to.display().to_string())?;
    }
    must(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to))
}

fn apply(patch: &Path, tree: &Path, version: &str) -> Result<()> {
    let mut git = Command::new("git");
    git.args(["apply", "--whitespace=nowarn"]).arg(patch).current_dir(tree);
    // The tree is no repository, and must not be taken for a part of one around it.
    git.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree));
    let output = git.output().context("git apply (is git installed?)")?;
    if !output.status.success() {
        bail!(
            "{} does not apply to Linux {version}:\n{}\
             Adapt the patch, or set the version back that it was written for.",
            patch.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "--- a/one\n+++ b/one\n@@ -1 +1 @@\n-old\n+new\n";

    fn stock(dir: &Path, text: &str) -> Tree {
        let path = dir.join("src-1");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("one"), text).unwrap();
        Tree { version: "1".to_owned(), path }
    }

    #[test]
    fn patches_go_on_a_copy_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let stock = stock(dir.path(), "old\n");
        fs::write(dir.path().join("0001-one.patch"), PATCH).unwrap();
        let patches = Patches::read(dir.path()).unwrap();
        let tree = patches.tree(dir.path(), &stock).unwrap();
        assert_eq!(fs::read_to_string(tree.join("one")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(stock.path.join("one")).unwrap(), "old\n");
        fs::write(tree.join("one"), "touched").unwrap();
        patches.tree(dir.path(), &stock).unwrap();
        assert_eq!(fs::read_to_string(tree.join("one")).unwrap(), "touched");
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let stock = stock(dir.path(), "something else\n");
        fs::write(dir.path().join("0001-one.patch"), PATCH).unwrap();
        let patches = Patches::read(dir.path()).unwrap();
        for _ in 0..2 {
            let error = patches.tree(dir.path(), &stock).unwrap_err().to_string();
            assert!(error.contains("0001-one.patch") && error.contains("one:1"), "{error}");
        }
    }

    #[test]
    fn a_changed_patch_is_another_kernel() {
        let hash = |texts: &[&str]| {
            let texts = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
            let mut hash = blake3::Hasher::new();
            Patches { files: Vec::new(), texts }.hash_into(&mut hash);
            hash.finalize()
        };
        assert_ne!(hash(&["a", "b"]), hash(&["ab"]));
        assert_eq!(hash(&[]), blake3::Hasher::new().finalize());
    }
}
