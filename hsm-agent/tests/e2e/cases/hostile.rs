//! People who mean harm: on the control socket, with links under a job, after secrets.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hsm_lab::{Output, Run};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::cases;
use crate::fixture::{Pool, STOP_LIMIT, exe};

cases! {
    links_that_change_under_a_job_lead_nowhere,
    paths_out_of_the_file_system_lead_nowhere,
    crowds_and_nonsense_on_the_socket_keep_nobody_out,
    a_crashing_agent_leaves_no_core,
}

fn as_nobody(program: &Path) -> Run {
    Run::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args([program])
}

fn hsm_as_nobody(pool: &Pool, verb: &str, path: &Path) -> Result<Output> {
    let config = pool.config.file();
    as_nobody(exe()).args(["--config"]).args([config]).args([verb]).args([path]).output()
}

/// A directory changes places with a link to somebody else's, as fast as can be.
fn links_that_change_under_a_job_lead_nowhere(pool: &mut Pool) -> Result<()> {
    for dir in ["own", "others", "elsewhere"] {
        fs::create_dir(pool.path(dir))?;
    }
    let own = pool.offline_file("own/file", 50_000)?;
    let others = pool.offline_file("others/file", 50_000)?;
    pool.sh("chown -R 65534:65534 \"$1\"", [pool.path("own")])?;
    fs::remove_dir(pool.path("elsewhere"))?;
    symlink(pool.path("others"), pool.path("elsewhere"))?;
    let (one, other, stop) = (pool.path("own"), pool.path("elsewhere"), AtomicBool::new(false));
    let swap = || renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                // A try that meets the other one is no matter.
                let _ = swap();
            }
        });
        let outcome = (0..60).try_for_each(|turn| {
            let verb = if turn % 2 == 0 { "recall" } else { "pin" };
            let out = hsm_as_nobody(pool, verb, &pool.path("own/file"))?;
            ensure!(out.code() == 0 || out.code() == 1, "{}", out.describe());
            // Root's own jobs follow no link below the mount point either.
            pool.hsm.verb("recall", [pool.path("elsewhere/file")]).map(drop)
        });
        stop.store(true, Ordering::SeqCst);
        outcome
    })?;
    pool.assert_offline(&others.path)?;
    let state = pool.hsm.state(&others.path)?.json;
    ensure!(state.get("pinned").and_then(serde_json::Value::as_bool) == Some(false), "{state}");
    let own_is_a_link = fs::symlink_metadata(pool.path("own"))?.is_symlink();
    own.content.check(&pool.path(if own_is_a_link { "elsewhere/file" } else { "own/file" }))?;
    others.check()
}

