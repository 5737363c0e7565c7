//! The program `hsm` as its users see it, against an agent that does what a test needs. Needs root.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hsm_agent::control::server::{ControlSocket, ServerOptions, serve};
use hsm_agent::control::{
    AgentApi, ApiError, ApiErrorKind, FileReport, JobEvent, JobRequest, Outcome, Peer, Queue,
    Reason, StateEntry, Status, UserQueue, Waiter, WirePath,
};
use hsm_agent::core::{DataVersion, ObjectId};
use hsm_agent::marker::{
    ArchivedCopy, Marker, MarkerFlags, MarkerState, Owner, PolicyFlags, Record,
};
use hsm_agent::sys::{inode, xattr};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Fails the test rather than passing over it.
fn needs_root() {
    assert!(rustix::process::geteuid().is_root(), "needs root: sudo -E cargo test --test cli");
}

/// Files named `fail*` fail, `skip*` are skipped, `hang*` wait for the cancel, `fatal*` end it all.
#[derive(Default)]
struct Fake {
    requests: Mutex<Vec<JobRequest>>,
}

#[async_trait]
impl AgentApi for Fake {
    async fn status(&self, _: Peer) -> Status {
        Status {
            version: "9.9".into(),
            engine_pid: Some(2),
            holder_pid: Some(1),
            programs: Vec::new(),
            uptime_seconds: 61,
            engine_restarts: 0,
            queue: Queue {
                waiting: 3,
                users: vec![UserQueue { uid: 7, waiting: 3, ..UserQueue::default() }],
                ..Queue::default()
            },
            pools: Vec::new(),
        }
    }

    async fn waiters(&self, _: Peer) -> Vec<Waiter> {
        Vec::new()
    }

    async fn abort_waiter(&self, _: u64, _: Peer) -> Result<(), ApiError> {
        Err(ApiError::new(ApiErrorKind::NotFound, "nobody waits with this number"))
    }

    async fn state(&self, _: Vec<WirePath>, _: Peer) -> Result<Vec<StateEntry>, ApiError> {
        Err(ApiError::new(ApiErrorKind::Forbidden, "not you"))
    }

    async fn job(
        &self,
        request: JobRequest,
        _: Peer,
        events: mpsc::Sender<JobEvent>,
        cancel: CancellationToken,
    ) -> Result<(), ApiError> {
        self.requests.lock().expect("lock").push(request.clone());
        for path in request.paths {
            let name = path.as_path().file_name().unwrap_or_default().to_string_lossy();
            let mut report =
                FileReport::failed(path.clone(), request.op, Reason::OpenElsewhere, "is open");
            match name.split_once(|c: char| !c.is_alphabetic()).map_or(&*name, |(name, _)| name) {
                "fail" => {}
                "skip" => report.outcome = Outcome::Skipped,
                "fatal" => return Err(ApiError::new(ApiErrorKind::Forbidden, "not any more")),
                kind => {
                    if kind == "hang" {
                        cancel.cancelled().await;
                    }
                    report.outcome = if request.dry_run { Outcome::Would } else { Outcome::Done };
                    (report.reason, report.detail, report.bytes) = (None, String::new(), 1024);
                }
            }
            let _ = events.send(JobEvent::File(report)).await;
            if cancel.is_cancelled() {
                break;
            }
        }
        Ok(())
    }
}

/// A directory with a configuration and, while this lives, an agent.
struct Bench {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    _runtime: Runtime,
    _stop: tokio_util::sync::DropGuard,
}

fn configuration(dir: &Path) -> PathBuf {
    let file = dir.join("hsm.toml");
    let text = format!(
        "[agent]\nsocket = \"{0}/hsm.sock\"\nstate_dir = \"{0}/state\"\n\n\
         [[pool]]\nname = \"media\"\nmount = \"/srv/no-such-pool\"\n\n\
         [pool.store]\nkind = \"local\"\npath = \"{0}/store\"\n",
        dir.display()
    );
    fs::write(&file, text).expect("write");
    file
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        configuration(dir.path());
        let runtime = Runtime::new().expect("runtime");
        let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
        let guard = runtime.enter();
        let socket = ControlSocket::bind(&dir.path().join("hsm.sock")).expect("bind");
        drop(guard);
        let options = ServerOptions::default();
        runtime.spawn(serve(socket, fake.clone(), options, stop.clone()));
        Self { dir, fake, _runtime: runtime, _stop: stop.drop_guard() }
    }

    fn file(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let path = self.dir.path().join(name.as_ref());
        fs::write(&path, "x").expect("write");
        path
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        hsm(self.dir.path(), args)
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(args).output().expect("runs")
    }
}

