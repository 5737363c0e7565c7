//! The command line of `hsm`, its JSON read back.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::run::{Output, Run};

/// A program `hsm` with its configuration.
#[derive(Debug, Clone)]
pub struct Hsm {
    exe: PathBuf,
    config: PathBuf,
}

/// What was reported about one file.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct FileReport {
    /// Lossy when the name is not UTF-8.
    #[serde(default)]
    pub path: String,
    /// done, already, skipped, failed or would.
    pub outcome: String,
    /// A stable code, empty when all is well.
    #[serde(default)]
    pub reason: Option<String>,
    /// A sentence.
    #[serde(default)]
    pub detail: Option<String>,
}

/// The last line of a verb's output.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Summary {
    /// Files changed.
    pub done: u64,
    /// Files that were so already.
    pub already: u64,
    /// Files that have nothing to do.
    pub skipped: u64,
    /// Files that were refused or failed.
    pub failed: u64,
    /// Bytes moved.
    #[serde(default)]
    pub bytes: u64,
}

/// All that a verb said.
#[derive(Debug)]
pub struct Report {
    /// Exit code.
    pub code: i32,
    /// Per file.
    pub files: Vec<FileReport>,
    /// The sum.
    pub summary: Summary,
    /// The program's run.
    pub output: Output,
}

impl Report {
    /// The reason given for the only file.
    pub fn reason(&self) -> &str {
        self.files.first().and_then(|file| file.reason.as_deref()).unwrap_or("")
    }

    /// The outcome of the only file.
    pub fn outcome(&self) -> &str {
        self.files.first().map_or("", |file| file.outcome.as_str())
    }
}

/// What `hsm state` says about a file.
#[derive(Debug, Clone)]
pub struct State {
    /// resident, archived, offline, partial, dirty or lost.
    pub state: String,
    /// The whole object.
    pub json: Value,
}

impl Hsm {
    /// `exe --config config`.
    pub fn new(exe: &Path, config: &Path) -> Self {
        Self { exe: exe.to_path_buf(), config: config.to_path_buf() }
    }

    /// Any command.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::new(&self.exe).args(["--config".as_ref(), self.config.as_os_str()]).args(args)
    }

    /// A verb over files with `--json`, whatever comes of it.
    pub fn verb<S: AsRef<OsStr>>(
        &self,
        verb: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Report> {
        read_report(self.command(["--json", verb]).args(args).output()?)
    }

    /// A verb that must succeed for every file.
    pub fn must<S: AsRef<OsStr>>(
        &self,
        verb: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Report> {
        let report = self.verb(verb, args)?;
        ensure!(report.code == 0, "hsm {verb} failed: {}", report.output.describe());
        Ok(report)
    }

    /// The state of one file.
    pub fn state(&self, path: &Path) -> Result<State> {
        let output = self.command(["--json", "state"]).args([path]).ok()?;
        let text = output.text();
        let line = text.lines().next().context("hsm state said nothing")?;
        let json: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let state = json.get("state").and_then(Value::as_str).context("no state")?.to_owned();
        Ok(State { state, json })
    }

    /// `hsm status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.command(["--json", "status"]).ok()?;
        serde_json::from_str(&output.text()).context("status is not JSON")
    }

    /// How many files `hsm status` counts in a state, over all pools.
    pub fn count(&self, state: &str) -> Result<u64> {
        Ok(count_in(&self.status()?, state))
    }
}

/// The catalogue's counts are objects `{"state": "offline", "files": 3, ...}`.
fn count_in(value: &Value, state: &str) -> u64 {
    match value {
        Value::Object(map) if map.get("state").and_then(Value::as_str) == Some(state) => {
            map.get("files").and_then(Value::as_u64).unwrap_or(0)
        }
        Value::Object(map) => map.values().map(|value| count_in(value, state)).sum(),
        Value::Array(list) => list.iter().map(|value| count_in(value, state)).sum(),
        _ => 0,
    }
}

/// Reads a verb's lines: one object per file, the summary last.
pub fn read_report(output: Output) -> Result<Report> {
    let mut files = Vec::new();
    let mut summary = None;
    for line in output.text().lines() {
        let value: Value = serde_json::from_str(line)
            .with_context(|| format!("not JSON: {line}\n{}", output.describe()))?;
        match value.get("summary") {
            Some(sum) => summary = Some(Summary::deserialize(sum)?),
            None => files.push(FileReport::deserialize(&value).with_context(|| line.to_owned())?),
        }
    }
    let Some(summary) = summary else { bail!("no summary: {}", output.describe()) };
    Ok(Report { code: output.code(), files, summary, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_wherever_they_are() {
        let status = serde_json::json!({"pools": [
            {"states": [{"state": "offline", "files": 3}, {"state": "dirty", "files": 1}]},
            {"states": [{"state": "offline", "files": 4}]},
        ]});
        assert_eq!((count_in(&status, "offline"), count_in(&status, "lost")), (7, 0));
    }
}
