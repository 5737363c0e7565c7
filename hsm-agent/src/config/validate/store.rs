//! One `[pool.store]` by itself.

use std::path::PathBuf;
use std::time::Duration;

use super::Findings;
use crate::config::raw::{RawKind, RawStore};
use crate::config::{S3Config, StoreBackend, StoreConfig};

/// Keys that only one kind of store has.
const OF_LOCAL: &[&str] = &["path"];
const OF_S3: &[&str] =
    &["endpoint", "bucket", "prefix", "region", "access_key_file", "secret_key_file", "allow_http"];

pub(super) fn build(index: usize, raw: RawStore, findings: &mut Findings<'_>) -> StoreConfig {
    let section = format!("pool[{index}].store");
    let at = |key: &str| format!("{section}.{key}");
    if !findings.origins.sets(&section) {
        let hint = "add a section [pool.store] with kind = \"local\" and path, for example";
        findings.error(&section, "is required", hint);
    } else {
        findings.required(&at("kind"), "\"local\" or \"s3\"");
    }
    let deadline = raw.deadline.unwrap_or(Duration::from_secs(60));
    if deadline < Duration::from_millis(10) {
        findings.error(&at("deadline"), "too short for any request", "10ms is the least");
    }
    let retries = raw.retries.unwrap_or(4);
    findings.within(&at("retries"), retries.into(), 0..=100);
    if raw.rate_limit.is_some_and(|limit| limit.as_u64() == 0) {
        findings.error(&at("rate_limit"), "nothing could be read", "remove the key for no limit");
    }
    let rate_limit = raw.rate_limit;
    let backend = match raw.kind {
        Some(RawKind::S3) => StoreBackend::S3(s3(&section, raw, findings)),
        Some(RawKind::Local) => StoreBackend::Local { path: local(&section, raw, findings) },
        None => StoreBackend::Local { path: raw.path },
    };
    StoreConfig { backend, deadline, retries, rate_limit }
}

fn local(section: &str, raw: RawStore, findings: &mut Findings<'_>) -> PathBuf {
    foreign_keys(section, OF_S3, "s3", findings);
    let key = format!("{section}.path");
    if findings.required(&key, "the directory for the objects") {
        findings.absolute(&key, &raw.path);
    }
    raw.path
}

fn s3(section: &str, mut raw: RawStore, findings: &mut Findings<'_>) -> S3Config {
    foreign_keys(section, OF_LOCAL, "local", findings);
    let at = |key: &str| format!("{section}.{key}");
    if findings.required(&at("endpoint"), "\"https://s3.example.com\", for example") {
        check_endpoint(&at("endpoint"), &raw.endpoint, raw.allow_http, findings);
    }
    let bucket_hint = "the name of the bucket, without slashes";
    if findings.required(&at("bucket"), bucket_hint)
        && (raw.bucket.is_empty() || raw.bucket.contains(['/', ' ']))
    {
        findings.error(&at("bucket"), format!("{:?} is not a bucket", raw.bucket), bucket_hint);
    }
    let empty_part = |part: &str| matches!(part, "" | "." | "..");
    if !raw.prefix.is_empty() && raw.prefix.split('/').any(empty_part) {
        let hint = "write it as \"backup/hsm\": no slash at either end, no empty part";
        findings.error(&at("prefix"), format!("{:?} is not a prefix", raw.prefix), hint);
    }
    let region = raw.region.take().unwrap_or_else(|| "us-east-1".to_owned());
    if region.is_empty() {
        findings.error(&at("region"), "is empty", "remove the key if the server does not care");
    }
    let keys = keys(section, raw.access_key_file.take(), raw.secret_key_file.take(), findings);
    let RawStore { endpoint, bucket, prefix, allow_http, .. } = raw;
    S3Config { endpoint, bucket, prefix, region, keys, allow_http }
}

fn check_endpoint(key: &str, endpoint: &str, allow_http: bool, findings: &mut Findings<'_>) {
    let plain = endpoint.strip_prefix("http://");
    let host = plain.or_else(|| endpoint.strip_prefix("https://")).unwrap_or_default();
    if host.is_empty() || host.contains(char::is_whitespace) {
        let hint = "https://host or https://host:port";
        findings.error(key, format!("{endpoint:?} is not the address of a server"), hint);
    } else if host.contains('@') {
        let hint = "put them into files and name these in access_key_file and secret_key_file";
        findings.error(key, "contains credentials", hint);
    } else if plain.is_some() && !allow_http {
        let hint = "use https://, or say allow_http = true on a network that you trust";
        findings.error(key, "http:// sends the data unencrypted", hint);
    }
}

fn keys(
    section: &str,
    access: Option<PathBuf>,
    secret: Option<PathBuf>,
    findings: &mut Findings<'_>,
) -> Option<(PathBuf, PathBuf)> {
    let at = |key: &str| format!("{section}.{key}");
    let named = [("access_key_file", &access), ("secret_key_file", &secret)];
    for (key, path) in named.iter().filter_map(|(key, path)| path.as_ref().map(|p| (key, p))) {
        findings.absolute(&at(key), path);
    }
    match (access, secret) {
        (Some(access), Some(secret)) => Some((access, secret)),
        (None, None) => None,
        (access, _) => {
            let missing = if access.is_none() { "access_key_file" } else { "secret_key_file" };
            findings.error(&at(missing), "is required beside the other key file", "name both");
            None
        }
    }
}

/// Keys of another kind of store mean that somebody thinks something that is not so.
fn foreign_keys(section: &str, keys: &[&str], kind: &str, findings: &mut Findings<'_>) {
    for key in keys {
        let path = format!("{section}.{key}");
        if findings.origins.sets(&path) {
            let hint = "remove the key, or change the kind";
            findings.error(&path, format!("belongs to kind = {kind:?}"), hint);
        }
    }
}
