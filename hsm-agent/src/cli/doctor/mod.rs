//! `hsm doctor`: what this machine can do for hsm, and what it lacks.
//!
//! Features are found out by trying, never from version numbers. Each check stands alone: one that
//! fails does not hide the others. Looking changes nothing, except that the store check writes and
//! removes an object of its own.

mod machine;
mod mounts;
mod pool;
mod report;
mod stores;

use std::ffi::CString;
use std::time::Duration;

use crate::bpf;
use crate::config::{Config, ConfigError, PoolConfig};
use crate::control::client::Client;

use super::context::Context;
use super::exit::{Exit, Failure};
use report::{Check, Report, Tier, Verdict};

/// An agent that answers later than this is ill.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can this machine do, and what does it lack?
///
/// Checks kernel, privileges, configuration, each pool's file system and store, and the agent, and
/// names the tier in which accesses to released files are intercepted. Exits with 0 only if one
/// works and nothing has failed.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm doctor",
    "hsm doctor --json | jq -r '.checks[] | select(.verdict!=\\\"ok\\\") | .remedy'",
))]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _: &Args) -> Result<Exit, Failure> {
    let config = Config::load(context.config_path());
    let report = examine(context, &config)?;
    if context.out.json {
        context.out.json_line(&report)?;
    } else {
        report.print(&context.out)?;
    }
    Ok(match config {
        Err(_) => Exit::Usage,
        Ok(_) if report.healthy() => Exit::Done,
        Ok(_) => Exit::Failed,
    })
}

fn examine(context: &Context, config: &Result<Config, ConfigError>) -> Result<Report, Failure> {
    let privileges = machine::privileges();
    let privileged = privileges.verdict == Verdict::Ok;
    let mut checks = vec![machine::kernel(), privileges, machine::lease_break_time()];
    checks.push(configuration(context, config));
    let mut pools = Vec::new();
    if let Ok(config) = config {
        checks.push(machine::state_dir(&config.agent.state_dir));
        let status = context.block_on(async {
            let client = Client::new(&config.agent.socket).with_patience(PATIENCE);
            Ok::<_, Failure>(client.status().await)
        })?;
        checks.push(machine::agent(&config.agent.socket, &status));
        for pool in &config.pools {
            let (found, pool) = examine_pool(context, config, pool, status.is_err())?;
            checks.extend(found.into_iter().map(|check| check.of_pool(&pool.pool)));
            pools.push(pool);
        }
    }
    let programs = kernel_programs();
    checks.push(programs_check(&programs));
    Ok(Report::new(checks, tiers(privileged, &pools, &programs, &bpf::filter_probe())))
}

fn configuration(context: &Context, config: &Result<Config, ConfigError>) -> Check {
    const NAME: &str = "configuration";
    let path = super::output::path(context.config_path());
    let check = "see `hsm config check`";
    match config {
        Err(error @ ConfigError::Read { .. }) => {
            Check::fail(NAME, error.to_string(), "write it, or name it with --config")
        }
        Err(error) => Check::fail(NAME, error.to_string(), check),
        Ok(config) if config.pools.is_empty() => {
            Check::fail(NAME, format!("{path}: no pool"), "add a [[pool]]")
        }
        Ok(config) if !config.warnings.is_empty() => {
            let n = super::output::count(config.warnings.len() as u64, "warning", "warnings");
            Check::warn(NAME, format!("{path}: {n}"), check)
        }
        Ok(config) => {
            let n = super::output::count(config.pools.len() as u64, "pool", "pools");
            Check::ok(NAME, format!("{path}: {n}"))
        }
    }
}

/// The checks of one pool, and whether accesses on it can be intercepted.
fn examine_pool(
    context: &Context,
    config: &Config,
    pool: &PoolConfig,
    agent_is_down: bool,
) -> Result<(Vec<Check>, Interceptable), Failure> {
    let file_system = pool::file_system(&pool.mount);
    let mounted = file_system.verdict == Verdict::Ok;
    let mut found = vec![file_system];
    let mut works = false;
    if mounted {
        let events = pool::pre_content(&pool.mount);
        works = events.verdict == Verdict::Ok;
        found.push(events);
        found.extend(pool::apart(&pool.mount, &own_files(config, pool)));
        found.extend(pool::directories(&pool.mount, &pool.directories));
    }
    if mounted && agent_is_down {
        let marker = CString::new(pool.marker.as_str()).map_err(Failure::usage)?;
        found.push(pool::unguarded(&pool.mount, &marker));
    }
    let remembered = config.agent.store_identity_path(&pool.name);
    let check = async { Ok::<_, Failure>(stores::check(pool, remembered).await) };
    found.push(context.block_on(check)?);
    Ok((found, Interceptable { pool: pool.name.clone(), works }))
}

