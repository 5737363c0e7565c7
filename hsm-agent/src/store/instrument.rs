//! Decorator: counts, bytes and latencies per operation.
//!
//! All counters are relaxed atomics: a snapshot is not one instant, and no request waits for it.
//! Latencies go into buckets of powers of two microseconds, so quantiles are right within a factor
//! of two and need no memory per request. A request whose caller gave up is not counted.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::Serialize;

use super::op::Op;
use super::{BlockingSink, BlockingStore, ObjectKey, ObjectSink, ObjectStat, Result, Store, Tail};

/// Bucket 31 begins at 2^30 µs, 18 minutes.
const BUCKETS: usize = 32;

/// Counters of one store, shared by its users.
#[derive(Debug, Default)]
pub struct StoreStats {
    ops: [OpStats; Op::ALL.len()],
}

#[derive(Debug, Default)]
struct OpStats {
    count: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What one operation did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OpSnapshot {
    /// The operation.
    pub op: Op,
    /// Requests, failed ones included.
    pub count: u64,
    /// Failed requests.
    pub errors: u64,
    /// Payload of the requests that succeeded.
    pub bytes: u64,
    /// Sum of all latencies.
    pub total_micros: u64,
    /// Upper bound of the median latency.
    pub p50_micros: u64,
    /// Upper bound of the 99th percentile.
    pub p99_micros: u64,
}

impl StoreStats {
    /// One entry per operation, in the order of [`Op::ALL`].
    pub fn snapshot(&self) -> Vec<OpSnapshot> {
        Op::ALL.iter().zip(&self.ops).map(|(op, stats)| stats.snapshot(*op)).collect()
    }

    fn record<T>(
        &self,
        op: Op,
        begin: Instant,
        bytes: impl FnOnce(&T) -> u64,
        result: Result<T>,
    ) -> Result<T> {
        let stats = &self.ops[op as usize];
        stats.count.fetch_add(1, Relaxed);
        stats.time(begin.elapsed());
        match &result {
            Ok(value) => stats.bytes.fetch_add(bytes(value), Relaxed),
            Err(_) => stats.errors.fetch_add(1, Relaxed),
        };
        result
    }
}

impl OpStats {
    fn time(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Relaxed);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
    }

    fn snapshot(&self, op: Op) -> OpSnapshot {
        let buckets = self.buckets.each_ref().map(|b| b.load(Relaxed));
        OpSnapshot {
            op,
            count: self.count.load(Relaxed),
            errors: self.errors.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            total_micros: self.micros.load(Relaxed),
            p50_micros: quantile(&buckets, 50),
            p99_micros: quantile(&buckets, 99),
        }
    }
}

/// Upper end of the bucket that holds the given percentile; 0 without any measurement.
fn quantile(buckets: &[u64; BUCKETS], percent: u64) -> u64 {
    let total: u64 = buckets.iter().sum();
    let rank = (total * percent).div_ceil(100).max(1);
    let mut seen = 0;
    for (i, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= rank {
            return 1 << i;
        }
    }
    0
}

/// See the module head.
#[derive(Debug)]
pub struct InstrumentStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Store>,
    stats: Arc<StoreStats>,
}

impl InstrumentStore {
    /// Wraps `inner`; what happens is added to `stats`.
    pub fn new(inner: Arc<dyn Store>, stats: Arc<StoreStats>) -> Self {
        Self(Arc::new(Shared { inner, stats }))
    }
}

/// No payload.
fn none<T>(_: &T) -> u64 {
    0
}

fn len(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

fn tail_len(tail: &Tail) -> u64 {
    tail.bytes.len() as u64
}

#[async_trait]
impl Store for InstrumentStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        let (begin, size) = (Instant::now(), body.len() as u64);
        let result = self.0.inner.put(key, body).await;
        self.0.stats.record(Op::Put, begin, |()| size, result)
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        let begin = Instant::now();
        let result = self.0.inner.writer(key).await;
        let inner = self.0.stats.record(Op::Writer, begin, none, result)?;
        Ok(Box::new(InstrumentSink { inner, stats: self.0.stats.clone() }))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let begin = Instant::now();
        let result = self.0.inner.get_range(key, range).await;
        self.0.stats.record(Op::GetRange, begin, len, result)
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let begin = Instant::now();
        let result = self.0.inner.get_tail(key, n).await;
        self.0.stats.record(Op::GetTail, begin, tail_len, result)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let begin = Instant::now();
        let result = self.0.inner.head(key).await;
        self.0.stats.record(Op::Head, begin, none, result)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let begin = Instant::now();
        let result = self.0.inner.delete(key).await;
        self.0.stats.record(Op::Delete, begin, none, result)
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        self.0.inner.list()
    }

    async fn flush(&self) -> Result<()> {
        let begin = Instant::now();
        let result = self.0.inner.flush().await;
        self.0.stats.record(Op::Flush, begin, none, result)
    }

    async fn check(&self) -> Result<()> {
        self.0.inner.check().await
    }

    fn blocking(&self) -> Option<&dyn BlockingStore> {
        self.0.inner.blocking()?;
        Some(&*self.0)
    }
}

