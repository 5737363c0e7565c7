//! The server over a real socket, with an engine that does what a test needs.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::control::api::{ApiError, ApiErrorKind};
use crate::control::client::{Client, ClientError};
use crate::control::types::*;
use crate::core::FileState;

/// Reports each path as done; paths with a meaning: see `job`.
#[derive(Default)]
struct Fake {
    cancelled: AtomicBool,
    peers: Mutex<Vec<Peer>>,
}

fn sample_status() -> Status {
    Status {
        version: "1".into(),
        engine_pid: Some(11),
        holder_pid: Some(10),
        programs: Vec::new(),
        uptime_seconds: 5,
        engine_restarts: 0,
        queue: Queue {
            users: vec![UserQueue { uid: 7, ..UserQueue::default() }],
            ..Queue::default()
        },
        pools: vec![PoolStatus {
            name: "media".into(),
            mount: "/srv".into(),
            fs_type: "ext4".into(),
            tier: "user-filter".into(),
            tier_reason: "stock kernel".into(),
            store: StoreStatus { description: Some("s3 x".into()), ok: Some(true), error: None },
            states: vec![StateCount { state: FileState::Offline, files: 1, bytes: 2 }],
            counters: PoolCounters::default(),
            recall_latency: Latency::default(),
            retired_objects: 0,
        }],
    }
}

fn sample_waiter() -> Waiter {
    Waiter {
        id: 7,
        pool: "media".into(),
        pid: 99,
        uid: None,
        command: Some("cat".into()),
        path: "/srv/a\nb".into(),
        since_ms: 12,
        phase: "fetching".into(),
        bytes_done: 1,
        bytes_total: 2,
    }
}

#[async_trait]
impl AgentApi for Fake {
    async fn status(&self, peer: Peer) -> Status {
        self.peers.lock().expect("lock").push(peer);
        sample_status()
    }

    async fn waiters(&self, _: Peer) -> Vec<Waiter> {
        vec![sample_waiter()]
    }

    async fn abort_waiter(&self, id: u64, _: Peer) -> Result<(), ApiError> {
        let missing = ApiError::new(ApiErrorKind::NotFound, "no such waiter");
        if id == 7 { Ok(()) } else { Err(missing) }
    }

    async fn state(&self, paths: Vec<WirePath>, _: Peer) -> Result<Vec<StateEntry>, ApiError> {
        let error = |path| {
            StateEntry::Error(PathError { path, reason: Reason::NotFound, detail: "gone".into() })
        };
        Ok(paths.into_iter().map(error).collect())
    }

    /// `/panic`, `/refuse`, `/hang` (until cancelled), `/fail`, `/endless` (files until
    /// cancelled); anything else is done at once.
    async fn job(
        &self,
        request: JobRequest,
        _: Peer,
        events: mpsc::Sender<JobEvent>,
        cancel: CancellationToken,
    ) -> Result<(), ApiError> {
        for path in &request.paths {
            let mut report = FileReport::failed(path.clone(), request.op, Reason::Busy, "busy");
            match path.as_path().to_str() {
                Some("/panic") => panic!("as asked"),
                Some("/refuse") => return Err(ApiError::new(ApiErrorKind::Unavailable, "stops")),
                Some("/hang") => cancel.cancelled().await,
                Some("/fail") => {}
                Some("/endless") => {
                    while !cancel.is_cancelled() {
                        let _ = events.send(JobEvent::File(report.clone())).await;
                    }
                }
                _ => (report.outcome, report.bytes) = (Outcome::Done, 3),
            }
            let _ = events.send(JobEvent::File(report)).await;
        }
        self.cancelled.store(cancel.is_cancelled(), Ordering::SeqCst);
        Ok(())
    }
}

