//! `hsm guard`

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use serde::Serialize;

use crate::bpf::{self, Guard, Maps, Mode, Settings, Status, Uuid};
use crate::config::{AgentConfig, Config, PoolConfig};
use crate::intercept;
use crate::sys::{fsuuid, inode};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{self, Tone};

/// The programs in the kernel that keep offline files closed
///
/// They are pinned in bpffs and stay when the agent stops or dies: without an agent, opening an
/// offline file fails with EAGAIN. They do not survive a reboot; `install` belongs before the mounts
/// (see OPERATIONS).
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm guard status",
    "hsm guard install",
    "hsm guard unpin --dry-run",
))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// What is installed, which file systems are covered, and what was counted
    #[command(after_help = super::after_help!("hsm guard status", "hsm guard status --json"))]
    Status,
    /// Load and pin the programs, and cover the file systems of all pools, mounted or not
    #[command(after_help = super::after_help!("hsm guard install"))]
    Install,
    /// Detach and remove everything: nothing protects offline files then
    ///
    /// Refused while an agent runs: it relies on the programs to be asked.
    #[command(after_help = super::after_help!(
        "hsm guard unpin --dry-run",
        "systemctl stop hsm-agent && hsm guard unpin",
    ))]
    Unpin {
        /// Only show what would be removed
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let config = Config::load(context.config_path()).map_err(Failure::usage)?;
    match args.verb {
        Verb::Status => status(context, &config.agent),
        Verb::Install => install(context, &config),
        Verb::Unpin { dry_run } => unpin(context, &config, dry_run),
    }
}

/// A line of `install --json`.
#[derive(Debug, Serialize)]
struct Covered<'a> {
    pool: &'a str,
    uuid: Option<String>,
    mode: Option<&'static str>,
    detail: Option<String>,
}

fn install(context: &Context, config: &Config) -> Result<Exit, Failure> {
    let Some(marker) = config.programs_marker() else {
        return Err(Failure::usage("the configuration has no pool that could be guarded"));
    };
    let base = config.agent.bpf_dir.clone();
    let settings = Settings { base, marker: marker.to_owned(), ..Settings::default() };
    let maps = Guard::install(&settings).map_err(failed)?;
    let mut exit = Exit::Done;
    for pool in &config.pools {
        let result = if pool.marker == settings.marker {
            cover(&maps, pool, &config.agent)
        } else {
            Err(format!(
                "its marker is {}, and the programs look for {}",
                pool.marker, settings.marker
            ))
        };
        let line = match result {
            Ok((uuid, mode)) => Covered {
                pool: &pool.name,
                uuid: Some(fsuuid::text(&uuid)),
                mode: Some(mode_name(mode)),
                detail: None,
            },
            Err(detail) => {
                exit = Exit::Failed;
                Covered { pool: &pool.name, uuid: None, mode: None, detail: Some(detail) }
            }
        };
        print_covered(context, &line)?;
    }
    Ok(exit)
}

fn print_covered(context: &Context, line: &Covered<'_>) -> Result<(), Failure> {
    let out = &context.out;
    if let Some(detail) = &line.detail {
        out.error(format!("pool {}: not covered: {detail}", line.pool));
    }
    if out.json {
        return Ok(out.json_line(line)?);
    }
    if let (Some(uuid), Some(mode)) = (&line.uuid, line.mode) {
        out.line(format!("pool {}: covered ({mode}), file system {uuid}", line.pool))?;
    }
    Ok(())
}

/// Covers a pool's file system. One that is covered already stays in its mode: an agent is at work.
fn cover(maps: &Maps, pool: &PoolConfig, agent: &AgentConfig) -> Result<(Uuid, Mode), String> {
    let uuid = uuid(pool, agent)?;
    let covered = maps.covered().map_err(|e| e.to_string())?;
    if let Some(found) = covered.into_iter().find(|(known, _)| *known == uuid) {
        return Ok(found);
    }
    maps.cover(uuid, Mode::Guard).map_err(|e| e.to_string())?;
    Ok((uuid, Mode::Guard))
}

