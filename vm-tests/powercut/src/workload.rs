//! A mixed workload, the same for the same seed, and what it was promised while it ran.
//!
//! One step follows the other; what the agent does of its own (settling, the catalogue) goes on beside
//! them. A quarter of the changes is not synced by whoever makes them: whatever comes next must cope.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hsm_lab::Content;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{RngExt, SeedableRng};

use crate::log::Log;
use crate::model::{self, Bytes};
use crate::world::World;

/// Most files at a time.
const FILES: usize = 24;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) files: Vec<model::File>,
    pub(crate) archived: u64,
    pub(crate) released: u64,
    pub(crate) recalled: u64,
    pub(crate) changed: u64,
}

/// Runs so many steps.
pub(crate) fn run(world: &World, log: &Log, seed: u64, steps: usize) -> Result<Done> {
    let random = StdRng::seed_from_u64(seed);
    let mut workload = Workload { world, log, random, done: Done::default(), number: seed << 20 };
    for _ in 0..8 {
        workload.create()?;
    }
    for _ in 0..steps {
        workload.step()?;
    }
    let done = workload.done;
    ensure!(done.archived > 0 && done.released > 0, "nothing was taken away: {done:?}");
    Ok(done)
}

struct Workload<'a> {
    world: &'a World,
    log: &'a Log,
    random: StdRng,
    done: Done,
    number: u64,
}

