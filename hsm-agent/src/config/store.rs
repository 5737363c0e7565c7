//! `[pool.store]`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

/// The object store of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// What kind of store, and where.
    pub backend: StoreBackend,
    /// Per request, all retries included.
    pub deadline: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// Bytes per second.
    pub rate_limit: Option<ByteSize>,
}

/// What kind of store, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreBackend {
    /// A directory.
    Local {
        /// The directory.
        path: PathBuf,
    },
    /// A bucket of an S3-compatible server.
    S3(S3Config),
}

/// A bucket of an S3-compatible server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// `https://host[:port]`.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// Put before every key; empty or without slashes at either end.
    pub prefix: String,
    /// Region that requests are signed for.
    pub region: String,
    /// Files that hold the access key and the secret key.
    pub keys: Option<(PathBuf, PathBuf)>,
    /// Allow `http://`.
    pub allow_http: bool,
}
