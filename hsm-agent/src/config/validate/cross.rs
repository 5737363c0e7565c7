//! What sections do to each other.

use std::collections::HashMap;
use std::path::Path;

use super::Findings;
use crate::config::{AgentConfig, Limits, PoolConfig, StoreBackend};

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
        let message = format!("lies on the managed file system {}", pool.mount.display());
        findings.error(key, message, "move it: the agent would wait for itself");
    }
}

fn store_below_mount(
    pool: &PoolConfig,
    index: usize,
    other: &PoolConfig,
    findings: &mut Findings<'_>,
) {
    let at = |key: &str| format!("pool[{index}].store.{key}");
    match &other.store.backend {
        StoreBackend::Local { path } => below_mount(pool, &at("path"), path, findings),
        StoreBackend::S3(s3) => {
            let (access, secret) = s3.keys.as_ref().map(|(a, s)| (a, s)).unzip();
            let keys = [("access_key_file", access), ("secret_key_file", secret)];
            for (key, path) in keys.into_iter().filter_map(|(key, path)| path.map(|p| (key, p))) {
                below_mount(pool, &at(key), path, findings);
            }
        }
    }
}

/// Two pools may not share a store, nor may one store lie inside another: garbage collection of
/// one pool would not know the objects of the other.
fn stores_apart(pools: &[PoolConfig], findings: &mut Findings<'_>) {
    for (index, pool) in pools.iter().enumerate() {
        let first = pools
            .iter()
            .take(index)
            .position(|earlier| overlap(&earlier.store.backend, &pool.store.backend));
        if let Some(first) = first {
            let message =
                format!("the store of pool[{first}] is the same, or inside, or around it");
            let hint = "give each pool a path or prefix of its own";
            findings.error(&format!("pool[{index}].store"), message, hint);
        }
    }
}

fn overlap(a: &StoreBackend, b: &StoreBackend) -> bool {
    match (a, b) {
        (StoreBackend::Local { path: a }, StoreBackend::Local { path: b }) => {
            is_below(a, b) || is_below(b, a)
        }
        (StoreBackend::S3(a), StoreBackend::S3(b)) => {
            let server = |endpoint: &str| endpoint.trim_end_matches('/').to_ascii_lowercase();
            let (p, q) = (Path::new(&a.prefix), Path::new(&b.prefix));
            server(&a.endpoint) == server(&b.endpoint)
                && a.bucket == b.bucket
                && (p.starts_with(q) || q.starts_with(p))
        }
        _ => false,
    }
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
