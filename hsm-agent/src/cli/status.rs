//! `hsm status`

use std::path::Path;

use crate::control::{PoolStatus, ProgramCount, Queue, Status, UserQueue};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{self, Output, Tone, tone_of};

/// The agent, its pools and what they did
///
/// Counts by state come from the catalogue; `hsm scan` brings it up to date. Everybody may ask;
/// others than root see no process ids and no places of stores.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!("hsm status", "hsm status --json | jq .pools[].states"))]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _: &Args) -> Result<Exit, Failure> {
    let status = context.block_on(context.client()?.status())?;
    if context.out.json {
        context.out.json_line(&status)?;
    } else {
        print(&context.out, &status)?;
    }
    Ok(Exit::Done)
}

fn print(out: &Output, status: &Status) -> std::io::Result<()> {
    let up = output::duration(status.uptime_seconds);
    let pids = match (status.holder_pid, status.engine_pid) {
        (Some(holder), Some(engine)) => format!(", holder {holder}, engine {engine}"),
        _ => String::new(),
    };
    let agent = out.paint(Tone::Good, "running");
    out.line(format!("agent  {agent}, version {}, up {up}{pids}", status.version))?;
    if status.engine_restarts > 0 {
        let times = output::count(status.engine_restarts, "time", "times");
        out.line(
            out.paint(Tone::Bad, format!("       engine started again {times}: see its log")),
        )?;
    }
    for ProgramCount { name, count } in &status.programs {
        out.line(format!("kernel {name} {count}"))?;
    }
    queue(&status.queue).into_iter().try_for_each(|line| out.line(line))?;
    status.pools.iter().try_for_each(|pool| print_pool(out, pool))
}

/// What waits for its turn; nothing while nothing does.
fn queue(queue: &Queue) -> Vec<String> {
    if queue.running == 0 && queue.waiting == 0 && queue.bulk_queued == 0 {
        return Vec::new();
    }
    let Queue { running, most_running, most_running_per_user, most_local_per_user, .. } = queue;
    let Queue { waiting, most_waiting, most_waiting_per_user, bulk_queued, .. } = queue;
    let head = format!(
        "queue  {running} of {most_running} recalls running ({most_running_per_user} per user, \
         {most_local_per_user} from local stores), {waiting} of {most_waiting} readers waiting \
         ({most_waiting_per_user} per user), {bulk_queued} of jobs queued"
    );
    let user = |user: &UserQueue| {
        let UserQueue { uid, running, queued, waiting } = user;
        format!("       uid {uid}: {running} running, {queued} queued, {waiting} readers waiting")
    };
    std::iter::once(head).chain(queue.users.iter().map(user)).collect()
}

fn print_pool(out: &Output, pool: &PoolStatus) -> std::io::Result<()> {
    let mount = output::path(Path::new(&pool.mount));
    let name = out.paint(Tone::Head, &pool.name);
    out.line(format!("\npool {name} on {mount} ({})", pool.fs_type))?;
    out.line(format!("  tier      {} ({})", pool.tier, pool.tier_reason))?;
    out.line(format!("  store     {}", store(out, pool)))?;
    let mut known = pool.states.iter().filter(|count| count.files > 0).peekable();
    if known.peek().is_none() {
        let name = output::path(Path::new(&pool.name)).into_owned();
        out.line(format!("  files     none known; `hsm scan --pool {name}` looks for them"))?;
    }
    for count in known {
        let state = out.paint(tone_of(count.state), format!("{:<8}", count.state));
        let files = output::count(count.files, "file", "files");
        out.line(format!("  {state}  {files}, {}", output::size(count.bytes)))?;
    }
    counters(pool).into_iter().try_for_each(|(name, text)| out.line(format!("  {name:<8}  {text}")))
}

fn store(out: &Output, pool: &PoolStatus) -> String {
    let (tone, word) = match pool.store.ok {
        Some(true) => (Tone::Good, "ok"),
        Some(false) => (Tone::Bad, "failing"),
        None => (Tone::Plain, "not used yet"),
    };
    let mut text = out.paint(tone, word);
    if let Some(description) = &pool.store.description {
        text += &format!(", {description}");
    }
    if let Some(error) = &pool.store.error {
        text += &format!(": {error}");
    }
    text
}

fn counters(pool: &PoolStatus) -> Vec<(&'static str, String)> {
    let c = &pool.counters;
    let time = |us: Option<u64>| match us {
        Some(us) => format!("{:.2} ms", us as f64 / 1000.0),
        None => "-".to_owned(),
    };
    let moved = |files, bytes| {
        format!("{}, {}", output::count(files, "file", "files"), output::size(bytes))
    };
    let mut lines = vec![
        ("events", format!("{}, {} denied ({} by limits)", c.events, c.denials, c.refused)),
        (
            "recalls",
            format!(
                "{} ({}), {} failed, {} under way, p50 {}, p99 {}",
                c.recalls,
                output::size(c.bytes_recalled),
                c.recalls_failed,
                c.in_flight,
                time(pool.recall_latency.p50_us),
                time(pool.recall_latency.p99_us)
            ),
        ),
        ("copied", moved(c.archived, c.bytes_archived)),
        ("freed", moved(c.released, c.bytes_released)),
    ];
    if pool.retired_objects > 0 {
        lines.push(("retired", output::count(pool.retired_objects, "object", "objects")));
    }
    lines
}
