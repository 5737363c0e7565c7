//! Loads the kernel programs that are built in into the running kernel, tells part by part what it takes
//! and what it lacks, and removes them again.
//!
//! `cargo xtask build-and-load` builds and runs it. The programs are pinned on a bpffs of this run's own,
//! in a mount namespace of its own: they go with it, however it ends, and those of an agent on this
//! machine are never touched. They cover no file system, so nobody meets them meanwhile.
//!
//! Exit code 0: the best tier can be had. 1: something is lacking for it, or a part is broken.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::{self, BpfError, Btf, Guard, Probe, Settings};
use hsm_agent::sys::fanotify::{Class, Group, GroupOptions};
use hsm_agent::sys::probe;
use hsm_lab::sandbox::{self, Role};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolKind};
use rustix::mount::{MountFlags, mount};

mod features;
mod report;

use report::{BUG, For, PATCHES, Report};

/// The running kernel's type information.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    sandbox::require_root("-E env \"PATH=$PATH\" cargo xtask build-and-load")?;
    let dir = match sandbox::enter()? {
        Role::Inside(dir) => dir,
        Role::Done(code) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
    };
    println!("Linux {}", probe::kernel_release());
    let mut report = Report::default();
    programs(&mut report, &dir)?;
    features::fanotify(&mut report, &dir)?;
    Ok(report.end())
}

/// A program of the object: its name, and the hook or tracepoint as the section's name has it.
struct Program {
    name: String,
    hook: String,
}

fn programs(report: &mut Report, dir: &Path) -> Result<()> {
    let Some(object) = bpf::object() else {
        let remedy = "cargo xtask build-and-load builds it";
        report.lacks(For::Programs, "object", "this build has no kernel programs", remedy);
        return Ok(());
    };
    let found = listed(object)?;
    report.good("object", &format!("{} programs, {} bytes", found.len(), object.len()));
    let types = match std::fs::read(TYPES) {
        Ok(bytes) => Some(Btf::parse(bytes).with_context(|| TYPES.to_owned())?),
        Err(error) => {
            let remedy = "a kernel with CONFIG_DEBUG_INFO_BTF";
            let fact = format!("{TYPES}: {error}");
            report.lacks(For::Programs, "type information", &fact, remedy);
            None
        }
    };
    let hooks_are_there = types.as_ref().is_some_and(|types| {
        kernel_functions(report, object, types);
        hooks(report, &found, types)
    });
    match bpf::probe()? {
        Probe::Available => report.good("BPF LSM", "active; programs are taken"),
        probe => {
            let remedy = match probe {
                Probe::Refused(_) => {
                    "another host, or root outside of containers; `--kernel stock` tries in the guest"
                }
                Probe::Inactive => "lsm=...,bpf on the kernel's command line",
                Probe::NotCompiledIn(_) | Probe::Available => "a kernel with CONFIG_BPF_LSM",
            };
            report.lacks(For::Programs, "BPF LSM", &probe.to_string(), remedy);
            for program in found {
                report.untried(&program.name, "not tried: see BPF LSM");
            }
            return Ok(());
        }
    }
    if hooks_are_there { load(report, &found, dir) } else { Ok(()) }
}

impl Program {
    /// Of a mark's filter; the others are the guard's.
    fn is_filter(&self) -> bool {
        !["lsm", "tp_btf"].iter().any(|kind| self.hook.starts_with(kind))
    }
}

/// The programs of the object, in the order of their sections.
fn listed(object: &[u8]) -> Result<Vec<Program>> {
    let file = ElfFile64::<LittleEndian>::parse(object)?;
    let mut found = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index)?;
        let hook = section.name()?;
        if hook.contains('/') {
            found.push(Program { name: symbol.name()?.to_owned(), hook: hook.to_owned() });
        }
    }
    ensure!(!found.is_empty(), "the object has no programs");
    Ok(found)
}

