//! Which files a command means: arguments, lists, patterns, made absolute.
//!
//! Bytes all the way: a name that is not UTF-8 works like any other. Nothing is opened, and the
//! last component is never followed, so looking a path up recalls nothing.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::WalkDir;

use crate::control::{PathError, Reason};

use super::exit::Failure;
use super::output;

/// Paths that exist, absolute, in the order of the command line, and what is wrong with others.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) paths: Vec<PathBuf>,
    /// Those of `paths` that are directories.
    pub(super) directories: Vec<PathBuf>,
    pub(super) errors: Vec<PathError>,
}

impl Found {
    /// Adds an entry: the file of that name or, if there is none, what it matches as a pattern.
    pub(super) fn add(&mut self, entry: &OsStr) {
        let path = match std::path::absolute(entry) {
            Ok(path) => path,
            Err(error) => return self.fail(Path::new(entry).to_owned(), &error),
        };
        match path.symlink_metadata() {
            Ok(meta) => self.push(path, meta.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.expand(&path) {
                    self.fail(path, &error);
                }
            }
            Err(error) => self.fail(path, &error),
        }
    }

    /// Adds what `pattern` matches. False: it is no pattern, or matches nothing.
    fn expand(&mut self, pattern: &Path) -> bool {
        let Some((base, matcher, depth)) = parse_pattern(pattern) else { return false };
        let before = self.paths.len() + self.errors.len();
        let walk = WalkDir::new(&base).min_depth(1).max_depth(depth).sort_by_file_name();
        for entry in walk {
            match entry {
                Ok(entry) if matcher.is_match(entry.path()) => {
                    let directory = entry.file_type().is_dir();
                    self.push(entry.into_path(), directory);
                }
                Ok(_) => {}
                // The base itself is missing: the pattern matches nothing.
                Err(error) if error.depth() == 0 => {}
                Err(error) => self.errors.push(walk_error(&error)),
            }
        }
        self.paths.len() + self.errors.len() > before
    }

    fn push(&mut self, path: PathBuf, directory: bool) {
        if directory {
            self.directories.push(path.clone());
        }
        self.paths.push(path);
    }

    fn fail(&mut self, path: PathBuf, error: &io::Error) {
        let (reason, detail) = (Reason::of_io(error), describe(error));
        self.errors.push(PathError { path: path.into(), reason, detail });
    }
}

/// The words of an I/O error, without the "(os error 2)" that helps nobody.
pub(super) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

/// A directory that could not be read, as a per-path error.
pub(super) fn walk_error(error: &walkdir::Error) -> PathError {
    let path = error.path().unwrap_or(Path::new("")).to_owned().into();
    match error.io_error() {
        Some(io) => PathError { path, reason: Reason::of_io(io), detail: describe(io) },
        None => PathError { path, reason: Reason::Io, detail: error.to_string() },
    }
}

/// Splits a pattern into a directory without magic, a matcher for full paths, and how deep below
/// the directory a match can be.
fn parse_pattern(pattern: &Path) -> Option<(PathBuf, GlobMatcher, usize)> {
    let magic = |part: &Component| part.as_os_str().as_bytes().iter().any(|b| b"*?[{".contains(b));
    let parts: Vec<Component> = pattern.components().collect();
    let first = parts.iter().position(magic)?;
    let base: PathBuf = parts[..first].iter().collect();
    let text = pattern.to_str()?;
    let matcher = glob(text).ok()?.compile_matcher();
    // `**` and alternatives with a slash inside can match at any depth.
    let any_depth = text.contains("**") || text.contains('{');
    let depth = if any_depth { usize::MAX } else { parts.len() - first };
    Some((base, matcher, depth))
}

/// A glob as all of hsm reads it: `*` and `?` do not match a slash.
fn glob(text: &str) -> Result<globset::Glob, globset::Error> {
    GlobBuilder::new(text).literal_separator(true).build()
}

/// Refuses patterns that cannot be parsed, before anything is done.
pub(super) fn check_globs(globs: &[String]) -> Result<(), Failure> {
    match globs.iter().find_map(|text| glob(text).err()) {
        None => Ok(()),
        Some(error) => Err(Failure::usage(error)),
    }
}

