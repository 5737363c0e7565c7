//! A store in a local directory.
//!
//! ```text
//! root/hsm-store       which store this is (`identity`)
//! root/00 … root/ff    fan-out directories, made when first needed
//! root/00/1122…        one object each
//! root/tmp/…           objects that are being written
//! ```
//!
//! A streamed or large object is written under `tmp/` and renamed to its place. What a crash leaves
//! in `tmp/` is removed at a later open when it is a day old. A small object is created under its
//! own name and written with one call: a quarter cheaper. Should the process be killed between the
//! two, a torn object stays, as after a power cut: it does not pass for a whole one (the format
//! ends in a trailer), its identity is random and known to nobody, and the audit removes objects
//! that no record refers to.
//!
//! There is no fsync per object. Durability is bought in bulk by [`Store::flush`]: one `syncfs` for
//! everything before it (`barrier`). Measurements, and why not `object_store`'s local backend:
//! `docs/adr/0001-local-store.md`.
//!
//! The async operations hop to a blocking thread, so that a slow disk or a dead NFS server stalls
//! no runtime thread and a deadline can still fire; [`Store::blocking`] is the way without the hop.

mod barrier;
mod dir;
mod errno;
mod identity;
mod place;
mod sink;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_stream::wrappers::ReceiverStream;

use super::error::cause;
use super::{
    BlockingSink, BlockingStore, ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError,
    Subject, Tail,
};
use dir::Dir;
pub use identity::Remembered;
use place::Place;
use sink::LocalSink;

/// Objects as files below a directory. Clones share the open directory.
#[derive(Debug, Clone)]
pub struct LocalStore {
    place: Arc<Place>,
}

/// Listing stops reading directories while this many results wait for their reader.
const LIST_AHEAD: usize = 256;

impl LocalStore {
    /// Opens the store in the directory `path`, which must exist: a store whose file system is not
    /// mounted should be an error, not a new store below the mount point.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, None)
    }

    /// [`open`](Self::open), only if the directory is the store that is remembered. A store that
    /// is not there now, but was once, is [`StoreError::Unavailable`] to each operation until it is.
    pub fn open_as(path: &Path, remembered: Option<Remembered>) -> Result<Self> {
        Ok(Self { place: Arc::new(Place::open(path, remembered)?) })
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Runs `f` where blocking is allowed.
    async fn hop<T, F>(&self, subject: impl Into<Subject>, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Dir) -> Result<T> + Send + 'static,
    {
        let place = Arc::clone(&self.place);
        hop(subject.into(), move || f(place.dir()?)).await
    }
}

/// Runs `f` on a blocking thread; its panic or a shutdown of the runtime becomes an error.
async fn hop<T: Send + 'static>(
    subject: Subject,
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(StoreError::Failed { subject, source: cause(e) }),
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        let key = *key;
        self.hop(&key, move |dir| dir.put(&key, &body)).await
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        let (key, place) = (*key, Arc::clone(&self.place));
        let create = move || LocalSink::create(Arc::clone(place.dir()?), key);
        let sink = hop((&key).into(), create).await?;
        Ok(Box::new(AsyncSink { key, sink: Some(sink) }))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        let key = *key;
        self.hop(&key, move |dir| dir.get_range(&key, range)).await
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let key = *key;
        self.hop(&key, move |dir| dir.get_tail(&key, n)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let key = *key;
        self.hop(&key, move |dir| dir.head(&key)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let key = *key;
        self.hop(&key, move |dir| dir.delete(&key)).await
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        let place = Arc::clone(&self.place);
        let (tx, rx) = tokio::sync::mpsc::channel(LIST_AHEAD);
        // Ends by itself when the receiver is dropped.
        tokio::task::spawn_blocking(move || match place.dir() {
            Ok(dir) => dir.list(&mut |item| tx.blocking_send(item).is_ok()),
            Err(e) => drop(tx.blocking_send(Err(e))),
        });
        ReceiverStream::new(rx).boxed()
    }

    async fn flush(&self) -> Result<()> {
        self.hop(Subject::Store, Dir::flush).await
    }

    async fn check(&self) -> Result<()> {
        self.hop(Subject::Store, Dir::check).await
    }

    fn blocking(&self) -> Option<&dyn BlockingStore> {
        Some(&self.place)
    }
}

/// On the shared place and not on [`LocalStore`], whose methods of these names are async.
impl BlockingStore for Arc<Place> {
    fn put(&self, key: &ObjectKey, body: &[u8]) -> Result<()> {
        self.dir()?.put(key, body)
    }

    fn writer(&self, key: &ObjectKey) -> Result<Box<dyn BlockingSink>> {
        Ok(Box::new(LocalSink::create(Arc::clone(self.dir()?), *key)?))
    }

    fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        self.dir()?.get_range(key, range)
    }

    fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        self.dir()?.get_tail(key, n)
    }

    fn delete(&self, key: &ObjectKey) -> Result<()> {
        self.dir()?.delete(key)
    }

    fn flush(&self) -> Result<()> {
        self.dir()?.flush()
    }
}

/// The sink with a hop per write. `sink` is away while a write runs; a write that was cancelled
/// half-way leaves `None`, and nothing can be finished any more.
struct AsyncSink {
    key: ObjectKey,
    sink: Option<LocalSink>,
}

impl AsyncSink {
    fn take(&mut self) -> Result<LocalSink> {
        let gone = || StoreError::invalid(&self.key, "a write to this object has failed before");
        self.sink.take().ok_or_else(gone)
    }
}

#[async_trait]
impl ObjectSink for AsyncSink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut sink = self.take()?;
        let write = move || sink.write(&bytes).map(|()| sink);
        self.sink = Some(hop((&self.key).into(), write).await?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let sink = self.take()?;
        hop((&self.key).into(), move || Box::new(sink).finish()).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        drop(self.sink.take());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
