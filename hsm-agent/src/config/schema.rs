//! Every key that exists, and the search for the one that was meant.

use super::Problem;
use super::origin::Origins;

/// The form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An absolute path.
    Path,
    /// A list of absolute paths.
    Paths,
    /// A list of absolute paths or plain names.
    Programs,
    /// A list of directories, relative to the mount point.
    Directories,
    /// A number of bytes.
    Size,
    /// A span of time.
    Duration,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Flag,
}

impl Kind {
    /// How a value is written.
    pub fn form(&self) -> String {
        match self {
            Self::Text => "text in quotes".to_owned(),
            Self::Choice(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                words.join(" or ")
            }
            Self::Path => "an absolute path in quotes".to_owned(),
            Self::Paths => "a list of absolute paths, such as [\"/usr/bin/ffmpeg\"]".to_owned(),
            Self::Programs => "a list of programs, by path or name, such as [\"tar\"]".to_owned(),
            Self::Directories => {
                "a list of directories below the mount point, such as [\"projects\"]".to_owned()
            }
            Self::Size => "a size, such as \"32MiB\" or \"500KB\"".to_owned(),
            Self::Duration => "a duration, such as \"5m\", \"30d\" or \"1h 30m\"".to_owned(),
            Self::Integer => "a whole number without quotes".to_owned(),
            Self::Flag => "true or false, without quotes".to_owned(),
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Full path, without indices: `pool.store.path`.
    pub path: &'static str,
    /// Form of its value.
    pub kind: Kind,
    /// The default as TOML; "required", or "unset" where the absence means something.
    pub default: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, kind, default }
}

/// Every key, in the order in which they are explained.
pub const KEYS: &[Key] = &[
    key("agent.state_dir", Kind::Path, "\"/var/lib/hsm\""),
    key("agent.socket", Kind::Path, "\"/run/hsm/hsm.sock\""),
    key("agent.bpf_dir", Kind::Path, "\"/sys/fs/bpf/hsm\""),
    key("agent.log", Kind::Text, "\"info\""),
    key("agent.log_format", Kind::Choice(&["text", "json"]), "\"text\""),
    key("limits.recall_memory", Kind::Size, "\"32MiB\""),
    key("limits.recall_parallel", Kind::Integer, "4"),
    key("limits.recalls", Kind::Integer, "16"),
    key("limits.recalls_per_user", Kind::Integer, "12"),
    key("limits.local_recalls_per_user", Kind::Integer, "unset"),
    key("limits.waiting", Kind::Integer, "32768"),
    key("limits.waiting_per_user", Kind::Integer, "16384"),
    key("limits.bulk_jobs", Kind::Integer, "2"),
    key("limits.recall_deadline", Kind::Duration, "\"5m\""),
    key("limits.release_batch", Kind::Integer, "1024"),
    key("pool.name", Kind::Text, "required"),
    key("pool.mount", Kind::Path, "required"),
    key("pool.directories", Kind::Directories, "[]"),
    key(
        "pool.tier",
        Kind::Choice(&["auto", "mark-filter", "lsm-filter", "user-filter"]),
        "\"auto\"",
    ),
    key("pool.recall", Kind::Choice(&["auto", "whole", "range"]), "\"auto\""),
    key("pool.range_programs", Kind::Paths, "[]"),
    key("pool.whole_programs", Kind::Programs, "[\"tar\"]"),
    key("pool.range_min_size", Kind::Size, "\"64MiB\""),
    key("pool.early_answer", Kind::Flag, "false"),
    key("pool.emergency_release", Kind::Flag, "true"),
    key("pool.min_size", Kind::Size, "\"1B\""),
    key("pool.compression", Kind::Choice(&["none", "zstd"]), "\"none\""),
    key("pool.compression_level", Kind::Integer, "3"),
    key("pool.verify", Kind::Choice(&["none", "readback"]), "\"none\""),
    key("pool.marker", Kind::Text, "\"security.bpf.hsm\""),
    key("pool.retention", Kind::Duration, "\"30d\""),
    key("pool.store.kind", Kind::Choice(&["local", "s3"]), "required"),
    key("pool.store.path", Kind::Path, "required"),
    key("pool.store.endpoint", Kind::Text, "unset"),
    key("pool.store.bucket", Kind::Text, "required"),
    key("pool.store.prefix", Kind::Text, "unset"),
    key("pool.store.region", Kind::Text, "unset"),
    key("pool.store.access_key_file", Kind::Path, "required"),
    key("pool.store.secret_key_file", Kind::Path, "required"),
    key("pool.store.allow_http", Kind::Flag, "false"),
    key("pool.store.deadline", Kind::Duration, "\"1m\""),
    key("pool.store.retries", Kind::Integer, "4"),
    key("pool.store.rate_limit", Kind::Size, "unset"),
];

/// Below this likeness (0 to 1) a suggestion would only confuse.
const LIKE_ENOUGH: f64 = 0.7;

/// The key with that path, which may carry indices.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let path = without_indices(path);
    KEYS.iter().find(|key| key.path == path)
}

