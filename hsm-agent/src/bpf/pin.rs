//! Programs and maps in bpffs, where they outlive their loader.
//!
//! ```text
//! <base>/v<ABI>-<attribute names>/maps/NAME         maps, shared by all programs of this layout
//! <base>/v<ABI>-<attribute names>/links-<object>/NAME   attached programs, one file each; `second_net.rs` has two
//! <base>/v<ABI>-<attribute names>/filters/POOL/NUMBER   filters of fanotify groups, see `filter.rs`
//! ```
//!
//! A set of links is made under a name that ends in `-new` and renamed when the last program is
//! attached: a directory without that ending is complete. Another object (or other settings) gets
//! another `links-` directory beside the old one, on the same maps, and the old one is removed
//! after; other attribute names or another layout get another `v` directory, into which coverage
//! and server are copied before its programs are attached. At no time is there a covered file
//! system without attached programs.
//!
//! Filters cache verdicts on those maps: they stay when another object's links replace the old ones, and
//! are detached before the last programs that make verdicts invalid are.
//!
//! Maps are taken over only from a complete set. Without one nobody has kept the cached verdicts
//! right, so that they must go.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use hsm_common::filter::ABI_VERSION;
use rustix::fs::{FlockOperation, Mode as FileMode, flock, statfs};
use rustix::mount::{MountFlags, mount};

use super::load::{self, Image, PROGRAMS};
use super::{BpfError, Counts, Maps, Mode, Settings, Uuid, object, probe, second_net};
use crate::sys::bpf;

/// `BPF_FS_MAGIC` of `<linux/magic.h>`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where bpffs is mounted everywhere.
const BPFFS: &str = "/sys/fs/bpf";
/// Ending of a set that is not complete.
const UNFINISHED: &str = "-new";
/// Beginning of the directory of a set of links.
const LINKS: &str = "links-";
/// Directory of filters.
const FILTERS: &str = "filters";

/// What is pinned.
#[derive(Debug)]
pub struct Status {
    /// Directory of the complete set of this version's layout, if there is one.
    pub installed: Option<PathBuf>,
    /// Whether the complete set is the one that this hsm has built in. `None`: it has none.
    pub current: Option<bool>,
    /// Names of the attached programs.
    pub programs: Vec<String>,
    /// Whether the second net is attached.
    pub armed: bool,
    /// Threads that it is, or may be, attached for.
    pub in_flight: u64,
    /// Other directories: of other versions, or left by an interruption.
    pub others: Vec<PathBuf>,
    /// Names of the filters, and how many links each has: more than one while an agent takes over from
    /// another.
    pub filters: Vec<(String, usize)>,
    /// Covered file systems.
    pub covered: Vec<(Uuid, Mode)>,
    /// The process that serves requests.
    pub server: Option<u32>,
    /// Openers that wait in a hook.
    pub waiting: usize,
    /// What the programs counted.
    pub counters: Counts,
}

pub(super) fn install(settings: &Settings) -> Result<Maps, BpfError> {
    let object = object::object().ok_or(BpfError::NotBuiltIn)?;
    let base = settings.base.as_path();
    let version = base.join(version_name(settings));
    let maps = version.join("maps");
    let links = version.join(links_name(object, settings));
    let prepare = || Image::prepare(object, settings, &probe::types()?);
    // Before anything is created: where programs are refused, nothing is left.
    let prepared = if links.is_dir() { None } else { Some(prepare()?) };
    create_base(base)?;
    let _lock = lock(base)?;
    if !links.is_dir() {
        let image = prepared.map_or_else(prepare, Ok)?;
        remove_unfinished(base)?;
        if complete_sets(&version)?.is_empty() {
            remove_tree(&version, &mut Vec::new())?;
        }
        if let Err(error) = attach(&image, base, &version, &links) {
            clean_up(base, &version);
            return Err(error);
        }
    }
    let installed = Maps::open_in(&maps)?;
    let _armed = lock(&maps)?;
    // The others' second net goes with them.
    installed.arm_locked()?;
    for other in children(base)? {
        if other != version {
            // Its filters as well, though they may serve a mark until ours takes over: nobody keeps their
            // verdicts right any more. Accesses are denied meanwhile.
            remove_tree(&other, &mut Vec::new())?;
        }
    }
    for other in children(&version)? {
        if other != links && other != maps && other != version.join(FILTERS) {
            remove_tree(&other, &mut Vec::new())?;
        }
    }
    Ok(installed)
}

