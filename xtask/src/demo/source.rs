//! Chooses the tree that the demo works on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use hsm_lab::content::files_below;
use hsm_lab::stats::bytes;

/// A smaller tree proves little.
const MIN_FILES: u64 = 2000;
const MIN_BYTES: u64 = 100 << 20;
const CANDIDATES: [&str; 4] = ["/usr/share", "/usr/lib", "/usr/include", "/usr"];

/// A part of a real tree: some of its top directories.
pub(super) struct Source {
    pub(super) root: PathBuf,
    pub(super) parts: Vec<String>,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// The first tree of the machine that is large enough.
pub(super) fn choose(wanted: Option<&Path>) -> Result<Source> {
    let candidates = match wanted {
        Some(tree) => vec![tree.to_path_buf()],
        None => CANDIDATES.map(PathBuf::from).to_vec(),
    };
    for root in candidates.iter().filter(|root| root.is_dir()) {
        let source = collect(root)?;
        if source.files >= MIN_FILES && source.bytes >= MIN_BYTES {
            return Ok(source);
        }
    }
    bail!("none of {candidates:?} has {MIN_FILES} files and {}", bytes(MIN_BYTES));
}

/// Takes top directories until there is clearly enough; a demo should not take all day.
fn collect(root: &Path) -> Result<Source> {
    let mut source = Source { root: root.to_path_buf(), parts: Vec::new(), files: 0, bytes: 0 };
    let mut names: Vec<_> = fs::read_dir(root)?.collect::<Result<_, _>>()?;
    names.retain(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let files = files_below(&entry.path())?;
        let size: u64 = files.iter().flat_map(fs::metadata).map(|meta| meta.len()).sum();
        if size > MIN_BYTES * 4 {
            continue;
        }
        source.parts.push(name);
        source.files += files.len() as u64;
        source.bytes += size;
        if source.files >= MIN_FILES * 3 / 2 && source.bytes >= MIN_BYTES * 3 / 2 {
            break;
        }
    }
    Ok(source)
}
