//! Running jobs: counting, filtering, stopping.
//!
//! ```text
//! AgentApi::job ──events──→ drive (counts, filters) ──lines──→ response body
//!       ↑ cancel ←── dropped body, cancel request, stop of the agent
//! ```
//!
//! `drive` goes on receiving after the caller is gone, so that a job never hangs in a send.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::{Gate, Pass, Shares};
use crate::control::api::{AgentApi, ApiError, ApiErrorKind, Peer};
use crate::control::types::{JobEvent, JobRequest, Outcome, Reason, Summary};

/// Events between job and answer. Enough to write them in large pieces, little memory.
const EVENTS: usize = 256;

/// Content type of an answer with one JSON object per line.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// The jobs that run now.
pub(super) struct Jobs {
    gate: Arc<Gate>,
    tracker: TaskTracker,
    stop: CancellationToken,
    running: Mutex<HashMap<String, (u32, CancellationToken)>>,
}

impl Jobs {
    pub(super) fn new(shares: Shares, tracker: TaskTracker, stop: CancellationToken) -> Self {
        Self { gate: Gate::new(shares), tracker, stop, running: Mutex::default() }
    }

    /// Starts a job; the response is its stream of events.
    pub(super) fn start(
        self: &Arc<Self>,
        api: Arc<dyn AgentApi>,
        request: JobRequest,
        peer: Peer,
    ) -> Result<Response, ApiError> {
        let pass = self.gate.enter(peer.uid).ok_or_else(|| {
            ApiError::new(ApiErrorKind::Busy, "too many jobs of this user run already")
        })?;
        let entry = Entry::new(self.clone(), peer, pass);
        let (lines, receiver) = mpsc::channel(EVENTS);
        self.tracker.spawn(drive(api, request, peer, lines, entry));
        let body = ReceiverStream::new(receiver).ready_chunks(EVENTS).map(encode);
        let header = [(axum::http::header::CONTENT_TYPE, NDJSON)];
        Ok((header, Body::from_stream(body)).into_response())
    }

    /// Stops a job between files.
    pub(super) fn cancel(&self, id: &str, peer: Peer) -> Result<(), ApiError> {
        match self.lock().get(id) {
            Some((uid, cancel)) if peer.is_root() || *uid == peer.uid => {
                cancel.cancel();
                Ok(())
            }
            // The same answer for a job of somebody else: ids are nobody's business.
            _ => Err(ApiError::new(ApiErrorKind::NotFound, "no such job runs")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (u32, CancellationToken)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's line in the table; its drop ends the job and takes the line away.
struct Entry {
    jobs: Arc<Jobs>,
    id: String,
    cancel: CancellationToken,
    _pass: Pass,
}

impl Entry {
    fn new(jobs: Arc<Jobs>, peer: Peer, pass: Pass) -> Self {
        let id = format!("{:032x}", rand::random::<u128>());
        let cancel = jobs.stop.child_token();
        jobs.lock().insert(id.clone(), (peer.uid, cancel.clone()));
        Self { jobs, id, cancel, _pass: pass }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.jobs.lock().remove(&self.id);
    }
}

/// Runs the job and writes its lines.
async fn drive(
    api: Arc<dyn AgentApi>,
    request: JobRequest,
    peer: Peer,
    lines: mpsc::Sender<JobEvent>,
    entry: Entry,
) {
    let begin = Instant::now();
    let verbose = request.verbose;
    let cancel = entry.cancel.clone();
    let (sender, events) = mpsc::channel(EVENTS);
    // A send fails when the caller is gone; `relay` is what notices and acts.
    let _ = lines.send(JobEvent::Started { id: entry.id.clone() }).await;
    // A task of its own: a panic in a job must become a line, not the end of the stream.
    let job = tokio::spawn(async move { api.job(request, peer, sender, cancel).await });
    let mut summary = relay(events, &lines, &entry.cancel, verbose).await;
    if let Some(fatal) = fatal(job.await) {
        let _ = lines.send(fatal).await;
    }
    summary.seconds = begin.elapsed().as_secs_f64();
    summary.interrupted = entry.cancel.is_cancelled();
    let _ = lines.send(JobEvent::Summary(summary)).await;
}

/// Passes events on until the job drops its sender; counts the files.
async fn relay(
    mut events: mpsc::Receiver<JobEvent>,
    lines: &mpsc::Sender<JobEvent>,
    cancel: &CancellationToken,
    verbose: bool,
) -> Summary {
    let mut summary = Summary::default();
    let mut listening = true;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = lines.closed(), if listening => {
                listening = false;
                cancel.cancel();
                continue;
            }
        };
        match event {
            None => return summary,
            Some(JobEvent::File(report)) => {
                summary.count(&report);
                let quiet = matches!(report.outcome, Outcome::Done | Outcome::Already);
                if verbose || !quiet {
                    let _ = lines.send(JobEvent::File(report)).await;
                }
            }
            // Only the newest is worth anything: not worth waiting for a slow reader.
            Some(progress @ JobEvent::Progress { .. }) => drop(lines.try_send(progress)),
            Some(JobEvent::Started { .. } | JobEvent::Summary(_) | JobEvent::Fatal { .. }) => {}
        }
    }
}

fn fatal(result: Result<Result<(), ApiError>, tokio::task::JoinError>) -> Option<JobEvent> {
    match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(JobEvent::Fatal { reason: error.reason, detail: error.message }),
        Err(error) => {
            tracing::error!(%error, "a job panicked");
            let detail = "the agent failed on this job; its log says why".to_owned();
            Some(JobEvent::Fatal { reason: Reason::Internal, detail })
        }
    }
}

/// Events as lines, in one piece.
fn encode(events: Vec<JobEvent>) -> Result<Bytes, Infallible> {
    let mut piece = Vec::with_capacity(events.len() * 128);
    for event in events {
        // Serialising plain data into memory cannot fail; a missing line would show at the client.
        if serde_json::to_writer(&mut piece, &event).is_ok() {
            piece.push(b'\n');
        }
    }
    Ok(piece.into())
}
