//! `cargo xtask kernel`: the guest's kernel, built once per version and configuration.
//!
//! ```text
//! source   linux-source-7.3 of Debian → ~/.cache/hsm-dev/kernel/src-VERSION    (stays there: kbuild
//! patches  vm-tests/kernel/patches/*.patch, on a copy of it                     stores its path)
//! config   tinyconfig + vm-tests/kernel/config/*.config, every line checked
//! build    obj-FLAVOUR, ccache → FLAVOUR-HASH/vmlinux, stripped
//! ```
//! The hash is over version, options and patches: what has not changed is not built again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::process::root;
use crate::setup;
use crate::steps::{note, step};

mod build;
mod config;
mod patches;
mod source;

use patches::Patches;

/// Options of `cargo xtask kernel`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask kernel          # 15 minutes on two cores the first time, then nothing\n  \
    cargo xtask kernel --debug  # lock order, RCU use, sleeping in atomic context\n  \
    cargo xtask kernel --patched # with the fanotify patches of vm-tests/kernel/patches")]
pub(crate) struct Options {
    /// The kernel with the project's patches
    #[arg(long)]
    patched: bool,
    /// The kernel that checks itself (lockdep, PROVE_RCU, DEBUG_ATOMIC_SLEEP)
    #[arg(long)]
    debug: bool,
}

/// Whose kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// As Debian ships it
    Stock,
    /// With the patches of vm-tests/kernel/patches
    Patched,
}

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flavour {
    /// Whose.
    pub(crate) series: Series,
    /// With the kernel's own checks.
    pub(crate) debug: bool,
}

impl Flavour {
    fn name(self) -> &'static str {
        match (self.series, self.debug) {
            (Series::Stock, false) => "stock",
            (Series::Stock, true) => "stock-debug",
            (Series::Patched, false) => "patched",
            (Series::Patched, true) => "patched-debug",
        }
    }

    fn fragments(self) -> impl Iterator<Item = &'static str> {
        let patched = (self.series == Series::Patched).then_some("patched.config");
        let debug = self.debug.then_some("debug.config");
        ["base.config"].into_iter().chain(patched).chain(debug)
    }
}

/// Builds the kernel and says where it is.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let series = if options.patched { Series::Patched } else { Series::Stock };
    let kernel = ensure(Flavour { series, debug: options.debug })?;
    println!("{}", kernel.display());
    Ok(ExitCode::SUCCESS)
}

/// The kernel's path; built if it is not there yet.
pub(crate) fn ensure(flavour: Flavour) -> Result<PathBuf> {
    let dir = setup::cache_dir()?.join("kernel");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let recipe = Recipe::read(flavour)?;
    // A kernel that is there is whole: it needs not wait for one that is being built.
    if let Some(vmlinux) = recipe.built(&dir)? {
        return Ok(vmlinux);
    }
    let _one_at_a_time = lock(&dir)?;
    if let Some(vmlinux) = recipe.built(&dir)? {
        return Ok(vmlinux);
    }
    setup::install(setup::KERNEL)?;
    recipe.make(&dir)
}

/// [`ensure`], one after the other, beside whatever else is done until the thread is joined.
pub(crate) fn beside(flavours: &'static [Flavour]) -> JoinHandle<Result<()>> {
    std::thread::spawn(|| flavours.iter().try_for_each(|flavour| ensure(*flavour).map(drop)))
}

/// What a kernel is made from, besides the source.
struct Recipe {
    flavour: Flavour,
    fragments: String,
    patches: Patches,
}

impl Recipe {
    fn read(flavour: Flavour) -> Result<Self> {
        let patches = match flavour.series {
            Series::Stock => Patches::default(),
            Series::Patched => Patches::read(&root().join("vm-tests/kernel/patches"))?,
        };
        Ok(Self { flavour, fragments: read_fragments(flavour)?, patches })
    }

    /// Where the kernel goes.
    fn result(&self, dir: &Path, version: &str) -> PathBuf {
        let options = config::parse(&self.fragments);
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{version} {options:?}").as_bytes());
        self.patches.hash_into(&mut hash);
        let hash = hash.finalize().to_hex();
        dir.join(format!("{}-{}", self.flavour.name(), &hash[..12])).join("vmlinux")
    }

    fn built(&self, dir: &Path) -> Result<Option<PathBuf>> {
        let newest = source::newest(dir)?.map(|version| self.result(dir, &version));
        Ok(newest.filter(|vmlinux| vmlinux.is_file()))
    }

    fn make(&self, dir: &Path) -> Result<PathBuf> {
        let stock = source::ensure(dir)?;
        let version = &stock.version;
        let name = self.flavour.name();
        let place = match self.flavour.series {
            Series::Stock => build::Place::own(&stock.path, dir.join(format!("obj-{name}"))),
            Series::Patched => {
                let tree = self.patches.tree(dir, &stock)?;
                let like = Flavour { series: Series::Stock, ..self.flavour }.name();
                build::Place {
                    tree,
                    objects: dir.join(format!("obj-{name}")),
                    seen_as: Some((stock.path.clone(), dir.join(format!("obj-{like}")))),
                }
                .or_own()?
            }
        };
        let job =
            build::Job { place, ccache: dir.join("ccache"), result: self.result(dir, version) };
        step(&format!("configuring Linux {version} ({name})"), || job.configure(&self.fragments))?;
        note("15 minutes on two cores the first time; ccache makes the next builds short");
        step(&format!("building Linux {version} ({name})"), || job.build())?;
        Ok(job.result)
    }
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
