//! Decorator: tries again what may succeed a little later, within a deadline.
//!
//! A blocked reader waits behind every attempt, so the deadline spans all of them: when it passes,
//! the attempt that runs is dropped. Pauses double from `FIRST_PAUSE` to `LONGEST_PAUSE`, each
//! shortened by a random part of up to a half, so that many waiters do not return in step.
//!
//! Pieces of a streamed object are not repeated here (the bytes before them are gone); a backend
//! repeats its own requests. They get the deadline. A listing is passed through.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    BlockingStore, ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError, Subject, Tail,
};

/// Long enough for a restarted server's socket, short enough for a waiting reader.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// A store that was away for long is asked this often.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// For all attempts of one operation together.
    pub deadline: Duration,
}

/// See the module head.
#[derive(Debug)]
pub struct RetryStore {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
}

impl RetryStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }

    async fn run<T, F>(&self, subject: impl Into<Subject>, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let (subject, end) = (subject.into(), Instant::now() + self.policy.deadline);
        let mut attempts_left = self.policy.retries;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match within(subject, self.policy.deadline, end, attempt()).await {
                Err(e) if e.is_retryable() && attempts_left > 0 => e,
                done => return done,
            };
            attempts_left -= 1;
            let jittered = pause.mul_f64(rand::random_range(0.5..=1.0));
            if Instant::now() + jittered >= end {
                return Err(error);
            }
            tracing::debug!(%error, pause = ?jittered, "the store is asked again");
            sleep(jittered).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The result of `work`, or an error when `end` comes first.
async fn within<T>(
    subject: Subject,
    deadline: Duration,
    end: Instant,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match timeout_at(end, work).await {
        Ok(result) => result,
        Err(_) => {
            let why = format!("no answer within {}", humantime::format_duration(deadline));
            Err(StoreError::unavailable(subject, why))
        }
    }
}

#[async_trait]
impl Store for RetryStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        self.run(key, || self.inner.put(key, body.clone())).await
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        let inner = self.run(key, || self.inner.writer(key)).await?;
        let sink = DeadlineSink { key: *key, deadline: self.policy.deadline, late: false, inner };
        Ok(Box::new(sink))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.run(key, || self.inner.get_range(key, range.clone())).await
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        self.run(key, || self.inner.get_tail(key, n)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.run(key, || self.inner.head(key)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        self.run(key, || self.inner.delete(key)).await
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        self.inner.list()
    }

    /// No deadline: syncing a slow disk may take long, and nobody blocks a reader for it.
    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn check(&self) -> Result<()> {
        let end = Instant::now() + self.policy.deadline;
        within(Subject::Store, self.policy.deadline, end, self.inner.check()).await
    }

    fn blocking(&self) -> Option<&dyn BlockingStore> {
        self.inner.blocking()
    }
}

struct DeadlineSink {
    key: ObjectKey,
    deadline: Duration,
    /// A write was dropped in its middle: nobody knows what the sink holds.
    late: bool,
    inner: Box<dyn ObjectSink>,
}

impl DeadlineSink {
    fn check(&self) -> Result<()> {
        if self.late {
            return Err(StoreError::invalid(&self.key, "a write to this object has failed before"));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectSink for DeadlineSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.check()?;
        self.late = true;
        let end = Instant::now() + self.deadline;
        within((&self.key).into(), self.deadline, end, self.inner.write(bytes)).await?;
        self.late = false;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.check()?;
        let end = Instant::now() + self.deadline;
        within((&self.key).into(), self.deadline, end, self.inner.finish()).await
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

    const KEY: ObjectId = ObjectId([7; 16]);

    fn faulty(retries: u32, deadline: Duration) -> (Arc<FaultStore>, RetryStore) {
        let inner = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
        (inner.clone(), RetryStore::new(inner, RetryPolicy { retries, deadline }))
    }

    #[tokio::test]
    async fn conforms() {
        let policy = RetryPolicy { retries: 2, deadline: Duration::from_secs(60) };
        conformance::run(Arc::new(RetryStore::new(Arc::new(MemoryStore::new()), policy))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn passing_trouble_is_not_seen() {
        let (inner, store) = faulty(3, Duration::from_secs(60));
        let key = ObjectKey::new(KEY);
        inner.inject(Op::Put, Fault::Unavailable, 3);
        store.put(&key, Bytes::from_static(b"x")).await.expect("put");
        inner.inject(Op::GetTail, Fault::Unavailable, 3);
        assert_eq!(store.get_tail(&key, 9).await.expect("tail").object_size, 1);
        assert_eq!(inner.fired(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_trouble_is_reported_after_the_attempts() {
        let (inner, store) = faulty(3, Duration::from_secs(60));
        inner.inject(Op::Head, Fault::Unavailable, 99);
        let e = store.head(&ObjectKey::new(KEY)).await.expect_err("head");
        assert!(e.is_retryable(), "the caller may try later: {e}");
        assert_eq!(inner.fired(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_pass_is_not_repeated() {
        let (inner, store) = faulty(3, Duration::from_secs(60));
        for fault in [Fault::Denied, Fault::Full, Fault::Failed, Fault::NotFound] {
            inner.inject(Op::Delete, fault, 1);
            store.delete(&ObjectKey::new(KEY)).await.expect_err("delete");
        }
        assert_eq!(inner.fired(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_left_at_the_deadline() {
        let (inner, store) = faulty(99, Duration::from_secs(10));
        let begin = Instant::now();
        inner.inject(Op::GetRange, Fault::Unavailable, 2);
        inner.inject(Op::GetRange, Fault::Stall, 1);
        let e = store.get_range(&ObjectKey::new(KEY), 0..1).await.expect_err("range");
        assert!(e.is_retryable(), "{e}");
        assert_eq!(begin.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_sink_is_left_and_stays_unusable() {
        let (inner, store) = faulty(3, Duration::from_secs(10));
        let mut sink = store.writer(&ObjectKey::new(KEY)).await.expect("writer");
        inner.inject(Op::Write, Fault::Stall, 1);
        sink.write(Bytes::from_static(b"a")).await.expect_err("stalled");
        sink.write(Bytes::from_static(b"b")).await.expect_err("after the stall");
        sink.finish().await.expect_err("finish after the stall");
        store.head(&ObjectKey::new(KEY)).await.expect_err("nothing became visible");
    }
}