/// Of the mounted file system; of one that is not mounted, what was remembered.
fn uuid(pool: &PoolConfig, agent: &AgentConfig) -> Result<Uuid, String> {
    let memory = agent.uuid_path(&pool.name);
    let mount = output::path(&pool.mount);
    let root = match File::open(&pool.mount) {
        Ok(root) => Some(root),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("{mount}: {e}")),
    };
    if let Some(root) = root
        && inode::is_mount_root(&root).map_err(|e| format!("{mount}: {e}"))?
    {
        let uuid = fsuuid::of(&root).map_err(|e| format!("{mount}: {e}"))?;
        bpf::remember(&memory, &uuid).map_err(|e| format!("{}: {e}", output::path(&memory)))?;
        return Ok(uuid);
    }
    match bpf::remembered(&memory) {
        Ok(Some(uuid)) => Ok(uuid),
        Ok(None) => Err(format!(
            "nothing is mounted on {mount}, and no agent has served it before; mount it and run \
             this again"
        )),
        Err(e) => Err(format!("{}: {e}", output::path(&memory))),
    }
}

/// The answer of `status --json`.
#[derive(Debug, Serialize)]
struct Report {
    available: String,
    installed: bool,
    current: Option<bool>,
    programs: Vec<String>,
    second_net: &'static str,
    in_flight: u64,
    file_systems: Vec<FileSystem>,
    filters: Vec<String>,
    server: Option<u32>,
    waiting: usize,
    counters: serde_json::Map<String, serde_json::Value>,
    leftovers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FileSystem {
    uuid: String,
    mode: &'static str,
}

impl Report {
    fn new(status: &Status, available: String) -> Self {
        let file_system = |(uuid, mode): &(Uuid, Mode)| FileSystem {
            uuid: fsuuid::text(uuid),
            mode: mode_name(*mode),
        };
        Self {
            available,
            installed: status.installed.is_some(),
            current: status.current,
            programs: status.programs.clone(),
            second_net: if status.armed { "armed" } else { "on demand" },
            in_flight: status.in_flight,
            file_systems: status.covered.iter().map(file_system).collect(),
            filters: status.filters.iter().map(|(name, _)| name.clone()).collect(),
            server: status.server,
            waiting: status.waiting,
            counters: status.counters.iter().map(|(name, n)| (name.into(), n.into())).collect(),
            leftovers: status.others.iter().map(|p| output::path(p).into_owned()).collect(),
        }
    }
}

fn status(context: &Context, agent: &AgentConfig) -> Result<Exit, Failure> {
    let status = Guard::status(&agent.bpf_dir).map_err(failed)?;
    let available = bpf::probe().map_or_else(|e| e.to_string(), |probe| probe.to_string());
    let report = Report::new(&status, available);
    let out = &context.out;
    if out.json {
        out.json_line(&report)?;
        return Ok(Exit::Done);
    }
    if !report.installed {
        out.line(out.paint(Tone::Bad, "the guard is not installed"))?;
        out.line(format!("BPF LSM: {}", report.available))?;
        return Ok(Exit::Done);
    }
    let version = match report.current {
        Some(false) => " (of another version; `hsm guard install` replaces them)",
        Some(true) | None => "",
    };
    out.line(format!("{} programs attached{version}", report.programs.len()))?;
    let server = report.server.map_or("nobody".to_owned(), |pid| format!("process {pid}"));
    out.line(format!("served by {server}; {} accesses wait", report.waiting))?;
    out.line(match (report.second_net, report.in_flight) {
        (net, 0) => format!("second net: {net}"),
        (net, count) => format!("second net: {net}, for {count} threads that open offline files"),
    })?;
    for fs in &report.file_systems {
        out.line(format!("covers {} ({})", fs.uuid, fs.mode))?;
    }
    for (name, links) in &status.filters {
        let links = if *links == 1 { String::new() } else { format!(" ({links} links)") };
        out.line(format!("filters the mark of {name}{links}"))?;
    }
    for path in &report.leftovers {
        out.line(format!("left over: {path}"))?;
    }
    for (name, count) in status.counters.iter().filter(|(_, count)| *count > 0) {
        out.line(format!("{count:>12}  {name}"))?;
    }
    Ok(Exit::Done)
}

fn unpin(context: &Context, config: &Config, dry_run: bool) -> Result<Exit, Failure> {
    let agent = &config.agent;
    // In tier lsm-filter nobody would ask the agent any more: its offline files would read as zeros.
    if !dry_run && let Some(pid) = Guard::status(&agent.bpf_dir).map_err(failed)?.server {
        let why = format!(
            "an agent (process {pid}) relies on the programs in {}: without them its offline files \
             read as zeros. Stop it first",
            output::path(&agent.bpf_dir)
        );
        return Err(Failure::new(Exit::Failed, why));
    }
    if !dry_run && let Some(other) = Guard::relied_on(&agent.bpf_dir).map_err(failed)? {
        let why = format!(
            "programs of another version of hsm in {} serve an agent, or filter the mark of a file system. Stop \
             the agent, start that of this version once, which puts its own programs in their place, and \
             stop it again",
            output::path(&other)
        );
        return Err(Failure::new(Exit::Failed, why));
    }
    let exit = let_go(context, config, dry_run)?;
    if exit != Exit::Done {
        // Without the filter's link everything there would be denied.
        return Ok(exit);
    }
    let paths = if dry_run {
        Guard::pinned(&agent.bpf_dir).map_err(failed)?
    } else {
        Guard::unpin(&agent.bpf_dir).map_err(failed)?
    };
    let out = &context.out;
    for path in &paths {
        let path = output::path(path);
        if out.json {
            out.json_line(&serde_json::json!({"path": path, "removed": !dry_run}))?;
        } else {
            out.line(format!("{} {path}", if dry_run { "would remove" } else { "removed" }))?;
        }
    }
    if paths.is_empty() {
        out.note("nothing is pinned");
    }
    Ok(Exit::Done)
}

/// Ends the watches of tier mark-filter, which outlive the agent. What is mounted nowhere has none.
fn let_go(context: &Context, config: &Config, dry_run: bool) -> Result<Exit, Failure> {
    let Some(maps) = Maps::open(&config.agent.bpf_dir).map_err(failed)? else {
        return Ok(Exit::Done);
    };
    let covered = maps.covered().map_err(failed)?;
    let settings = |pool: &PoolConfig| Settings {
        base: config.agent.bpf_dir.clone(),
        marker: pool.marker.clone(),
        ..Settings::default()
    };
    let out = &context.out;
    let mut exit = Exit::Done;
    for pool in &config.pools {
        let Ok(root) = File::open(&pool.mount) else { continue };
        let watched = |uuid| covered.contains(&(uuid, Mode::Mark));
        if !inode::is_mount_root(&root).is_ok_and(|is| is) || !fsuuid::of(&root).is_ok_and(watched)
        {
            continue;
        }
        let mount = output::path(&pool.mount);
        let result = if dry_run {
            Ok(())
        } else {
            intercept::let_go(&settings(pool), &pool.name, root.as_fd())
        };
        match result {
            Ok(()) if out.json => {
                out.json_line(&serde_json::json!({"watch": mount, "removed": !dry_run}))?;
            }
            Ok(()) => {
                let what = if dry_run { "would end" } else { "ended" };
                out.line(format!("{what} the watch of {mount}"))?;
            }
            Err(error) => {
                out.error(format!(
                    "{mount}: the watch cannot be ended: {error}; unmount it instead"
                ));
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Guard => "guard",
        Mode::Filter => "filter",
        Mode::Mark => "mark",
    }
}

fn failed(error: bpf::BpfError) -> Failure {
    let exit = match &error {
        bpf::BpfError::Pin { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Exit::NotPermitted
        }
        bpf::BpfError::NotBuiltIn | bpf::BpfError::Layout | bpf::BpfError::Setting { .. } => {
            Exit::Usage
        }
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
