//! What every store must do, as a suite that every backend and decorator runs.
//!
//! Not part of the product: unit and integration tests call [`run`] and learn of a violation by a
//! panic that names it. The store may hold other objects; the suite leaves none of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;

use super::object::{
    Chunk, Compression, Extent, FileAttributes, MIN_CHUNK_SHIFT, ObjectEncoder, ObjectReader,
    encode_whole,
};
use super::{ObjectKey, ObjectStat, Store, StoreError};
use crate::core::ObjectId;

/// More than one part of an S3 upload, and no multiple of anything.
const LARGE: usize = (17 << 20) + 4321;

/// Holds `store` to the contract of [`Store`].
pub async fn run(store: Arc<dyn Store>) {
    store.check().await.expect("a good store passes its own check");
    missing_objects(&*store).await;
    put_get_delete(&*store).await;
    bounds(&*store).await;
    empty_object(&*store).await;
    overwrite(&*store).await;
    streamed(&*store).await;
    unfinished(&*store).await;
    listing(&*store).await;
    blocking(store.clone()).await;
    small_object(store.clone()).await;
    large_object(store.clone()).await;
    parallel(store.clone()).await;
    store.check().await.expect("check passes at the end as well");
}

fn key() -> ObjectKey {
    ObjectKey::new(ObjectId::random())
}