impl Workload<'_> {
    fn step(&mut self) -> Result<()> {
        match self.random.random_range(0..100) {
            0..10 => self.create(),
            10..25 => self.verb("archive"),
            25..45 => self.cycle(),
            45..52 => self.verb("recall"),
            52..60 => self.read(),
            60..68 => self.read_range(),
            68..80 => self.overwrite(),
            80..86 => self.append(),
            86..90 => self.truncate(),
            90..96 => self.rename(),
            _ => self.delete(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.managed().join(name)
    }

    /// The files that are there, and their names.
    fn here(&self) -> Vec<(usize, String)> {
        let name = |(index, file): (usize, &model::File)| Some((index, file.names.now()?.clone()?));
        self.done.files.iter().enumerate().filter_map(name).collect()
    }

    fn any(&mut self) -> Result<(usize, String)> {
        let here = self.here();
        here.choose(&mut self.random).cloned().context("no file is left")
    }

    fn fresh(&mut self, size: u64) -> Vec<u8> {
        self.number += 1;
        Content::new(self.number, size).bytes()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let bytes = self.done.files[index].bytes.now().context("no bytes")?;
        Ok(bytes.as_ref().clone())
    }

    fn sync_directory(&self) -> Result<()> {
        Ok(File::open(self.world.managed())?.sync_all()?)
    }

    /// Three of four make durable what they do.
    fn syncs(&mut self) -> bool {
        self.random.random_bool(0.75)
    }

    fn create(&mut self) -> Result<()> {
        if self.here().len() >= FILES {
            return self.delete();
        }
        let size = if self.random.random_bool(0.25) {
            self.random.random_range(1 << 20..3 << 20)
        } else {
            self.random.random_range(1..120_000)
        };
        let (index, bytes) = (self.done.files.len(), Arc::new(self.fresh(size)));
        let name = format!("file{index}");
        let mut file = model::File::default();
        file.names.begin(Some(name.clone()), self.log.position());
        file.bytes.begin(Bytes::clone(&bytes), self.log.position());
        self.done.files.push(file);
        let file = File::create_new(self.path(&name))?;
        file.write_all_at(&bytes, 0)?;
        if self.syncs() {
            file.sync_all()?;
            self.done.files[index].bytes.promise(self.log.position());
            self.sync_directory()?;
            self.done.files[index].names.promise(self.log.position());
        }
        Ok(())
    }

    /// Something of one to six files; what a release says that it did is promised.
    fn verb(&mut self, verb: &str) -> Result<()> {
        let count = self.random.random_range(1..=6);
        let chosen = self.here().into_iter().sample(&mut self.random, count);
        self.verb_of(verb, &chosen)
    }

    fn verb_of(&mut self, verb: &str, chosen: &[(usize, String)]) -> Result<()> {
        let paths: Vec<_> = chosen.iter().map(|(_, name)| self.path(name)).collect();
        let report = self.world.hsm.verb(verb, &paths)?;
        let done = |path: &PathBuf| {
            let shown = path.display().to_string();
            report.files.iter().any(|file| file.path == shown && file.outcome == "done")
        };
        for ((index, _), _) in chosen.iter().zip(&paths).filter(|(_, path)| done(path)) {
            match verb {
                "archive" => self.done.archived += 1,
                "recall" => self.done.recalled += 1,
                // The marker is durable, and with it the size; the bytes are the object's.
                _ => {
                    self.done.released += 1;
                    self.done.files[*index].bytes.promise(self.log.position());
                }
            }
        }
        Ok(())
    }

    fn cycle(&mut self) -> Result<()> {
        let count = self.random.random_range(1..=8);
        let chosen = self.here().into_iter().sample(&mut self.random, count);
        self.verb_of("archive", &chosen)?;
        self.verb_of("release", &chosen)
    }

    fn read(&mut self) -> Result<()> {
        let (index, name) = self.any()?;
        let bytes = fs::read(self.path(&name)).with_context(|| name.clone())?;
        ensure!(bytes == self.bytes(index)?, "{name} has wrong bytes, without any power cut");
        Ok(())
    }

    fn read_range(&mut self) -> Result<()> {
        let large = |(index, _): &(usize, String)| {
            self.done.files[*index].bytes.now().is_some_and(|bytes| bytes.len() > 1 << 20)
        };
        let large: Vec<_> = self.here().into_iter().filter(large).collect();
        let Some((index, name)) = large.choose(&mut self.random).cloned() else { return Ok(()) };
        let bytes = self.bytes(index)?;
        let at = self.random.random_range(0..bytes.len() - 5000);
        let mut got = [0; 5000];
        File::open(self.path(&name))?.read_exact_at(&mut got, at as u64)?;
        ensure!(got == bytes[at..at + 5000], "{name} has wrong bytes, without any power cut");
        Ok(())
    }

    /// Makes a change of a file's bytes, and syncs it, or not.
    fn change(
        &mut self,
        index: usize,
        name: &str,
        bytes: Vec<u8>,
        change: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<()> {
        self.done.changed += 1;
        self.done.files[index].bytes.begin(Arc::new(bytes), self.log.position());
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        change(&file).with_context(|| format!("changing {name}"))?;
        if self.syncs() {
            if self.random.random_bool(0.5) { file.sync_data() } else { file.sync_all() }?;
            self.done.files[index].bytes.promise(self.log.position());
        }
        Ok(())
    }

    fn overwrite(&mut self) -> Result<()> {
        let (index, name) = self.any()?;
        let mut bytes = self.bytes(index)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.random.random_range(0..bytes.len());
        let length = self.random.random_range(1..=(bytes.len() - at).min(40_000));
        let new = self.fresh(length as u64);
        bytes[at..at + length].copy_from_slice(&new);
        self.change(index, &name, bytes, |file| file.write_all_at(&new, at as u64))
    }

    fn append(&mut self) -> Result<()> {
        let (index, name) = self.any()?;
        let mut bytes = self.bytes(index)?;
        let at = bytes.len() as u64;
        let length = self.random.random_range(1..30_000);
        let new = self.fresh(length);
        bytes.extend_from_slice(&new);
        self.change(index, &name, bytes, |file| file.write_all_at(&new, at))
    }

    fn truncate(&mut self) -> Result<()> {
        let (index, name) = self.any()?;
        let mut bytes = self.bytes(index)?;
        // Not to nothing: there would be nothing to archive afterwards.
        let size = self.random.random_range(bytes.len() / 4..=bytes.len()).max(1);
        bytes.resize(size, 0);
        self.change(index, &name, bytes, |file| file.set_len(size as u64))
    }

    fn rename(&mut self) -> Result<()> {
        let (index, name) = self.any()?;
        let new = format!("{name}x");
        self.done.files[index].names.begin(Some(new.clone()), self.log.position());
        fs::rename(self.path(&name), self.path(&new))?;
        self.settle_name(index)
    }

    fn delete(&mut self) -> Result<()> {
        if self.here().len() < 4 {
            return Ok(());
        }
        let (index, name) = self.any()?;
        self.done.files[index].names.begin(None, self.log.position());
        fs::remove_file(self.path(&name))?;
        self.settle_name(index)
    }

    fn settle_name(&mut self, index: usize) -> Result<()> {
        if self.syncs() {
            self.sync_directory()?;
            self.done.files[index].names.promise(self.log.position());
        }
        Ok(())
    }
}
