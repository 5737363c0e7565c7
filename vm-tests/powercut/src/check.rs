//! What must hold after a power cut, when an agent serves again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hsm_lab::content::files_below;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::cut::{Catalogue, Cut};
use crate::model::File;
use crate::world::World;

/// What was looked at.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Checked {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Files whose data was in the store only.
    pub(crate) missing: u64,
}

/// A file that is there, and its bytes.
struct Found {
    name: String,
    bytes: Vec<u8>,
}

/// Everything.
pub(crate) fn all(world: &World, files: &[File], cut: &Cut) -> Result<Checked> {
    let intents = Index::read(world)?.intents;
    ensure!(intents == 0, "{intents} intents are open after the start");
    if cut.catalogue == Catalogue::Lost {
        world.hsm.command(["scan", "--pool", "lab", "--rebuild"]).ok()?;
    }
    let missing = states(world, &["offline", "partial"], &["lost"])?;
    let found = read_all(world, files, cut)?;
    let bytes = found.iter().map(|file| file.bytes.len() as u64).sum();
    world.hsm.command(["scan", "--pool", "lab"]).ok()?;
    if cut.catalogue == Catalogue::Same {
        nothing_is_orphaned(world).context("in the store")?;
    }
    repeat(world, &found).context("doing it again")?;
    Ok(Checked { files: found.len() as u64, bytes, missing })
}

/// How many files are in one of these states; an error if one is in one of those.
fn states(world: &World, counted: &[&str], never: &[&str]) -> Result<u64> {
    let args = ["--json".as_ref(), "ls".as_ref(), "-r".as_ref()];
    let output = world.hsm.command::<&std::ffi::OsStr>(args).args([world.managed()]).ok()?;
    let mut count = 0;
    for line in output.text().lines() {
        let entry: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        // Archived, never synced by its writer, and empty after the cut: there is nothing to be offline.
        if entry.get("size").and_then(Value::as_u64) == Some(0) {
            continue;
        }
        let state = entry.get("state").and_then(Value::as_str).with_context(|| line.to_owned())?;
        ensure!(!never.contains(&state), "{line}");
        count += u64::from(counted.contains(&state));
    }
    Ok(count)
}

fn read_all(world: &World, files: &[File], cut: &Cut) -> Result<Vec<Found>> {
    let root = world.managed();
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for (index, file) in files.iter().enumerate() {
        match read(&root, file, cut) {
            Ok(Some(file)) => found.push(file),
            Ok(None) => {}
            Err(error) => wrong.push(format!("file {index}: {error:#}")),
        }
    }
    if wrong.is_empty() { Ok(found) } else { bail!("{}", wrong.join("\n")) }
}

fn read(root: &Path, file: &File, cut: &Cut) -> Result<Option<Found>> {
    let exists = |name: &str| fs::symlink_metadata(root.join(name)).is_ok();
    let Some(name) = file.find(cut.at, exists)? else { return Ok(None) };
    let bytes = fs::read(root.join(&name)).with_context(|| name.clone())?;
    file.check(cut.at, &bytes).with_context(|| name.clone())?;
    Ok(Some(Found { name, bytes }))
}

/// A release by itself may refuse, but takes nothing away that has no good copy. Archived and released again,
/// everything is offline, and has the bytes that were read before.
fn repeat(world: &World, found: &[Found]) -> Result<()> {
    let root = world.managed();
    let tree = ["-r".as_ref(), root.as_os_str()];
    world.hsm.verb("release", tree)?;
    world.hsm.must("archive", tree)?;
    world.hsm.must("release", tree)?;
    let offline = states(world, &["offline"], &["lost", "dirty", "partial"])?;
    let full = found.iter().filter(|file| !file.bytes.is_empty()).count() as u64;
    ensure!(offline >= full, "only {offline} of {full} files are offline");
    for Found { name, bytes } in found {
        let now = fs::read(root.join(name)).with_context(|| name.clone())?;
        ensure!(now == *bytes, "{name} has other bytes than before");
    }
    Ok(())
}

/// The catalogue, as it is on disk.
struct Index {
    intents: i64,
    /// Objects of files, and objects that wait for the end of their retention, as their names in the store.
    objects: BTreeSet<String>,
}

impl Index {
    fn read(world: &World) -> Result<Self> {
        let path = world.state().join("lab.db");
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let intents = database.query_row("SELECT count(*) FROM intents", [], |row| row.get(0))?;
        let query = "SELECT lower(hex(object)) FROM files WHERE object IS NOT NULL \
                     UNION SELECT lower(hex(object)) FROM retired";
        let mut objects = database.prepare(query)?;
        let objects = objects.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(Self { intents, objects })
    }
}

/// Whatever is in the store has a file, or waits for the end of its retention. What a crash leaves under
/// `tmp` has a rule of its own: a day.
fn nothing_is_orphaned(world: &World) -> Result<()> {
    let index = Index::read(world)?;
    let store = world.objects();
    for path in files_below(&store)? {
        let name = path.strip_prefix(&store)?.display().to_string().replace('/', "");
        let is_object = name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(!is_object || index.objects.contains(&name), "nobody knows {}", path.display());
    }
    Ok(())
}
