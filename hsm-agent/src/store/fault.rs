//! Decorator for tests: a store that fails, hangs and lies on request.
//!
//! [`FaultStore::inject`] queues faults per operation; each request takes the next one of its
//! operation. Damage to reads shows what a bad backend would serve, damage to writes what it would
//! keep; a reader must answer either with the right bytes or with an error.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::error::text;
use super::op::Op;
use super::{ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError, Subject, Tail};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails with [`StoreError::Unavailable`].
    Unavailable,
    /// Fails with [`StoreError::NotFound`].
    NotFound,
    /// Fails with [`StoreError::Full`].
    Full,
    /// Fails with [`StoreError::Denied`].
    Denied,
    /// Fails with [`StoreError::Failed`].
    Failed,
    /// Does what was asked for, and then says that it was not available.
    DoneButUnavailable,
    /// Never answers.
    Stall,
    /// Answers late.
    Delay(Duration),
    /// One bit of the payload is wrong: this one, counted modulo the payload's length.
    FlipBit(u64),
    /// The payload lacks this many bytes at its end.
    Truncate(usize),
    /// Another object is served instead.
    ServeObject(ObjectKey),
}

/// See the module head.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    script: Arc<Script>,
}

#[derive(Debug, Default)]
struct Script {
    queue: Mutex<VecDeque<(Op, Fault)>>,
    fired: AtomicUsize,
}