impl Shared {
    fn blocking<T>(
        &self,
        op: Op,
        bytes: impl FnOnce(&T) -> u64,
        run: impl FnOnce(&dyn BlockingStore) -> Result<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let gone = || super::StoreError::invalid(super::Subject::Store, "it has no blocking side");
        let result = self.inner.blocking().ok_or_else(gone).and_then(run);
        self.stats.record(op, begin, bytes, result)
    }
}

impl BlockingStore for Shared {
    fn put(&self, key: &ObjectKey, body: &[u8]) -> Result<()> {
        self.blocking(Op::Put, |()| body.len() as u64, |s| s.put(key, body))
    }

    fn writer(&self, key: &ObjectKey) -> Result<Box<dyn BlockingSink>> {
        let inner = self.blocking(Op::Writer, none, |s| s.writer(key))?;
        Ok(Box::new(InstrumentSink { inner, stats: self.stats.clone() }))
    }

    fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.blocking(Op::GetRange, len, |s| s.get_range(key, range))
    }

    fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        self.blocking(Op::GetTail, tail_len, |s| s.get_tail(key, n))
    }

    fn delete(&self, key: &ObjectKey) -> Result<()> {
        self.blocking(Op::Delete, none, |s| s.delete(key))
    }

    fn flush(&self) -> Result<()> {
        self.blocking(Op::Flush, none, |s| s.flush())
    }
}

/// Either kind of sink.
struct InstrumentSink<S: ?Sized> {
    stats: Arc<StoreStats>,
    inner: Box<S>,
}

#[async_trait]
impl ObjectSink for InstrumentSink<dyn ObjectSink> {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let (begin, size) = (Instant::now(), bytes.len() as u64);
        let result = self.inner.write(bytes).await;
        self.stats.record(Op::Write, begin, |()| size, result)
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let begin = Instant::now();
        let result = self.inner.finish().await;
        self.stats.record(Op::Finish, begin, none, result)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

impl BlockingSink for InstrumentSink<dyn BlockingSink> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let begin = Instant::now();
        let result = self.inner.write(bytes);
        self.stats.record(Op::Write, begin, |()| bytes.len() as u64, result)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let begin = Instant::now();
        let result = self.inner.finish();
        self.stats.record(Op::Finish, begin, none, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectId;
    use crate::store::{LocalStore, MemoryStore, conformance};

    #[tokio::test]
    async fn conforms() {
        let memory = Arc::new(MemoryStore::new());
        conformance::run(Arc::new(InstrumentStore::new(memory, Arc::default()))).await;
        let dir = tempfile::tempdir().expect("tempdir");
        let local = Arc::new(LocalStore::open(dir.path()).expect("open"));
        let stats = Arc::new(StoreStats::default());
        let store = InstrumentStore::new(local, stats);
        assert!(store.blocking().is_some(), "the fast side is kept");
        conformance::run(Arc::new(store)).await;
    }

    #[tokio::test]
    async fn counts_requests_bytes_and_errors() {
        let stats = Arc::new(StoreStats::default());
        let store = InstrumentStore::new(Arc::new(MemoryStore::new()), stats.clone());
        let key = ObjectKey::new(ObjectId([1; 16]));
        store.put(&key, Bytes::from_static(b"12345")).await.expect("put");
        store.get_range(&key, 0..2).await.expect("range");
        store.get_range(&key, 0..9).await.expect_err("too far");
        let find = |op| stats.snapshot().into_iter().find(|s| s.op == op).expect("op");
        let (put, get) = (find(Op::Put), find(Op::GetRange));
        assert_eq!((put.count, put.errors, put.bytes), (1, 0, 5));
        assert_eq!((get.count, get.errors, get.bytes), (2, 1, 2));
        assert_eq!(find(Op::Head).count, 0);
    }

    #[test]
    fn quantiles_come_from_the_buckets() {
        let stats = OpStats::default();
        (0..98).for_each(|_| stats.time(Duration::from_micros(100)));
        (0..2).for_each(|_| stats.time(Duration::from_secs(3600)));
        let snapshot = stats.snapshot(Op::Put);
        assert_eq!((snapshot.p50_micros, snapshot.p99_micros), (128, 1 << 31));
        assert_eq!(OpStats::default().snapshot(Op::Put).p50_micros, 0);
    }
}
