//! The S3 backend against a real server: a process of `s3s-fs` on the loopback interface.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use hsm_agent::core::ObjectId;
use hsm_agent::store::{ObjectKey, Store, StoreConfig, StoreError, StoreKind, conformance, open};

const INSTALL: &str = "cargo install s3s-fs --version 0.14.1 --locked --features binary \
                       --root \"${XDG_CACHE_HOME:-$HOME/.cache}/hsm-dev/tools\"";

/// The server's binary. A missing one fails the test: a skipped test would look like a passed one.
fn binary() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let path = std::env::var_os("HSM_S3S_FS")
        .map_or_else(|| cache().join("hsm-dev/tools/bin/s3s-fs"), PathBuf::from);
    assert!(path.is_file(), "{} is missing; install it:\n  {INSTALL}", path.display());
    path
}

/// A running server with one bucket, and what it takes to reach it.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    access: String,
    secret: String,
    process: Option<Child>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("root/bucket")).expect("bucket");
        let port = TcpListener::bind("127.0.0.1:0").expect("free port").local_addr();
        let word = || ObjectId::random().to_string();
        let (access, secret) = (word(), word());
        let port = port.expect("address").port();
        let mut server = Self { dir, port, access, secret, process: None };
        std::fs::write(server.path("access"), &server.access).expect("write");
        std::fs::write(server.path("secret"), format!("{}\n", server.secret)).expect("write");
        server.run();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&mut self) {
        let mut command = Command::new(binary());
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--access-key", &self.access, "--secret-key", &self.secret]);
        command.arg(self.path("root")).env("RUST_LOG", "error").stdout(Stdio::null());
        let process = self.process.insert(command.spawn().expect("start of the server"));
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert_eq!(process.try_wait().expect("wait"), None, "the server ended");
            assert!(begin.elapsed() < Duration::from_secs(20), "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("a running server");
        process.kill().expect("kill");
        process.wait().expect("wait");
    }

    fn config(&self) -> StoreConfig {
        StoreConfig {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            bucket: Some("bucket".into()),
            prefix: Some("pool/one".into()),
            access_key_file: Some(self.path("access")),
            secret_key_file: Some(self.path("secret")),
            allow_http: true,
            ..StoreConfig::of_kind(StoreKind::S3)
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        open(&self.config(), None).expect("open")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn key() -> ObjectKey {
    ObjectKey::new(ObjectId::random())
}

fn files_below(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).expect("read_dir").map(|e| e.expect("entry").path());
    entries.map(|p| if p.is_dir() { files_below(&p) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let server = Server::start();
    conformance::run(server.store()).await;
    assert_eq!(files_below(&server.path("root/bucket")), 0, "the suite left objects behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_without_prefix_conforms() {
    let server = Server::start();
    let config = StoreConfig { prefix: None, ..server.config() };
    conformance::run(open(&config, None).expect("open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_in_one_bucket_do_not_see_each_other() {
    let server = Server::start();
    let one = server.store();
    let config = StoreConfig { prefix: Some("pool/two".into()), ..server.config() };
    let two = open(&config, None).expect("open");
    let key = key();
    one.put(&key, Bytes::from_static(b"one")).await.expect("put");
    let listed = |store: Arc<dyn Store>| async move { store.list().count().await };
    assert_eq!((listed(one).await, listed(two.clone()).await), (1, 0));
    two.head(&key).await.expect_err("another pool's object");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_is_retryable_and_the_retry_succeeds_after_its_restart() {
    let mut server = Server::start();
    let (store, key) = (server.store(), key());
    store.put(&key, Bytes::from_static(b"content")).await.expect("put");

    server.kill();
    let hasty = StoreConfig { retries: 0, ..server.config() };
    let e = open(&hasty, None).expect("open").get_tail(&key, 99).await.expect_err("no server");
    assert!(e.is_retryable(), "{e:?}");

    let reading = tokio::spawn(async move { store.get_tail(&key, 99).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!reading.is_finished(), "the reader waits while the server is away");
    server.run();
    let tail = reading.await.expect("task").expect("the retry succeeds");
    assert_eq!(tail.bytes, "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_during_an_upload_leaves_nothing_visible() {
    const PIECES: usize = 20; // of 1 MiB: two full parts and a half one
    let mut server = Server::start();
    let config = StoreConfig { deadline: Duration::from_secs(3), ..server.config() };
    let (store, key) = (open(&config, None).expect("open"), key());
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut sink = store.writer(&key).await.expect("writer");
    for _ in 0..10 {
        sink.write(piece.clone()).await.expect("write");
    }
    server.kill();
    let mut rest = async || {
        for _ in 10..PIECES {
            sink.write(piece.clone()).await?;
        }
        Ok::<_, StoreError>(())
    };
    let outcome = match rest().await {
        Ok(()) => sink.finish().await,
        Err(e) => Err(e),
    };
    let e = outcome.expect_err("the server is gone");
    assert!(e.is_retryable(), "{e:?}");

    server.run();
    store.head(&key).await.expect_err("half an object is visible");
    let mut sink = store.writer(&key).await.expect("writer");
    for _ in 0..PIECES {
        sink.write(piece.clone()).await.expect("write");
    }
    sink.finish().await.expect("the second try succeeds");
    assert_eq!(store.head(&key).await.expect("head").size, (PIECES << 20) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_denied() {
    let server = Server::start();
    let wrong = server.path("wrong");
    std::fs::write(&wrong, "not-the-key").expect("write");
    let config = StoreConfig { secret_key_file: Some(wrong), ..server.config() };
    let store = open(&config, None).expect("open");
    let e = store.put(&key(), Bytes::from_static(b"x")).await.expect_err("put");
    assert!(matches!(e, StoreError::Denied { .. }), "{e:?}");
    assert!(matches!(store.check().await, Err(StoreError::Denied { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_does_not_pass_for_missing_objects() {
    let server = Server::start();
    let config = StoreConfig { bucket: Some("no-such-bucket".into()), ..server.config() };
    // This server makes buckets on the fly where one is written to; a listing does not.
    let listed = open(&config, None).expect("open").list().next().await.expect("an item");
    let e = listed.expect_err("no bucket");
    assert!(matches!(e, StoreError::Failed { .. }), "{e:?}");
}