struct Running {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = ControlSocket::bind(&dir.path().join("hsm.sock")).expect("bind");
        let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
        let task = tokio::spawn(serve(socket, fake.clone(), options, stop.clone()));
        Self { dir, fake, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("hsm.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.path())
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.expect("connect")
    }

    async fn wait_cancelled(&self) {
        for _ in 0..500 {
            if self.fake.cancelled.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the job was not cancelled");
    }
}

fn request(op: Op, paths: &[&str]) -> JobRequest {
    JobRequest::new(op, paths.iter().map(WirePath::from).collect())
}

async fn all_events(client: &Client, request: &JobRequest) -> Vec<JobEvent> {
    let mut stream = client.job(request).await.expect("starts");
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.expect("event") {
        events.push(event);
    }
    events
}

fn summary(events: &[JobEvent]) -> Summary {
    match events.last() {
        Some(JobEvent::Summary(summary)) => *summary,
        other => panic!("no summary but {other:?}"),
    }
}

#[tokio::test]
async fn every_call_round_trips() {
    let run = Running::start(ServerOptions::default());
    let client = run.client();
    assert_eq!(client.waiters().await.expect("waiters"), [sample_waiter()]);
    client.abort_waiter(7).await.expect("abort");
    let error = client.abort_waiter(8).await.expect_err("no waiter 8");
    assert!(matches!(error, ClientError::Refused(e) if e.kind == ApiErrorKind::NotFound));
    let entries = client.state(&["/a".into(), "/b".into()]).await.expect("state");
    assert!(matches!(&entries[..], [_, StateEntry::Error(e)] if e.path == "/b".into()));

    let own = rustix::process::geteuid().as_raw();
    let expected = if own == 0 { sample_status() } else { sample_status().reduced() };
    assert_eq!(client.status().await.expect("status"), expected);
    let peers = run.fake.peers.lock().expect("lock");
    assert_eq!(peers[0].uid, own);
    assert_eq!(peers[0].pid.and_then(|p| u32::try_from(p).ok()), Some(std::process::id()));
}

#[tokio::test]
async fn a_job_reports_counts_and_filters() {
    let run = Running::start(ServerOptions::default());
    let mut wanted = request(Op::Recall, &["/a", "/fail", "/b"]);
    let quiet = all_events(&run.client(), &wanted).await;
    assert!(matches!(&quiet[..], [JobEvent::Started { .. }, JobEvent::File(f), _]
        if f.outcome == Outcome::Failed));
    let count = summary(&quiet);
    assert_eq!((count.done, count.failed, count.bytes, count.interrupted), (2, 1, 6, false));
    wanted.verbose = true;
    assert_eq!(all_events(&run.client(), &wanted).await.len(), 5);
}

#[tokio::test]
async fn refusal_and_panic_of_a_job_become_lines() {
    let run = Running::start(ServerOptions::default());
    for (path, reason) in [("/refuse", Reason::Interrupted), ("/panic", Reason::Internal)] {
        let events = all_events(&run.client(), &request(Op::Recall, &["/a", path])).await;
        assert!(
            matches!(&events[1..], [JobEvent::Fatal { reason: r, .. }, JobEvent::Summary(s)]
                if *r == reason && s.done == 1),
            "{events:?}"
        );
    }
}

#[tokio::test]
async fn a_dropped_connection_cancels_the_job() {
    for path in ["/hang", "/endless"] {
        let run = Running::start(ServerOptions::default());
        let mut stream = run.client().job(&request(Op::Recall, &[path])).await.expect("starts");
        assert!(matches!(stream.next().await, Ok(Some(JobEvent::Started { .. }))));
        drop(stream);
        run.wait_cancelled().await;
    }
}

#[tokio::test]
async fn a_cancelled_job_still_says_what_it_did() {
    let run = Running::start(ServerOptions::default());
    let mut stream = run.client().job(&request(Op::Recall, &["/a", "/hang"])).await.expect("job");
    let Ok(Some(JobEvent::Started { id })) = stream.next().await else { panic!("no id") };
    run.client().cancel_job(&id).await.expect("cancel");
    let mut last = None;
    while let Some(event) = stream.next().await.expect("event") {
        last = Some(event);
    }
    assert!(matches!(last, Some(JobEvent::Summary(s)) if s.interrupted && s.done == 1));
    assert!(run.client().cancel_job(&id).await.is_err(), "the job is gone");
}

#[tokio::test]
async fn a_stop_ends_jobs_and_removes_the_socket() {
    let run = Running::start(ServerOptions::default());
    let mut stream = run.client().job(&request(Op::Recall, &["/hang"])).await.expect("starts");
    assert!(matches!(stream.next().await, Ok(Some(JobEvent::Started { .. }))));
    run.stop.cancel();
    let mut last = None;
    while let Some(event) = stream.next().await.expect("event") {
        last = Some(event);
    }
    assert!(matches!(last, Some(JobEvent::Summary(s)) if s.interrupted));
    let path = run.path();
    run.task.await.expect("ends");
    assert!(!path.exists());
    let error = Client::new(&path).status().await.expect_err("gone");
    assert!(matches!(error, ClientError::NotRunning(_)), "{error:?}");
}

#[tokio::test]
async fn an_oversize_body_is_refused_whether_announced_or_not() {
    let run = Running::start(ServerOptions { body_limit: 100, ..ServerOptions::default() });
    for header in ["content-length: 100000", "transfer-encoding: chunked"] {
        let mut stream = run.raw().await;
        let head = format!("POST /v1/jobs HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("write");
        let chunk = if header.contains("chunked") { "ffff\r\n" } else { "" };
        let body = format!("{chunk}{}", " ".repeat(65535));
        // The server may hang up in the middle.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("answer");
        assert_eq!(&answer, b"HTTP/1.1 413", "{header}");
    }
}

#[tokio::test]
async fn a_slow_client_is_cut_off() {
    let short = Duration::from_millis(50);
    let options =
        ServerOptions { header_timeout: short, body_timeout: short, ..ServerOptions::default() };
    let run = Running::start(options);
    for (sent, answer) in [
        ("GET /v1/sta", ""),
        ("POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", "HTTP/1.1 408"),
    ] {
        let mut stream = run.raw().await;
        stream.write_all(sent.as_bytes()).await.expect("write");
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        read.expect("cut off in time").expect("reads");
        assert!(text.starts_with(answer), "{text}");
        assert!(!text.is_empty() || answer.is_empty());
    }
}

#[tokio::test]
async fn connections_and_jobs_are_bounded() {
    let one = Shares { root: 2, per_user: 2, others: 2 };
    let jobs = Shares { root: 1, per_user: 1, others: 1 };
    let run = Running::start(ServerOptions { connections: one, jobs, ..ServerOptions::default() });
    let job = request(Op::Recall, &["/hang"]);
    let mut first = run.client().job(&job).await.expect("first job");
    // Waits so long for a place; a slow machine must be able to say "busy" within it.
    let hasty = run.client().with_patience(Duration::from_secs(2));
    let error = hasty.job(&job).await.expect_err("second job");
    assert!(matches!(error, ClientError::Refused(e) if e.kind == ApiErrorKind::Busy));
    let _idle = run.raw().await;
    let mut text = String::new();
    run.raw().await.read_to_string(&mut text).await.expect("refused");
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    let body = text.split("\r\n\r\n").nth(1).expect("body");
    let error: ApiError = serde_json::from_str(body).expect("an ApiError");
    assert_eq!(error.kind, ApiErrorKind::Busy);
    assert!(matches!(first.next().await, Ok(Some(JobEvent::Started { .. }))));
}

#[tokio::test]
async fn clients_wait_for_a_place_when_there_are_more_than_places() {
    let few = Shares { root: 3, per_user: 3, others: 3 };
    let run = Running::start(ServerOptions { connections: few, ..ServerOptions::default() });
    let paths: Vec<WirePath> = (0..500).map(|n| WirePath::from(format!("/file/{n}"))).collect();
    let clients = (0..40).map(|_| {
        let (client, paths) = (run.client(), paths.clone());
        tokio::spawn(async move { client.state(&paths).await })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.expect("runs").expect("answers").len(), 500);
    }
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("hsm.sock");
    let _silent = UnixListener::bind(&path).expect("bind");
    let client = Client::new(&path).with_patience(Duration::from_millis(50));
    let error = client.status().await.expect_err("silent");
    assert!(matches!(error, ClientError::Silent(_)), "{error:?}");
}

/// One request through the router as `uid`.
async fn as_user(uid: u32, method: &str, uri: &str, body: &str) -> (StatusCode, String) {
    let tracker = TaskTracker::new();
    let options = Arc::new(ServerOptions::default());
    let jobs = Arc::new(Jobs::new(options.jobs, tracker, CancellationToken::new()));
    let context = Context { api: Arc::new(Fake::default()), options, jobs };
    let router = routes::router(context).layer(Extension(Peer { uid, gid: uid, pid: None }));
    let request = Request::builder().method(method).uri(uri).body(Body::from(body.to_owned()));
    let service = TowerToHyperService::new(router);
    let response =
        hyper::service::Service::call(&service, request.expect("request")).await.expect("answers");
    let status = response.status();
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn job_json(op: Op) -> String {
    serde_json::to_string(&request(op, &["/a"])).expect("serialises")
}

#[tokio::test]
async fn others_than_root_may_only_what_owners_may() {
    for op in [Op::Archive, Op::Release, Op::Migrate] {
        assert_eq!(as_user(1000, "POST", "/v1/jobs", &job_json(op)).await.0, StatusCode::FORBIDDEN);
        assert_eq!(as_user(0, "POST", "/v1/jobs", &job_json(op)).await.0, StatusCode::OK);
    }
    for op in [Op::Recall, Op::Pin, Op::Unpin] {
        assert_eq!(as_user(1000, "POST", "/v1/jobs", &job_json(op)).await.0, StatusCode::OK);
    }
    let scan = r#"{"op":"scan","pool":"media"}"#;
    assert_eq!(as_user(1000, "POST", "/v1/jobs", scan).await.0, StatusCode::FORBIDDEN);
    assert_eq!(as_user(0, "POST", "/v1/jobs", scan).await.0, StatusCode::OK);
    assert_eq!(as_user(1000, "GET", "/v1/waiters", "").await.0, StatusCode::FORBIDDEN);
    let abort = "/v1/waiters/7/abort";
    assert_eq!(as_user(1000, "POST", abort, "").await.0, StatusCode::FORBIDDEN);
    assert_eq!(as_user(0, "POST", abort, "").await.0, StatusCode::NO_CONTENT);
    let (status, body) = as_user(1000, "GET", "/v1/status", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(!body.contains("s3 x") && body.contains("media"), "{body}");
    assert!(body.contains("\"users\":[]"), "{body}");
}

#[tokio::test]
async fn nonsense_gets_400_or_404() {
    for (method, uri, body, status) in [
        ("POST", "/v1/jobs", "{", StatusCode::BAD_REQUEST),
        ("POST", "/v1/jobs", r#"{"op":"explode","paths":[]}"#, StatusCode::BAD_REQUEST),
        ("POST", "/v1/jobs", r#"{"op":"recall","paths":[]}"#, StatusCode::BAD_REQUEST),
        ("POST", "/v1/jobs", r#"{"op":"recall","paths":[{"path":"a"}]}"#, StatusCode::BAD_REQUEST),
        ("POST", "/v1/jobs", r#"{"op":"scan"}"#, StatusCode::BAD_REQUEST),
        ("POST", "/v1/state", r#"[{"path":"a"}]"#, StatusCode::BAD_REQUEST),
        ("POST", "/v1/state", "\u{0}", StatusCode::BAD_REQUEST),
        ("POST", "/v1/waiters/x/abort", "", StatusCode::BAD_REQUEST),
        ("POST", "/v1/jobs/none/cancel", "", StatusCode::NOT_FOUND),
        ("GET", "/v1/jobs", "", StatusCode::BAD_REQUEST),
        ("GET", "/", "", StatusCode::NOT_FOUND),
    ] {
        let (got, text) = as_user(0, method, uri, body).await;
        assert_eq!(got, status, "{method} {uri} {body}: {text}");
        serde_json::from_str::<ApiError>(&text).expect("an error that says why");
    }
}

#[tokio::test]
async fn a_live_socket_is_an_error_and_a_stale_one_is_replaced() {
    let run = Running::start(ServerOptions::default());
    let error = ControlSocket::bind(&run.path()).expect_err("live").to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    run.client().status().await.expect("the live one still answers");

    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("hsm.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    let socket = ControlSocket::bind(&path).expect("replaces the stale one");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    drop(socket);
    assert!(!path.exists());

    // Somebody listens without holding the lock.
    let _foreign = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    assert!(matches!(ControlSocket::bind(&path), Err(BindError::AlreadyRunning { .. })));
}

#[tokio::test]
async fn the_socket_needs_a_safe_place() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("tempdir");
    let open = dir.path().join("open");
    std::fs::create_dir(&open).expect("mkdir");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let error = ControlSocket::bind(&open.join("hsm.sock")).expect_err("unsafe");
    assert!(matches!(error, BindError::UnsafeDirectory { .. }), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").expect("write");
    assert!(matches!(ControlSocket::bind(&file), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
}