/// Leaves after a failure what was there before: an earlier set, or nothing.
fn clean_up(base: &Path, version: &Path) {
    let cleaned = remove_unfinished(base).and_then(|()| {
        let set = complete_sets(version)?;
        if set.is_empty() { remove_tree(version, &mut Vec::new()) } else { Ok(()) }
    });
    if let Err(error) = cleaned {
        tracing::warn!(%error, "something is left of an installation that failed");
    }
    // Not empty: it holds another version.
    let _ = fs::remove_dir(base);
}

/// Attaches all programs, and makes their set complete.
fn attach(image: &Image, base: &Path, version: &Path, links: &Path) -> Result<(), BpfError> {
    let maps = version.join("maps");
    let unfinished = with_ending(links);
    create(version)?;
    create(&maps)?;
    create(&unfinished)?;
    let mut ebpf = image.load(&maps)?;
    let is_first = complete_sets(version)?.is_empty();
    for other in children(base)? {
        if other != version && !complete_sets(&other)?.is_empty() {
            copy(&other.join("maps"), &maps);
            if is_first {
                Maps::open_in(&maps)?.count_unknown()?;
            }
        }
    }
    let types = load::kernel_types()?;
    for &program in PROGRAMS {
        let path = unfinished.join(program.name);
        if program.name == second_net::PROGRAM {
            load::pin_program(&mut ebpf, program, &types, &path)?;
            continue;
        }
        let link = load::attach(&mut ebpf, program, &types)?;
        link.pin(&path).map_err(|e| pin_error(&path, "pinning an attached program", &e))?;
    }
    fs::rename(&unfinished, links).map_err(failed(&unfinished, "completing the set"))
}

/// Copies what the agent told another version. Its maps may have another layout: what cannot be
/// read is told again by the agent.
fn copy(from: &Path, to: &Path) {
    let result = (|| -> Result<(), BpfError> {
        let to = Maps::open_in(to)?;
        for (uuid, mode) in Maps::covered_in(from)? {
            to.cover(uuid, mode)?;
        }
        to.adopt(&Maps::open_in(from)?)
    })();
    if let Err(error) = result {
        tracing::warn!(%error, "coverage or server of the previous kernel programs was not taken over");
    }
}

pub(super) fn status(base: &Path) -> Result<Status, BpfError> {
    let maps = current(base)?;
    let version = maps.as_deref().and_then(Path::parent);
    let links = match version {
        Some(version) => complete_sets(version)?.pop(),
        None => None,
    };
    let programs = links.as_deref().map_or(Ok(Vec::new()), attached)?;
    let mut status = Status {
        current: links.as_ref().and_then(|links| is_built_in(links)),
        others: others(base, version)?,
        installed: links,
        programs,
        armed: false,
        in_flight: 0,
        filters: version.map_or(Ok(Vec::new()), filters)?,
        covered: Vec::new(),
        server: None,
        waiting: 0,
        counters: Counts::default(),
    };
    if let Some(maps) = maps.map(|dir| Maps::open_in(&dir)).transpose()? {
        status.covered = maps.covered()?;
        status.server = maps.server()?;
        status.waiting = maps.waiting()?;
        status.counters = maps.counters()?;
        status.armed = maps.is_armed()?;
        status.in_flight = maps.in_flight()?;
    }
    Ok(status)
}

