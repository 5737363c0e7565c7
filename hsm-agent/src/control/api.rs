//! What the engine must be able to do for the control plane.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::types::{JobEvent, JobRequest, Reason, StateEntry, Status, Waiter, WirePath};

/// Who asks: credentials of the peer process when it connected, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Process, if it is visible from the agent's pid namespace.
    pub pid: Option<i32>,
}

impl Peer {
    /// Whether the peer may do everything.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// What kind of refusal. Few, because the caller can only do few things about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiErrorKind {
    /// The request is wrong and will be wrong again.
    BadRequest,
    /// The request is larger than the server takes.
    TooLarge,
    /// The request, or the work on it, took too long.
    Timeout,
    /// The caller may not.
    Forbidden,
    /// The named thing does not exist.
    NotFound,
    /// A limit is reached; try again later.
    Busy,
    /// The agent stops or is not ready.
    Unavailable,
    /// A bug or an error of the machine.
    Internal,
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind.
    pub kind: ApiErrorKind,
    /// Stable code.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
}

impl ApiError {
    /// An error of `kind`; the reason code follows from it.
    pub fn new(kind: ApiErrorKind, message: impl Into<String>) -> Self {
        let reason = match kind {
            ApiErrorKind::BadRequest | ApiErrorKind::TooLarge => Reason::BadRequest,
            ApiErrorKind::Timeout => Reason::Timeout,
            ApiErrorKind::Forbidden => Reason::Permission,
            ApiErrorKind::NotFound => Reason::NotFound,
            ApiErrorKind::Busy => Reason::Busy,
            ApiErrorKind::Unavailable => Reason::Interrupted,
            ApiErrorKind::Internal => Reason::Internal,
        };
        Self { kind, reason, message: message.into() }
    }

    /// The same error with a more telling code.
    pub fn with_reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

/// The engine, as the control server sees it.
///
/// The server has already checked what can be checked without looking at files: it calls
/// [`AgentApi::waiters`], [`AgentApi::abort_waiter`] and jobs other than recall, pin and unpin only
/// for root, and reduces the status for others. Whether a peer who is not root *owns* the files of
/// a state, recall, pin or unpin request is for the implementation to check, per file, on the
/// opened inode.
#[async_trait]
pub trait AgentApi: Send + Sync + 'static {
    /// The whole truth; the server cuts it down for others than root.
    async fn status(&self, peer: Peer) -> Status;

    /// Everybody who waits for data now.
    async fn waiters(&self, peer: Peer) -> Vec<Waiter>;

    /// Answers one waiter's event with an error.
    async fn abort_waiter(&self, id: u64, peer: Peer) -> Result<(), ApiError>;

    /// One entry per path, in order. `Err` only when no path at all could be looked at.
    async fn state(&self, paths: Vec<WirePath>, peer: Peer) -> Result<Vec<StateEntry>, ApiError>;

    /// Runs a job to its end, or until `cancel` fires: then it finishes the files in work, starts
    /// no more, and returns `Ok`.
    ///
    /// It sends a [`JobEvent::File`] for *every* file and [`JobEvent::Progress`] when it likes
    /// (several times a second is plenty). It sends nothing else: the server counts the reports,
    /// passes those on that the caller asked for, and writes `Started`, `Summary` and, for an
    /// `Err`, `Fatal`. A closed `events` channel means that nobody listens: same as `cancel`.
    async fn job(
        &self,
        request: JobRequest,
        peer: Peer,
        events: mpsc::Sender<JobEvent>,
        cancel: CancellationToken,
    ) -> Result<(), ApiError>;
}
