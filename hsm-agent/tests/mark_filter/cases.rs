//! What the filter promises, case by case.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::{Answer, BpfError, Filter, FilterPrograms, Guard, Mode, Residency, Settings};
use hsm_agent::marker::ResidencyMap;
use hsm_agent::sys::fanotify::{Class, EventMask, Group, GroupOptions};
use hsm_agent::sys::lease::{self, LeaseKind};
use hsm_agent::sys::{signal, xattr};
use hsm_common::filter::Counter;
use rustix::fs::{Mode as FileMode, OFlags};

use crate::SIZE;
use crate::kernel_lab::{Case, EAGAIN, Lab, assert_errno, marker, wait_for};

/// `EIO` of `<errno.h>`.
const EIO: i32 = 5;
use crate::watch::{Watch, elsewhere};

macro_rules! cases {
    ($($name:ident,)*) => {
        /// All cases.
        pub(crate) const ALL: &[Case] = &[$(Case { name: stringify!($name), run: $name },)*];
    };
}

cases! {
    a_filter_is_attached_and_detached,
    a_filter_needs_the_guard,
    online_files_raise_nothing,
    offline_files_raise_events_with_their_range,
    local_ranges_raise_nothing,
    mappings_of_local_ranges_are_asked_about,
    held_files_are_asked_about_without_a_marker,
    the_agent_is_not_asked,
    replacing_loses_no_event,
    marks_come_and_go_under_readers,
    without_its_link_a_mark_raises_all,
    mark_mode_needs_the_mark,
    a_strangers_mark_does_not_count,
    an_open_that_empties_waits_for_the_agent,
    who_waited_for_a_lease_is_looked_at_again,
    a_dead_group_leaves_online_files_alone,
}

const READ: &str = "open(p, 'rb').read()";
const WRITE: &str = "os.pwrite(os.open(p, os.O_WRONLY), b'yy', 4096)";
const TRUNCATE: &str = "os.truncate(p, 8384512)";
const EMPTY: &str = "os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))";

fn a_filter_is_attached_and_detached(lab: &Lab) -> Result<()> {
    let base = &lab.settings.base;
    let group = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
    let first = Filter::attach(&lab.settings, "pool", group.as_fd())?;
    let other = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
    let second = Filter::attach(&lab.settings, "pool", other.as_fd())?;
    ensure!(Guard::status(base)?.filters == [("pool".to_owned(), 2)], "two links");
    second.retire_others()?;
    ensure!(Guard::status(base)?.filters == [("pool".to_owned(), 1)], "one link");
    let again = Filter::attach(&lab.settings, "pool", group.as_fd());
    drop(first);
    again.context("the group has no filter any more")?.retire_others()?;
    ensure!(Guard::pinned(base)?.iter().any(|path| path.ends_with("filters/pool/3")), "listed");
    ensure!(Filter::replace_pinned(&lab.settings, "pool")? == 1, "replaced");
    ensure!(Filter::unpin(base, "pool")? && !Filter::unpin(base, "pool")?, "removed once");
    ensure!(Guard::status(base)?.filters.is_empty(), "no link");
    let root = File::open(lab.fs.path())?;
    let error = group.filter_filesystem(root.as_fd(), EventMask::PRE_ACCESS).err();
    let error = error.and_then(|e| e.raw_os_error());
    ensure!(error == Some(rustix::io::Errno::NOLINK.raw_os_error()), "detached: {error:?}");
    // The kernel frees them in the background.
    wait_for(|| {
        let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
        Ok(!programs.any(|program| program.name_as_str().is_some_and(|n| n.starts_with("mark_"))))
    })
    .context("programs are still loaded")
}

fn a_filter_needs_the_guard(lab: &Lab) -> Result<()> {
    let group = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
    let elsewhere = Settings { base: lab.settings.base.join("x"), ..Settings::default() };
    let result = Filter::attach(&elsewhere, "pool", group.as_fd());
    ensure!(matches!(result, Err(BpfError::NotInstalled { .. })), "{result:?}");
    // It goes before the programs that make verdicts invalid do.
    Filter::attach(&lab.settings, "pool", group.as_fd())?;
    let removed = Guard::unpin(&lab.settings.base)?;
    let place = |end: &str| removed.iter().position(|path| path.ends_with(end));
    ensure!(place("filters/pool/1") < place("invalidate_set"), "{removed:?}");
    ensure!(place("filters/pool/1").is_some() && place("maps").is_some(), "{removed:?}");
    Ok(())
}