/// Names of the programs of a set that are attached.
fn attached(links: &Path) -> Result<Vec<String>, BpfError> {
    let mut names: Vec<_> = children(links)?.iter().filter_map(|path| name(path)).collect();
    let armed = names.iter().any(|name| name == second_net::LINK);
    names.retain(|name| name != second_net::LINK && (armed || name != second_net::PROGRAM));
    Ok(names)
}

/// Directory of the maps of the one complete set of this layout.
pub(super) fn current(base: &Path) -> Result<Option<PathBuf>, BpfError> {
    let mut found = Vec::new();
    for version in children(base)? {
        if is_this_layout(&version) && !complete_sets(&version)?.is_empty() {
            found.push(version.join("maps"));
        }
    }
    let maps = found.pop();
    if found.is_empty() { Ok(maps) } else { Err(BpfError::Interrupted { base: base.to_owned() }) }
}

/// When this returns, no program below the directory runs at an access that comes then, unless somebody else
/// holds a descriptor of it. The caller has made sure that nobody serves.
///
/// The removal of a file alone would have its program detached some time later, and one before or after the
/// other as it comes: an opener could still be refused, or pass on a verdict that nothing makes invalid any
/// more. Of what is open here and has no file any more, the program is detached by the close. (Not so where
/// another set replaces this one: until Linux 7.0 the kernel waits with that for who waits in a program, and he
/// may wait for the agent that would wait here.)
///
/// A kernel whose bpffs lets go of a removed file's object only after a grace period (`bpf_free_inode`, before 6.18)
/// detaches some time later all the same.
pub(super) fn unpin(base: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut removed = Vec::new();
    if !base.is_dir() {
        return Ok(removed);
    }
    let _lock = lock(base)?;
    let mut open = Vec::new();
    for path in pinned(base)? {
        if !path.is_dir() && !is_filter(&path) {
            open.push(bpf::open_pinned(&path).map_err(failed(&path, "opening"))?);
        }
    }
    for version in children(base)? {
        remove_tree(&version, &mut removed)?;
    }
    // In the order in which they were removed.
    drop(open);
    // The directory itself may be somebody else's mount point.
    let _ = fs::remove_dir(base);
    Ok(removed)
}

