//! A store in a bucket, over the `object_store` crate. S3 and what speaks its protocol.
//!
//! What this file adds: exactness (every answer is measured against the request), errors in our
//! kinds (`errors`), no redirects (`http`), streamed uploads in parts (`sink`). Retries of whole
//! operations belong to the retry decorator; only the parts of an upload are repeated down here.
//!
//! Durability: S3 answers a `PUT` or the completion of an upload after the object is stored
//! durably, so the barrier has nothing to do.

mod errors;
mod http;
mod sink;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore,
    ObjectStoreExt, RetryConfig,
};

use super::error::{cause, check_range};
use super::{ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError, Subject, Tail};
use crate::core::ObjectId;

/// A text that must not be shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes it into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What it takes to use a bucket.
#[derive(Debug, Clone)]
pub struct S3Params {
    /// URL of the service, or AWS.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// Put before every key. May be empty.
    pub prefix: String,
    /// The region; most services other than AWS ignore it.
    pub region: Option<String>,
    /// Public half of the credentials.
    pub access_key: Secret,
    /// Secret half.
    pub secret_key: Secret,
    /// Allow an endpoint without TLS.
    pub allow_http: bool,
    /// No single request takes longer.
    pub deadline: Duration,
    /// Repetitions of a failed part of an upload.
    pub retries: u32,
}

/// A connection is made within this time, or the host is taken for absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects in a bucket.
#[derive(Debug)]
pub struct RemoteStore {
    /// Requests once.
    single: AmazonS3,
    /// Repeats, for the parts of an upload, which nobody above can repeat.
    upload: Arc<AmazonS3>,
    prefix: Path,
}

impl RemoteStore {
    /// Prepares the use of a bucket. Connects to nothing yet.
    pub fn s3(params: &S3Params) -> Result<Self> {
        let failed = |e| errors::error(Subject::Store, e);
        let builder = builder(params);
        let build = |retries| {
            let backoff = BackoffConfig::default();
            let retry_timeout = params.deadline;
            let retry = RetryConfig { backoff, max_retries: retries, retry_timeout };
            builder.clone().with_retry(retry).build().map_err(failed)
        };
        let prefix = Path::parse(params.prefix.trim_matches('/'));
        let prefix = prefix.map_err(|e| StoreError::invalid(Subject::Store, e.to_string()))?;
        let upload = Arc::new(build(params.retries as usize)?);
        Ok(Self { single: build(0)?, upload, prefix })
    }

    fn path(&self, key: &ObjectKey) -> Path {
        self.prefix.clone().join(ObjectKey::shard_name(key.shard())).join(key.file_name())
    }

    async fn get(&self, key: &ObjectKey, range: GetRange) -> Result<GetResult> {
        let options = GetOptions { range: Some(range), ..GetOptions::default() };
        let got = self.single.get_opts(&self.path(key), options).await;
        got.map_err(|e| errors::error(key, e))
    }

    /// The end of an object in two requests, for services that refuse "the last n bytes" of an
    /// empty or a shorter object, or altogether.
    async fn get_tail_by_size(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let object_size = self.head(key).await?.size;
        let bytes = match object_size.min(n) {
            0 => Bytes::new(),
            n => self.get_range(key, object_size - n..object_size).await?,
        };
        Ok(Tail { bytes, object_size })
    }
}

fn builder(params: &S3Params) -> AmazonS3Builder {
    let options = ClientOptions::new()
        .with_allow_http(params.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT.min(params.deadline))
        .with_timeout(params.deadline);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&params.bucket)
        .with_region(params.region.as_deref().unwrap_or("us-east-1"))
        .with_access_key_id(&params.access_key.0)
        .with_secret_access_key(&params.secret_key.0)
        .with_client_options(options)
        .with_allow_http(params.allow_http)
        .with_http_connector(http::Connector::new(params.deadline, params.allow_http))
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &params.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    builder
}

