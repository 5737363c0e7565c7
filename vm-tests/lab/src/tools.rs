//! Programs that `cargo xtask setup` installs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where it is. A missing one is an error that says what to do.
pub fn tool(name: &str) -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(&std::env::var_os("HOME").context("no HOME")?).join(".cache"),
    };
    let path = cache.join("hsm-dev/tools/bin").join(name);
    ensure!(path.is_file(), "{} is missing; run: cargo xtask setup", path.display());
    Ok(path)
}