/// A set of another layout that somebody may rely on: an agent is registered there, or marks are filtered. Neither
/// whether that agent lives nor how to end those watches is known here.
pub(super) fn relied_on(base: &Path) -> Result<Option<PathBuf>, BpfError> {
    for version in children(base)? {
        if !is_this_layout(&version)
            && (Maps::is_served_in(&version.join("maps"))? || !filters(&version)?.is_empty())
        {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// What [`unpin`] would remove.
pub(super) fn pinned(base: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut paths = Vec::new();
    for version in children(base)? {
        list_tree(&version, &mut paths)?;
    }
    Ok(paths)
}

fn list_tree(path: &Path, into: &mut Vec<PathBuf>) -> Result<(), BpfError> {
    if path.is_dir() {
        for child in ordered(path)? {
            list_tree(&child, into)?;
        }
    }
    into.push(path.to_owned());
    Ok(())
}

fn remove_tree(path: &Path, removed: &mut Vec<PathBuf>) -> Result<(), BpfError> {
    let mut paths = Vec::new();
    if path.symlink_metadata().is_ok() {
        list_tree(path, &mut paths)?;
    }
    for path in paths {
        if path.is_dir() {
            fs::remove_dir(&path).map_err(failed(&path, "removing"))?;
        } else if is_filter(&path) {
            detach(&path)?;
        } else {
            fs::remove_file(&path).map_err(failed(&path, "removing"))?;
        }
        removed.push(path);
    }
    Ok(())
}

/// Children in the order in which they are removed: filters before links before maps, and of the programs the
/// one first that comes last in [`PROGRAMS`].
fn ordered(dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut paths = children(dir)?;
    let place = |path: &Path| {
        let name = name(path).unwrap_or_default();
        let of = if name == second_net::LINK { second_net::PROGRAM } else { &name };
        let program = PROGRAMS.iter().rev().position(|program| program.name == of);
        (name != FILTERS, name == "maps", program.unwrap_or(PROGRAMS.len()), name)
    };
    paths.sort_by_key(|path| place(path));
    Ok(paths)
}

/// Pins a filter's link beside those of its name, under a number of its own.
pub(super) fn add_filter(
    settings: &Settings,
    name: &str,
    link: BorrowedFd<'_>,
) -> Result<PathBuf, BpfError> {
    let base = settings.base.as_path();
    let _lock = lock(base)?;
    let filters = base.join(version_name(settings)).join(FILTERS);
    let dir = filters.join(name);
    create(&filters)?;
    create(&dir)?;
    let last = children(&dir)?.iter().filter_map(|path| number(path)).max();
    let path = dir.join(last.map_or(1, |last| last + 1).to_string());
    bpf::pin(link, &path).map_err(failed(&path, "pinning a filter"))?;
    Ok(path)
}

/// Detaches a pinned filter, and returns when it runs nowhere any more. (Removing the file alone would
/// detach it some time later.)
pub(super) fn detach(path: &Path) -> Result<(), BpfError> {
    let link = bpf::open_pinned(path).map_err(failed(path, "opening a filter"))?;
    bpf::detach_link(link.as_fd()).map_err(failed(path, "detaching a filter"))?;
    fs::remove_file(path).map_err(failed(path, "removing"))
}

/// The pinned links of this name, and of these attribute names.
pub(super) fn filters_of(settings: &Settings, name: &str) -> Result<Vec<PathBuf>, BpfError> {
    children(&settings.base.join(version_name(settings)).join(FILTERS).join(name))
}

/// The link of this name that was pinned last.
pub(super) fn last_filter_of(settings: &Settings, name: &str) -> Result<Option<PathBuf>, BpfError> {
    Ok(filters_of(settings, name)?.into_iter().max_by_key(|path| number(path)))
}

/// Number of a pinned link.
fn number(path: &Path) -> Option<u64> {
    name(path)?.parse().ok()
}

/// Detaches and removes all filters of this name. `false`: there were none.
pub(super) fn remove_filters(base: &Path, name: &str) -> Result<bool, BpfError> {
    let mut removed = Vec::new();
    if base.is_dir() {
        let _lock = lock(base)?;
        for version in children(base)? {
            remove_tree(&version.join(FILTERS).join(name), &mut removed)?;
        }
    }
    Ok(!removed.is_empty())
}

/// Directory of the maps of a complete set with these attribute names.
pub(super) fn installed_maps(settings: &Settings) -> Result<PathBuf, BpfError> {
    let version = settings.base.join(version_name(settings));
    if complete_sets(&version)?.is_empty() {
        return Err(BpfError::NotInstalled { base: settings.base.clone() });
    }
    Ok(version.join("maps"))
}

fn filters(version: &Path) -> Result<Vec<(String, usize)>, BpfError> {
    let names = children(&version.join(FILTERS))?;
    names
        .iter()
        .filter_map(|dir| Some((name(dir)?, dir)))
        .map(|(name, dir)| Ok((name, children(dir)?.len())))
        .collect()
}

fn is_filter(path: &Path) -> bool {
    path.ancestors().nth(2).and_then(Path::file_name).is_some_and(|name| name == FILTERS)
}

fn remove_unfinished(base: &Path) -> Result<(), BpfError> {
    for version in children(base)? {
        for child in children(&version)? {
            if name(&child).is_some_and(|name| name.ends_with(UNFINISHED)) {
                remove_tree(&child, &mut Vec::new())?;
            }
        }
    }
    Ok(())
}

pub(super) fn complete_sets(version: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let mut sets = children(version)?;
    sets.retain(|path| {
        name(path).is_some_and(|name| name.starts_with(LINKS) && !name.ends_with(UNFINISHED))
            && PROGRAMS.iter().all(|program| path.join(program.name).exists())
    });
    Ok(sets)
}

fn others(base: &Path, version: Option<&Path>) -> Result<Vec<PathBuf>, BpfError> {
    let mut paths = children(base)?;
    paths.retain(|path| Some(path.as_path()) != version);
    Ok(paths)
}

fn is_this_layout(version: &Path) -> bool {
    name(version).is_some_and(|name| name.starts_with(&format!("v{ABI_VERSION}-")))
}

/// The name holds the attributes' names: verdicts about one marker say nothing about another.
fn version_name(settings: &Settings) -> String {
    let names = [settings.marker.as_bytes(), settings.record.as_bytes(), settings.map.as_bytes()];
    format!("v{ABI_VERSION}-{}", short_hash(&names))
}

fn links_name(object: &[u8], settings: &Settings) -> String {
    let limits = [settings.open_limit, settings.recall_limit, settings.spin_limit];
    let limits: Vec<u8> = limits.iter().flat_map(|t| t.as_nanos().to_le_bytes()).collect();
    format!("{LINKS}{}-{}", short_hash(&[object]), short_hash(&[&limits]))
}

/// Whether these links are of the built-in object, whatever the settings.
fn is_built_in(links: &Path) -> Option<bool> {
    let begin = format!("{LINKS}{}-", short_hash(&[object::object()?]));
    Some(name(links)?.starts_with(&begin))
}

/// 48 bits: told apart, not authenticated.
fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..12].to_owned()
}

fn with_ending(links: &Path) -> PathBuf {
    let mut path = links.as_os_str().to_owned();
    path.push(UNFINISHED);
    path.into()
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(dir, "listing")(e)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed(dir, "listing"))?;
    paths.sort();
    Ok(paths)
}

