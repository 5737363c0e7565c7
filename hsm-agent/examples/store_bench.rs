//! Measures the local store and the object format below a directory of the caller's choice.
//!
//! `cargo run --release --example store_bench -- DIR` prints, for 10,000 files of 4 KiB: `cp -r` and
//! `sync -f` of the tree, then reading, encoding and storing the same files and one flush; then
//! opening and verifying them; then the encoder's rate for chunks of 1 MiB. Leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use hsm_agent::core::ObjectId;
use hsm_agent::store::object::{
    Chunk, Compression, Extent, FileAttributes, MIN_CHUNK_SHIFT, ObjectEncoder, ObjectReader,
    encode_whole,
};
use hsm_agent::store::{LocalStore, ObjectKey, Store};

const FILES: usize = 10_000;
const SIZE: usize = 4096;
/// More than manifest and trailer of a small file need.
const SPARE: usize = 512;

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).context("usage: store_bench DIR")?;
    let dir = dir.join(format!("store-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let measured = measure(&dir);
    fs::remove_dir_all(&dir)?;
    measured
}

fn measure(dir: &Path) -> Result<()> {
    make_files(&dir.join("src"))?;
    for round in 0..3 {
        println!("round {round}");
        copy(dir, round)?;
        for threads in [1, 2] {
            let root = dir.join(format!("store{round}-{threads}"));
            fs::create_dir(&root)?;
            let store = LocalStore::open(&root)?;
            let ids = archive(&store, &dir.join("src"), threads)?;
            read(Arc::new(store), &ids)?;
        }
    }
    encode(Compression::None)?;
    encode(Compression::Zstd { level: 3 })
}

fn make_files(src: &Path) -> Result<()> {
    fs::create_dir(src)?;
    let mut content = vec![0; SIZE];
    for i in 0..FILES {
        blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut content);
        fs::write(src.join(format!("f{i}")), &content)?;
    }
    ensure!(Command::new("sync").arg("-f").arg(src).status()?.success(), "sync");
    Ok(())
}

fn copy(dir: &Path, round: usize) -> Result<()> {
    let to = dir.join(format!("copy{round}"));
    let begin = Instant::now();
    ensure!(Command::new("cp").arg("-r").arg(dir.join("src")).arg(&to).status()?.success(), "cp");
    let copied = begin.elapsed();
    ensure!(Command::new("sync").arg("-f").arg(&to).status()?.success(), "sync");
    println!("  cp -r {copied:.0?}, with sync -f {:.0?}", begin.elapsed());
    Ok(())
}

/// As the archive does it: each thread takes every `threads`-th file.
fn archive(store: &LocalStore, src: &Path, threads: usize) -> Result<Vec<ObjectId>> {
    let begin = Instant::now();
    let work =
        move |thread: usize| (thread..FILES).step_by(threads).map(|i| archive_one(store, src, i));
    let ids = std::thread::scope(|scope| {
        let spawn = |thread| scope.spawn(move || work(thread).collect::<Result<Vec<_>>>());
        let running: Vec<_> = (0..threads).map(spawn).collect();
        let done = running.into_iter().map(|t| t.join().map_err(|_| anyhow!("panic"))?);
        done.collect::<Result<Vec<_>>>()
    })?;
    let stored = begin.elapsed();
    store.blocking().context("blocking side")?.flush()?;
    let flushed = begin.elapsed();
    let label = if threads == 1 { "1 thread" } else { "2 threads" };
    println!("  {label}: read, encode, put {stored:.0?}, with flush {flushed:.0?}");
    Ok(ids.concat())
}

fn archive_one(store: &LocalStore, src: &Path, i: usize) -> Result<ObjectId> {
    let mut content = Vec::with_capacity(SIZE + SPARE);
    std::io::Read::read_to_end(&mut fs::File::open(src.join(format!("f{i}")))?, &mut content)?;
    let id = ObjectId::random();
    let extents = vec![Extent { offset: 0, len: SIZE as u64 }];
    let object = encode_whole(id, content, FileAttributes::default(), extents, Compression::None)?;
    store.blocking().context("blocking side")?.put(&ObjectKey::new(id), &object)?;
    Ok(id)
}

fn read(store: Arc<dyn Store>, ids: &[ObjectId]) -> Result<()> {
    let mut times = Vec::with_capacity(ids.len());
    for id in ids {
        let begin = Instant::now();
        let reader = ObjectReader::open_blocking(store.clone(), *id).context("blocking side")??;
        ensure!(matches!(reader.chunk_blocking(0)?, Chunk::Data(bytes) if bytes.len() == SIZE));
        times.push(begin.elapsed());
    }
    println!("  get and verify, blocking: {}", quantiles(&mut times));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    runtime.block_on(async {
        let task = tokio::spawn(read_async(store, ids.to_vec()));
        println!("  get and verify, async: {}", quantiles(&mut task.await??));
        Ok(())
    })
}

async fn read_async(store: Arc<dyn Store>, ids: Vec<ObjectId>) -> Result<Vec<std::time::Duration>> {
    let mut times = Vec::with_capacity(ids.len());
    for id in ids {
        let begin = Instant::now();
        let reader = ObjectReader::open(store.clone(), id).await?;
        ensure!(matches!(reader.chunk(0).await?, Chunk::Data(bytes) if bytes.len() == SIZE));
        times.push(begin.elapsed());
    }
    Ok(times)
}

fn quantiles(times: &mut [std::time::Duration]) -> String {
    times.sort_unstable();
    let at = |percent| times[(times.len() - 1) * percent / 100];
    format!("p50 {:.1?}, p99 {:.1?}", at(50), at(99))
}

fn encode(compression: Compression) -> Result<()> {
    const CHUNKS: u64 = 512;
    let mut chunk = vec![0; 1 << MIN_CHUNK_SHIFT];
    blake3::Hasher::new().finalize_xof().fill(&mut chunk[..1 << 19]); // half of it compresses
    let size = CHUNKS << MIN_CHUNK_SHIFT;
    let mut encoder = ObjectEncoder::new(ObjectId::random(), size, MIN_CHUNK_SHIFT, compression)?;
    let begin = Instant::now();
    let mut stored = 0;
    for index in 0..CHUNKS {
        stored += encoder.encode_chunk(index, &chunk)?.len();
    }
    let rate = CHUNKS as f64 / begin.elapsed().as_secs_f64();
    println!("encode {compression:?}: {rate:.0} MiB/s, {} MiB stored", stored >> 20);
    Ok(())
}
