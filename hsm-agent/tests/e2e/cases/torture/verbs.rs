//! What people and scripts do beside the programs: the command `hsm`, again and again.

use std::path::PathBuf;

use anyhow::Result;
use hsm_lab::Hsm;

use super::world::{Dice, World};

/// What `hsm` may answer: all well, some file failed or was refused, no agent at this moment, that the job
/// ended between two files because its engine lost its holder; and who kills both processes takes every
/// program that serves this pool along, commands too.
const CODES: [i32; 5] = [0, 1, 3, 130, 128 + libc::SIGKILL];

/// Files of one command.
const AT_ONCE: u64 = 12;

/// Goes on until the time is over.
pub(super) fn work(world: &World, hsm: &Hsm, seed: u64, who: u64) -> Result<()> {
    let mut dice = Dice::new(seed, who);
    while !world.is_over() {
        // Releases and what they need most of all: only offline files are in any danger.
        let verb = match dice.roll(100) {
            0..35 => "migrate",
            35..50 => "archive",
            50..75 => "release",
            75..85 => "recall",
            85..90 => "pin",
            90..98 => "unpin",
            _ => "scan",
        };
        let args: Vec<PathBuf> = match verb {
            "scan" => vec!["--pool".into(), "lab".into()],
            // Who pins most files stops everything else.
            "pin" => vec![some(world, &mut dice)],
            "unpin" => vec!["-r".into(), world.dir.clone()],
            _ if dice.roll(4) == 0 => vec!["-r".into(), world.dir.clone()],
            _ => (0..AT_ONCE).map(|_| some(world, &mut dice)).collect(),
        };
        let out = hsm.command(["--json", verb]).args(args).output()?;
        if !CODES.contains(&out.code()) && !is_gone(&out.stderr) {
            world.failure(format!("exit code {}: {}", out.code(), out.describe()));
        }
        world.did(&format!("hsm {verb}"));
        let files = out.text().matches("\"outcome\":\"done\"").count() as u64;
        if files > 0 && ["migrate", "release", "recall"].contains(&verb) {
            let kind = format!("files by {verb}");
            *world.tally().done.entry(kind).or_default() += files;
        }
    }
    Ok(())
}

/// A name that a renamer has taken away since is a usage error.
fn is_gone(stderr: &str) -> bool {
    stderr.contains("No such file")
}

fn some(world: &World, dice: &mut Dice) -> PathBuf {
    world.slots[dice.roll(world.slots.len() as u64) as usize].path()
}
