//! One `[pool.store]`: present, complete, and what the store itself says of its values.

use std::path::Path;
use std::time::Duration;

use super::Findings;
use crate::store::{StoreConfig, StoreKind};

/// Checks the section, which may be absent.
pub(super) fn check(index: usize, store: Option<&StoreConfig>, findings: &mut Findings<'_>) {
    let section = format!("pool[{index}].store");
    let Some(store) = store else {
        let hint = "add a section [pool.store] with kind = \"local\" and path, for example";
        return findings.error(&section, "is required", hint);
    };
    let at = |key: &str| format!("{section}.{key}");
    if store.kind == StoreKind::Memory {
        let hint = "use kind = \"local\" or kind = \"s3\"";
        findings.error(&at("kind"), "nothing in such a store lasts; it is for tests", hint);
    }
    if let Err(wrong) = store.validate() {
        findings.error(&at(wrong.key), wrong.problem, wrong.hint);
        return;
    }
    for (key, path) in paths(store) {
        findings.absolute(&at(key), path);
    }
    if store.deadline < Duration::from_millis(10) {
        findings.error(&at("deadline"), "too short for any request", "10ms is the least");
    }
    findings.within(&at("retries"), store.retries.into(), 0..=100);
}

/// Paths on this machine that a store needs, each with its key.
pub(super) fn paths(store: &StoreConfig) -> impl Iterator<Item = (&'static str, &Path)> {
    [
        ("path", &store.path),
        ("access_key_file", &store.access_key_file),
        ("secret_key_file", &store.secret_key_file),
    ]
    .into_iter()
    .filter_map(|(key, path)| path.as_deref().map(|path| (key, path)))
}