fn online_files_raise_nothing(lab: &Lab) -> Result<()> {
    const OPENS: u32 = 10_000;
    const READS_EACH: u64 = 10;
    let path = lab.file("online")?;
    let watch = Watch::begin(lab, "pool")?;
    let independent = Watch::begin(lab, "independent")?;
    for _ in 0..OPENS {
        let file = File::open(&path)?;
        (0..READS_EACH).try_for_each(|page| read_byte(&file, page % 4 * 4096))?;
    }
    assert_errno(READ, &path, 0)?;
    assert_errno(WRITE, &path, 0)?;
    assert_errno(TRUNCATE, &path, 0)?;
    watch.expect(&[], "an online file")?;
    independent.expect(&[], "an online file")?;
    lab.mark(&path)?;
    read_byte(&File::open(&path)?, 4096)?;
    watch.expect(&[(false, 4096, 4096)], "a marked file")?;
    independent.expect(&[(false, 4096, 4096)], "a marked file")
}

fn offline_files_raise_events_with_their_range(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    let watch = Watch::begin(lab, "pool")?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    watch.expect(&[], "an open")?;
    read_byte(&file, 8192)?;
    watch.expect(&[(false, 8192, 4096)], "a read")?;
    file.write_all_at(b"yy", 4095)?;
    watch.expect(&[(true, 0, 8192)], "a write")?;
    file.set_len(SIZE - 4096)?;
    watch.expect(&[(true, SIZE - 4096, 0)], "ftruncate")?;
    assert_errno("os.truncate(p, 4096)", &path, 0)?;
    watch.expect(&[(true, 4096, 0)], "truncate")?;
    // An open file goes on being asked about; when the marker goes, it is no more.
    lab.unmark(&path)?;
    read_byte(&file, 0)?;
    watch.expect(&[], "a read without a marker")
}

/// The second and third MiB are local.
pub(crate) fn second_and_third(path: &Path, lab: &Lab) -> Result<()> {
    let mut map = ResidencyMap::empty(7, SIZE, 20)?;
    map.set_range(1..3);
    let path = rustix::fs::open(path, OFlags::PATH, FileMode::empty())?;
    Ok(lab.maps.set_resident(path.as_fd(), &Residency::of(&map))?)
}

const MIB: u64 = 1 << 20;

fn local_ranges_raise_nothing(lab: &Lab) -> Result<()> {
    let path = lab.marked("partial")?;
    second_and_third(&path, lab)?;
    let watch = Watch::begin(lab, "pool")?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut many = vec![0; 2 << 20];
    file.read_exact_at(&mut many, MIB)?;
    read_byte(&file, 3 * MIB - 1)?;
    read_byte(&file, MIB)?;
    watch.expect(&[], "local ranges")?;
    read_byte(&file, MIB - 1)?;
    read_byte(&file, 3 * MIB)?;
    file.read_exact_at(&mut many, MIB + 1)?;
    let wanted = [(false, MIB - 4096, 4096), (false, 3 * MIB, 4096), (false, MIB, 2 * MIB + 4096)];
    watch.expect(&wanted, "ranges that are not, or not wholly, local")?;
    file.write_all_at(b"yy", 2 * MIB)?;
    watch.expect(&[(true, 2 * MIB, 4096)], "a write to a local range")?;
    assert_errno(TRUNCATE, &path, 0)?;
    watch.expect(&[(true, SIZE - 4096, 0)], "a truncation")?;
    read_byte(&file, 2 * MIB)?;
    watch.expect(&[(false, 2 * MIB, 4096)], "a file of another size")?;

    let path = lab.marked("again")?;
    let file = File::open(&path)?;
    for end in ["cleared", "marked"] {
        second_and_third(&path, lab)?;
        read_byte(&file, 2 * MIB)?;
        watch.expect(&[], end)?;
        match end {
            "cleared" => lab.maps.clear_resident(file.as_fd())?,
            _ => lab.mark(&path)?,
        }
        read_byte(&file, 2 * MIB)?;
        watch.expect(&[(false, 2 * MIB, 4096)], end)?;
    }
    Ok(())
}