/// The entries of a list: a file, or stdin for `-`; separated by newlines, or NULs.
pub(super) fn read_list(source: &Path, nul: bool) -> Result<Vec<OsString>, Failure> {
    let failure = |error: io::Error| {
        Failure::usage(format!("{}: {}", output::path(source), describe(&error)))
    };
    let reader: Box<dyn Read> = match source.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(source).map_err(failure)?),
    };
    split_list(reader, nul).map_err(failure)
}

fn split_list(reader: impl Read, nul: bool) -> io::Result<Vec<OsString>> {
    let separator = if nul { 0 } else { b'\n' };
    let entries = BufReader::new(reader).split(separator);
    entries.filter(|e| e.as_ref().map_or(true, |e| !e.is_empty())).map(to_name).collect()
}

fn to_name(entry: io::Result<Vec<u8>>) -> io::Result<OsString> {
    let entry = entry?;
    if entry.contains(&0) {
        let hint = "the list has NUL bytes in it; was `-0` meant?";
        return Err(io::Error::new(io::ErrorKind::InvalidData, hint));
    }
    Ok(OsString::from_vec(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["a.mkv", "b.mkv", "[x].txt", "sub/c.mkv", "sub/deep/d.mkv"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, "x").expect("write");
        }
        std::fs::write(dir.path().join(OsStr::from_bytes(b"\xff\n.mkv")), "x").expect("write");
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).expect("symlink");
        dir
    }

    fn found(dir: &Path, entry: &str) -> Vec<String> {
        let mut found = Found::default();
        found.add(dir.join(entry).as_os_str());
        assert!(found.errors.is_empty(), "{:?}", found.errors);
        let name = |path: &PathBuf| output::path(path.strip_prefix(dir).expect("below")).into();
        found.paths.iter().map(name).collect()
    }

    #[test]
    fn patterns_are_expanded_only_when_no_file_has_that_name() {
        let dir = tree();
        let dir = dir.path();
        assert_eq!(found(dir, "*.mkv"), ["a.mkv", "b.mkv", r"$'\377\n.mkv'"]);
        assert_eq!(found(dir, "[x].txt"), ["[x].txt"]);
        assert_eq!(found(dir, "*/*.mkv"), ["sub/c.mkv"]);
        assert_eq!(found(dir, "sub/**/*.mkv"), ["sub/c.mkv", "sub/deep/d.mkv"]);
        assert_eq!(found(dir, "{a,sub/c}.mkv"), ["a.mkv", "sub/c.mkv"]);
    }

    #[test]
    fn symlinks_are_named_not_followed() {
        let dir = tree();
        assert_eq!(found(dir.path(), "dangling"), ["dangling"]);
    }

    #[test]
    fn what_does_not_exist_is_an_error_of_that_path_only() {
        let dir = tree();
        let mut found = Found::default();
        for entry in ["missing", "*.none", "none/*", "a.mkv/x", "a.mkv"] {
            found.add(dir.path().join(entry).as_os_str());
        }
        assert_eq!(found.paths, [dir.path().join("a.mkv")]);
        assert_eq!(found.errors.len(), 4, "{:?}", found.errors);
        assert!(found.errors.iter().all(|error| error.reason == Reason::NotFound));
        assert_eq!(found.errors[0].detail, "no such file or directory");
    }

    #[test]
    fn relative_paths_become_absolute() {
        let mut found = Found::default();
        found.add(OsStr::new("."));
        assert_eq!(found.paths, [std::env::current_dir().expect("cwd")]);
    }

    #[test]
    fn lists_are_bytes() {
        let list = |bytes: &[u8], nul| split_list(bytes, nul).expect("list");
        assert_eq!(list(b"a b\n\n\xff\nlast", false).len(), 3);
        assert_eq!(list(b"a\nb\0c\0", true), ["a\nb", "c"]);
        let error = split_list(&b"a\0b\n"[..], false).expect_err("NUL");
        assert!(error.to_string().contains("-0"), "{error}");
    }

    #[test]
    fn bad_globs_are_usage_errors() {
        assert!(check_globs(&["*.{mkv,avi}".into()]).is_ok());
        assert!(check_globs(&["[".into()]).is_err());
    }
}
