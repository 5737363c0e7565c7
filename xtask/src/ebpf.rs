//! `cargo xtask build`: the kernel programs, and then `hsm` with them inside.
//!
//! ```text
//! rust-src    core's source: rustup, or Debian's package unpacked into the cache
//! bpf-linker  pinned, built against the compiler's own LLVM, into the cache
//! hsm-ebpf    → target/bpf/hsm.bpf.o, without DWARF; hsm-agent's build script embeds it
//! ```
//! The compiler is the workspace's stable one: `RUSTC_BOOTSTRAP` for this one child process lets it
//! build `core` for a target that has none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::apt::Apt;
use crate::process::{answers, cargo, must, root};
use crate::setup::cache_dir;
use crate::steps::{note, step};

mod strip;

/// Options of `cargo xtask build`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask build            # for trying out: target/debug/hsm\n  \
    cargo xtask build --release  # target/release/hsm\n\n\
    The first time sets up rust-src and bpf-linker (2 minutes), in ~/.cache/hsm-dev or \
    $XDG_CACHE_HOME/hsm-dev; nothing on the system is replaced. HSM_BPF_LINKER names another linker.")]
pub(crate) struct Options {
    /// Optimised
    #[arg(long)]
    release: bool,
}

/// The target of the programs. Its byte order is that of all supported machines.
const TARGET: &str = "bpfel-unknown-none";
/// 0.10 silently drops arguments of calls of kernel functions.
const LINKER: &str = "0.13.0";
/// The compiler whose LLVM the linker is built against, and whose `core` is compiled.
const RUSTC: &str = "1.95.0";
/// Debian's `rust-src` of that version.
const RUST_SRC: (&str, &str) = ("trixie-backports", "1.95.0+dfsg1-2~bpo13+1");

/// Builds both.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    build(options.release)?;
    Ok(ExitCode::SUCCESS)
}

/// The kernel programs, and `hsm` with them inside.
pub(crate) fn build(release: bool) -> Result<()> {
    programs()?;
    step("building hsm with its kernel programs inside", || {
        let mut build = cargo();
        build.args(["build", "--quiet", "--package", "hsm-agent", "--bin", "hsm"]);
        must(if release { build.arg("--release") } else { &mut build })
    })
}

/// Builds the kernel programs; the object's path.
pub(crate) fn programs() -> Result<PathBuf> {
    let compiler = Compiler::find()?;
    let library = compiler.core()?;
    let linker = compiler.linker()?;
    let object = root().join("target/bpf/hsm.bpf.o");
    step("building the kernel programs", || {
        let built = compile(&library, &linker)?;
        let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
        let small = strip::dwarf(&bytes).with_context(|| built.display().to_string())?;
        note(&format!("{} bytes of kernel programs", small.len()));
        replace(&object, &small)
    })?;
    Ok(object)
}

fn compile(library: &Path, linker: &Path) -> Result<PathBuf> {
    let target = root().join("target/bpf-build");
    let mut build = cargo();
    build.current_dir(root().join("hsm-ebpf"));
    build.args(["build", "--quiet", "--release", "--locked", "-Zbuild-std=core"]);
    build.args(["--target", TARGET, "--target-dir"]).arg(&target);
    // Cargo's and the caller's settings for the host's programs are not for these.
    build.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    build.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    build.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    must(&mut build)?;
    Ok(target.join(TARGET).join("release/hsm"))
}

/// Type information for the kernel, which the linker makes from debug information; atomic
/// instructions that return a value (processor version 3, Linux 5.12).
const FLAGS: [&str; 3] = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// Written beside and renamed, and only if it differs: cargo builds `hsm` again when it is newer.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let dir = path.parent().context("no directory")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let temporary = root().join("target/hsm.bpf.o.new");
    fs::write(&temporary, bytes).with_context(|| temporary.display().to_string())?;
    fs::rename(&temporary, path).with_context(|| path.display().to_string())
}