/// A problem for each key of the file that does not exist, or that is a value where a section is
/// expected or the other way round. What is inside an unknown section is not listed again.
pub(super) fn unknown_keys(origins: &Origins) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for (path, is_section) in origins.keys() {
        let plain = without_indices(path);
        let section = is_section_path(&plain);
        let inside =
            |p: &Problem| path.strip_prefix(&p.key).is_some_and(|r| r.starts_with(['.', '[']));
        if (find(path).is_some() && !is_section) || problems.iter().any(inside) {
            continue;
        }
        if section && is_section {
            problems.extend(wrong_header(origins, path, &plain));
        } else {
            problems.push(wrong_key(origins, path, &plain, is_section));
        }
    }
    problems
}

/// Pools are a list, and nothing else is.
fn wrong_header(origins: &Origins, path: &str, plain: &str) -> Option<Problem> {
    if path.ends_with(']') {
        return None;
    }
    let is_list = origins.sets(&format!("{path}[0]"));
    let found =
        |what: &str| Some(origins.problem(path, what).hint(format!("write {}", header(plain))));
    match (plain == "pool", is_list) {
        (true, false) => found("pools are a list"),
        (false, true) => found("there is only one such section"),
        _ => None,
    }
}

/// How a section begins.
fn header(plain: &str) -> String {
    if plain == "pool" { "[[pool]]".to_owned() } else { format!("[{plain}]") }
}

fn wrong_key(origins: &Origins, path: &str, plain: &str, is_section: bool) -> Problem {
    if let Some(key) = find(path) {
        let message = format!("expected {}, found a section", key.kind.form());
        return origins.problem(path, message);
    }
    if is_section_path(plain) {
        return origins
            .problem(path, "this is a section, not a value")
            .hint(format!("begin it with {} on a line of its own", header(plain)));
    }
    let what = if is_section { "unknown section" } else { "unknown key" };
    let problem = origins.problem(path, what);
    match suggestion(plain) {
        Some(meant) => problem.hint(meant),
        None => problem.hint("docs/CONFIGURATION.md lists all keys"),
    }
}

/// Whether other keys live below a path.
fn is_section_path(plain: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(plain).is_some_and(|rest| rest.starts_with('.')))
}

/// The key in the same section that looks most like this one, or the same key elsewhere.
fn suggestion(plain: &str) -> Option<String> {
    let (section, name) = plain.rsplit_once('.').unwrap_or(("", plain));
    let meant = candidates(section)
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate);
    let elsewhere = || {
        let home = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name))?;
        let (section, _) = home.path.rsplit_once('.')?;
        Some(format!("`{name}` belongs into {}", header(section)))
    };
    match meant {
        Some(exact) if exact == name => None,
        Some(meant) => elsewhere().or_else(|| Some(format!("did you mean `{meant}`?"))),
        None => elsewhere(),
    }
}

/// Names of the keys and sections directly below a section.
fn candidates(section: &str) -> Vec<&'static str> {
    let below = |key: &Key| {
        let rest = key.path.strip_prefix(section)?;
        let rest = if section.is_empty() { rest } else { rest.strip_prefix('.')? };
        rest.split('.').next()
    };
    KEYS.iter().filter_map(below).collect()
}

fn without_indices(path: &str) -> String {
    let mut depth = 0;
    path.chars()
        .filter(|c| {
            depth += i32::from(*c == '[');
            let keep = depth == 0;
            depth -= i32::from(*c == ']');
            keep
        })
        .collect()
}
