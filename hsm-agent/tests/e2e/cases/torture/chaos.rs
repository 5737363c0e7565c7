//! What goes wrong meanwhile: processes of the agent die, and the store fails, stalls and lies.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hsm_agent::store::fault;
use hsm_lab::agent::Killer;
use hsm_lab::{PoolConfig, Tier, patience};

use super::super::processes::wait_until_up;
use super::world::Dice;
use crate::fixture::Pool;

/// What requests of the store meet, in a thousand: see [`fault::Chances`]. Most of the time is good, or
/// nothing would ever be offline.
const WEATHER: [&str; 8] = [
    "",
    "",
    "",
    "delay = 300",
    "fail = 150, late = 50",
    "stall = 40, overdue = 40",
    "damage = 100",
    "fail = 80, late = 40, stall = 30, delay = 200, damage = 50",
];

/// An engine lives so long at least and at most: long enough to begin something.
const LIFE: (u64, u64) = (300, 2500);

fn weather_file(config: &PoolConfig) -> PathBuf {
    config.dir.join("weather")
}

/// Before the agent starts: faults can be turned on, and nobody waits for them long.
pub(super) fn configure(config: &mut PoolConfig) {
    let file = weather_file(config).display().to_string();
    config.environment.push((fault::VARIABLE.to_owned(), file));
    config.store_options.push("retries = 1\ndeadline = \"1500ms\"".into());
    config.limits.push("recall_deadline = \"5s\"".into());
    if Tier::of_this_run() == Tier::MarkFilter {
        config.pool.push("range_min_size = \"1MiB\"".into());
    }
}

/// How often which process died.
pub(super) type Kills = BTreeMap<&'static str, u64>;

/// Lets things go wrong until `end`; an agent serves afterwards, and the store is well.
pub(super) fn rage(pool: &mut Pool, dice: &mut Dice, end: Instant) -> Result<Kills> {
    let mut kills = Kills::new();
    while Instant::now() < end {
        let weather = WEATHER[dice.roll(WEATHER.len() as u64) as usize];
        fs::write(weather_file(&pool.config), weather)?;
        wait_until_up(pool)?;
        let life = Duration::from_millis(LIFE.0 + dice.roll(LIFE.1 - LIFE.0));
        thread::sleep(patience(life).min(end.saturating_duration_since(Instant::now())));
        *kills.entry(kill(pool, dice)?).or_default() += 1;
    }
    fs::write(weather_file(&pool.config), "")?;
    wait_until_up(pool)?;
    Ok(kills)
}

/// The next agent; if there is none, the old engine must not stay.
fn start(pool: &mut Pool, old: &Killer) -> Result<()> {
    pool.start().inspect_err(|_| old.kill())
}

/// Where nothing guards offline files without an agent, both at once is more than is promised.
fn kill(pool: &mut Pool, dice: &mut Dice) -> Result<&'static str> {
    let both = Tier::of_this_run().has_programs();
    match dice.roll(10) {
        0 if both => {
            let mut agent = pool.take_agent()?;
            let killer = agent.killer();
            killer.kill();
            agent.kill_holder()?;
            start(pool, &killer)?;
            Ok("both")
        }
        0 | 1 => {
            let mut agent = pool.take_agent()?;
            agent.kill_holder()?;
            start(pool, &agent.killer())?;
            Ok("holder")
        }
        _ => {
            pool.agent()?.kill_engine();
            Ok("engine")
        }
    }
}