/// What the agent itself writes while it serves a pool.
fn own_files<'a>(config: &'a Config, pool: &'a PoolConfig) -> Vec<&'a std::path::Path> {
    let mut paths = vec![config.agent.state_dir.as_path(), config.file()];
    paths.extend(pool.store.path.as_deref());
    paths
}

/// Whether events can be had on a pool.
#[derive(Debug)]
struct Interceptable {
    pool: String,
    works: bool,
}

/// Whether this build has kernel programs and this kernel takes them, and otherwise why not.
fn kernel_programs() -> Result<(), String> {
    if bpf::object().is_none() {
        return Err(bpf::BpfError::NotBuiltIn.to_string());
    }
    match bpf::probe() {
        Ok(bpf::Probe::Available) => Ok(()),
        Ok(other) => Err(other.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn programs_check(programs: &Result<(), String>) -> Check {
    const NAME: &str = "kernel-programs";
    match programs {
        Ok(()) => Check::ok(NAME, "BPF LSM programs can be loaded"),
        Err(why) => Check::warn(
            NAME,
            why.clone(),
            "without them offline files are protected only while the agent lives; see \
             docs/OPERATIONS.md",
        ),
    }
}

/// Every tier, best first, with the verdict and its reason.
fn tiers(
    privileged: bool,
    pools: &[Interceptable],
    programs: &Result<(), String>,
    patches: &Result<(), String>,
) -> Vec<Tier> {
    let lame: Vec<&str> = pools.iter().filter(|p| !p.works).map(|p| p.pool.as_str()).collect();
    let (works, why) = if !privileged {
        (false, "the agent's privileges are missing".to_owned())
    } else if pools.is_empty() {
        (false, "no pool is configured".to_owned())
    } else if !lame.is_empty() {
        (false, format!("no pre-content events on {}", lame.join(", ")))
    } else {
        (true, "the agent looks at the marker; one round trip per cached inode".to_owned())
    };
    let with = |name, needed: &[&Result<(), String>], good: &str| {
        let lacking = needed.iter().find_map(|part| part.as_ref().err());
        match lacking {
            Some(lacking) => Tier { name, works: false, why: lacking.clone() },
            None if works => Tier { name, works, why: good.to_owned() },
            None => Tier { name, works, why: why.clone() },
        }
    };
    let mark = "the kernel asks about accesses to offline files, and about no others";
    let lsm = "a kernel program looks at the marker at every open";
    vec![
        with("mark-filter", &[patches, programs], mark),
        with("lsm-filter", &[programs], lsm),
        Tier { name: "user-filter", works, why },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tier_needs_privileges_and_every_pool() {
        let pool = |name: &str, works| Interceptable { pool: name.into(), works };
        let verdict = |privileged, pools: &[Interceptable]| {
            let tier =
                tiers(privileged, pools, &Ok(()), &Ok(())).pop().expect("user-filter is last");
            assert_eq!(tier.name, "user-filter");
            (tier.works, tier.why)
        };
        assert!(verdict(true, &[pool("a", true), pool("b", true)]).0);
        assert!(!verdict(false, &[pool("a", true)]).0);
        assert!(!verdict(true, &[]).0);
        let (works, why) = verdict(true, &[pool("a", true), pool("b", false)]);
        assert!(!works && why.ends_with(" b"), "{why}");
    }

    #[test]
    fn better_tiers_say_why_not() {
        let pools = [Interceptable { pool: "a".into(), works: true }];
        let tiers_with = |programs: Result<(), &str>, patches: Result<(), &str>| {
            let owned = |part: Result<(), &str>| part.map_err(str::to_owned);
            let tiers = tiers(true, &pools, &owned(programs), &owned(patches));
            <[Tier; 3]>::try_from(tiers).expect("three")
        };
        let [mark, lsm, user] = tiers_with(Err("EPERM"), Ok(()));
        assert!(!mark.works && mark.why == "EPERM");
        assert!(!lsm.works && lsm.why == "EPERM");
        assert!(user.works);
        let [mark, lsm, _] = tiers_with(Ok(()), Err("ENOSYS"));
        assert!(!mark.works && mark.why == "ENOSYS");
        assert!(lsm.works);
        assert!(tiers_with(Ok(()), Ok(())).iter().all(|tier| tier.works));
    }
}
