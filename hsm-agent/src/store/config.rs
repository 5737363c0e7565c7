//! The `[pool.store]` section of the configuration, and from it to an open store.
//!
//! The section is one flat structure so that unknown keys, wrong types and their places are the
//! deserializer's business; which keys fit the kind of store is checked here, by name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use super::fault::{self, FaultStore};
use super::instrument::{InstrumentStore, StoreStats};
use super::limit::LimitStore;
use super::remote::{RemoteStore, S3Params, Secret};
use super::retry::{RetryPolicy, RetryStore};
use super::{LocalStore, MemoryStore, Remembered, Result, Store, StoreError, Subject};
use crate::core::Distance;
use crate::failpoint;

/// Kinds of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A directory.
    Local,
    /// A bucket of an S3-compatible service.
    S3,
    /// Nothing that lasts. For tests.
    Memory,
}

impl StoreKind {
    /// Whether its bytes come over a network.
    pub fn distance(self) -> Distance {
        match self {
            Self::S3 => Distance::Far,
            Self::Local | Self::Memory => Distance::Near,
        }
    }
}

/// `[pool.store]` as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Kind of store.
    pub kind: StoreKind,
    /// local: the directory.
    pub path: Option<PathBuf>,
    /// s3: URL of the service. Absent: AWS.
    pub endpoint: Option<String>,
    /// s3: the bucket, which must exist.
    pub bucket: Option<String>,
    /// s3: put before every key; lets several pools share a bucket.
    pub prefix: Option<String>,
    /// s3: the region.
    pub region: Option<String>,
    /// s3: file that holds the access key.
    pub access_key_file: Option<PathBuf>,
    /// s3: file that holds the secret key.
    pub secret_key_file: Option<PathBuf>,
    /// s3: allow an endpoint without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// Time for one operation, all retries included.
    #[serde(default = "default_deadline", with = "humantime_serde")]
    pub deadline: Duration,
    /// Attempts after the first.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// Bytes per second in both directions together. Absent: no limit.
    pub rate_limit: Option<ByteSize>,
}

fn default_deadline() -> Duration {
    Duration::from_secs(60)
}

fn default_retries() -> u32 {
    4
}

/// A value of `[pool.store]` that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct StoreConfigError {
    /// The key in question.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub hint: &'static str,
}

fn wrong(key: &'static str, problem: impl Into<String>, hint: &'static str) -> StoreConfigError {
    StoreConfigError { key, problem: problem.into(), hint }
}

/// Where requests in flight stop helping; a pool's own limits are lower.
const IN_FLIGHT: usize = 64;

