//! Verbs that work on files: from arguments to jobs to an exit code.
//!
//! Ctrl-c asks the agent to stop between files and goes on listening, so that the summary still
//! counts everything that was done. A second ctrl-c leaves at once; the agent then notices the
//! closed connection and stops between files all the same.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::client::{Client, JobStream, batches};
use crate::control::{
    FileReport, JobEvent, JobRequest, Op, Outcome, PathError, Reason, Summary, WirePath,
};

use super::context::Context;
use super::exit::{Exit, Failure, exit_of_fatal};
use super::output::{self, Tone};
use super::paths::{self, Found};
use super::progress::{Amount, Progress};

/// The arguments that archive, release, migrate, recall, pin and unpin share.
#[derive(Debug, clap::Args)]
pub(super) struct FileArgs {
    /// Files, or directories with -r; a pattern is expanded if no file has that very name
    #[arg(value_name = "PATH", required_unless_present = "files_from")]
    paths: Vec<OsString>,
    /// Go down directories, but not into other file systems
    #[arg(short, long)]
    recursive: bool,
    /// Read more paths or patterns from FILE, or from stdin for "-", one a line
    #[arg(long, value_name = "FILE")]
    files_from: Option<PathBuf>,
    /// The list's entries end with NUL, as `find -print0` writes them
    #[arg(short = '0', long, requires = "files_from")]
    null: bool,
    /// Below directories: only files whose name or path matches (may be repeated)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Below directories: nothing whose name or path matches (may be repeated)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Only say what would be done for each file, and why not
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Files in work at the same time [default and upper bound: the agent's configuration]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

/// Does `op` to the files that `args` name.
pub(super) fn run(context: &Context, op: Op, args: &FileArgs) -> Result<Exit, Failure> {
    paths::check_globs(&args.include)?;
    paths::check_globs(&args.exclude)?;
    let found = collect(args)?;
    let mut request = JobRequest::new(op, Vec::new());
    request.recursive = args.recursive;
    request.dry_run = args.dry_run;
    request.include.clone_from(&args.include);
    request.exclude.clone_from(&args.exclude);
    request.jobs = args.jobs.map(usize::from);
    request.verbose = args.dry_run || context.out.json || context.out.verbosity > 0;
    let paths: Vec<WirePath> = found.paths.into_iter().map(WirePath::from).collect();
    let requests =
        batches(&paths).map(|batch| JobRequest { paths: batch.to_vec(), ..request.clone() });
    drive(context, op, found.errors, requests)
}

/// Runs jobs one after the other as one command. Every verb that starts jobs ends here.
pub(super) fn drive(
    context: &Context,
    op: Op,
    errors: Vec<PathError>,
    requests: impl Iterator<Item = JobRequest>,
) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut command = Command::new(context, op);
    for error in errors {
        let report = FileReport::failed(error.path, op, error.reason, error.detail);
        command.summary.count(&report);
        command.report(&report)?;
    }
    context.block_on(async {
        let mut signals = Signals::new()?;
        for request in requests {
            if command.run_job(&client, &request, &mut signals).await?.is_break() {
                break;
            }
        }
        Ok::<_, Failure>(())
    })?;
    command.finish()
}

fn collect(args: &FileArgs) -> Result<Found, Failure> {
    let mut found = Found::default();
    args.paths.iter().for_each(|path| found.add(path));
    if let Some(first) = found.directories.first().filter(|_| !args.recursive) {
        let path = output::path(first);
        return Err(Failure::usage(format!("{path} is a directory: use -r to go down into it")));
    }
    if let Some(list) = &args.files_from {
        for entry in paths::read_list(list, args.null)? {
            found.add(&entry);
        }
    }
    if !args.recursive {
        refuse_directories(&mut found);
    }
    Ok(found)
}

/// In a list (`find` names directories too) a directory fails alone.
fn refuse_directories(found: &mut Found) {
    let directories: std::collections::HashSet<PathBuf> = found.directories.drain(..).collect();
    found.paths.retain(|path| !directories.contains(path));
    found.errors.extend(directories.into_iter().map(|path| PathError {
        path: path.into(),
        reason: Reason::IsDirectory,
        detail: "is a directory: use -r to go down into it".into(),
    }));
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            let failed =
                |error| Failure::new(Exit::Failed, format!("cannot catch ctrl-c: {error}"));
            signal(kind).map_err(failed)
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// One command's run, over all its jobs.
struct Command<'a> {
    context: &'a Context,
    op: Op,
    progress: Progress,
    summary: Summary,
    fatal: Option<Fatal>,
    stopping: bool,
    dry_run: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Fatal {
    reason: Reason,
    detail: String,
}

impl<'a> Command<'a> {
    fn new(context: &'a Context, op: Op) -> Self {
        Self {
            context,
            op,
            progress: Progress::new(&context.out, &op.to_string()),
            summary: Summary::default(),
            fatal: None,
            stopping: false,
            dry_run: false,
        }
    }

    /// One job, to its summary. Break: no further job makes sense.
    async fn run_job(
        &mut self,
        client: &Client,
        request: &JobRequest,
        signals: &mut Signals,
    ) -> Result<std::ops::ControlFlow<()>, Failure> {
        self.dry_run = request.dry_run;
        let mut stream = client.job(request).await?;
        let mut id = None;
        while let Some(event) = self.next_event(client, &mut stream, &id, signals).await? {
            match event {
                JobEvent::Started { id: started } => id = Some(started),
                JobEvent::File(report) => self.report(&report)?,
                JobEvent::Progress { files, bytes, total_files, total_bytes } => {
                    self.progress.update(Amount { files, bytes }, (total_files, total_bytes));
                }
                JobEvent::Fatal { reason, detail } => self.fatal = Some(Fatal { reason, detail }),
                JobEvent::Summary(summary) => {
                    self.progress.job_ended(&summary);
                    self.summary.add(&summary);
                }
            }
        }
        let over = self.stopping || self.fatal.is_some() || self.summary.interrupted;
        Ok(if over {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        })
    }

    /// The next event, while ctrl-c is listened to.
    async fn next_event(
        &mut self,
        client: &Client,
        stream: &mut JobStream,
        id: &Option<String>,
        signals: &mut Signals,
    ) -> Result<Option<JobEvent>, Failure> {
        loop {
            tokio::select! {
                event = stream.next() => return Ok(event?),
                () = signals.recv(), if id.is_some() => self.interrupted(client, id).await,
            }
        }
    }

    async fn interrupted(&mut self, client: &Client, id: &Option<String>) {
        if self.stopping {
            std::process::exit(Exit::Interrupted as i32);
        }
        self.stopping = true;
        let note = "stopping after the files in work; ctrl-c again leaves at once";
        self.progress.suspend(|| self.context.out.note(note));
        if let Some(id) = id {
            // A job that ended in this moment cannot be stopped any more; its summary comes.
            let _ = client.cancel_job(id).await;
        }
    }

    /// Prints one file's result where it belongs.
    fn report(&mut self, report: &FileReport) -> Result<(), Failure> {
        let out = &self.context.out;
        let failed = report.outcome == Outcome::Failed;
        self.progress.suspend(|| {
            if failed {
                out.error(refusal(report));
            }
            if out.json {
                out.json_line(report)?;
            } else if !failed && self.wants_a_line(report) {
                out.line(result_line(out, report))?;
            }
            out.flush()
        })?;
        Ok(())
    }

    /// Of a skipped file only who wants a line per file wants to hear.
    fn wants_a_line(&self, report: &FileReport) -> bool {
        let verbosity = self.context.out.verbosity;
        verbosity > 0 || verbosity == 0 && (self.dry_run || report.outcome != Outcome::Skipped)
    }

    fn finish(self) -> Result<Exit, Failure> {
        let Self { context, op, progress, summary, fatal, stopping, .. } = self;
        drop(progress);
        let out = &context.out;
        if let Some(fatal) = &fatal {
            out.error(format!("{} [{}]", fatal.detail, fatal.reason));
        }
        if out.json {
            out.json_line(&LastLine { summary: &summary, fatal: fatal.as_ref() })?;
        } else if out.verbosity >= 0 {
            out.line(summary_line(op, &summary))?;
        }
        Ok(match fatal {
            _ if stopping || (summary.interrupted && fatal.is_none()) => Exit::Interrupted,
            Some(fatal) => exit_of_fatal(fatal.reason),
            None if summary.failed > 0 => Exit::Failed,
            None => Exit::Done,
        })
    }
}

/// The last line of `--json`.
#[derive(Serialize)]
struct LastLine<'a> {
    summary: &'a Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    fatal: Option<&'a Fatal>,
}

/// `/a/b: somebody has it open [open-elsewhere]`
fn refusal(report: &FileReport) -> String {
    let reason = report.reason.unwrap_or(Reason::Io);
    let path = output::path(report.path.as_path());
    let detail = if report.detail.is_empty() { "failed" } else { &report.detail };
    format!("{path}: {detail} [{reason}]")
}

fn result_line(out: &output::Output, report: &FileReport) -> String {
    let past = past(report.op);
    let (tone, words) = match report.outcome {
        Outcome::Done => (Tone::Good, past.to_owned()),
        Outcome::Already => (Tone::Plain, format!("{past} already")),
        Outcome::Skipped => (Tone::Notice, "skipped".to_owned()),
        Outcome::Would => (Tone::Cold, format!("would {}", report.op)),
        Outcome::Failed => (Tone::Bad, "failed".to_owned()),
    };
    let words = out.paint(tone, format!("{words:<16}"));
    let path = output::path(report.path.as_path());
    let why = match report.reason {
        Some(reason) if report.detail.is_empty() => format!("  [{reason}]"),
        Some(reason) => format!("  ({} [{reason}])", report.detail),
        None => String::new(),
    };
    format!("{words} {:>10}  {path}{why}", output::size(report.bytes))
}

fn past(op: Op) -> &'static str {
    match op {
        Op::Archive => "archived",
        Op::Release => "released",
        Op::Migrate => "migrated",
        Op::Recall => "recalled",
        Op::Pin => "pinned",
        Op::Unpin => "unpinned",
        Op::Scan => "scanned",
    }
}

