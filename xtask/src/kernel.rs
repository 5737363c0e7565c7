//! `cargo xtask kernel`: the guest's kernel, built once per version and configuration.
//!
//! ```text
//! source   linux-source-7.3 of Debian → ~/.cache/hsm-dev/kernel/src-VERSION    (stays there: kbuild
//! config   tinyconfig + vm-tests/kernel/config/*.config, every line checked     stores its path)
//! build    obj-FLAVOUR, ccache → FLAVOUR-HASH/vmlinux, stripped
//! ```
//! The hash is over version and options: what has not changed is not built again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::root;
use crate::setup;
use crate::steps::{note, step};

mod build;
mod config;
mod source;

/// Options of `cargo xtask kernel`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask kernel          # 15 minutes on two cores the first time, then nothing\n  \
    cargo xtask kernel --debug  # lock order, RCU use, sleeping in atomic context")]
pub(crate) struct Options {
    /// The kernel that checks itself (lockdep, PROVE_RCU, DEBUG_ATOMIC_SLEEP)
    #[arg(long)]
    debug: bool,
}

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// As Debian ships it, with the configuration of the guest.
    Stock,
    /// The same with the kernel's own checks.
    StockDebug,
}

impl Flavour {
    /// The kernel with or without its own checks.
    pub(crate) fn stock(debug: bool) -> Self {
        if debug { Self::StockDebug } else { Self::Stock }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::StockDebug => "stock-debug",
        }
    }

    fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::Stock => &["base.config"],
            Self::StockDebug => &["base.config", "debug.config"],
        }
    }
}

/// Builds the kernel and says where it is.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernel = ensure(Flavour::stock(options.debug))?;
    println!("{}", kernel.display());
    Ok(ExitCode::SUCCESS)
}

/// The kernel's path; built if it is not there yet.
pub(crate) fn ensure(flavour: Flavour) -> Result<PathBuf> {
    let dir = setup::cache_dir()?.join("kernel");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let fragments = read_fragments(flavour)?;
    // Kernels are renamed into their place: one that is there is whole, whoever builds another one.
    if let Some(vmlinux) = built(&dir, flavour, &fragments)? {
        return Ok(vmlinux);
    }
    let _one_at_a_time = lock(&dir)?;
    if let Some(vmlinux) = built(&dir, flavour, &fragments)? {
        return Ok(vmlinux);
    }
    setup::install(setup::KERNEL)?;
    let tree = source::ensure(&dir)?;
    let name = flavour.name();
    let job = build::Job {
        tree: &tree.path,
        objects: dir.join(format!("obj-{name}")),
        ccache: dir.join("ccache"),
        result: result(&dir, flavour, &tree.version, &fragments),
    };
    let version = &tree.version;
    step(&format!("configuring Linux {version} ({name})"), || job.configure(&fragments))?;
    note("15 minutes on two cores the first time; ccache makes the next builds short");
    step(&format!("building Linux {version} ({name})"), || job.build())?;
    Ok(job.result)
}

/// The kernel of the newest source, if it has been built.
fn built(dir: &Path, flavour: Flavour, fragments: &str) -> Result<Option<PathBuf>> {
    let Some(version) = source::newest(dir)? else { return Ok(None) };
    let vmlinux = result(dir, flavour, &version, fragments);
    Ok(vmlinux.is_file().then_some(vmlinux))
}

fn result(dir: &Path, flavour: Flavour, version: &str, fragments: &str) -> PathBuf {
    let options = config::parse(fragments);
    let hash = blake3::hash(format!("{version} {options:?}").as_bytes()).to_hex();
    dir.join(format!("{}-{}", flavour.name(), &hash[..12])).join("vmlinux")
}

fn read_fragments(flavour: Flavour) -> Result<String> {
    let mut text = String::new();
    for name in flavour.fragments() {
        let path = root().join("vm-tests/kernel/config").join(name);
        text += &fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    }
    Ok(text)
}

/// Until it is dropped no other clone of the project builds a kernel.
fn lock(dir: &Path) -> Result<File> {
    let file = File::create(dir.join("lock"))?;
    if file.try_lock().is_err() {
        note("another kernel is being built; waiting for it");
        file.lock()?;
    }
    Ok(file)
}
