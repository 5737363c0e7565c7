//! Can a pool's store be reached, written and read?

use std::path::PathBuf;
use std::time::Duration;

use crate::config::PoolConfig;
use crate::store::{self, Remembered, StoreConfig, StoreError, StoreKind};

use super::report::Check;

/// A doctor who takes a minute per store is not called: shorter than any sensible `deadline`.
const PATIENCE: Duration = Duration::from_secs(10);

const NAME: &str = "store";

/// Opens the store as the agent does, and lets it check itself. `remembered` is the agent's note of
/// which store it is.
pub(super) async fn check(pool: &PoolConfig, remembered: PathBuf) -> Check {
    let place = describe(&pool.store);
    let mut config = pool.store.clone();
    config.deadline = config.deadline.min(PATIENCE);
    config.retries = config.retries.min(1);
    let result = match store::open(&config, Some(Remembered::read_only(remembered))) {
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
        StoreError::Unavailable { .. } => {
            "see that the server runs and can be reached, or that the directory's disk is mounted"
        }
        StoreError::Full { .. } => "make room in the store",
        StoreError::Denied { .. } => "check the keys, or the owner and mode of the directory",
        _ => "see [pool.store] in the configuration",
    }
}

/// Kind and place, without secrets.
fn describe(config: &StoreConfig) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    match config.kind {
        StoreKind::Local => {
            let path = config.path.as_deref().unwrap_or(std::path::Path::new(""));
            format!("local {}", crate::cli::output::path(path))
        }
        StoreKind::S3 => {
            let endpoint = config.endpoint.as_deref().unwrap_or("AWS");
            format!("s3 {endpoint} {}/{}", text(&config.bucket), text(&config.prefix))
        }
        StoreKind::Memory => "memory".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_without_secrets() {
        assert_eq!(describe(&StoreConfig::local("/cold\n")), r"local $'/cold\n'");
        let mut s3 = StoreConfig::of_kind(StoreKind::S3);
        s3.bucket = Some("b".into());
        s3.secret_key_file = Some("/secret".into());
        assert_eq!(describe(&s3), "s3 AWS b/");
    }
}
