//! `hsm waiters`

use crate::control::Waiter;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::{self, Tone};

/// Who waits for data, and for what
///
/// Lists the processes that are blocked in an access to an offline file. `abort` ends the wait of
/// one of them with an error (EIO); it does not touch the file.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = super::after_help!(
    "hsm waiters",
    "hsm waiters abort 17",
))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// End one wait with an error
    Abort {
        /// The number in the first column of the list
        id: u64,
    },
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let client = context.client()?;
    match args.verb {
        Some(Verb::Abort { id }) => context.block_on(client.abort_waiter(id))?,
        None => list(context, &context.block_on(client.waiters())?)?,
    }
    Ok(Exit::Done)
}

fn list(context: &Context, waiters: &[Waiter]) -> Result<(), Failure> {
    let out = &context.out;
    if out.json {
        return Ok(waiters.iter().try_for_each(|waiter| out.json_line(waiter))?);
    }
    if waiters.is_empty() {
        return Ok(out.line("nobody waits")?);
    }
    let head = format!(
        "{:>6}  {:>8}  {:<15}  {:>8}  {:<10}  {:>21}  PATH",
        "ID", "PID", "COMMAND", "WAITS", "FOR", "PROGRESS"
    );
    out.line(out.paint(Tone::Head, head))?;
    Ok(waiters.iter().try_for_each(|waiter| out.line(line(waiter)))?)
}

fn line(waiter: &Waiter) -> String {
    let command = waiter.command.as_deref().unwrap_or("?");
    let command = output::path(std::path::Path::new(command)).into_owned();
    let waits = format!("{:.1} s", waiter.since_ms as f64 / 1000.0);
    let (done, total) = (output::size(waiter.bytes_done), output::size(waiter.bytes_total));
    format!(
        "{:>6}  {:>8}  {command:<15}  {waits:>8}  {:<10}  {:>21}  {}",
        waiter.id,
        waiter.pid,
        waiter.phase,
        format!("{done}/{total}"),
        output::path(waiter.path.as_path())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_waiter_whatever_the_names() {
        let waiter = Waiter {
            id: 3,
            pool: "media".into(),
            pid: 42,
            uid: None,
            command: Some("evil\n".into()),
            path: "/a\nb".into(),
            since_ms: 1500,
            phase: "fetching".into(),
            bytes_done: 0,
            bytes_total: 1024,
        };
        let line = line(&waiter);
        assert!(!line.contains('\n') && line.contains("1.5 s"), "{line}");
        assert!(line.ends_with(r"$'/a\nb'"), "{line}");
    }
}
