//! Decorator: bytes per second and requests in flight.
//!
//! The rate is a line of credit: each transfer books its bytes at the end of the queue and waits
//! until its turn is over, so transfers of any size pass and the average holds. A pause of the
//! users earns no credit beyond `BURST`. Reads of unknown length book what they turned out to be.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use super::{ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError, Subject, Tail};

/// Unused time that may be made up for.
const BURST: Duration = Duration::from_millis(100);

/// See the module head.
#[derive(Debug)]
pub struct LimitStore {
    inner: Arc<dyn Store>,
    rate: Option<Arc<Rate>>,
    in_flight: Semaphore,
}

/// Books transfers one after another.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Rate {
    /// Waits until `bytes` may have passed.
    async fn pass(&self, bytes: u64) {
        let until = self.book(bytes, Instant::now());
        sleep_until(until).await;
    }

    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        *free_at = (*free_at).max(earliest) + takes;
        *free_at
    }
}

impl LimitStore {
    /// Wraps `inner`: at most `bytes_per_second` (not 0) and `in_flight` requests at a time.
    pub fn new(inner: Arc<dyn Store>, bytes_per_second: Option<u64>, in_flight: usize) -> Self {
        let rate = bytes_per_second.map(|rate| Rate {
            bytes_per_second: rate.max(1),
            free_at: Mutex::new(Instant::now()),
        });
        let in_flight = Semaphore::new(in_flight.clamp(1, Semaphore::MAX_PERMITS));
        Self { inner, rate: rate.map(Arc::new), in_flight }
    }

    async fn pass(&self, bytes: u64) {
        if let Some(rate) = &self.rate {
            rate.pass(bytes).await;
        }
    }

    async fn slot(&self) -> Result<SemaphorePermit<'_>> {
        let closed = |_| StoreError::unavailable(Subject::Store, "the store is shutting down");
        self.in_flight.acquire().await.map_err(closed)
    }
}

#[async_trait]
impl Store for LimitStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        let _slot = self.slot().await?;
        self.pass(body.len() as u64).await;
        self.inner.put(key, body).await
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        let _slot = self.slot().await?;
        let inner = self.inner.writer(key).await?;
        Ok(Box::new(LimitSink { inner, rate: self.rate.clone() }))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let _slot = self.slot().await?;
        let bytes = self.inner.get_range(key, range).await?;
        self.pass(bytes.len() as u64).await;
        Ok(bytes)
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let _slot = self.slot().await?;
        let tail = self.inner.get_tail(key, n).await?;
        self.pass(tail.bytes.len() as u64).await;
        Ok(tail)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let _slot = self.slot().await?;
        self.inner.head(key).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let _slot = self.slot().await?;
        self.inner.delete(key).await
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        self.inner.list()
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
}

struct LimitSink {
    inner: Box<dyn ObjectSink>,
    rate: Option<Arc<Rate>>,
}

#[async_trait]
impl ObjectSink for LimitSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if let Some(rate) = &self.rate {
            rate.pass(bytes.len() as u64).await;
        }
        self.inner.write(bytes).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish().await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectId;
    use crate::store::fault::{Fault, FaultStore};
    use crate::store::op::Op;
    use crate::store::{MemoryStore, conformance};

    fn limited(rate: Option<u64>, in_flight: usize) -> LimitStore {
        LimitStore::new(Arc::new(MemoryStore::new()), rate, in_flight)
    }

    #[tokio::test]
    async fn conforms() {
        conformance::run(Arc::new(limited(Some(1 << 40), 2))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_rate_holds_in_both_directions() {
        let store = limited(Some(1000), 100);
        let key = ObjectKey::new(ObjectId([1; 16]));
        let begin = Instant::now();
        for _ in 0..10 {
            store.put(&key, Bytes::from(vec![0; 500])).await.expect("put");
        }
        let wrote = begin.elapsed();
        assert!((4.8..=5.0).contains(&wrote.as_secs_f64()), "{wrote:?}");
        store.get_range(&key, 0..500).await.expect("range");
        store.get_tail(&key, 500).await.expect("tail");
        let read = begin.elapsed() - wrote;
        assert!((0.9..=1.1).contains(&read.as_secs_f64()), "{read:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_a_slot() {
        let faulty = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
        faulty.inject(Op::Head, Fault::Delay(Duration::from_secs(1)), 6);
        let store = LimitStore::new(faulty, None, 2);
        let begin = Instant::now();
        let key = ObjectKey::new(ObjectId([1; 16]));
        futures::future::join_all((0..6).map(|_| store.head(&key))).await;
        assert_eq!(begin.elapsed().as_secs(), 3);
    }
}
