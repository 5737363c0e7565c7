//! Decorator for tests: a store that fails, hangs and lies on request.
//!
//! [`FaultStore::inject`] queues faults per operation; each request takes the next one of its
//! operation. Damage to reads shows what a bad backend would serve, damage to writes what it would
//! keep; a reader must answer either with the right bytes or with an error.
//!
//! [`FaultStore::by_chance`] rolls dice instead, by [`Chances`] in a file that may change at any time: so a test
//! spoils the store of a running agent ([`VARIABLE`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
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
    /// Never answers, and does what was asked for when nobody expects it any more (where an object is made).
    Overdue,
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

/// Names the file with the [`Chances`] of every store of an agent, in a build with
/// [fail points](crate::failpoint).
pub const VARIABLE: &str = "HSM_STORE_FAULTS";

/// How many requests in a thousand meet which fault, as in `fail = 100, stall = 20`; what is not named is 0.
/// No fault among them makes an object wrong for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chances {
    /// [`Fault::Unavailable`] or [`Fault::Failed`].
    pub fail: u16,
    /// [`Fault::DoneButUnavailable`], where something is changed.
    pub late: u16,
    /// [`Fault::Overdue`], where an object is made.
    pub overdue: u16,
    /// [`Fault::Stall`].
    pub stall: u16,
    /// [`Fault::Delay`] of up to 200 ms.
    pub delay: u16,
    /// [`Fault::FlipBit`] or [`Fault::Truncate`], where something is read.
    pub damage: u16,
}

impl FromStr for Chances {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut chances = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no ="))?;
            let value = value.trim().parse().map_err(|e| format!("{part:?}: {e}"))?;
            match name.trim() {
                "fail" => chances.fail = value,
                "late" => chances.late = value,
                "overdue" => chances.overdue = value,
                "stall" => chances.stall = value,
                "delay" => chances.delay = value,
                "damage" => chances.damage = value,
                other => return Err(format!("no fault is called {other:?}")),
            }
        }
        Ok(chances)
    }
}

impl Chances {
    /// What the dice, a number below 1000 and one below 65536, make of a request.
    fn fault(self, op: Op, dice: u16, other: u16) -> Option<Fault> {
        let changes = !matches!(op, Op::GetRange | Op::GetTail | Op::Head);
        let reads = matches!(op, Op::GetRange | Op::GetTail);
        let makes = matches!(op, Op::Put | Op::Finish);
        let even = other.is_multiple_of(2);
        let delay = Fault::Delay(Duration::from_millis(u64::from(other) % 200));
        let damaged = if even { Fault::FlipBit(other.into()) } else { Fault::Truncate(1) };
        let table = [
            (self.fail, true, if even { Fault::Unavailable } else { Fault::Failed }),
            (self.late, changes, Fault::DoneButUnavailable),
            (self.overdue, makes, Fault::Overdue),
            (self.stall, true, Fault::Stall),
            (self.delay, true, delay),
            (self.damage, reads, damaged),
        ];
        let mut from = 0;
        for (chance, applies, fault) in table {
            if (from..from + chance).contains(&dice) {
                return applies.then_some(fault);
            }
            from += chance;
        }
        None
    }
}

#[derive(Debug, Default)]
struct Script {
    queue: Mutex<VecDeque<(Op, Fault)>>,
    chances: Option<PathBuf>,
    fired: AtomicUsize,
}

impl Script {
    fn next(&self, op: Op) -> Option<Fault> {
        let fault = self.queued(op).or_else(|| self.by_chance(op))?;
        self.fired.fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }

    fn queued(&self, op: Op) -> Option<Fault> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let at = queue.iter().position(|(o, _)| *o == op)?;
        queue.remove(at).map(|(_, fault)| fault)
    }

    /// A file that is not there, or that somebody is just writing, means no faults.
    fn by_chance(&self, op: Op) -> Option<Fault> {
        let text = std::fs::read_to_string(self.chances.as_ref()?).ok()?;
        let chances: Chances = text.parse().ok()?;
        chances.fault(op, rand::random_range(0..1000), rand::random())
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

/// Longer than the requests' deadline in the suite.
const OVERDUE: Duration = Duration::from_secs(3);

/// Does `work` when nobody waits for it any more.
async fn overdue(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    tokio::spawn(async move {
        tokio::time::sleep(OVERDUE).await;
        let done = work.await;
        tracing::debug!(?done, "injected fault: done when nobody waits for it");
    });
    std::future::pending().await
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

    /// Wraps `inner`; each request meets what the [`Chances`] in this file make of it.
    pub fn by_chance(inner: Arc<dyn Store>, chances: PathBuf) -> Self {
        let script = Script { chances: Some(chances), ..Script::default() };
        Self { inner, script: Arc::new(script) }
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
        if fault == Some(Fault::Overdue) {
            let (inner, key) = (Arc::clone(&self.inner), *key);
            return overdue(async move { inner.put(&key, body).await }).await;
        }
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
        if fault == Some(Fault::Overdue) {
            return overdue(self.inner.finish()).await;
        }
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

    #[test]
    fn chances_are_met_as_often_as_they_say() {
        let chances: Chances = "fail = 100, stall=20,damage = 30".parse().expect("parse");
        assert_eq!(chances, Chances { fail: 100, stall: 20, damage: 30, ..Chances::default() });
        let count = |op| (0..1000).filter(|dice| chances.fault(op, *dice, 0).is_some()).count();
        assert_eq!((count(Op::GetRange), count(Op::Put)), (150, 120));
        assert_eq!("".parse(), Ok(Chances::default()));
        assert!("fail".parse::<Chances>().is_err() && "burn = 1".parse::<Chances>().is_err());
    }

    #[tokio::test]
    async fn a_file_that_changes_spoils_a_store_and_heals_it() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let store = FaultStore::by_chance(Arc::new(MemoryStore::new()), file.path().to_path_buf());
        store.flush().await.expect("an empty file means no faults");
        std::fs::write(file.path(), "fail = 1000").expect("write");
        store.flush().await.expect_err("every request fails");
        std::fs::remove_file(file.path()).expect("remove");
        store.flush().await.expect("no file, no faults");
        assert_eq!(store.fired(), 1);
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
