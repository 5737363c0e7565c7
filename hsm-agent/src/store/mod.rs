//! Object stores: where the bytes of cold files live.
//!
//! [`Store`] is the small interface that archive and recall stand on. Backends implement it; decorators wrap any store
//! and are stores themselves. [`object`] says what the bytes of one object mean; backends do not care.
//!
//! Three promises carry the rest of the system, and [`conformance`] holds every backend to them:
//!
//! 1. **Whole or absent.** When `put` or `finish` has succeeded the object is there as a whole; when
//!    it has failed, or a writer was dropped, there is none. (After a crash an object that no
//!    [`Store::flush`] covered may be visible and torn. Its trailer and hashes give that away, and
//!    nothing refers to it: see promise 3.)
//! 2. **Exact or error.** A read gives exactly the bytes that were asked for. An object that ends
//!    too early is [`StoreError::Corrupt`], never a short buffer.
//! 3. **Durable when `flush` says so.** Everything whose `put` or `finish` returned before
//!    `flush` was called survives a power cut once `flush` has returned `Ok`. The archive writes
//!    its record, and so makes a file eligible for release, only after that. If a flush fails,
//!    no later flush of the same store value may succeed for the objects it failed for.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use config::{StoreConfig, StoreConfigError, StoreKind, open, open_with_stats};
pub use error::{Cause, Result, StoreError, Subject};
pub use instrument::{OpSnapshot, StoreStats};
pub use key::ObjectKey;
pub use local::{LocalStore, Remembered};
pub use memory::MemoryStore;

mod config;
pub mod conformance;
mod error;
pub mod fault;
pub mod instrument;
mod key;
pub mod limit;
mod local;
mod memory;
pub mod object;
pub mod op;
pub mod remote;
pub mod retry;

/// What a store says about one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectStat {
    /// The object.
    pub key: ObjectKey,
    /// Its length in bytes, trailer included.
    pub size: u64,
    /// When the store received it, by the store's clock.
    pub modified: SystemTime,
}

/// The end of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The last bytes: as many as were asked for, or the whole object if it is shorter.
    pub bytes: Bytes,
    /// Length of the whole object.
    pub object_size: u64,
}

/// A place for immutable objects. See the module head for what every implementation promises.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Stores a whole object in one step. Doing it again with the same bytes is harmless.
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()>;

    /// Starts an object that is written piece by piece.
    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>>;

    /// Exactly the bytes of `range`. An empty or reversed range is [`StoreError::Invalid`], a
    /// range beyond the end of the object [`StoreError::Corrupt`].
    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes>;

    /// The last `n` bytes and the object's length, in one request.
    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail>;

    /// Length and age of an object.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat>;

    /// Removes an object. One that is not there counts as removed.
    async fn delete(&self, key: &ObjectKey) -> Result<()>;

    /// Every complete object, in no particular order. Names that are no object keys are skipped.
    /// Call it within a runtime.
    fn list(&self) -> BoxStream<'static, Result<ObjectStat>>;

    /// Durability barrier (promise 3 of the module head).
    async fn flush(&self) -> Result<()>;

    /// Can the store be reached, written and read? Leaves nothing behind. For `hsm doctor`.
    async fn check(&self) -> Result<()>;

    /// Synchronous operations, where the backend is synchronous anyway, for callers on threads
    /// that may block: they save the hop to a blocking thread and back that each small object would pay.
    fn blocking(&self) -> Option<&dyn BlockingStore> {
        None
    }
}

/// An object that is being written. It becomes visible with [`finish`](Self::finish); dropped, it never was.
#[async_trait]
pub trait ObjectSink: Send {
    /// Appends bytes. After an error the sink is good for [`abort`](Self::abort) only.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Makes the object visible (durable only after [`Store::flush`]).
    async fn finish(self: Box<Self>) -> Result<()>;

    /// Gives up and frees what the store holds already.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// The operations of [`Store`] that the archive and recall workers do often, without a runtime.
/// Same promises. One attempt only: on a retryable error the caller may turn to the async side.
pub trait BlockingStore: Send + Sync {
    /// As [`Store::put`].
    fn put(&self, key: &ObjectKey, body: &[u8]) -> Result<()>;

    /// As [`Store::writer`]. Dropping the sink aborts it.
    fn writer(&self, key: &ObjectKey) -> Result<Box<dyn BlockingSink>>;

    /// As [`Store::get_range`].
    fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes>;

    /// As [`Store::get_tail`].
    fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail>;

    /// As [`Store::delete`].
    fn delete(&self, key: &ObjectKey) -> Result<()>;

    /// As [`Store::flush`].
    fn flush(&self) -> Result<()>;
}

/// Synchronous half of [`ObjectSink`].
pub trait BlockingSink: Send {
    /// Appends bytes. After an error the sink can only be dropped.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the object visible (durable only after a flush).
    fn finish(self: Box<Self>) -> Result<()>;
}