fn kernel_functions(report: &mut Report, object: &[u8], types: &Btf<'_>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let linked = bpf::link(&mut object.to_vec(), |name| {
        let id = types.function(name);
        if id.is_some() { &mut found } else { &mut missing }.push(name.to_owned());
        // Any number will do: this copy is not loaded, and all names are wanted.
        id.or(Some(1))
    });
    match linked {
        Ok(_) if missing.is_empty() => {
            found.sort();
            found.dedup();
            report.good("kernel functions", &found.join(", "));
        }
        Ok(_) => {
            let fact = format!("no {}", missing.join(", "));
            report.lacks(For::Programs, "kernel functions", &fact, "Linux 6.15 or newer");
        }
        Err(error) => {
            let remedy = "cargo xtask build";
            report.lacks(For::Programs, "kernel functions", &error.to_string(), remedy);
        }
    }
}

/// Whether the kernel calls what the programs wait for.
fn hooks(report: &mut Report, programs: &[Program], types: &Btf<'_>) -> bool {
    let lacks = |program: &&Program| match program.hook.split_once('/') {
        Some((kind, hook)) if kind.starts_with("lsm") => {
            types.function(&format!("bpf_lsm_{hook}")).is_none()
        }
        _ => false,
    };
    let missing: Vec<&str> = programs.iter().filter(lacks).map(|p| p.hook.as_str()).collect();
    if missing.is_empty() {
        report.good("hooks", "all that the programs are for");
        return true;
    }
    let fact = format!("no {}", missing.join(", "));
    report.lacks(For::Programs, "hooks", &fact, "Linux 6.15 or newer with CONFIG_BPF_LSM");
    false
}

/// Verifier, attachment, pins; and away with them.
fn load(report: &mut Report, programs: &[Program], dir: &Path) -> Result<()> {
    let own = dir.join("bpf");
    std::fs::create_dir(&own)?;
    mount("bpf", &own, "bpf", MountFlags::empty(), Some(c"mode=0700"))
        .with_context(|| format!("mounting a bpffs on {}", own.display()))?;
    let settings = Settings { base: own.join("hsm"), ..Settings::default() };
    match Guard::install(&settings) {
        Ok(maps) => drop(maps),
        Err(error) => {
            let part = match &error {
                BpfError::Program { program, .. } | BpfError::NoProgram(program) => program,
                _ => "loading",
            };
            report.lacks(For::Programs, part, &error.to_string(), BUG);
            Guard::unpin(&settings.base)?;
            return Ok(());
        }
    }
    let status = Guard::status(&settings.base)?;
    for program in programs.iter().filter(|program| !program.is_filter()) {
        if status.programs.contains(&program.name) {
            report.good(&program.name, &format!("{}: verified, attached, pinned", program.hook));
        } else {
            report.untried(&program.name, &format!("{}: not part of the guard", program.hook));
        }
    }
    filter(report, programs, &settings)?;
    let removed = Guard::unpin(&settings.base)?;
    ensure!(!settings.base.exists(), "{} is still there", settings.base.display());
    report.good("removed", &format!("{} pins", removed.len()));
    Ok(())
}

/// The programs of a mark's filter, for a group that marks nothing.
fn filter(report: &mut Report, programs: &[Program], settings: &Settings) -> Result<()> {
    let names: Vec<_> =
        programs.iter().filter(|p| p.is_filter()).map(|p| p.name.as_str()).collect();
    let names = names.join(", ");
    if let Err(why) = bpf::filter_probe() {
        report.lacks(For::Filter, "filter", &why, PATCHES);
        report.untried(&names, "not tried: see filter");
        return Ok(());
    }
    let group = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
    match bpf::Filter::attach(settings, "try", group.as_fd()) {
        Ok(_) => report.good(&names, "struct_ops: verified, attached to a group, pinned"),
        Err(error) => report.lacks(For::Filter, "filter", &error.to_string(), BUG),
    }
    Ok(())
}