fn hsm<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hsm"));
    command.arg("--config").arg(dir.join("hsm.toml")).args(args).stdin(Stdio::null());
    command.current_dir(dir);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text(&output.stdout).lines().map(line).collect()
}

#[test]
fn a_good_run_says_one_line_and_exits_with_0() {
    let bench = Bench::new();
    bench.file("good");
    let output = bench.run(["archive", "good"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(text(&output.stdout).starts_with("archived 1 file, 1.0 KiB in "), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&bench.run(["-q", "archive", "good"]).stdout), "");
    let output = bench.run(["-v", "archive", "good"]);
    assert_eq!(text(&output.stdout).lines().count(), 2);
}

#[test]
fn failed_files_are_named_on_stderr_and_exit_with_1() {
    let bench = Bench::new();
    let bad = bench.file("fail\n1");
    bench.file("good");
    let output = bench.run([OsStr::new("release"), bad.as_os_str(), OsStr::new("good")]);
    assert_eq!(code(&output), 1);
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(r"fail\n1': is open [open-elsewhere]"), "{error}");
    assert!(
        text(&output.stdout).contains("released 1 file")
            && text(&output.stdout).contains("1 failed")
    );
}

#[test]
fn skipped_files_are_no_failure() {
    let bench = Bench::new();
    bench.file("skip");
    let output = bench.run(["release", "skip"]);
    assert_eq!(code(&output), 0);
    assert!(text(&output.stdout).starts_with("released 0 files"), "{output:?}");
    for option in ["-v", "-n"] {
        let text = text(&bench.run(["release", option, "skip"]).stdout);
        assert!(text.starts_with("skipped") && text.contains("[open-elsewhere]"), "{text}");
    }
    assert_eq!(text(&bench.run(["release", "-q", "-n", "skip"]).stdout), "");
}

#[test]
fn json_has_a_line_per_file_and_the_summary_last() {
    let bench = Bench::new();
    let odd = bench.file(OsStr::from_bytes(b"good\xff"));
    bench.file("fail");
    let args = ["--json", "archive", "fail", "missing"].map(OsStr::new);
    let output = bench.run(args.into_iter().chain([odd.as_os_str()]));
    assert_eq!(code(&output), 1);
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 4, "{lines:?}");
    let find = |part: &str| {
        let of =
            |line: &&serde_json::Value| line["path"].as_str().is_some_and(|p| p.contains(part));
        lines.iter().find(of).unwrap_or_else(|| panic!("no {part} in {lines:?}"))
    };
    assert_eq!(find("missing")["reason"], "not-found");
    assert_eq!(find("/fail")["outcome"], "failed");
    let bytes = find("good")["path_bytes"].as_str().expect("not UTF-8");
    assert!(bytes.ends_with("676f6f64ff"), "{bytes}");
    let summary = &lines[3]["summary"];
    assert_eq!((&summary["done"], &summary["failed"]), (&1.into(), &2.into()));
}

#[test]
fn lists_name_paths_and_patterns() {
    let bench = Bench::new();
    for name in ["a.mkv", "b.mkv", "c.txt", "d\ne"] {
        bench.file(name);
    }
    let list = bench.file("list");
    fs::write(&list, "*.mkv\n\nc.txt\nnone\n").expect("write");
    let output = bench.run(["--json", "archive", "--files-from", "list"]);
    assert_eq!(code(&output), 1, "`none` does not exist");
    assert_eq!(json_lines(&output).len(), 5);
    fs::write(&list, "d\ne\0c.txt\0").expect("write");
    let output = bench
        .command(["archive", "-0", "--files-from", "-"])
        .stdin(fs::File::open(&list).expect("open"))
        .output()
        .expect("runs");
    assert_eq!(code(&output), 0, "{output:?}");
    let requests = bench.fake.requests.lock().expect("lock");
    assert_eq!(requests.last().expect("asked").paths[0].as_path(), bench.dir.path().join("d\ne"));
}

#[test]
fn a_directory_needs_r_and_nothing_is_done_before_that_is_clear() {
    let bench = Bench::new();
    bench.file("good");
    fs::create_dir(bench.dir.path().join("dir")).expect("mkdir");
    let output = bench.run(["archive", "good", "dir"]);
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("use -r"), "{output:?}");
    assert!(bench.fake.requests.lock().expect("lock").is_empty());
    let output = bench.run(["archive", "-r", "--exclude", "*.tmp", "-j", "3", "dir"]);
    assert_eq!(code(&output), 0);
    let requests = bench.fake.requests.lock().expect("lock");
    assert!(requests[0].recursive && requests[0].jobs == Some(3));
    assert_eq!(requests[0].exclude, ["*.tmp"]);
    assert_eq!(code(&bench.run(["archive", "-r", "--include", "[", "dir"])), 2);
}

