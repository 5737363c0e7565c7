//! What can go wrong with kernel programs.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Probe;

/// Type information that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// It does not begin as it must.
    #[error("this is no type information of this machine's byte order (wrong magic number)")]
    Magic,
    /// It ends too early, or an offset points outside.
    #[error("the type information is truncated")]
    Truncated,
    /// It contains a kind of type that this version does not know.
    #[error("the type information contains types of the unknown kind {0}")]
    Kind(u32),
    /// It is larger than any kernel's.
    #[error("the type information has {0} bytes, which no kernel's has")]
    TooLarge(usize),
}

/// An object whose calls of kernel functions cannot be linked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    /// The file is damaged.
    #[error("the object is not well-formed: {0}")]
    Elf(String),
    /// The kernel has no such function.
    #[error("this kernel has no function {0}")]
    Unknown(String),
    /// Something other than a call refers to it.
    #[error("{0} is used other than by calling it, which cannot be linked")]
    NotACall(String),
}

/// Kernel programs that cannot be had.
#[derive(Debug, Error)]
pub enum BpfError {
    /// Built without them.
    #[error(
        "this hsm was built without its kernel programs; build it with `cargo xtask build --release`"
    )]
    NotBuiltIn,
    /// Built with those of another version.
    #[error(
        "the kernel programs inside this hsm were not built from the same source; run `cargo xtask \
         build`"
    )]
    Layout,
    /// This machine does not run them.
    #[error("{0}")]
    Unavailable(Probe),
    /// A setting that the programs cannot work with.
    #[error("{what} {value:?} cannot be used by kernel programs: {why}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// What it is set to.
        value: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The kernel's type information is missing.
    #[error(
        "{}: cannot read the kernel's type information: {source}; kernel programs need a kernel \
         that was built with CONFIG_DEBUG_INFO_BTF",
        path.display()
    )]
    BtfFile {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel's type information is not understood.
    #[error("{}: {source}", path.display())]
    Btf {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: BtfError,
    },
    /// The kernel lacks a structure member.
    #[error("Linux {release} has no {member}; its kernel programs would need to be adapted to it")]
    Member {
        /// Structure and member.
        member: &'static str,
        /// The running kernel.
        release: String,
    },
    /// The calls of kernel functions cannot be linked.
    #[error(
        "linking hsm's kernel programs to Linux {release}: {source} (the guard needs Linux 6.15 or \
         newer with BPF LSM; on an older one use the `user-filter` interceptor)"
    )]
    Link {
        /// The running kernel.
        release: String,
        /// What is wrong.
        source: LinkError,
    },
    /// The object or its maps cannot be loaded.
    #[error("loading hsm's kernel programs into Linux {release}: {source}")]
    Object {
        /// The running kernel.
        release: String,
        /// aya's account.
        source: Box<aya::EbpfError>,
    },
    /// The kernel refused a program, or it cannot be attached.
    #[error("kernel program {program}: {doing} failed on Linux {release}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Loading, attaching.
        doing: &'static str,
        /// The running kernel.
        release: String,
        /// aya's account, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program: the agent and the object do not belong together.
    #[error("the built-in object has no program {0}; rebuild hsm with `cargo xtask build`")]
    NoProgram(&'static str),
    /// A map cannot be used.
    #[error("map {map}: {doing}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What was tried.
        doing: &'static str,
        /// aya's account.
        source: Box<aya::maps::MapError>,
    },
    /// What is kept with an inode cannot be changed.
    #[error("map {map}: {doing}: {source}")]
    Storage {
        /// Its name.
        map: &'static str,
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel lacks what tier `mark-filter` needs.
    #[error(
        "Linux {release} has no {what}; tier `mark-filter` needs a kernel with the patches of          docs/KERNEL-PATCHES.md"
    )]
    NoFilters {
        /// The running kernel.
        release: String,
        /// What was looked for.
        what: String,
    },
    /// There is no guard, without which cached verdicts would not stay right.
    #[error(
        "{}: the guard's programs are not installed with these attribute names; a filter is attached          only where they are. Run `hsm guard install`",
        base.display()
    )]
    NotInstalled {
        /// The pin directory.
        base: PathBuf,
    },
    /// The filter cannot be loaded or attached.
    #[error("filter {name}: {doing} failed on Linux {release}: {source}{log}")]
    Filter {
        /// Its name.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// The running kernel.
        release: String,
        /// The kernel's answer.
        source: io::Error,
        /// What the verifier said, after a line break; empty if nothing.
        log: String,
    },
    /// The programs' records cannot be read.
    #[error("the records that the kernel programs write cannot be read: {source}")]
    Told {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or directory below the pin directory.
    #[error("{}: {doing}: {source}", path.display())]
    Pin {
        /// Which one.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An installation was interrupted, and two sets are there.
    #[error(
        "{}: two versions of hsm's kernel programs are pinned, an upgrade was interrupted; run \
         `hsm guard install` to finish it",
        base.display()
    )]
    Interrupted {
        /// The pin directory.
        base: PathBuf,
    },
    /// A process that cannot be named.
    #[error("process {pid}: {source}")]
    Process {
        /// Its number.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// What the machine can do cannot be found out.
    #[error("{doing}: {source}")]
    Probe {
        /// What was tried.
        doing: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// A UUID of zeros.
    #[error("the file system has no UUID, by which the kernel programs know it")]
    NoUuid,
}
