//! The configuration in effect, as TOML that parses to the same configuration.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::origin::Origins;
use super::schema::KEYS;
use super::{Config, LogFormat, PoolConfig, RangePrograms, RecallMode, TierChoice, Verify, units};
use crate::store::StoreKind;
use crate::store::object::Compression;

/// How a value is shown.
enum Shown {
    /// As TOML.
    Is(String),
    /// Absent, which means this.
    Unset(&'static str),
    /// Of another kind of store, or without effect.
    Hidden,
}

/// Widest `key = value` that the origins are still aligned behind.
const COLUMN: usize = 44;

pub(super) fn explain(config: &Config, origins: &Origins) -> String {
    let mut text = format!("# {}\n", origins.file());
    section(&mut text, origins, "[agent]", "agent", "agent", |key| agent(config, key));
    section(&mut text, origins, "[limits]", "limits", "limits", |key| limits(config, key));
    for (index, pool) in config.pools.iter().enumerate() {
        let at = format!("pool[{index}]");
        section(&mut text, origins, "[[pool]]", "pool", &at, |key| of_pool(pool, key));
        let at = format!("{at}.store");
        section(&mut text, origins, "[pool.store]", "pool.store", &at, |key| store(pool, key));
    }
    for warning in &config.warnings {
        let lines = warning.to_string().replace('\n', "\n# ");
        let _infallible = write!(text, "\n# warning: {lines}");
    }
    text
}

/// One section: `schema` is its path in the schema, `at` its path in the file.
fn section(
    text: &mut String,
    origins: &Origins,
    header: &str,
    schema: &str,
    at: &str,
    value: impl Fn(&str) -> Shown,
) {
    let _infallible = writeln!(text, "\n{header}");
    for key in KEYS {
        let name = key.path.strip_prefix(schema).and_then(|rest| rest.strip_prefix('.'));
        let Some(name) = name.filter(|name| !name.contains('.')) else { continue };
        let _infallible = match value(name) {
            Shown::Is(value) => {
                let origin = match origins.own_line(&format!("{at}.{name}")) {
                    Some(line) => format!("line {line}"),
                    None => "default".to_owned(),
                };
                writeln!(text, "{:COLUMN$} # {origin}", format!("{name} = {value}"))
            }
            Shown::Unset(meaning) => writeln!(text, "# {name} is not set: {meaning}"),
            Shown::Hidden => Ok(()),
        };
    }
}

fn agent(config: &Config, key: &str) -> Shown {
    let agent = &config.agent;
    Shown::Is(match key {
        "state_dir" => path(&agent.state_dir),
        "socket" => path(&agent.socket),
        "bpf_dir" => path(&agent.bpf_dir),
        "log" => string(&agent.log),
        "log_format" => string(match agent.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }),
        _ => return Shown::Hidden,
    })
}

fn limits(config: &Config, key: &str) -> Shown {
    let limits = &config.limits;
    Shown::Is(match key {
        "recall_memory" => string(&units::size(limits.recall_memory)),
        "recall_parallel" => limits.recall_parallel.to_string(),
        "recalls" => limits.recalls.to_string(),
        "recalls_per_user" => limits.recalls_per_user.to_string(),
        "local_recalls_per_user" => match limits.local_recalls_per_user {
            Some(most) => most.to_string(),
            None => return Shown::Unset("twice the processors"),
        },
        "waiting" => limits.waiting.to_string(),
        "waiting_per_user" => limits.waiting_per_user.to_string(),
        "bulk_jobs" => limits.bulk_jobs.to_string(),
        "recall_deadline" => string(&units::duration(limits.recall_deadline)),
        "release_batch" => limits.release_batch.to_string(),
        _ => return Shown::Hidden,
    })
}

fn of_pool(pool: &PoolConfig, key: &str) -> Shown {
    Shown::Is(match key {
        "name" => string(&pool.name),
        "mount" => path(&pool.mount),
        "directories" => paths(pool.directories.directories()),
        "tier" => string(match pool.tier {
            TierChoice::Auto => "auto",
            TierChoice::MarkFilter => "mark-filter",
            TierChoice::LsmFilter => "lsm-filter",
            TierChoice::UserFilter => "user-filter",
        }),
        "recall" => string(match pool.recall {
            RecallMode::Auto => "auto",
            RecallMode::Whole => "whole",
            RecallMode::Range => "range",
        }),
        "range_programs" => programs(&pool.range_programs),
        "whole_programs" if pool.recall != RecallMode::Whole => paths(&pool.whole_programs.0),
        "range_min_size" if pool.recall != RecallMode::Whole => {
            string(&units::size(pool.range_min_size))
        }
        "early_answer" => pool.early_answer.to_string(),
        "emergency_release" => pool.emergency_release.to_string(),
        "min_size" => string(&units::size(pool.min_size)),
        "compression" => string(match pool.compression {
            Compression::None => "none",
            Compression::Zstd { .. } => "zstd",
        }),
        "compression_level" => match pool.compression {
            Compression::Zstd { level } => level.to_string(),
            Compression::None => return Shown::Hidden,
        },
        "verify" => string(match pool.verify {
            Verify::None => "none",
            Verify::Readback => "readback",
        }),
        "marker" => string(&pool.marker),
        "retention" => string(&units::duration(pool.retention)),
        _ => return Shown::Hidden,
    })
}

fn store(pool: &PoolConfig, key: &str) -> Shown {
    let store = &pool.store;
    let of_s3 = |value: &Option<String>, absent| match (store.kind, value) {
        (StoreKind::S3, Some(value)) => Shown::Is(string(value)),
        (StoreKind::S3, None) => absent,
        _ => Shown::Hidden,
    };
    let file = |value: &Option<PathBuf>| match value {
        Some(value) => Shown::Is(path(value)),
        None => Shown::Hidden,
    };
    match key {
        "kind" => Shown::Is(string(match store.kind {
            StoreKind::Local => "local",
            StoreKind::S3 => "s3",
            StoreKind::Memory => "memory",
        })),
        "path" => file(&store.path),
        "endpoint" => of_s3(&store.endpoint, Shown::Unset("AWS")),
        "bucket" => of_s3(&store.bucket, Shown::Hidden),
        "prefix" => of_s3(&store.prefix, Shown::Unset("keys begin with the object's own name")),
        "region" => of_s3(&store.region, Shown::Unset("us-east-1, which most servers ignore")),
        "access_key_file" => file(&store.access_key_file),
        "secret_key_file" => file(&store.secret_key_file),
        "allow_http" if store.kind == StoreKind::S3 => Shown::Is(store.allow_http.to_string()),
        "deadline" => Shown::Is(string(&units::duration(store.deadline))),
        "retries" => Shown::Is(store.retries.to_string()),
        "rate_limit" => match store.rate_limit {
            Some(limit) => Shown::Is(string(&units::size(limit))),
            None => Shown::Unset("unlimited"),
        },
        _ => Shown::Hidden,
    }
}

fn programs(programs: &RangePrograms) -> String {
    match programs {
        RangePrograms::All => "[\"*\"]".to_owned(),
        RangePrograms::Only(list) => paths(list),
    }
}

fn paths(list: &[PathBuf]) -> String {
    let list: Vec<_> = list.iter().map(|each| path(each)).collect();
    format!("[{}]", list.join(", "))
}

/// Paths come from TOML strings and are therefore UTF-8.
fn path(path: &Path) -> String {
    string(&path.to_string_lossy())
}

fn string(text: &str) -> String {
    toml::Value::from(text).to_string()
}
