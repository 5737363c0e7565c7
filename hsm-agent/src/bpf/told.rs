//! What the programs tell in the agent's log: rare things, refusals above all (`hsm-ebpf/src/told.rs`).
//!
//! The records wait in a ring buffer that is pinned with the other maps and outlives every agent: the next one
//! tells what was refused while there was none. What finds no room there was dropped by the programs, which
//! never wait. The engine reads, not the holder, which parses nothing; when the engine dies, the
//! next one goes on where it stopped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use aya::maps::{MapData, MapInfo};
use aya::programs::loaded_programs;
use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, poll};

use super::maps::failed;
use super::{BpfError, pin};

/// The ring buffer, as aya-log calls it.
pub(super) const RECORDS: &str = "AYA_LOGS";
/// Between two looks after a record that could not be read, so that no failure becomes a busy loop.
const PAUSE: Duration = Duration::from_secs(1);

/// What the log calls the programs.
const TARGET: &str = "hsm_ebpf";

/// Tells in this process's log, from now on, what the programs that are pinned below `base` have to
/// tell, and what they told since anybody listened.
pub fn listen(base: &Path) -> Result<(), BpfError> {
    let dir =
        pin::current(base)?.ok_or_else(|| BpfError::NotInstalled { base: base.to_owned() })?;
    let program = teller(&dir)?;
    let records = EbpfLogger::init_from_id_with_logger(program, Told);
    let records = records.map_err(|source| BpfError::Told { source: Box::new(source) })?;
    let thread = std::thread::Builder::new().name("told".into());
    let started = thread.spawn(move || tell(records));
    started.map(drop).map_err(|source| BpfError::Told { source: Box::new(source) })
}

/// One of the programs that write into the ring buffer: aya-log finds it by them.
fn teller(dir: &Path) -> Result<u32, BpfError> {
    let ring = MapData::from_pin(dir.join(RECORDS)).map_err(failed(RECORDS, "opening"))?;
    let ring =
        ring.info().map(|info: MapInfo| info.id()).map_err(failed(RECORDS, "identifying"))?;
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| {
            program.map_ids().is_ok_and(|ids| ids.is_some_and(|ids| ids.contains(&ring)))
        })
        .map(|program| program.id())
        .ok_or_else(|| BpfError::Told {
            source: "none of the loaded programs tells anything".into(),
        })
}

fn tell(mut records: EbpfLogger<Told>) {
    loop {
        // A record of another layout, of programs of another version, is a bug, and no reason to die: aya-log
        // panics at one, and has passed over it by then.
        if catch_unwind(AssertUnwindSafe(|| records.flush())).is_err() {
            tracing::error!("a record of the kernel programs cannot be read");
            std::thread::sleep(PAUSE);
        }
        if let Err(error) = poll(&mut [PollFd::new(&records, PollFlags::IN)], None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "the kernel programs' records are not read any more");
            return;
        }
    }
}

/// Passes records on.
#[derive(Debug, Clone, Copy)]
struct Told;

impl log::Log for Told {
    /// The subscriber decides.
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, "{text}"),
            log::Level::Warn => tracing::warn!(target: TARGET, "{text}"),
            log::Level::Info => tracing::info!(target: TARGET, "{text}"),
            log::Level::Debug => tracing::debug!(target: TARGET, "{text}"),
            log::Level::Trace => tracing::trace!(target: TARGET, "{text}"),
        }
    }

    fn flush(&self) {}
}
