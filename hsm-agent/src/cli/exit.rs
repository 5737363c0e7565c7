//! How a run ends.

use std::process::ExitCode;

use crate::control::client::ClientError;
use crate::control::{ApiErrorKind, Reason};

use super::output::Output;

/// Exit codes. Scripts rely on them; every verb's help lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// All done, or so already.
    Done = 0,
    /// At least one file failed or was refused.
    Failed = 1,
    /// Wrong usage or configuration. (Also what clap exits with.)
    Usage = 2,
    /// The agent cannot be reached.
    NoAgent = 3,
    /// Not permitted.
    NotPermitted = 4,
    /// Interrupted by the user; every file is whole.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What stops a verb altogether.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    message: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, message: Some(message.to_string()) }
    }

    pub(super) fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// One line (or more) on stderr, and an object on stdout for machines.
    pub(super) fn print(&self, out: &Output) {
        let Some(message) = &self.message else { return };
        out.error(message);
        let object = serde_json::json!({"error": {"code": self.exit as u8, "detail": message}});
        if out.json {
            // It was said on stderr already.
            let _ = out.json_line(&object).and_then(|()| out.flush());
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Refused(refusal) => exit_of_refusal(refusal.kind),
            ClientError::NotRunning(_)
            | ClientError::Connect { .. }
            | ClientError::Silent(_)
            | ClientError::CutOff(_)
            | ClientError::Garbled(_) => Exit::NoAgent,
        };
        Self::new(exit, error)
    }
}

fn exit_of_refusal(kind: ApiErrorKind) -> Exit {
    match kind {
        ApiErrorKind::Forbidden => Exit::NotPermitted,
        ApiErrorKind::BadRequest | ApiErrorKind::TooLarge => Exit::Usage,
        ApiErrorKind::Unavailable => Exit::NoAgent,
        ApiErrorKind::NotFound
        | ApiErrorKind::Busy
        | ApiErrorKind::Timeout
        | ApiErrorKind::Internal => Exit::Failed,
    }
}

/// The exit code of a job that ended with a fatal line.
pub(super) fn exit_of_fatal(reason: Reason) -> Exit {
    match reason {
        Reason::Permission => Exit::NotPermitted,
        Reason::BadRequest | Reason::NoSuchPool => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Only writing to stdout fails this way. A reader that has gone (`hsm ls | head`) needs no words.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
        let message = (!gone).then(|| format!("cannot write the output: {error}"));
        Self { exit: Exit::Failed, message }
    }
}
