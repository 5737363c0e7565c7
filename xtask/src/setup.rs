//! Installs what the tasks need: Debian packages where apt exists, tools from crates.io.
//!
//! Nothing is touched that is there already. Where something is missing and cannot be installed,
//! the message says exactly what and how.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::Apt;
use crate::process::{answers, cargo, exists, must};
use crate::steps::{note, step};

/// Programs that the end-to-end suite, the demo and the bench run, and the Debian packages they
/// come in.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("c++", "g++"),
    ("make", "make"),
    ("mkfs.ext4", "e2fsprogs"),
    ("filefrag", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("swapon", "mount"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("setfattr", "attr"),
    ("setfacl", "acl"),
    ("rsync", "rsync"),
    ("qemu-img", "qemu-utils"),
    ("tar", "tar"),
    ("grep", "grep"),
    ("find", "findutils"),
    ("cmp", "diffutils"),
    ("cpio", "cpio"),
    ("sqlite3", "sqlite3"),
    ("stress-ng", "stress-ng"),
    ("git", "git"),
    ("/usr/bin/python3", "python3"),
    ("python3", "python3"),
];

/// What the guest's kernel is built with. Headers are looked for by their path.
pub(crate) const KERNEL: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("/usr/include/libelf.h", "libelf-dev"),
    ("/usr/include/openssl/ssl.h", "libssl-dev"),
    ("pahole", "dwarves"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("ccache", "ccache"),
    ("python3", "python3"),
    ("git", "git"),
];

/// What a guest is started with, QEMU apart: see [`qemu`].
const GUEST: &[(&str, &str)] =
    &[("setpriv", "util-linux"), ("setsid", "util-linux"), ("mkfs.ext4", "e2fsprogs")];

/// Older ones were not tried.
const QEMU_VERSION: u32 = 8;

/// Where Debian 12 has a newer one.
const QEMU_SUITE: &str = "bookworm-backports";

/// The newest release of the S3 server that the pinned toolchain builds.
const S3S_FS: &str = "0.14.1";

/// The newest release of the file system exerciser.
const FSX: &str = "0.3.2";

/// Everything that any task needs.
pub(crate) fn everything() -> Result<()> {
    packages()?;
    install(KERNEL)?;
    qemu()?;
    s3_server()?;
    exercisers()?;
    optional();
    Ok(())
}

/// The programs of [`PROGRAMS`].
pub(crate) fn packages() -> Result<()> {
    install(PROGRAMS)
}

/// What is missing of a list of programs (or files) and the packages they come in.
pub(crate) fn install(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| !exists(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    names.sort_unstable();
    names.dedup();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let (programs, list) = (programs.join(" "), names.join(" "));
    if !exists("apt-get") {
        bail!(
            "these programs are missing: {programs}\n(Debian has them in: {list}.) Install them \
             with your distribution's package manager and try again"
        );
    }
    ensure!(
        hsm_lab::sandbox::is_root(),
        "these programs are missing: {programs}. Run: sudo apt-get install {list}"
    );
    step(&format!("installing {list} (for {programs})"), || {
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
            command
        };
        must(apt().arg("update"))?;
        must(apt().args(["install", "--yes", "--no-install-recommends"]).args(&names))
    })
}

/// QEMU: the one that is there if it is new enough, else Debian's of a newer suite.
pub(crate) fn qemu() -> Result<PathBuf> {
    install(GUEST)?;
    let qemu = PathBuf::from("qemu-system-x86_64");
    let Err(problem) = hsm_machine::run::check_version(&qemu, QEMU_VERSION) else {
        return Ok(qemu);
    };
    ensure!(
        exists("apt-get") && hsm_lab::sandbox::is_root(),
        "{problem:#}. Install QEMU {QEMU_VERSION} or newer (qemu-system-x86_64)"
    );
    step("installing qemu-system-x86 of Debian's bookworm-backports", || {
        let suites = ["bookworm", "bookworm-updates", "bookworm-security", QEMU_SUITE];
        let apt = Apt::new(QEMU_SUITE, &suites)?;
        apt.update()?;
        apt.install(QEMU_SUITE, "qemu-system-x86")
    })?;
    hsm_machine::run::check_version(&qemu, QEMU_VERSION)?;
    Ok(qemu)
}

/// Where tools are kept, outside the project and shared by its clones.
pub(crate) fn tools_dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("tools"))
}

/// Where everything is kept that is expensive to make.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = match cache {
        Some(dir) => dir,
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("hsm-dev"))
}

/// `s3s-fs`, the S3 server that the store is tested against.
pub(crate) fn s3_server() -> Result<PathBuf> {
    let dir = tools_dir()?;
    let program = dir.join("bin/s3s-fs");
    if !program.is_file() {
        step("building s3s-fs, the S3 server that the store is tested against", || {
            let mut install = cargo();
            // Cargo's settings for this workspace (its target directory) are not the tool's.
            install.current_dir("/").env_remove("CARGO_TARGET_DIR");
            install.args(["install", "s3s-fs", "--version", S3S_FS, "--locked", "--debug"]);
            install.args(["--features", "binary", "--quiet", "--root"]).arg(&dir);
            // It counts on what a release build does when it looks for the last byte of an empty
            // object; a debug build, three times faster made, would panic there.
            install.env("CARGO_PROFILE_DEV_OVERFLOW_CHECKS", "false");
            must(&mut install)
        })?;
    }
    Ok(program)
}

/// `fsx`, the file system exerciser.
pub(crate) fn exercisers() -> Result<()> {
    let dir = tools_dir()?;
    if dir.join("bin/fsx").is_file() {
        return Ok(());
    }
    step("building fsx, the file system exerciser", || {
        let mut install = cargo();
        install.current_dir("/").env_remove("CARGO_TARGET_DIR");
        install.args(["install", "fsx", "--version", FSX, "--locked", "--quiet", "--root"]);
        must(install.arg(&dir))
    })
}

fn optional() {
    for (tool, use_) in [("deny", "licences and advisories"), ("fuzz", "fuzzing")] {
        let found = answers("cargo", &[tool, "--version"]);
        let state = if found { "found" } else { "not installed (optional)" };
        note(&format!("cargo {tool} ({use_}): {state}"));
    }
}
