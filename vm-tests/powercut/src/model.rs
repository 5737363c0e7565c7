//! What files may be after a power cut: their names and bytes, and since when each is promised.
//!
//! Everything that happens to a file is an event with two positions of the log: where it began, and where
//! a sync (or a release, which syncs) had answered for it. After a cut at position `p` the last event that
//! was answered for by `p` is the least that must be there; any later one that had begun may be there, wholly or
//! in part.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::log::Position;

/// The bytes of a file at some time.
pub type Bytes = Arc<Vec<u8>>;

/// Something that happened.
#[derive(Debug, Clone)]
struct Event<T> {
    value: T,
    begun: Position,
    promised: Option<Position>,
}

/// What happened to one property of a file, in order.
#[derive(Debug, Clone)]
pub struct History<T>(Vec<Event<T>>);

impl<T> Default for History<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> History<T> {
    /// A change that begins here.
    pub fn begin(&mut self, value: T, begun: Position) {
        self.0.push(Event { value, begun, promised: None });
    }

    /// The last change, and so all before it, is durable from here on.
    pub fn promise(&mut self, at: Position) {
        if let Some(last) = self.0.last_mut() {
            last.promised.get_or_insert(at);
        }
    }

    /// As it is without any power cut.
    pub fn now(&self) -> Option<&T> {
        self.0.last().map(|event| &event.value)
    }

    /// Every value that it ever had.
    pub fn ever(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|event| &event.value)
    }

    /// After a cut: what must be there at least (`None`: nothing was promised), and what may be there
    /// instead.
    pub fn after(&self, cut: Position) -> (Option<&T>, Vec<&T>) {
        let promised = |event: &Event<T>| event.promised.is_some_and(|at| at <= cut);
        let last = self.0.iter().rposition(promised);
        let later = &self.0[last.map_or(0, |index| index + 1)..];
        let later = later.iter().filter(|event| event.begun < cut).map(|event| &event.value);
        (last.map(|index| &self.0[index].value), later.collect())
    }
}

/// One file, whatever it is called.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// Its names, each of which no other file ever has; `None` when it is deleted.
    pub names: History<Option<String>>,
    /// Its bytes.
    pub bytes: History<Bytes>,
}

impl File {
    /// The name under which it is there after a cut, of all names that are there.
    pub fn find(&self, cut: Position, exists: impl Fn(&str) -> bool) -> Result<Option<String>> {
        let here: Vec<_> = self.names.ever().flatten().filter(|name| exists(name)).collect();
        ensure!(here.len() <= 1, "it has more than one name: {here:?}");
        let here = here.first().map(|name| (*name).clone());
        let (must, may) = self.names.after(cut);
        // Before its first name it had none.
        let must = must.cloned().unwrap_or(None);
        if here != must && !may.contains(&&here) {
            bail!("its name is {here:?}, and not {must:?}, nor one of {may:?}");
        }
        Ok(here)
    }

    /// Whether it may have these bytes after a cut.
    pub fn check(&self, cut: Position, got: &[u8]) -> Result<()> {
        let (must, may) = self.bytes.after(cut);
        let allowed: Vec<&Bytes> = must.into_iter().chain(may).collect();
        if allowed.iter().any(|bytes| bytes.as_slice() == got) {
            return Ok(());
        }
        // Some of the writes that nobody has synced, and zeros where the file grew, or was cut, unsynced.
        let sizes = allowed.iter().map(|bytes| bytes.len());
        let least = if must.is_some() { sizes.clone().min().unwrap_or(0) } else { 0 };
        let most = sizes.max().unwrap_or(0);
        ensure!(
            (least..=most).contains(&got.len()),
            "{} bytes, instead of {least} to {most}",
            got.len()
        );
        let fits = |(at, byte): (usize, &u8)| {
            allowed.iter().any(|bytes| bytes.get(at) == Some(byte)) || at >= least && *byte == 0
        };
        let wrong = got.iter().enumerate().position(|place| !fits(place));
        let Some(at) = wrong else { return Ok(()) };
        let zeros = got[at..].iter().take_while(|byte| **byte == 0).count();
        let older = self.bytes.ever().position(|bytes| bytes.as_slice() == got);
        Err(match older {
            Some(version) => anyhow::anyhow!("these are the bytes of its version {version}"),
            None => anyhow::anyhow!("a wrong byte at {at} ({zeros} zeros from there on)"),
        })
        .with_context(|| format!("{} versions are allowed", allowed.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, size: u64) -> Bytes {
        Arc::new(hsm_lab::Content::new(seed, size).bytes())
    }

    /// Version 1 promised at 20, version 2 begun at 30 and promised at 40.
    fn file() -> File {
        let mut file = File::default();
        file.names.begin(Some("a".into()), 10);
        file.bytes.begin(bytes(1, 10_000), 10);
        file.bytes.promise(20);
        file.names.promise(21);
        file.bytes.begin(bytes(2, 12_000), 30);
        file.bytes.promise(40);
        file
    }

    #[test]
    fn what_was_promised_must_be_there() {
        let file = file();
        let (one, two) = (bytes(1, 10_000), bytes(2, 12_000));
        file.check(25, &one).unwrap();
        file.check(25, &two).unwrap_err();
        file.check(35, &one).unwrap();
        file.check(35, &two).unwrap();
        file.check(40, &two).unwrap();
        let old = format!("{:#}", file.check(40, &one).unwrap_err());
        assert!(old.contains("10000 bytes"), "{old}");
    }

    #[test]
    fn an_older_version_of_the_same_size_is_told() {
        let mut file = file();
        file.bytes.begin(bytes(3, 12_000), 50);
        file.bytes.promise(60);
        let error = format!("{:#}", file.check(60, &bytes(2, 12_000)).unwrap_err());
        assert!(error.contains("its version 1"), "{error}");
    }

    #[test]
    fn zeros_are_wrong_wherever_bytes_were_promised() {
        let file = file();
        let mut mixed = bytes(1, 10_000).to_vec();
        mixed[4096..8192].fill(0);
        let error = format!("{:#}", file.check(35, &mixed).unwrap_err());
        assert!(error.contains("4096 zeros"), "{error}");
        // Half of an unsynced overwriting is no mistake, nor are zeros behind the old end.
        let mut mixed = bytes(1, 10_000).to_vec();
        mixed[4096..8192].copy_from_slice(&bytes(2, 12_000)[4096..8192]);
        mixed.resize(12_000, 0);
        file.check(35, &mixed).unwrap();
        file.check(40, &mixed).unwrap_err();
        assert!(file.check(25, &mixed).is_err());
    }

    #[test]
    fn names_follow_their_promises() {
        let mut file = file();
        file.names.begin(Some("b".into()), 50);
        file.names.promise(60);
        file.names.begin(None, 70);
        let find = |cut, here: &'static [&str]| file.find(cut, |name| here.contains(&name));
        assert_eq!(find(15, &[]).unwrap(), None);
        assert_eq!(find(15, &["a"]).unwrap().as_deref(), Some("a"));
        find(30, &[]).unwrap_err();
        assert_eq!(find(55, &["b"]).unwrap().as_deref(), Some("b"));
        find(60, &["a"]).unwrap_err();
        find(55, &["a", "b"]).unwrap_err();
        assert_eq!(find(75, &[]).unwrap(), None);
        assert_eq!(find(75, &["b"]).unwrap().as_deref(), Some("b"));
    }
}