#[test]
fn a_dry_run_says_what_would_be_done() {
    let bench = Bench::new();
    bench.file("good");
    let output = bench.run(["release", "-n", "good"]);
    let text = text(&output.stdout);
    assert!(text.starts_with("would release"), "{text}");
    assert!(text.contains("\nwould release 1 file"), "{text}");
    assert_eq!(code(&output), 0);
}

#[test]
fn ctrl_c_stops_between_files_and_still_counts() {
    let bench = Bench::new();
    bench.file("good");
    bench.file("hang");
    bench.file("never");
    let mut child = bench
        .command(["-v", "archive", "good", "hang", "never"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("reads");
    assert!(line.contains("good"), "{line}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signals");
    let rest: Vec<String> = stdout.lines().map(|line| line.expect("reads")).collect();
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert_eq!(rest.len(), 2, "{rest:?}");
    assert!(
        rest[1].starts_with("archived 2 files") && rest[1].ends_with("interrupted"),
        "{rest:?}"
    );
}

#[test]
fn what_the_agent_refuses_has_its_exit_code() {
    let bench = Bench::new();
    bench.file("fatal");
    bench.file("good");
    let output = bench.run(["--json", "recall", "good", "fatal"]);
    assert_eq!(code(&output), 4, "{output:?}");
    let lines = json_lines(&output);
    let last = lines.last().expect("lines");
    assert_eq!(last["summary"]["done"], 1);
    assert_eq!(last["fatal"]["reason"], "permission");
    let output = bench.run(["waiters", "abort", "5"]);
    assert_eq!(code(&output), 1);
    assert_eq!(text(&bench.run(["waiters"]).stdout), "nobody waits\n");
}

#[test]
fn without_an_agent_the_exit_code_is_3_and_the_message_helps() {
    let dir = tempfile::tempdir().expect("tempdir");
    configuration(dir.path());
    fs::write(dir.path().join("f"), "x").expect("write");
    for args in [&["status"][..], &["archive", "f"], &["waiters"], &["scan", "--pool", "media"]] {
        let output = hsm(dir.path(), args).output().expect("runs");
        assert_eq!(code(&output), 3, "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("start it with `hsm agent`"), "{output:?}");
    }
    let output = hsm(dir.path(), ["--json", "status"]).output().expect("runs");
    assert_eq!(json_lines(&output)[0]["error"]["code"], 3);
}

#[test]
fn a_bad_configuration_is_a_usage_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("hsm.toml"), "[agnet]\n").expect("write");
    for args in [&["status"][..], &["config", "check"], &["archive", "x"], &["agent"]] {
        let output = hsm(dir.path(), args).output().expect("runs");
        assert_eq!(code(&output), 2, "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("hsm.toml:1"), "{output:?}");
    }
    let output = hsm(dir.path(), ["--json", "config", "check"]).output().expect("runs");
    let answer = &json_lines(&output)[0];
    assert_eq!((&answer["ok"], &answer["problems"][0]["line"]), (&false.into(), &1.into()));
    fs::remove_file(dir.path().join("hsm.toml")).expect("remove");
    let output = hsm(dir.path(), ["status"]).output().expect("runs");
    assert_eq!(code(&output), 2, "a configuration that was named must exist");
}

#[test]
fn state_and_du_look_without_an_agent() {
    needs_root(); // others ask the agent: see the_peer_decides_what_others_than_root_may
    let dir = tempfile::tempdir().expect("tempdir");
    configuration(dir.path());
    fs::create_dir(dir.path().join("d")).expect("mkdir");
    fs::write(dir.path().join("d/a\nb"), vec![1; 5000]).expect("write");
    fs::hard_link(dir.path().join("d/a\nb"), dir.path().join("d/c")).expect("link");
    let output = hsm(dir.path(), ["--json", "state", "d/c", "d", "none"]).output().expect("runs");
    assert_eq!(code(&output), 1);
    let lines = json_lines(&output);
    assert!(lines.iter().any(|line| line["state"] == "resident" && line["size"] == 5000));
    assert!(lines.iter().any(|line| line["reason"] == "not-regular"));
    assert!(lines.iter().any(|line| line["reason"] == "not-found"));
    let output = hsm(dir.path(), ["--json", "du", "-s", "d"]).output().expect("runs");
    let total = &json_lines(&output)[0];
    assert_eq!((&total["files"], &total["size"]), (&1.into(), &5000.into()));
    let output = hsm(dir.path(), ["ls", "d"]).output().expect("runs");
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.contains(r"a\nb'"), "{lines}");
}

#[test]
fn state_reads_marker_and_record_and_never_guesses() {
    needs_root(); // writes the attributes
    let dir = tempfile::tempdir().expect("tempdir");
    configuration(dir.path());
    let object = ObjectId::random();
    let make = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, "12345").expect("write");
        fs::File::options().write(true).open(&path).expect("open")
    };
    let file = |name: &str, marker: Option<&[u8]>, record: Option<&[u8]>| {
        let open = make(name);
        for (attribute, value) in [(c"security.bpf.hsm", marker), (c"trusted.hsm", record)] {
            value.inspect(|value| xattr::set(&open, attribute, value).expect("attribute"));
        }
    };
    let own = |name: &str, state| {
        let open = make(name);
        let ino = inode::stat(&open).expect("stat").ino;
        let marker = Marker {
            object,
            size: 5,
            epoch: 1,
            owner: Owner::of(ino, inode::generation(&open).expect("generation")),
            chunk_shift: 20,
            state,
            flags: MarkerFlags::empty(),
        };
        marker.encode()
    };
    file("offline", Some(&own("offline", MarkerState::Offline)), None);
    file("lost", Some(&own("lost", MarkerState::Lost)), None);
    file("garbage", Some(b"who knows"), None);
    let version = DataVersion { generation: 0, size: 4, mtime_ns: 0, ctime_ns: 0 };
    let copy = ArchivedCopy { object, version, archived_at_ns: 7_000_000_000 };
    let record = Record { archived: Some(copy), policy: PolicyFlags::PINNED };
    file("dirty", None, Some(&record.encode()));
    let output = hsm(dir.path(), ["--json", "state", "offline", "lost", "garbage", "dirty"])
        .output()
        .expect("runs");
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("garbage: unreadable marker: "), "{output:?}");
    let lines = json_lines(&output);
    let states: Vec<&serde_json::Value> = lines.iter().map(|line| &line["state"]).collect();
    assert_eq!(
        states,
        ["offline", "lost", "", "dirty"]
            .map(|s| match s {
                "" => serde_json::Value::Null,
                state => state.into(),
            })
            .iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(lines[0]["object"], object.to_string());
    assert_eq!((&lines[3]["pinned"], &lines[3]["archived_at"]), (&true.into(), &7.into()));
}

