//! Can a pool's store be reached, written and read?

use std::time::Duration;

use crate::config::{self, PoolConfig, StoreBackend};
use crate::store::{self, StoreConfig, StoreError, StoreKind};

use super::report::Check;

/// A doctor who takes a minute per store is not called: shorter than any sensible `deadline`.
const PATIENCE: Duration = Duration::from_secs(10);

const NAME: &str = "store";

/// Opens the store as the agent does, and lets it check itself.
pub(super) async fn check(pool: &PoolConfig) -> Check {
    let place = describe(&pool.store.backend);
    let mut config = translate(&pool.store);
    config.deadline = config.deadline.min(PATIENCE);
    config.retries = config.retries.min(1);
    let opened = store::open(&config);
    let result = match opened {
        Ok(store) => tokio::time::timeout(PATIENCE, store.check()).await,
        Err(error) => Ok(Err(error)),
    };
    match result {
        Ok(Ok(())) => Check::ok(NAME, format!("{place}: can be written and read")),
        Ok(Err(error)) => Check::fail(NAME, format!("{place}: {error}"), remedy(&error)),
        Err(_) => {
            let fact = format!("{place}: no answer within {} s", PATIENCE.as_secs());
            Check::fail(NAME, fact, "see that the server runs and can be reached")
        }
    }
}

fn remedy(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotFound { .. } => "make the directory or bucket, or mount what it is on",
        StoreError::Unavailable { .. } => "see that the server runs and can be reached",
        StoreError::Full { .. } => "make room in the store",
        StoreError::Denied { .. } => "check the keys, or the owner and mode of the directory",
        _ => "see [pool.store] in the configuration",
    }
}

/// Kind and place, without secrets.
fn describe(backend: &StoreBackend) -> String {
    match backend {
        StoreBackend::Local { path } => format!("local {}", crate::cli::output::path(path)),
        StoreBackend::S3(s3) => format!("s3 {}/{}/{}", s3.endpoint, s3.bucket, s3.prefix),
    }
}

/// The configuration in the store's own form.
fn translate(from: &config::StoreConfig) -> StoreConfig {
    let mut to = match &from.backend {
        StoreBackend::Local { path } => StoreConfig::local(path),
        StoreBackend::S3(s3) => {
            let (access, secret) = s3.keys.clone().unzip();
            StoreConfig {
                endpoint: Some(s3.endpoint.clone()),
                bucket: Some(s3.bucket.clone()),
                prefix: (!s3.prefix.is_empty()).then(|| s3.prefix.clone()),
                region: Some(s3.region.clone()),
                access_key_file: access,
                secret_key_file: secret,
                allow_http: s3.allow_http,
                ..StoreConfig::of_kind(StoreKind::S3)
            }
        }
    };
    to.deadline = from.deadline;
    to.retries = from.retries;
    to.rate_limit = from.rate_limit;
    to
}