/// Only one at a time changes what is pinned below the directory.
pub(super) fn lock(base: &Path) -> Result<File, BpfError> {
    let dir = File::open(base).map_err(failed(base, "opening"))?;
    flock(&dir, FlockOperation::LockExclusive)
        .map_err(|e| failed(base, "waiting for another installation")(e.into()))?;
    Ok(dir)
}

/// Makes sure that the directory is there and lies on a bpffs; mounts one at the usual place.
fn create_base(base: &Path) -> Result<(), BpfError> {
    let existing = base.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing)? {
        if !base.starts_with(BPFFS) {
            let source = io::Error::other("the directory does not lie on a mounted bpffs");
            return Err(failed(base, "pinning kernel programs")(source));
        }
        mount("bpf", BPFFS, "bpf", MountFlags::empty(), Some(c"mode=0700"))
            .map_err(|e| failed(Path::new(BPFFS), "mounting bpffs")(e.into()))?;
    }
    let missing: Vec<_> = base.ancestors().take_while(|path| !path.is_dir()).collect();
    missing.into_iter().rev().try_for_each(create)
}

fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    let found = statfs(path).map_err(|e| failed(path, "looking for bpffs")(e.into()))?;
    #[allow(clippy::unnecessary_cast, reason = "its type differs between architectures")]
    Ok(found.f_type as i64 == BPF_FS_MAGIC)
}

fn create(dir: &Path) -> Result<(), BpfError> {
    match rustix::fs::mkdir(dir, FileMode::RWXU) {
        Err(e) if e != rustix::io::Errno::EXIST => Err(failed(dir, "creating")(e.into())),
        _ => Ok(()),
    }
}

pub(super) fn failed(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> BpfError {
    let path = path.to_owned();
    move |source| BpfError::Pin { path: path.clone(), doing, source }
}

fn pin_error(path: &Path, doing: &'static str, error: &aya::pin::PinError) -> BpfError {
    failed(path, doing)(io::Error::other(error.to_string()))
}
