//! `guard --helper HOW BASE PATH`: the smallest agents, each wrong or right in one way.
//!
//! | how | what it does |
//! | --- | --- |
//! | `online` | answers every request "online" |
//! | `refuse` | answers every request with `EIO` |
//! | `silent` | takes requests and never answers |
//! | `each` | refuses every request with its inode's own error number, among beats and answers of others |
//! | `beats` | lets the beat grow for 3 s, then answers "online" |
//! | `watch` | marks PATH for `FAN_OPEN_PERM`, answers "watched", removes the marker when asked, allows |
//! | `filesystem` | watches the whole file system and allows every open |
//! | `successor` | as `filesystem`, but another agent serves by the time of each answer |
//! | `mute` | as `filesystem`, but never answers an event |
//! | `denies` | as `filesystem`, but denies every open |
//! | `stranger` | marks PATH as `watch` does and allows every open, as a virus scanner does |
//! | `dies` | releases PATH over and over, dies when the marker is set, and recalls as the next agent |

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hsm_agent::bpf::{Answer, Maps, Requests};
use hsm_agent::sys::fanotify::{
    Class, EventMask, Group, GroupOptions, MarkTarget, Verdict, events,
};
use hsm_agent::sys::lease::{self, LeaseKind};
use hsm_agent::sys::{signal, space, xattr};
use hsm_common::filter::{KIND_ARM, Request};
use rustix::event::{PollFd, PollFlags, poll};

use crate::kernel_lab::marker;

/// `EIO` of `<errno.h>`.
const EIO: i32 = 5;

pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let [how, base, path] = args else {
        eprintln!("--helper HOW BASE PATH");
        return ExitCode::FAILURE;
    };
    match serve(&how.to_string_lossy(), Path::new(base), Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(how: &str, base: &Path, path: &Path) -> Result<()> {
    let maps = Maps::open(base)?.context("nothing is pinned")?;
    let me = std::process::id();
    maps.exempt(me)?;
    if how == "dies" {
        maps.serve()?;
        return release_and_die(path);
    }
    let mut requests = maps.requests()?;
    if matches!(how, "watch" | "stranger" | "filesystem" | "successor" | "mute" | "denies") {
        return watch(&maps, requests, path, how);
    }
    maps.serve()?;
    if how == "each" {
        return answer_each(&maps, requests);
    }
    loop {
        let request = wait(&mut requests)?;
        match how {
            "online" => drop(maps.answer(request.id, Answer::Online)?),
            "refuse" => drop(maps.answer(request.id, Answer::Refuse(EIO))?),
            "silent" => {}
            "beats" => beat(&maps, &request)?,
            _ => bail!("unknown: {how}"),
        }
    }
}

/// What a release, a death and the next agent's release and recall do to the file itself. The pauses
/// let openers come in between.
fn release_and_die(path: &Path) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    // Whoever breaks a lease here waits.
    signal::block(&[signal::lease_break_signal(), libc::SIGIO])?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut copy = vec![0; usize::try_from(length)?];
    loop {
        take_lease(&file)?;
        file.read_exact_at(&mut copy, 0)?;
        std::thread::sleep(PAUSE);
        xattr::set(&file, &marker(), b"marker")?;
        // The agent dies. Nobody has retaken the lease, so nothing has been punched.
        lease::unset(&file)?;
        std::thread::sleep(PAUSE);
        take_lease(&file)?;
        space::punch_all(&file, length)?;
        std::thread::sleep(PAUSE);
        file.write_all_at(&copy, 0)?;
        xattr::remove(&file, &marker())?;
        lease::unset(&file)?;
        std::thread::sleep(PAUSE);
    }
}

fn take_lease(file: &File) -> Result<()> {
    while !lease::set(file, LeaseKind::Write)? {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn wait(requests: &mut Requests) -> Result<Request> {
    loop {
        if let Some(request) = requests.next() {
            return Ok(request);
        }
        poll(&mut [PollFd::new(requests, PollFlags::IN)], None)?;
    }
}

/// What [`answer_each`] refuses an inode with.
pub(crate) fn own_error(ino: u64) -> i32 {
    1000 + i32::try_from(ino % 3000).unwrap_or(0)
}

/// Over and over: a beat for all who wait, and the answer for the one who has waited longest.
fn answer_each(maps: &Maps, mut requests: Requests) -> Result<()> {
    let mut waiting = VecDeque::new();
    for beat in 1.. {
        while let Some(request) = requests.next() {
            waiting.push_back((request.id, request.ino));
        }
        for (id, _) in &waiting {
            maps.answer(*id, Answer::Beat(beat))?;
        }
        if let Some((id, ino)) = waiting.pop_front() {
            maps.answer(id, Answer::Refuse(own_error(ino)))?;
        }
    }
    Ok(())
}

fn beat(maps: &Maps, request: &Request) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(3);
    let mut number = 0;
    while Instant::now() < end {
        number += 1;
        maps.answer(request.id, Answer::Beat(number))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    maps.answer(request.id, Answer::Online)?;
    Ok(())
}

fn watch(maps: &Maps, mut requests: Requests, path: &Path, how: &str) -> Result<()> {
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    let file = File::open(path)?;
    match how {
        "stranger" => group.watch_inode(MarkTarget::Fd(file.as_fd()), EventMask::OPEN_PERM)?,
        "filesystem" | "successor" | "mute" | "denies" => {
            group.watch_filesystem(file.as_fd(), EventMask::OPEN_PERM)?;
        }
        _ => {}
    }
    maps.serve()?;
    let mut buffer = vec![0; 4096];
    loop {
        let mut fds = [PollFd::new(&requests, PollFlags::IN), PollFd::new(&group, PollFlags::IN)];
        let heard = if how == "mute" { 1 } else { 2 };
        poll(&mut fds[..heard], None)?;
        while let Some(request) = requests.next() {
            if request.kind == KIND_ARM {
                maps.arm()?;
                maps.answer(request.id, Answer::Watched)?;
                continue;
            }
            group.watch_inode(MarkTarget::Fd(file.as_fd()), EventMask::OPEN_PERM)?;
            maps.answer(request.id, Answer::Watched)?;
        }
        if how == "successor" && group.has_events() {
            maps.serve()?;
        }
        if how != "mute" {
            answer_events(&group, &mut buffer, &file, how)?;
        }
    }
}

fn answer_events(group: &Group, buffer: &mut [u8], file: &File, how: &str) -> Result<()> {
    let length = match group.read(buffer) {
        Ok(length) => length,
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for event in events(&buffer[..length]) {
        let event = event?;
        if how == "watch" {
            xattr::remove(file, &marker())?;
        }
        // The event's descriptor stays open: this process lives for one case.
        group
            .answer(event.fd, if how == "denies" { Verdict::Deny(EIO) } else { Verdict::Allow })?;
    }
    Ok(())
}