/// `archived 3 files, 1.2 MiB in 0.5 s (2.4 MiB/s); 1 already, 2 failed`
fn summary_line(op: Op, summary: &Summary) -> String {
    let dry = summary.would > 0;
    let (verb, n) = if dry {
        (format!("would {op}"), summary.would)
    } else {
        (past(op).to_owned(), summary.done)
    };
    let mut text = format!("{verb} {}", output::count(n, "file", "files"));
    if summary.bytes > 0 {
        text += &format!(", {}", output::size(summary.bytes));
    }
    text += &format!(" in {:.1} s", summary.seconds);
    if summary.bytes > 0 && summary.seconds > 0.0 && !dry {
        text += &format!(" ({}/s)", output::size((summary.bytes as f64 / summary.seconds) as u64));
    }
    let rest =
        [(summary.already, "already"), (summary.skipped, "skipped"), (summary.failed, "failed")];
    let rest: Vec<String> =
        rest.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    if !rest.is_empty() {
        text += &format!("; {}", rest.join(", "));
    }
    if summary.interrupted {
        text += "; interrupted";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_say_what_matters() {
        let mut summary = Summary { done: 1, bytes: 1 << 20, seconds: 2.0, ..Summary::default() };
        assert_eq!(
            summary_line(Op::Archive, &summary),
            "archived 1 file, 1.0 MiB in 2.0 s (512.0 KiB/s)"
        );
        summary.failed = 2;
        summary.already = 3;
        summary.interrupted = true;
        assert!(summary_line(Op::Recall, &summary).ends_with("; 3 already, 2 failed; interrupted"));
        let dry = Summary { would: 4, ..Summary::default() };
        assert_eq!(summary_line(Op::Release, &dry), "would release 4 files in 0.0 s");
    }

    #[test]
    fn a_refused_file_is_one_line_with_its_code() {
        let report = FileReport::failed("/a\nb", Op::Release, Reason::OpenElsewhere, "is open");
        assert_eq!(refusal(&report), r"$'/a\nb': is open [open-elsewhere]");
    }

    #[test]
    fn directories_of_a_list_fail_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (sub, file) = (dir.path().join("sub"), dir.path().join("file"));
        std::fs::create_dir(&sub).expect("mkdir");
        std::fs::write(&file, "x").expect("write");
        let list = dir.path().join("list");
        let text = format!("{}\n{}\n", sub.display(), file.display());
        std::fs::write(&list, text).expect("write");
        let mut args = FileArgs {
            paths: vec![],
            recursive: false,
            files_from: Some(list),
            null: false,
            include: vec![],
            exclude: vec![],
            dry_run: false,
            jobs: None,
        };
        let found = collect(&args).expect("collects");
        assert_eq!(found.paths, [file]);
        assert_eq!(found.errors[0].reason, Reason::IsDirectory);
        args.paths = vec![sub.clone().into()];
        assert_eq!(collect(&args).expect_err("usage").exit, Exit::Usage);
        args.recursive = true;
        assert_eq!(collect(&args).expect("collects").paths.len(), 3);
    }
}