impl StoreConfig {
    /// A local store with defaults, for tests and the demo.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::of_kind(StoreKind::Local) }
    }

    /// Nothing but the kind and the defaults.
    pub fn of_kind(kind: StoreKind) -> Self {
        Self {
            kind,
            path: None,
            endpoint: None,
            bucket: None,
            prefix: None,
            region: None,
            access_key_file: None,
            secret_key_file: None,
            allow_http: false,
            deadline: default_deadline(),
            retries: default_retries(),
            rate_limit: None,
        }
    }

    /// Do the values fit the kind of store and each other? Touches nothing outside.
    pub fn validate(&self) -> Result<(), StoreConfigError> {
        self.only_fitting_keys()?;
        if self.deadline.is_zero() {
            return Err(wrong("deadline", "must not be zero", "leave it out for 60s"));
        }
        if self.rate_limit.is_some_and(|r| r.as_u64() == 0) {
            return Err(wrong("rate_limit", "must not be zero", "leave it out for no limit"));
        }
        match self.kind {
            StoreKind::Local => self.validate_local(),
            StoreKind::S3 => self.validate_s3(),
            StoreKind::Memory => Ok(()),
        }
    }

    fn only_fitting_keys(&self) -> Result<(), StoreConfigError> {
        let s3 = [
            ("endpoint", self.endpoint.is_some()),
            ("bucket", self.bucket.is_some()),
            ("prefix", self.prefix.is_some()),
            ("region", self.region.is_some()),
            ("access_key_file", self.access_key_file.is_some()),
            ("secret_key_file", self.secret_key_file.is_some()),
            ("allow_http", self.allow_http),
        ];
        let misplaced = s3.into_iter().find(|&(_, given)| given && self.kind != StoreKind::S3);
        if let Some((key, _)) = misplaced {
            return Err(wrong(key, "belongs to stores of kind \"s3\"", "remove it"));
        }
        if self.path.is_some() && self.kind != StoreKind::Local {
            return Err(wrong("path", "belongs to stores of kind \"local\"", "remove it"));
        }
        Ok(())
    }

    fn validate_local(&self) -> Result<(), StoreConfigError> {
        let hint = "name the directory that holds the objects";
        let path = self.path.as_ref().ok_or_else(|| wrong("path", "is missing", hint))?;
        if !path.is_absolute() {
            return Err(wrong("path", "must be absolute", hint));
        }
        Ok(())
    }

    fn validate_s3(&self) -> Result<(), StoreConfigError> {
        let missing = |key, hint| wrong(key, "is missing", hint);
        let bucket = self.bucket.as_deref().unwrap_or_default();
        if bucket.is_empty() {
            return Err(missing("bucket", "name an existing bucket"));
        }
        if self.access_key_file.is_none() {
            return Err(missing("access_key_file", "name a file that holds nothing but the key"));
        }
        if self.secret_key_file.is_none() {
            return Err(missing("secret_key_file", "name a file that holds nothing but the key"));
        }
        if let Some(endpoint) = &self.endpoint {
            validate_endpoint(endpoint, self.allow_http)?;
        }
        let bad = |part: &str| part.is_empty() || part == "." || part == "..";
        if self.prefix.as_deref().is_some_and(|p| p.trim_matches('/').split('/').any(bad)) {
            return Err(wrong("prefix", "has empty or dotted parts", "write it as \"a/b\""));
        }
        Ok(())
    }

    fn s3_params(&self) -> Result<S3Params> {
        Ok(S3Params {
            endpoint: self.endpoint.clone(),
            bucket: self.bucket.clone().unwrap_or_default(),
            prefix: self.prefix.clone().unwrap_or_default(),
            region: self.region.clone(),
            access_key: read_secret(self.access_key_file.as_deref())?,
            secret_key: read_secret(self.secret_key_file.as_deref())?,
            allow_http: self.allow_http,
            deadline: self.deadline,
            retries: self.retries,
        })
    }
}

fn validate_endpoint(endpoint: &str, allow_http: bool) -> Result<(), StoreConfigError> {
    let https = endpoint.starts_with("https://");
    let http = endpoint.starts_with("http://");
    if http && !allow_http {
        let hint = "use https, or set allow_http = true on a network that you trust";
        return Err(wrong("endpoint", "is not encrypted", hint));
    }
    if !(http || https) {
        return Err(wrong("endpoint", "is no URL", "write it as \"https://host:port\""));
    }
    if endpoint.contains('@') {
        let hint = "put the keys into access_key_file and secret_key_file";
        return Err(wrong("endpoint", "must not hold credentials", hint));
    }
    Ok(())
}