/// A mapping grows without an event.
fn mappings_of_local_ranges_are_asked_about(lab: &Lab) -> Result<()> {
    let path = lab.marked("partial")?;
    second_and_third(&path, lab)?;
    let watch = Watch::begin(lab, "pool")?;
    let mapping = "f = os.open(p, os.O_RDONLY); os.pread(f, 10, 1048576); \
                   mmap.mmap(f, 4096, mmap.MAP_SHARED, mmap.PROT_READ, offset=1048576)[0]";
    assert_errno(mapping, &path, 0)?;
    watch.expect(&[(false, MIB, 4096)], "a mapping")
}

fn held_files_are_asked_about_without_a_marker(lab: &Lab) -> Result<()> {
    let path = lab.marked("held")?;
    let watch = Watch::begin(lab, "pool")?;
    let agents = rustix::fs::open(&path, OFlags::PATH, FileMode::empty())?;
    // Nobody serves here, so that the guard would refuse a file that is still marked.
    let open = File::open(&path)?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    lab.maps.hold(agents.as_fd())?;
    lab.unmark(&path)?;
    // Also after the guard has looked: it shares the verdicts.
    for _ in 0..3 {
        read_byte(&File::open(&path)?, 0)?;
        read_byte(&open, 0)?;
        watch.expect(&[(false, 0, 4096); 2], "held")?;
    }
    assert_errno(WRITE, &path, 0)?;
    watch.expect(&[(true, 4096, 4096)], "a write to a held file")?;
    lab.maps.unhold(agents.as_fd())?;
    read_byte(&open, 0)?;
    read_byte(&File::open(&path)?, 0)?;
    watch.expect(&[], "let go")?;
    lab.maps.unhold(agents.as_fd()).context("once more")
}

fn the_agent_is_not_asked(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    let watch = Watch::begin(lab, "pool")?;
    let silent = lab.as_agent(|| {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        read_byte(&file, 0)?;
        file.write_all_at(b"yy", 0)?;
        file.set_len(SIZE - 1)?;
        rustix::fs::open(&path, OFlags::RDONLY, FileMode::empty())?;
        Ok(file)
    })?;
    watch.expect(&[], "the agent")?;
    read_byte(&silent, 8192)?;
    watch.expect(&[], "what the agent opened")?;
    assert_errno("os.pread(os.open(p, os.O_RDONLY), 10, 0)", &path, 0)?;
    watch.expect(&[(false, 0, 4096)], "somebody else")
}

/// Readers of an online and a marked file: each read of the latter is one event.
fn replacing_loses_no_event(lab: &Lab) -> Result<()> {
    const READERS: usize = 8;
    // As often as 30 s allow on an emulated machine, unless somebody wants to know.
    let wanted: Option<u32> =
        std::env::var("HSM_REPLACEMENTS").ok().map(|n| n.parse()).transpose()?;
    let patience = Instant::now() + Duration::from_secs(if wanted.is_some() { 540 } else { 30 });
    let programs = FilterPrograms::prepare(&lab.settings)?;
    let online = lab.file("online")?;
    let marked = lab.marked("marked")?;
    let watch = Watch::begin(lab, "pool")?;
    let (end, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let replaced = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    while !end.load(Ordering::SeqCst) {
                        read_byte(&File::open(&online)?, 0)?;
                        read_byte(&File::open(&marked)?, 0)?;
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        let mut replaced = Ok(0);
        for times in 1..=wanted.unwrap_or(1000) {
            replaced = watch.filter.replace(&programs).map(|()| times);
            if replaced.is_err() || Instant::now() > patience {
                break;
            }
        }
        end.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().ok().context("a reader panicked")??;
        }
        Ok::<_, anyhow::Error>(replaced?)
    });
    let replaced = replaced?;
    let (events, reads) = (watch.seen(), reads.into_inner());
    eprintln!("{replaced} replacements, {reads} reads of the marked file, {} events", events.len());
    ensure!(u64::try_from(events.len())? == reads, "{} events, {reads} reads", events.len());
    let least = wanted.unwrap_or(6);
    ensure!(reads > 100 && replaced >= least, "not tried: {reads} reads, {replaced} replacements");
    Ok(())
}

