//! Going down directories for `ls` and `du`: sizes from the inodes, states in batches.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::control::{PathError, StateEntry};

use super::context::Context;
use super::exit::Failure;
use super::inspect::Source;
use super::paths::walk_error;

/// Files whose states are asked for at once.
const BATCH: usize = 1024;

/// How a tree is walked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) max_depth: usize,
    /// A directory comes after what it contains.
    pub(super) contents_first: bool,
}

/// One step of a walk.
#[derive(Debug)]
pub(super) enum Step {
    /// A regular file and what is known about it.
    File(StateEntry),
    /// A directory.
    Directory(PathBuf),
    /// A place that could not be read. The walk goes on.
    Error(PathError),
}

/// A step with its depth below the start, and the inode.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) step: Step,
    pub(super) depth: usize,
    pub(super) meta: Option<Metadata>,
}

/// Calls `visit` for everything below `root`, itself included, in the order of names, on this
/// file system only. Special files and symlinks are left out.
pub(super) fn walk(
    context: &Context,
    source: &Source,
    root: &Path,
    options: Options,
    mut visit: impl FnMut(Visit) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let entries = WalkDir::new(root)
        .same_file_system(true)
        .contents_first(options.contents_first)
        .max_depth(options.max_depth)
        .sort_by_file_name()
        .into_iter()
        .filter_map(to_visit);
    let mut batch = Vec::with_capacity(BATCH);
    for visit_later in entries {
        batch.push(visit_later);
        if batch.len() == BATCH {
            settle(context, source, &mut batch, &mut visit)?;
        }
    }
    settle(context, source, &mut batch, &mut visit)
}

/// A walked entry whose state is not known yet.
struct Pending {
    what: What,
    depth: usize,
    meta: Option<Metadata>,
}

enum What {
    File(PathBuf),
    Directory(PathBuf),
    Error(PathError),
}

fn to_visit(entry: walkdir::Result<walkdir::DirEntry>) -> Option<Pending> {
    let error = |error: &walkdir::Error| Pending {
        what: What::Error(walk_error(error)),
        depth: error.depth(),
        meta: None,
    };
    let entry = match entry {
        Ok(entry) => entry,
        Err(failed) => return Some(error(&failed)),
    };
    let depth = entry.depth();
    let meta = match entry.metadata() {
        Ok(meta) => meta,
        Err(failed) => return Some(error(&failed)),
    };
    let what = if meta.is_file() {
        What::File(entry.into_path())
    } else if meta.is_dir() {
        What::Directory(entry.into_path())
    } else {
        return None;
    };
    Some(Pending { what, depth, meta: Some(meta) })
}

fn settle(
    context: &Context,
    source: &Source,
    batch: &mut Vec<Pending>,
    visit: &mut impl FnMut(Visit) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let file = |pending: &Pending| match &pending.what {
        What::File(path) => Some(path.clone()),
        What::Directory(_) | What::Error(_) => None,
    };
    let files: Vec<PathBuf> = batch.iter().filter_map(file).collect();
    let mut states = source.states(context, &files)?.into_iter();
    for Pending { what, depth, meta } in batch.drain(..) {
        let step = match what {
            What::Directory(path) => Step::Directory(path),
            What::Error(error) => Step::Error(error),
            // One entry per file: both sources promise it, and the client checks it.
            What::File(_) => match states.next() {
                Some(entry) => Step::File(entry),
                None => continue,
            },
        };
        visit(Visit { step, depth, meta })?;
    }
    Ok(())
}