/// Reads a key. Never puts its content into an error.
fn read_secret(path: Option<&Path>) -> Result<Secret> {
    let path = path.unwrap_or(Path::new(""));
    let fail = |why: &dyn fmt::Display| {
        StoreError::invalid(Subject::Store, format!("key file {}: {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(fail(&"it must hold one word, the key"));
    }
    Ok(Secret::new(secret))
}

/// Opens the store that the configuration describes. `remembered` is for local stores: which
/// directory counts as the store. (A bucket does not turn into an empty one when its server is away.)
pub fn open(config: &StoreConfig, remembered: Option<Remembered>) -> Result<Arc<dyn Store>> {
    open_with_stats(config, remembered, Arc::default())
}

/// [`open`], with the counters in the caller's hands. From the outside in: counters, retries,
/// limits, backend; so the counters show what callers see, and each attempt pays for its bytes.
pub fn open_with_stats(
    config: &StoreConfig,
    remembered: Option<Remembered>,
    stats: Arc<StoreStats>,
) -> Result<Arc<dyn Store>> {
    config.validate().map_err(|e| StoreError::invalid(Subject::Store, e.to_string()))?;
    let mut store: Arc<dyn Store> = match config.kind {
        StoreKind::Local => {
            let path = config.path.as_deref().unwrap_or(Path::new(""));
            Arc::new(LocalStore::open_as(path, remembered)?)
        }
        StoreKind::S3 => Arc::new(RemoteStore::s3(&config.s3_params()?)?),
        StoreKind::Memory => Arc::new(MemoryStore::new()),
    };
    if let Some(rate) = config.rate_limit {
        store = Arc::new(LimitStore::new(store, Some(rate.as_u64()), IN_FLIGHT));
    }
    if let Some(chances) = faults() {
        store = Arc::new(FaultStore::by_chance(store, chances));
    }
    let policy = RetryPolicy { retries: config.retries, deadline: config.deadline };
    store = Arc::new(RetryStore::new(store, policy));
    Ok(Arc::new(InstrumentStore::new(store, stats)))
}

/// The file that says what goes wrong: in builds with fail points only.
fn faults() -> Option<PathBuf> {
    let named = failpoint::BUILT_IN.then(|| std::env::var_os(fault::VARIABLE))?;
    named.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    fn parse(text: &str) -> StoreConfig {
        toml::from_str(text).expect("toml")
    }

    fn problem(text: &str) -> &'static str {
        parse(text).validate().expect_err("impossible configuration").key
    }

    const S3: &str = "kind='s3'\nbucket='b'\naccess_key_file='/a'\nsecret_key_file='/s'\n";

    #[test]
    fn good_configurations() {
        let local = parse("kind='local'\npath='/p'\nrate_limit='100MiB'\ndeadline='5s'");
        local.validate().expect("local");
        assert_eq!(local.rate_limit, Some(ByteSize::mib(100)));
        assert_eq!((local.deadline, local.retries), (Duration::from_secs(5), 4));
        parse(S3).validate().expect("s3");
        parse(&format!("{S3}endpoint='http://h:1'\nallow_http=true")).validate().expect("http");
        assert_eq!(StoreConfig::local("/p"), parse("kind='local'\npath='/p'"));
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(problem("kind='local'"), "path");
        assert_eq!(problem("kind='local'\npath='relative'"), "path");
        assert_eq!(problem("kind='local'\npath='/p'\nbucket='b'"), "bucket");
        assert_eq!(problem("kind='local'\npath='/p'\nallow_http=true"), "allow_http");
        assert_eq!(problem("kind='local'\npath='/p'\ndeadline='0s'"), "deadline");
        assert_eq!(problem("kind='local'\npath='/p'\nrate_limit=0"), "rate_limit");
        assert_eq!(problem("kind='s3'"), "bucket");
        assert_eq!(problem("kind='s3'\nbucket='b'"), "access_key_file");
        assert_eq!(problem("kind='s3'\nbucket='b'\naccess_key_file='/a'"), "secret_key_file");
        for (endpoint, prefix) in [("http://h", "p"), ("h:80", "p"), ("https://a:b@h", "p")] {
            let text = format!("{S3}endpoint='{endpoint}'\nprefix='{prefix}'");
            assert_eq!(problem(&text), "endpoint", "{endpoint}");
        }
        assert_eq!(problem(&format!("{S3}prefix='a/../b'")), "prefix");
        assert_eq!(problem(&format!("{S3}path='/p'")), "path");
    }

    #[test]
    fn unknown_keys_are_errors() {
        for text in ["kind='tape'", "kind='local'\npath='/p'\npaht='/q'", "path='/p'"] {
            toml::from_str::<StoreConfig>(text).expect_err(text);
        }
    }

    #[tokio::test]
    async fn an_opened_local_store_conforms_and_keeps_its_fast_side() {
        let dir = tempfile::tempdir().expect("tempdir");
        let stats = Arc::new(StoreStats::default());
        let store =
            open_with_stats(&StoreConfig::local(dir.path()), None, stats.clone()).expect("open");
        assert!(store.blocking().is_some());
        conformance::run(store).await;
        assert!(stats.snapshot().iter().all(|op| op.count > 0));
    }

    #[tokio::test]
    async fn an_opened_memory_store_with_a_limit_conforms() {
        let rate_limit = Some(ByteSize::gib(100));
        let config = StoreConfig { rate_limit, ..StoreConfig::of_kind(StoreKind::Memory) };
        conformance::run(open(&config, None).expect("open")).await;
    }

    #[test]
    fn keys_are_read_and_never_shown() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("key");
        std::fs::write(&file, "  s3cr3t\n").expect("write");
        let secret = read_secret(Some(&file)).expect("secret");
        assert!(!format!("{secret:?}").contains("s3cr3t"));
        for bad in ["", " \n", "two words"] {
            std::fs::write(&file, bad).expect("write");
            let e = read_secret(Some(&file)).expect_err(bad).to_string();
            assert!(e.contains("key file") && !e.contains("two"), "{e}");
        }
        let config = StoreConfig {
            bucket: Some("b".into()),
            access_key_file: Some(dir.path().join("none")),
            secret_key_file: Some(dir.path().join("none")),
            ..StoreConfig::of_kind(StoreKind::S3)
        };
        let e = open(&config, None).expect_err("no key file").to_string();
        assert!(e.contains("none"), "{e}");
    }
}