/// The kernel's part alone, since the guard covers nothing here: what was opened under a mark that
/// has gone is refused, and nothing is left behind (lockdep and kmemleak look on in the debug kernel).
fn marks_come_and_go_under_readers(lab: &Lab) -> Result<()> {
    const READERS: usize = 8;
    let marked = lab.marked("marked")?;
    let watch = Watch::begin(lab, "pool")?;
    let programs = FilterPrograms::prepare(&lab.settings)?;
    let (end, reads, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let read = || -> Result<()> {
        while !end.load(Ordering::SeqCst) {
            let mut byte = [0];
            match File::open(&marked).and_then(|file| file.read_exact_at(&mut byte, 0)) {
                Ok(()) => {
                    ensure!(byte[0] != 0, "a zero was read");
                    reads.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    refused.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        let change = || -> Result<()> {
            for round in 0..40 {
                watch.unmark()?;
                std::thread::sleep(Duration::from_millis(5));
                watch.mark()?;
                std::thread::sleep(Duration::from_millis(5));
                if round % 10 == 0 {
                    watch.filter.replace(&programs)?;
                }
            }
            Ok(())
        };
        let changed = change();
        end.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().ok().context("a reader panicked")??;
        }
        changed
    })?;
    let (reads, refused) = (reads.into_inner(), refused.into_inner());
    eprintln!("{reads} reads, {refused} refused");
    ensure!(reads > 100, "not tried: {reads} reads");
    watch.seen();
    read_byte(&File::open(&marked)?, 0)?;
    ensure!(watch.seen().len() == 1, "the mark is back, and asks once");
    Ok(())
}

fn without_its_link_a_mark_raises_all(lab: &Lab) -> Result<()> {
    let path = lab.file("online")?;
    let watch = Watch::begin(lab, "pool")?;
    let before = File::open(&path)?;
    ensure!(Filter::unpin(&lab.settings.base, "pool")?, "it was pinned");
    read_byte(&File::open(&path)?, 0)?;
    watch.expect(&[(false, 0, 4096)], "an online file")?;
    read_byte(&before, 0)?;
    watch.expect(&[], "what was passed before stays so")
}

fn mark_mode_needs_the_mark(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    let online = lab.file("online")?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    ensure!(lab.maps.covered()? == [(lab.uuid, Mode::Mark)], "covered");
    for access in [READ, WRITE, TRUNCATE, EMPTY] {
        assert_errno(access, &path, EAGAIN)?;
    }
    let mut listener = elsewhere(lab)?;
    assert_errno(READ, &path, 0)?;
    assert_errno(WRITE, &path, 0)?;
    // The listener lets this pass over the marker, which no agent does.
    assert_errno(TRUNCATE, &path, EAGAIN)?;
    for access in [READ, WRITE, TRUNCATE, EMPTY] {
        assert_errno(access, &online, 0)?;
    }
    listener.kill();
    let watch = Watch::begin(lab, "pool")?;
    watch.unmark()?;
    assert_errno(READ, &path, EAGAIN)
}

/// A listener that knows nothing of filters: its mark goes with it, and the kernel would let pass.
fn a_strangers_mark_does_not_count(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    let stranger = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    let root = File::open(lab.fs.path())?;
    stranger.watch_filesystem(root.as_fd(), EventMask::PRE_ACCESS)?;
    assert_errno("os.open(p, os.O_RDONLY)", &path, EAGAIN)
}

/// `O_TRUNC` raises no event.
fn an_open_that_empties_waits_for_the_agent(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    let watch = Watch::begin(lab, "pool")?;
    assert_errno(EMPTY, &path, EAGAIN).context("nobody serves")?;
    ensure!(fs::metadata(&path)?.len() == SIZE, "nothing was taken away");
    lab.maps.serve()?;
    let mut requests = lab.maps.requests()?;
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| assert_errno(EMPTY, &path, 0));
        let mut request = None;
        wait_for(|| {
            request = requests.next();
            Ok(request.is_some())
        })?;
        let request = request.context("a request")?;
        ensure!(request.kind == hsm_common::filter::KIND_RECALL, "{request:?}");
        lab.unmark(&path)?;
        ensure!(lab.maps.answer(request.id, Answer::Online)?, "it waited");
        opener.join().ok().context("the opener panicked")?
    })?;
    ensure!(fs::metadata(&path)?.len() == 0, "emptied");
    watch.expect(&[], "O_TRUNC")
}