/// The body, which must have exactly the announced length. Stops reading when it has more.
async fn body(key: &ObjectKey, got: GetResult) -> Result<Bytes> {
    let want = got.range.end - got.range.start;
    let mut bytes = BytesMut::new();
    let mut stream = got.into_stream();
    while let Some(piece) = stream.try_next().await.map_err(|e| errors::error(key, e))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > want {
            return Err(StoreError::corrupt(key, "the answer is longer than was asked for"));
        }
    }
    if (bytes.len() as u64) < want {
        // The connection ended early: the object may well be whole.
        return Err(StoreError::unavailable(key, "the answer ended too early"));
    }
    Ok(bytes.freeze())
}

fn stat(key: ObjectKey, meta: &ObjectMeta) -> ObjectStat {
    ObjectStat { key, size: meta.size, modified: SystemTime::from(meta.last_modified) }
}

#[async_trait]
impl Store for RemoteStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        let put = self.single.put(&self.path(key), body.into()).await;
        put.map(drop).map_err(|e| errors::error(key, e))
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        Ok(Box::new(sink::RemoteSink::new(self.upload.clone(), *key, self.path(key))))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        check_range(key, &range)?;
        let got = match self.get(key, GetRange::Bounded(range.clone())).await {
            Err(e) if errors::is_beyond_end(&e) => {
                let size = self.head(key).await?.size;
                return Err(StoreError::short(key, range.end, size));
            }
            got => got?,
        };
        if got.range != range {
            return Err(StoreError::short(key, range.end, got.meta.size));
        }
        body(key, got).await
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let got = match self.get(key, GetRange::Suffix(n)).await {
            Err(e) if errors::is_refused_range(&e) => return self.get_tail_by_size(key, n).await,
            got => got?,
        };
        let object_size = got.meta.size;
        if got.range != (object_size.saturating_sub(n)..object_size) {
            return Err(StoreError::corrupt(key, "another range than its end was served"));
        }
        Ok(Tail { bytes: body(key, got).await?, object_size })
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let meta = self.single.head(&self.path(key)).await;
        meta.map(|meta| stat(*key, &meta)).map_err(|e| errors::error(key, e))
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        match self.single.delete(&self.path(key)).await.map_err(|e| errors::error(key, e)) {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        let prefix = self.prefix.clone();
        let listed = self.single.list(Some(&self.prefix));
        let item = move |item: object_store::Result<ObjectMeta>| {
            let meta = match item {
                Ok(meta) => meta,
                Err(e) => return Some(Err(errors::error(Subject::Store, e))),
            };
            let key = key_of(&prefix, &meta.location)?;
            Some(Ok(stat(key, &meta)))
        };
        listed.filter_map(move |i| std::future::ready(item(i))).boxed()
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        let name = format!("check-{}", ObjectId::random());
        let path = self.prefix.clone().join(name);
        let probe = async {
            self.single.put(&path, Bytes::from_static(b"hsm").into()).await?;
            let back = self.single.get(&path).await?.bytes().await;
            self.single.delete(&path).await?;
            back
        };
        match probe.await.map_err(|e| errors::error(Subject::Store, e)) {
            Ok(back) if &back[..] == b"hsm" => Ok(()),
            Ok(_) => Err(StoreError::Failed {
                subject: Subject::Store,
                source: super::error::text("it gives back other bytes than it was given"),
            }),
            // The probe is no object, so its absence after it was stored is the store's failure.
            Err(StoreError::NotFound { subject, source }) => {
                Err(StoreError::Failed { subject, source: cause(errors::Lost(source)) })
            }
            Err(e) => Err(e),
        }
    }
}

/// The key that a listed name spells, if it does.
fn key_of(prefix: &Path, location: &Path) -> Option<ObjectKey> {
    let mut parts = location.prefix_match(prefix)?;
    let (dir, name) = (parts.next()?, parts.next()?);
    let key = ObjectKey::from_names(dir.as_ref(), name.as_ref());
    key.filter(|_| parts.next().is_none())
}

#[cfg(test)]
mod tests;
