//! Jobs: what is asked for, and what comes back line by line.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Reason, WirePath};

/// What a job does to each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Copy the data to the store; it stays local too.
    Archive,
    /// Drop the local data of archived files.
    Release,
    /// Archive, then release.
    Migrate,
    /// Bring the data back.
    Recall,
    /// Never release the file.
    Pin,
    /// Take the pin away.
    Unpin,
    /// Read the inodes of a pool into the catalogue.
    Scan,
}

impl Op {
    /// Whether somebody else than root may ask for this (on files that they own).
    pub fn open_to_owners(self) -> bool {
        match self {
            Self::Recall | Self::Pin | Self::Unpin => true,
            Self::Archive | Self::Release | Self::Migrate | Self::Scan => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What to do.
    pub op: Op,
    /// To what: absolute paths; the last component is not followed if it is a symlink.
    #[serde(default)]
    pub paths: Vec<WirePath>,
    /// Walk down directories (never into another file system).
    #[serde(default)]
    pub recursive: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Below directories: only files that match one of these, if there is any.
    #[serde(default)]
    pub include: Vec<String>,
    /// Below directories: no file and no directory that matches one of these.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Files in work at the same time; the agent's own limit is the upper bound.
    #[serde(default)]
    pub jobs: Option<usize>,
    /// Send a report for every file, not only for those that were skipped or failed.
    #[serde(default)]
    pub verbose: bool,
    /// For [`Op::Scan`]: the pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// For [`Op::Scan`]: empty the catalogue first.
    #[serde(default)]
    pub rebuild: bool,
}

impl JobRequest {
    /// A job on `paths` with every option off.
    pub fn new(op: Op, paths: Vec<WirePath>) -> Self {
        Self {
            op,
            paths,
            recursive: false,
            dry_run: false,
            include: Vec::new(),
            exclude: Vec::new(),
            jobs: None,
            verbose: false,
            pool: None,
            rebuild: false,
        }
    }
}

/// How it went for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done now.
    Done,
    /// Was so before; a success.
    Already,
    /// Nothing to do for this file; not a failure.
    Skipped,
    /// Refused or failed.
    Failed,
    /// Dry run: would be done.
    Would,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The result for one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// The file.
    #[serde(flatten)]
    pub path: WirePath,
    /// What was asked for.
    pub op: Op,
    /// How it went.
    pub outcome: Outcome,
    /// Why, when it did not simply work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same for people, one sentence without the path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Bytes copied, dropped or brought back.
    pub bytes: u64,
}

impl FileReport {
    /// A file that was refused or failed.
    pub fn failed(
        path: impl Into<WirePath>,
        op: Op,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            op,
            outcome: Outcome::Failed,
            reason: Some(reason),
            detail: detail.into(),
            bytes: 0,
        }
    }
}

/// One line of a job's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobEvent {
    /// First line, written by the server: the name under which the job can be stopped.
    Started {
        /// Not guessable; only the user who started the job may stop it, or root.
        id: String,
    },
    /// The result for one file.
    File(FileReport),
    /// How far the job is.
    Progress {
        /// Files finished.
        files: u64,
        /// Bytes finished, those of files in work included.
        bytes: u64,
        /// Files in all, once known.
        total_files: Option<u64>,
        /// Bytes in all, once known.
        total_bytes: Option<u64>,
    },
    /// Always the last line: written by the server, which counted the files.
    Summary(Summary),
    /// The job could not go on; the summary of what was done before follows.
    Fatal {
        /// Why.
        reason: Reason,
        /// Why, for people.
        detail: String,
    },
}

/// The count of a job's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Files done.
    pub done: u64,
    /// Files that were so before.
    pub already: u64,
    /// Files with nothing to do.
    pub skipped: u64,
    /// Files refused or failed.
    pub failed: u64,
    /// Dry run: files that would be done.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub would: u64,
    /// Bytes of the done (or would-be done) files.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Stopped between files before the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Summary {
    /// Counts one file.
    pub fn count(&mut self, report: &FileReport) {
        let counter = match report.outcome {
            Outcome::Done => &mut self.done,
            Outcome::Already => &mut self.already,
            Outcome::Skipped => &mut self.skipped,
            Outcome::Failed => &mut self.failed,
            Outcome::Would => &mut self.would,
        };
        *counter += 1;
        if matches!(report.outcome, Outcome::Done | Outcome::Would) {
            self.bytes += report.bytes;
        }
    }

    /// Adds the count of another job that ran after this one.
    pub fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.already += other.already;
        self.skipped += other.skipped;
        self.failed += other.failed;
        self.would += other.would;
        self.bytes += other.bytes;
        self.seconds += other.seconds;
        self.interrupted |= other.interrupted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_object() {
        let report = FileReport::failed("/a", Op::Release, Reason::OpenElsewhere, "open by pid 7");
        let json = serde_json::to_string(&report).expect("serialises");
        assert_eq!(
            json,
            r#"{"path":"/a","op":"release","outcome":"failed","reason":"open-elsewhere","detail":"open by pid 7","bytes":0}"#
        );
        assert_eq!(serde_json::from_str::<FileReport>(&json).expect("parses"), report);
    }

    #[test]
    fn summary_event_has_the_promised_shape() {
        let event = JobEvent::Summary(Summary { done: 2, seconds: 0.5, ..Summary::default() });
        assert_eq!(
            serde_json::to_string(&event).expect("serialises"),
            r#"{"summary":{"done":2,"already":0,"skipped":0,"failed":0,"bytes":0,"seconds":0.5}}"#
        );
    }

    #[test]
    fn requests_refuse_unknown_fields_and_default_the_rest() {
        let ok = r#"{"op":"archive","paths":[{"path":"/a"}]}"#;
        let parsed: JobRequest = serde_json::from_str(ok).expect("parses");
        assert_eq!(parsed, JobRequest::new(Op::Archive, vec!["/a".into()]));
        let bad = r#"{"op":"archive","recursiv":true}"#;
        assert!(serde_json::from_str::<JobRequest>(bad).is_err());
    }
}