/// Incompressible bytes that differ at every position.
fn noise(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

async fn all(store: &dyn Store) -> Vec<ObjectStat> {
    store.list().map(|item| item.expect("list")).collect().await
}

async fn missing_objects(store: &dyn Store) {
    let key = key();
    let not_found = |e: &StoreError| matches!(e, StoreError::NotFound { .. });
    assert!(not_found(&store.head(&key).await.expect_err("head of nothing")));
    assert!(not_found(&store.get_range(&key, 0..1).await.expect_err("range of nothing")));
    assert!(not_found(&store.get_tail(&key, 1).await.expect_err("tail of nothing")));
    store.delete(&key).await.expect("deleting nothing succeeds");
}

async fn put_get_delete(store: &dyn Store) {
    let (key, body) = (key(), noise(5000));
    store.put(&key, body.clone()).await.expect("put");
    store.flush().await.expect("flush");
    assert_eq!(store.get_range(&key, 0..5000).await.expect("all"), body);
    assert_eq!(store.get_range(&key, 17..18).await.expect("one byte"), body[17..18]);
    let stat = store.head(&key).await.expect("head");
    assert_eq!((stat.key, stat.size), (key, 5000));
    let age = SystemTime::now().duration_since(stat.modified).unwrap_or_default();
    assert!(age < Duration::from_secs(3600), "age {age:?}");
    store.delete(&key).await.expect("delete");
    store.head(&key).await.expect_err("head after delete");
    store.delete(&key).await.expect("second delete");
}

async fn bounds(store: &dyn Store) {
    let (key, body) = (key(), noise(100));
    store.put(&key, body.clone()).await.expect("put");
    let corrupt = |e: &StoreError| matches!(e, StoreError::Corrupt { .. });
    for range in [99..101, 100..101, 5000..5001, 0..1 << 40] {
        let e = store.get_range(&key, range.clone()).await.expect_err("short read");
        assert!(corrupt(&e), "{range:?}: {e:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    for range in [7..7, 8..7] {
        let e = store.get_range(&key, range).await.expect_err("no bytes");
        assert!(matches!(e, StoreError::Invalid { .. }), "{e:?}");
    }
    for (n, start) in [(1, 99), (100, 0), (101, 0), (1 << 40, 0)] {
        let tail = store.get_tail(&key, n).await.expect("tail");
        assert_eq!((tail.bytes, tail.object_size), (body.slice(start..), 100), "tail of {n}");
    }
    store.delete(&key).await.expect("delete");
}

async fn empty_object(store: &dyn Store) {
    let key = key();
    store.put(&key, Bytes::new()).await.expect("put");
    assert_eq!(store.head(&key).await.expect("head").size, 0);
    let tail = store.get_tail(&key, 10).await.expect("tail");
    assert_eq!((tail.bytes.len(), tail.object_size), (0, 0));
    store.get_range(&key, 0..1).await.expect_err("a byte of nothing");
    store.delete(&key).await.expect("delete");
}

async fn overwrite(store: &dyn Store) {
    let key = key();
    store.put(&key, noise(10)).await.expect("put");
    store.put(&key, noise(20)).await.expect("put again");
    assert_eq!(store.get_tail(&key, 99).await.expect("tail").bytes, noise(20));
    store.delete(&key).await.expect("delete");
}

async fn streamed(store: &dyn Store) {
    for (len, piece) in [(LARGE, 1 << 20), (100, 7), (0, 1)] {
        let (key, body) = (key(), noise(len));
        let mut sink = store.writer(&key).await.expect("writer");
        for start in (0..len).step_by(piece) {
            sink.write(body.slice(start..len.min(start + piece))).await.expect("write");
        }
        store.head(&key).await.expect_err("visible before it was finished");
        sink.finish().await.expect("finish");
        assert_eq!(store.head(&key).await.expect("head").size, len as u64);
        assert!(store.get_tail(&key, len as u64).await.expect("tail").bytes == body);
        store.delete(&key).await.expect("delete");
    }
}

async fn unfinished(store: &dyn Store) {
    let (dropped, aborted) = (key(), key());
    let mut sink = store.writer(&dropped).await.expect("writer");
    sink.write(noise(100)).await.expect("write");
    drop(sink);
    let mut sink = store.writer(&aborted).await.expect("writer");
    sink.write(noise(LARGE)).await.expect("write");
    sink.abort().await.expect("abort");
    for key in [dropped, aborted] {
        store.head(&key).await.expect_err("an unfinished object is visible");
        assert!(all(store).await.iter().all(|stat| stat.key != key));
    }
}

async fn listing(store: &dyn Store) {
    let mut keys: Vec<_> = (0..40).map(|_| key()).collect();
    for (i, key) in keys.iter().enumerate() {
        store.put(key, noise(i)).await.expect("put");
    }
    let mut listed = all(store).await;
    listed.retain(|stat| keys.contains(&stat.key));
    listed.sort_by_key(|stat| stat.size);
    let sizes: Vec<_> = listed.iter().map(|stat| (stat.key, stat.size)).collect();
    let want: Vec<_> = keys.iter().copied().zip(0..).collect();
    assert_eq!(sizes, want, "each object once, with its size");
    for key in keys.drain(..) {
        store.delete(&key).await.expect("delete");
    }
}

/// The synchronous side, where there is one, sees the same objects.
async fn blocking(store: Arc<dyn Store>) {
    let both_ways = move || {
        let Some(sync) = store.blocking() else { return };
        let (key, body) = (key(), noise(3000));
        sync.put(&key, &body).expect("put");
        assert_eq!(sync.get_range(&key, 5..3000).expect("range"), body[5..]);
        assert_eq!(sync.get_tail(&key, 9999).expect("tail").object_size, 3000);
        let e = sync.get_range(&key, 0..3001).expect_err("short read");
        assert!(matches!(e, StoreError::Corrupt { .. }), "{e:?}");
        sync.delete(&key).expect("delete");
        let mut sink = sync.writer(&key).expect("writer");
        sink.write(&body).expect("write");
        drop(sink);
        sync.get_range(&key, 0..1).expect_err("visible although dropped");
        let mut sink = sync.writer(&key).expect("writer");
        sink.write(&body[..10]).expect("write");
        sink.write(&body[10..]).expect("write");
        sink.finish().expect("finish");
        assert_eq!(sync.get_range(&key, 0..3000).expect("range"), body);
        sync.flush().expect("flush");
        sync.delete(&key).expect("delete");
        sync.delete(&key).expect("second delete");
    };
    tokio::task::spawn_blocking(both_ways).await.expect("blocking side");
}

async fn small_object(store: Arc<dyn Store>) {
    let (id, content) = (ObjectId::random(), noise(4096));
    let extents = vec![Extent { offset: 0, len: 4096 }];
    let attributes = FileAttributes { uid: 7, ..FileAttributes::default() };
    let object = encode_whole(id, content.to_vec(), attributes.clone(), extents, Compression::None);
    let key = ObjectKey::new(id);
    store.put(&key, object.expect("encode")).await.expect("put");
    let reader = ObjectReader::open(store.clone(), id).await.expect("open");
    assert_eq!(reader.manifest().attributes, attributes);
    assert_eq!(reader.chunk(0).await.expect("chunk"), Chunk::Data(content));
    store.delete(&key).await.expect("delete");
}

/// Chunk, hole, short chunk, streamed, and read back in ranges.
async fn large_object(store: Arc<dyn Store>) {
    const MIB: u64 = 1 << 20;
    let (id, first, last) = (ObjectId::random(), noise(1 << 20), noise(777));
    let compression = Compression::Zstd { level: 1 };
    let encoder = ObjectEncoder::new(id, 2 * MIB + 777, MIN_CHUNK_SHIFT, compression);
    let mut encoder = encoder.expect("encoder");
    let key = ObjectKey::new(id);
    let mut sink = store.writer(&key).await.expect("writer");
    sink.write(encoder.push_chunk(0, first.clone()).expect("chunk")).await.expect("write");
    encoder.push_hole(1).expect("hole");
    sink.write(encoder.push_chunk(2, last.clone()).expect("chunk")).await.expect("write");
    let extents = vec![Extent { offset: 0, len: MIB }, Extent { offset: 2 * MIB, len: 777 }];
    let end = encoder.finish(FileAttributes::default(), extents).expect("end");
    sink.write(end).await.expect("write");
    sink.finish().await.expect("finish");
    let reader = ObjectReader::open(store.clone(), id).await.expect("open");
    assert_eq!(reader.chunk(0).await.expect("chunk 0"), Chunk::Data(first));
    assert_eq!(reader.chunk(1).await.expect("chunk 1"), Chunk::Hole);
    assert_eq!(reader.chunk(2).await.expect("chunk 2"), Chunk::Data(last));
    reader.verify_all().await.expect("verify");
    store.delete(&key).await.expect("delete");
}

async fn parallel(store: Arc<dyn Store>) {
    let one = |i: usize| {
        let store = store.clone();
        async move {
            let (key, body) = (key(), noise(1000 + i));
            store.put(&key, body.clone()).await.expect("put");
            store.flush().await.expect("flush");
            assert_eq!(store.get_tail(&key, 9999).await.expect("tail").bytes, body);
            store.delete(&key).await.expect("delete");
        }
    };
    futures::future::join_all((0..32).map(one)).await;
}
