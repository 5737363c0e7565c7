//! What sections do to each other.

use std::collections::HashMap;
use std::path::Path;

use super::Findings;
use super::store::paths;
use crate::config::{AgentConfig, Limits, PoolConfig};
use crate::store::StoreConfig;

pub(super) fn check(
    agent: &AgentConfig,
    limits: &Limits,
    pools: &[PoolConfig],
    findings: &mut Findings<'_>,
) {
    if pools.is_empty() {
        findings.warning("pool", "no pool: nothing is managed", "add a [[pool]]");
    }
    unique(pools, findings);
    for pool in pools {
        below_mount(pool, "agent.state_dir", &agent.state_dir, findings);
        for (index, other) in pools.iter().enumerate() {
            store_below_mount(pool, index, other, findings);
        }
    }
    stores_apart(pools, findings);
    deadlines(limits, pools, findings);
}

/// Two pools may share neither name nor mount.
fn unique(pools: &[PoolConfig], findings: &mut Findings<'_>) {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut mounts: HashMap<&Path, usize> = HashMap::new();
    for (index, pool) in pools.iter().enumerate() {
        let twice = |first: usize| format!("pool[{first}] has the same");
        if let Some(first) = names.insert(&pool.name, index)
            && !pool.name.is_empty()
        {
            let hint = "each pool needs a name of its own";
            findings.error(&format!("pool[{index}].name"), twice(first), hint);
        }
        if let Some(first) = mounts.insert(&pool.mount, index)
            && !pool.mount.as_os_str().is_empty()
        {
            let hint = "one file system is one pool";
            findings.error(&format!("pool[{index}].mount"), twice(first), hint);
        }
    }
}

/// The agent must be able to read its own files while it blocks everybody else's accesses.
fn below_mount(pool: &PoolConfig, key: &str, path: &Path, findings: &mut Findings<'_>) {
    if is_below(path, &pool.mount) {
        let (path, mount) = (path.display(), pool.mount.display());
        let message = format!("{path} lies on the managed file system {mount}");
        findings.error(key, message, "move it: the agent would wait for itself");
    }
}

fn store_below_mount(
    pool: &PoolConfig,
    index: usize,
    other: &PoolConfig,
    findings: &mut Findings<'_>,
) {
    for (key, path) in paths(&other.store) {
        below_mount(pool, &format!("pool[{index}].store.{key}"), path, findings);
    }
}

/// Two pools may not share a store, nor may one store lie inside another: garbage collection of
/// one pool would not know the objects of the other.
fn stores_apart(pools: &[PoolConfig], findings: &mut Findings<'_>) {
    for (index, pool) in pools.iter().enumerate() {
        let first =
            pools.iter().take(index).position(|earlier| overlap(&earlier.store, &pool.store));
        if let Some(first) = first {
            let message =
                format!("the store of pool[{first}] is the same, or inside, or around it");
            let hint = "give each pool a path or prefix of its own";
            findings.error(&format!("pool[{index}].store"), message, hint);
        }
    }
}

fn overlap(a: &StoreConfig, b: &StoreConfig) -> bool {
    let nested = |p: &Path, q: &Path| p.starts_with(q) || q.starts_with(p);
    if let (Some(p), Some(q)) = (&a.path, &b.path) {
        return nested(p, q);
    }
    let bucket = |s: &StoreConfig| {
        let server = s.endpoint.as_deref().unwrap_or_default().trim_end_matches('/');
        (s.kind, server.to_ascii_lowercase(), s.bucket.clone())
    };
    let prefix =
        |s: &StoreConfig| s.prefix.clone().unwrap_or_default().trim_matches('/').to_owned();
    a.bucket.is_some()
        && bucket(a) == bucket(b)
        && nested(Path::new(&prefix(a)), Path::new(&prefix(b)))
}

/// A missing path is another finding's matter.
fn is_below(path: &Path, directory: &Path) -> bool {
    directory.is_absolute() && path.starts_with(directory)
}

fn deadlines(limits: &Limits, pools: &[PoolConfig], findings: &mut Findings<'_>) {
    for (index, pool) in pools.iter().enumerate() {
        if pool.store.deadline > limits.recall_deadline {
            let hint = "make it shorter than limits.recall_deadline, so that a recall can retry";
            let key = format!("pool[{index}].store.deadline");
            findings.warning(&key, "a reader's deadline ends before one request's", hint);
        }
    }
}