/// The workspace's compiler.
struct Compiler {
    sysroot: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self> {
        let version = answer(rustc().arg("--version"))?;
        ensure!(
            version.starts_with(&format!("rustc {RUSTC} ")),
            "the kernel programs are built with rustc {RUSTC}, and this is {version}; run cargo in \
             the project's directory, where rust-toolchain.toml names the version, or install it"
        );
        Ok(Self { sysroot: answer(rustc().args(["--print", "sysroot"]))?.into() })
    }

    /// The standard library's source.
    fn core(&self) -> Result<PathBuf> {
        let own = self.sysroot.join("lib/rustlib/src/rust/library");
        if own.join("core/Cargo.toml").is_file() {
            return Ok(own);
        }
        let debian = cache_dir()?.join(format!("rust-src-{RUSTC}"));
        let unpacked = debian.join(format!("usr/src/rustc-{RUSTC}/library"));
        if unpacked.join("core/Cargo.toml").is_file() {
            return Ok(unpacked);
        }
        step("adding rust-src (the source of core) to the compiler with rustup", || {
            if rustup() && own.join("core/Cargo.toml").is_file() {
                return Ok(own.clone());
            }
            note("rustup cannot; taking Debian's package, unpacked into the cache");
            let (suite, version) = RUST_SRC;
            let apt = Apt::new("rust-src", &[suite]).context(NO_CORE)?;
            apt.update().context(NO_CORE)?;
            fs::create_dir_all(&debian).with_context(|| debian.display().to_string())?;
            apt.unpack("rust-src", version, &debian).context(NO_CORE)?;
            ensure!(unpacked.is_dir(), "Debian's rust-src has no {}", unpacked.display());
            Ok(unpacked.clone())
        })
    }

    /// The linker for the programs.
    fn linker(&self) -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("HSM_BPF_LINKER") {
            return Ok(path.into());
        }
        let dir = cache_dir()?.join(format!("bpf-linker-{LINKER}-{RUSTC}"));
        let program = dir.join("bin/bpf-linker");
        if answers(&program, &["--version"]) {
            return Ok(program);
        }
        let llvm = self.llvm()?;
        let lib = self.sysroot.join("lib");
        step(&format!("building bpf-linker {LINKER} against the compiler's LLVM"), || {
            let mut install = cargo();
            install.current_dir("/").env_remove("CARGO_TARGET_DIR");
            install.env_remove("CARGO_ENCODED_RUSTFLAGS");
            let flags =
                format!("-Clink-arg={} -Clink-arg=-Wl,-rpath,{}", llvm.display(), lib.display());
            install.env("RUSTFLAGS", flags);
            install.args(["install", "bpf-linker", "--version", LINKER, "--locked", "--quiet"]);
            install.args(["--no-default-features", "--features", "llvm-22,no-llvm-linking"]);
            must(install.arg("--root").arg(&dir)).context(
                "building bpf-linker failed; HSM_BPF_LINKER can name one that is there already",
            )
        })?;
        ensure!(answers(&program, &["--version"]), "{} does not run", program.display());
        Ok(program)
    }

    /// The LLVM library that the compiler brings along.
    fn llvm(&self) -> Result<PathBuf> {
        let dir = self.sysroot.join("lib");
        let entries = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("libLLVM.so.22.") {
                return Ok(path);
            }
        }
        bail!(
            "{} holds no libLLVM.so.22.*, against which bpf-linker is built (a compiler of a \
             distribution, perhaps: use rustup's, or name a linker in HSM_BPF_LINKER)",
            dir.display()
        )
    }
}

const NO_CORE: &str = "the kernel programs need the source of Rust's core library: `rustup component \
                       add rust-src`, or Debian's rust-src of the same version";

fn rustup() -> bool {
    let mut add = Command::new("rustup");
    add.args(["component", "add", "rust-src", "--toolchain", RUSTC]);
    add.stdin(Stdio::null()).current_dir(root());
    add.status().is_ok_and(|status| status.success())
}

fn rustc() -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(root());
    command
}

fn answer(command: &mut Command) -> Result<String> {
    let output = command.output().context("starting rustc")?;
    ensure!(output.status.success(), "rustc: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