impl Script {
    fn next(&self, op: Op) -> Option<Fault> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let at = queue.iter().position(|(o, _)| *o == op)?;
        self.fired.fetch_add(1, Ordering::SeqCst);
        queue.remove(at).map(|(_, fault)| fault)
    }

    /// Takes the next fault; those that need no payload have their effect here.
    async fn before(&self, op: Op, subject: Subject) -> Result<Option<Fault>> {
        let fault = self.next(op);
        let source = text("injected fault");
        match fault {
            Some(Fault::Unavailable) => Err(StoreError::Unavailable { subject, source }),
            Some(Fault::NotFound) => Err(StoreError::NotFound { subject, source }),
            Some(Fault::Full) => Err(StoreError::Full { subject, source }),
            Some(Fault::Denied) => Err(StoreError::Denied { subject, source }),
            Some(Fault::Failed) => Err(StoreError::Failed { subject, source }),
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

/// The payload as the fault leaves it.
fn damage(fault: Option<Fault>, bytes: Bytes) -> Bytes {
    match fault {
        Some(Fault::FlipBit(bit)) if !bytes.is_empty() => {
            let mut bytes = bytes.to_vec();
            let bit = bit % (bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            bytes.into()
        }
        Some(Fault::Truncate(n)) => bytes.slice(..bytes.len().saturating_sub(n)),
        _ => bytes,
    }
}

/// The outcome as the fault reports it.
fn after<T>(fault: Option<Fault>, subject: impl Into<Subject>, result: Result<T>) -> Result<T> {
    match fault {
        Some(Fault::DoneButUnavailable) => result
            .and_then(|_| Err(StoreError::unavailable(subject, "injected fault after the fact"))),
        _ => result,
    }
}

fn served(fault: Option<Fault>, key: &ObjectKey) -> ObjectKey {
    match fault {
        Some(Fault::ServeObject(other)) => other,
        _ => *key,
    }
}

impl FaultStore {
    /// Wraps `inner`; without any [`inject`](Self::inject) nothing changes.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, script: Arc::default() }
    }

    /// The next `times` requests of this kind meet the fault, after those injected before.
    pub fn inject(&self, op: Op, fault: Fault, times: usize) {
        let mut queue = self.script.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(std::iter::repeat_n((op, fault), times));
    }

    /// Forgets what has not fired yet.
    pub fn clear(&self) {
        self.script.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many faults have fired.
    pub fn fired(&self) -> usize {
        self.script.fired.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Store for FaultStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        let fault = self.script.before(Op::Put, key.into()).await?;
        after(fault, key, self.inner.put(key, damage(fault, body)).await)
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        self.script.before(Op::Writer, key.into()).await?;
        let inner = self.inner.writer(key).await?;
        Ok(Box::new(FaultSink { inner, key: *key, script: self.script.clone() }))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let fault = self.script.before(Op::GetRange, key.into()).await?;
        let bytes = self.inner.get_range(&served(fault, key), range).await?;
        Ok(damage(fault, bytes))
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let fault = self.script.before(Op::GetTail, key.into()).await?;
        let tail = self.inner.get_tail(&served(fault, key), n).await?;
        Ok(Tail { bytes: damage(fault, tail.bytes), ..tail })
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let fault = self.script.before(Op::Head, key.into()).await?;
        self.inner.head(&served(fault, key)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let fault = self.script.before(Op::Delete, key.into()).await?;
        after(fault, key, self.inner.delete(key).await)
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        self.inner.list()
    }

    async fn flush(&self) -> Result<()> {
        let fault = self.script.before(Op::Flush, Subject::Store).await?;
        after(fault, Subject::Store, self.inner.flush().await)
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }
}

struct FaultSink {
    key: ObjectKey,
    script: Arc<Script>,
    inner: Box<dyn ObjectSink>,
}

#[async_trait]
impl ObjectSink for FaultSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let fault = self.script.before(Op::Write, (&self.key).into()).await?;
        after(fault, &self.key, self.inner.write(damage(fault, bytes)).await)
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let fault = self.script.before(Op::Finish, (&self.key).into()).await?;
        after(fault, &self.key, self.inner.finish().await)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectId;
    use crate::store::object::{Compression, Extent, FileAttributes, ObjectReader, encode_whole};
    use crate::store::{MemoryStore, conformance};

    fn object(id: ObjectId, content: &[u8]) -> Bytes {
        let extents = vec![Extent { offset: 0, len: content.len() as u64 }];
        let attributes = FileAttributes::default();
        encode_whole(id, content.to_vec(), attributes, extents, Compression::None).expect("encode")
    }

    #[tokio::test]
    async fn conforms() {
        conformance::run(Arc::new(FaultStore::new(Arc::new(MemoryStore::new())))).await;
    }

    #[tokio::test]
    async fn a_reader_notices_every_lie_of_a_store() {
        let (id, other) = (ObjectId([1; 16]), ObjectId([2; 16]));
        let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
        // Longer than a tail, so that chunk and manifest come from two requests.
        let content = vec![7; 100_000];
        for id in [id, other] {
            store.put(&ObjectKey::new(id), object(id, &content)).await.expect("put");
        }
        let swap = Fault::ServeObject(ObjectKey::new(other));
        for fault in [Fault::FlipBit(64 * 1024 * 8 - 40), Fault::Truncate(1), swap] {
            store.inject(Op::GetTail, fault, 1);
            let opened = ObjectReader::open(store.clone(), id).await;
            assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "{fault:?}: {opened:?}");
        }
        for fault in [Fault::FlipBit(3), Fault::FlipBit(799_999), Fault::Truncate(1)] {
            let reader = ObjectReader::open(store.clone(), id).await.expect("open");
            store.inject(Op::GetRange, fault, 1);
            let chunk = reader.chunk(0).await;
            assert!(matches!(chunk, Err(StoreError::Corrupt { .. })), "{fault:?}");
            reader.chunk(0).await.expect("the next answer is right");
        }
    }

    #[tokio::test]
    async fn damage_on_the_way_in_is_noticed_on_the_way_out() {
        let id = ObjectId([1; 16]);
        let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
        for fault in [Fault::FlipBit(100), Fault::Truncate(5)] {
            store.inject(Op::Put, fault, 1);
            store.put(&ObjectKey::new(id), object(id, b"content that matters")).await.expect("put");
            let read = match ObjectReader::open(store.clone(), id).await {
                Ok(reader) => reader.verify_all().await,
                Err(e) => Err(e),
            };
            assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{fault:?}: {read:?}");
        }
    }
}