#[test]
fn doctor_reports_every_check_and_fails_without_a_mounted_pool() {
    let bench = Bench::new();
    let output = bench.run(["--json", "doctor"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let report = &json_lines(&output)[0];
    let verdict = |name: &str| {
        let checks = report["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no {name} in {report}"))["verdict"].clone()
    };
    assert_eq!(verdict("agent"), "ok");
    assert_eq!(verdict("file system"), "fail");
    assert_eq!(verdict("store"), "fail", "its directory does not exist");
    assert_eq!(report["tier"], serde_json::Value::Null);
    fs::create_dir(bench.dir.path().join("store")).expect("mkdir");
    let text = text(&bench.run(["doctor"]).stdout);
    assert!(text.contains("tier lsm-filter") && text.contains("kernel-programs"), "{text}");
    assert!(text.contains("can be written and read"), "{text}");
}

/// The command as nobody: the kernel tells the agent who asks.
#[test]
fn the_peer_decides_what_others_than_root_may() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    needs_root(); // becomes somebody else
    let bench = Bench::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bench.dir.path(), open).expect("chmod");
    let program = bench.dir.path().join("hsm");
    // Not copied by this process: a child that another test forks meanwhile would inherit the
    // descriptor that writes it, and the program could not be run (ETXTBSY).
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_hsm")).arg(&program).status();
    assert!(copied.expect("cp runs").success());
    bench.file("good");
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--config").arg(bench.dir.path().join("hsm.toml")).args(args);
        command.current_dir(bench.dir.path()).uid(65534).gid(65534).output().expect("runs")
    };
    for args in [&["archive", "good"][..], &["scan", "--pool", "media"], &["waiters"]] {
        let output = run(args);
        assert_eq!(code(&output), 4, "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("only root may"), "{output:?}");
    }
    assert_eq!(code(&run(&["state", "good"])), 4, "asked the agent, which said no");
    assert_eq!(code(&run(&["recall", "good"])), 0);
    let status = &json_lines(&run(&["--json", "status"]))[0];
    assert_eq!((&status["version"], &status["engine_pid"]), (&"9.9".into(), &().into()));
}
