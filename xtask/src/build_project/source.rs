//! Debian's source package of zstd, as upstream wrote it, kept outside of the project.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::setup::cache_dir;
use crate::steps::step;

const PACKAGE: &str = "zstd";
/// The suite whose package is taken: one that does not change any more.
const SUITE: &str = "bookworm";

/// The archive of the sources, downloaded before.
pub(super) fn archive() -> Result<PathBuf> {
    let dir = dir()?;
    let entries = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let mut found = entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|e| e.path());
    let is_archive = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.contains(".orig.tar.") && !name.ends_with(".asc")
    };
    found.find(is_archive).with_context(|| format!("{} has no .orig.tar.*", dir.display()))
}

/// Downloads it where it is missing.
pub(super) fn ensure() -> Result<()> {
    if archive().is_ok() {
        return Ok(());
    }
    step(&format!("downloading Debian's source package {PACKAGE} ({SUITE})"), || {
        let apt = Apt::with_sources(&format!("source-{PACKAGE}"), &[SUITE])?;
        apt.update()?;
        apt.source(PACKAGE, &dir()?)?;
        archive().map(drop)
    })
}

fn dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("source").join(PACKAGE))
}
