//! How far a job is: a bar on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::control::Summary;

use super::output::{self, Output};

/// Between two lines in a pipe: often enough to see life, seldom enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows the progress of one command, which may be several jobs.
#[derive(Debug)]
pub(super) struct Progress {
    view: View,
    verb: String,
    begin: Instant,
    /// Of jobs that ended.
    base: Amount,
}

/// Work done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
enum View {
    Nothing,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    pub(super) fn new(out: &Output, verb: &str) -> Self {
        let begin = Instant::now();
        let view = if out.verbosity < 0 {
            View::Nothing
        } else if std::io::stderr().is_terminal() {
            View::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8)))
        } else {
            View::Lines { last: begin }
        };
        Self { view, verb: verb.to_owned(), begin, base: Amount::default() }
    }

    /// The running job is so far.
    pub(super) fn update(&mut self, job: Amount, total: (Option<u64>, Option<u64>)) {
        let done =
            Amount { files: self.base.files + job.files, bytes: self.base.bytes + job.bytes };
        let total_bytes = total.1.map(|bytes| bytes + self.base.bytes);
        match &mut self.view {
            View::Nothing => {}
            View::Bar(bar) => {
                show_bar(bar, &self.verb, done, total.0.map(|n| n + self.base.files), total_bytes);
            }
            View::Lines { last } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                let line = describe(&self.verb, done, total_bytes, self.begin.elapsed());
                // Without stderr there is nobody to tell.
                let _ = writeln!(std::io::stderr(), "hsm: {line}");
            }
            View::Lines { .. } => {}
        }
    }

    /// A job ended; the next one counts from here.
    pub(super) fn job_ended(&mut self, summary: &Summary) {
        self.base.files += summary.done + summary.already + summary.skipped + summary.failed;
        self.base.bytes += summary.bytes;
    }

    /// Prints something without the bar in the way.
    pub(super) fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.view {
            View::Bar(bar) => bar.suspend(print),
            View::Nothing | View::Lines { .. } => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

fn show_bar(
    bar: &ProgressBar,
    verb: &str,
    done: Amount,
    total_files: Option<u64>,
    total_bytes: Option<u64>,
) {
    if bar.length() != total_bytes || bar.message().is_empty() {
        bar.set_style(style(total_bytes.is_some()));
        total_bytes.inspect(|bytes| bar.set_length(*bytes));
    }
    let files = match total_files {
        Some(total) => format!("{}/{total} files", done.files),
        None => output::count(done.files, "file", "files"),
    };
    bar.set_message(format!("{verb}  {files}"));
    bar.set_position(done.bytes);
}

fn style(bounded: bool) -> ProgressStyle {
    let (template, fallback) = if bounded {
        let bar = "{msg}  {wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}";
        (bar, ProgressStyle::default_bar as fn() -> ProgressStyle)
    } else {
        let spinner = "{spinner} {msg}  {binary_bytes}  {binary_bytes_per_sec}  {elapsed}";
        (spinner, ProgressStyle::default_spinner as fn() -> ProgressStyle)
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| fallback())
}

/// The same in words.
fn describe(verb: &str, done: Amount, total_bytes: Option<u64>, elapsed: Duration) -> String {
    let rate = done.bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let mut text = format!(
        "{verb}: {}, {}",
        output::count(done.files, "file", "files"),
        output::size(done.bytes)
    );
    if let Some(total) = total_bytes {
        text += &format!(" of {}", output::size(total));
    }
    text += &format!(", {}/s", output::size(rate as u64));
    if let Some(left) = total_bytes.map(|total| total.saturating_sub(done.bytes))
        && rate > 0.0
    {
        text += &format!(", {} left", output::duration((left as f64 / rate).ceil() as u64));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn lines_tell_rate_and_time_left() {
        let done = Amount { files: 3, bytes: 10 * MIB };
        let text = describe("archive", done, Some(40 * MIB), Duration::from_secs(10));
        assert_eq!(text, "archive: 3 files, 10.0 MiB of 40.0 MiB, 1.0 MiB/s, 30s left");
        let text = describe("scan", Amount { files: 1, bytes: 0 }, None, Duration::ZERO);
        assert_eq!(text, "scan: 1 file, 0 B, 0 B/s");
    }

    #[test]
    fn both_templates_are_valid() {
        for bounded in [true, false] {
            let style = std::panic::catch_unwind(|| style(bounded));
            assert!(style.is_ok());
        }
        assert!(ProgressStyle::with_template("{wide_bar} {binary_bytes_per_sec} {eta}").is_ok());
    }

    #[test]
    fn a_bar_tells_files_and_knows_its_end_when_the_agent_does() {
        let bar = ProgressBar::hidden();
        let done = Amount { files: 3, bytes: 5 };
        show_bar(&bar, "archive", done, None, None);
        assert_eq!((bar.message().as_str(), bar.length()), ("archive  3 files", None));
        show_bar(&bar, "archive", done, Some(10), Some(50));
        assert_eq!((bar.message().as_str(), bar.length()), ("archive  3/10 files", Some(50)));
        assert_eq!(bar.position(), 5);
    }

    #[test]
    fn later_jobs_count_on() {
        let out = Output::new(false, -1);
        let mut progress = Progress::new(&out, "archive");
        progress.job_ended(&Summary { done: 2, skipped: 1, bytes: 5, ..Summary::default() });
        assert_eq!(progress.base, Amount { files: 3, bytes: 5 });
    }
}