/// By `..`, by a link in the middle, by a link at the end.
fn paths_out_of_the_file_system_lead_nowhere(pool: &mut Pool) -> Result<()> {
    let outside = pool.outside("file");
    fs::write(&outside, "nobody's business")?;
    symlink(pool.outside(""), pool.path("way"))?;
    symlink(&outside, pool.path("link"))?;
    fs::create_dir(pool.path("d"))?;
    let mount = pool.mnt().display().to_string();
    for path in [
        format!("{mount}/way/file"),
        format!("{mount}/link"),
        format!("{mount}/d/../../outside/file"),
        format!("{mount}/../outside/file"),
        format!("{mount}/d/../../../../../../../../etc/passwd"),
        "/proc/self/root/etc/passwd".to_owned(),
    ] {
        let out = ask(pool, &format!(r#"{{"op":"archive","paths":[{{"path":{path:?}}}]}}"#))?;
        ensure!(out.starts_with("HTTP/1.1 200"), "{path}: {out}");
        ensure!(!out.contains(r#""outcome":"done""#), "{path} was archived: {out}");
        ensure!(out.contains(r#""failed":1"#) || out.contains(r#""skipped":1"#), "{path}: {out}");
    }
    ensure!(pool.objects()?.is_empty(), "something is in the store");
    Ok(())
}

/// What the agent answers to a job, straight from the socket: the command line resolves paths itself.
fn ask(pool: &Pool, body: &str) -> Result<String> {
    const ASK: &str = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); b = sys.argv[2].encode()\n\
        s.sendall(b'POST /v1/jobs HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(b) + b)\n\
        while d := s.recv(65536): sys.stdout.buffer.write(d)";
    let socket = pool.config.dir.join("hsm.sock").display().to_string();
    Ok(pool.python(ASK, [socket, body.to_owned()])?.text())
}

/// Somebody connects as often as he can, says half a sentence or nonsense, and stays.
fn crowds_and_nonsense_on_the_socket_keep_nobody_out(pool: &mut Pool) -> Result<()> {
    const CROWD: &str = "import socket, sys, time\n\
        held = []\n\
        for n in range(300):\n\
        \x20   s = socket.socket(socket.AF_UNIX); s.settimeout(0.2)\n\
        \x20   try:\n\
        \x20       s.connect(sys.argv[1])\n\
        \x20       s.sendall([b'', b'GET /v1/st', b'\\x00\\xff' * 4000, b'POST /v1/jobs HTTP/1.1\\r\\ncontent-length: 99999999999999999999\\r\\n\\r\\n',\n\
        \x20           b'POST /v1/jobs HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 200000\\r\\n\\r\\n' + b'[' * 200000,\n\
        \x20           b'GET / HTTP/1.1\\r\\n' + b'a: b\\r\\n' * 500][n % 6])\n\
        \x20   except OSError: pass\n\
        \x20   held.append(s)\n\
        print('there', flush=True); time.sleep(60)";
    let file = pool.offline_file("file", 100_000)?;
    let socket = pool.config.dir.join("hsm.sock");
    let mut crowd =
        as_nobody(Path::new("/usr/bin/python3")).args(["-c", CROWD]).args([&socket]).start()?;
    // The first of them are there, the others come all the time.
    thread::sleep(Duration::from_millis(500));
    for _ in 0..5 {
        ensure!(pool.hsm.status()?.get("engine_restarts") == Some(&0.into()), "the engine died");
        pool.hsm.must("recall", [&file])?;
        pool.hsm.must("release", [&file])?;
    }
    ensure!(crowd.is_running()?, "the crowd did not stay");
    crowd.kill();
    file.check()
}

/// Neither of the agent's processes, which have keys and other people's bytes in memory.
fn a_crashing_agent_leaves_no_core(pool: &mut Pool) -> Result<()> {
    let before = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: None, maximum: None })?;
    let outcome = no_core(pool);
    setrlimit(Resource::Core, before)?;
    outcome
}

fn no_core(pool: &mut Pool) -> Result<()> {
    // Whether this machine writes cores at all decides what the second half can show.
    let dir = pool.outside("cores");
    fs::create_dir(&dir)?;
    let mut ordinary =
        Command::new("sleep").arg("60").current_dir(&dir).stdin(Stdio::null()).spawn()?;
    abort(i32::try_from(ordinary.id())?)?;
    let cores = ordinary.wait()?.core_dumped();
    pool.restart()?;
    let (holder, engine) = {
        let agent = pool.agent()?;
        (agent.holder(), *agent.engines().first().context("no engine")?)
    };
    for pid in [holder, engine] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let words: Vec<_> = core.context("no limit")?.split_whitespace().collect();
        ensure!(words.get(4..6) == Some(&["0", "0"]), "{words:?}");
        // Somebody of the same user without privileges could not attach or read its memory: its files
        // are root's, and the kernel asks for CAP_SYS_PTRACE.
        let trace = Run::new("setpriv")
            .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"])
            .args(["head", "-c1", &format!("/proc/{pid}/mem")])
            .output()?;
        ensure!(trace.stderr.contains("Permission denied"), "{}", trace.describe());
    }
    abort(holder)?;
    // It ends as it was told to, which is an error.
    let ended = pool.take_agent()?.stop(STOP_LIMIT).err().map(|error| error.to_string());
    let ended = ended.context("it did not die of it")?;
    let how = ended.lines().next().unwrap_or_default();
    ensure!(how.contains("SIGABRT") && !how.contains("core dumped"), "{how}");
    if !cores {
        eprintln!("this machine writes no cores: only limits and flags were looked at");
    }
    pool.start()
}

fn abort(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).context("no process")?;
    Ok(kill_process(pid, Signal::ABORT)?)
}