/// The filter has passed it for good, before the marker was set by an agent that then died.
fn who_waited_for_a_lease_is_looked_at_again(lab: &Lab) -> Result<()> {
    let path = lab.file("file")?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    // Before there is another thread, which would get it.
    signal::block(&[libc::SIGIO])?;
    let watch = Watch::begin(lab, "pool")?;
    let count = |counter| Ok::<_, anyhow::Error>(lab.maps.counters()?.get(counter));
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
        read_byte(&File::open(&path)?, 0).context("the verdict is cached")?;
        let agent = OpenOptions::new().read(true).write(true).open(&path)?;
        ensure!(lease::set(&agent, LeaseKind::Write)?, "somebody has it open");
        let passed = count(Counter::PassedCached)?;
        let opener = std::thread::spawn({
            let path = path.clone();
            move || rustix::fs::open(&path, flags, FileMode::empty()).map(drop)
        });
        wait_for(|| Ok(count(Counter::PassedCached)? > passed))?;
        std::thread::sleep(Duration::from_millis(20));
        lab.as_agent(|| Ok(xattr::set(&agent, &marker(), b"marker")?))?;
        lease::unset(&agent)?;
        let result = opener.join().ok().context("the opener panicked")?;
        ensure!(result == Err(rustix::io::Errno::AGAIN), "{flags:?}: {result:?}");
        lab.unmark(&path)?;
    }
    ensure!(count(Counter::DeniedPostOpen)? == 3, "by the second check");
    watch.expect(&[], "refused opens")
}

fn a_dead_group_leaves_online_files_alone(lab: &Lab) -> Result<()> {
    let online = lab.file("online")?;
    let marked = lab.marked("marked")?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    let mut listener = elsewhere(lab)?;
    assert_errno(READ, &marked, 0)?;
    let open = File::open(&marked)?;
    listener.kill();
    wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    for access in [READ, WRITE, TRUNCATE, EMPTY] {
        assert_errno(access, &online, 0)?;
    }
    for access in [READ, WRITE, EMPTY] {
        assert_errno(access, &marked, EAGAIN)?;
    }
    assert_errno(TRUNCATE, &marked, EIO)?;
    let error = open.read_at(&mut [0], 0).err().and_then(|e| e.raw_os_error());
    ensure!(error == Some(EIO), "a file that was open: {error:?}");
    // What was local stays readable without an agent.
    second_and_third(&marked, lab)?;
    read_byte(&open, 2 * MIB)?;
    lab.maps.clear_resident(open.as_fd())?;

    // This process is no agent's: the guard would not let it have the event's descriptor.
    lab.maps.uncover(lab.uuid)?;
    let watch = Watch::begin(lab, "pool")?;
    ensure!(Guard::status(&lab.settings.base)?.filters == [("pool".to_owned(), 1)], "one link");
    read_byte(&open, 0)?;
    watch.expect(&[(false, 0, 4096)], "the next agent is asked")?;
    assert_errno(READ, &online, 0)?;
    watch.expect(&[], "an online file")
}

/// A byte, which is not zero.
fn read_byte(file: &File, at: u64) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    ensure!(byte[0] != 0, "a zero was read at {at}");
    Ok(())
}
