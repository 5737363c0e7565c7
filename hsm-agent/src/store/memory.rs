//! A store in memory: the reference for the others, and the one that tests use.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::error::check_range;
use super::{ObjectKey, ObjectSink, ObjectStat, Result, Store, StoreError, Tail};

type Objects = HashMap<ObjectKey, (Bytes, SystemTime)>;

/// Objects in a map. Clones share the map.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A map operation cannot leave the map half-changed, so a panicked holder does not matter.
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &ObjectKey) -> Result<Bytes> {
        let found = self.lock().get(key).map(|(bytes, _)| bytes.clone());
        found.ok_or_else(|| StoreError::not_found(key))
    }

    fn insert(&self, key: ObjectKey, body: Bytes) {
        self.lock().insert(key, (body, SystemTime::now()));
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<()> {
        self.insert(*key, body);
        Ok(())
    }

    async fn writer(&self, key: &ObjectKey) -> Result<Box<dyn ObjectSink>> {
        Ok(Box::new(MemorySink { store: self.clone(), key: *key, body: Vec::new() }))
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        check_range(key, &range)?;
        let object = self.get(key)?;
        if range.end > object.len() as u64 {
            return Err(StoreError::short(key, range.end, object.len() as u64));
        }
        Ok(object.slice(range.start as usize..range.end as usize))
    }

    async fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let object = self.get(key)?;
        let object_size = object.len() as u64;
        let start = object_size.saturating_sub(n) as usize;
        Ok(Tail { bytes: object.slice(start..), object_size })
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let objects = self.lock();
        let (bytes, modified) = objects.get(key).ok_or_else(|| StoreError::not_found(key))?;
        Ok(ObjectStat { key: *key, size: bytes.len() as u64, modified: *modified })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }

    fn list(&self) -> BoxStream<'static, Result<ObjectStat>> {
        let stat = |(key, (bytes, modified)): (&ObjectKey, &(Bytes, SystemTime))| {
            Ok(ObjectStat { key: *key, size: bytes.len() as u64, modified: *modified })
        };
        let all: Vec<_> = self.lock().iter().map(stat).collect();
        stream::iter(all).boxed()
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

struct MemorySink {
    store: MemoryStore,
    key: ObjectKey,
    body: Vec<u8>,
}

#[async_trait]
impl ObjectSink for MemorySink {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.body.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.store.insert(self.key, self.body.into());
        Ok(())
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        crate::store::conformance::run(Arc::new(MemoryStore::new())).await;
    }
}
