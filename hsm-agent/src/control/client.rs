//! The client of the control socket: one connection per call.
//!
//! Every answer is checked to be complete: a job's stream that ends without its summary is an
//! error, never a success with less lines.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::api::{ApiError, ApiErrorKind};
use super::types::{JobEvent, JobRequest, StateEntry, Status, Waiter, WirePath};

/// Bytes of JSON that go into one request; the server's limit is twice that.
const BATCH_BYTES: usize = 1 << 20;

/// A call waits so long for the beginning of its answer, and for a place if the agent is at its
/// limit. Longer than the server's own deadline, so that its answer is heard.
const PATIENCE: Duration = Duration::from_secs(90);

/// First and longest pause between two attempts to get a place.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the agent is not running (socket {}): start it with `hsm agent` or `systemctl start hsm`",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket cannot be connected to.
    #[error("cannot connect to the agent (socket {}): {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent took the connection and says nothing.
    #[error("the agent does not answer (waited {} s): see its log", .0.as_secs())]
    Silent(Duration),
    /// The agent refused.
    #[error(transparent)]
    Refused(ApiError),
    /// The connection ended before the answer did.
    #[error(
        "the agent went away in the middle of its answer ({0}): what was done stays done; see the \
         agent's log, then run the command again"
    )]
    CutOff(String),
    /// The answer is not what this version understands.
    #[error(
        "the agent's answer is not understood ({0}); is it of another version than this `hsm`?"
    )]
    Garbled(String),
}

/// A client. Holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the agent behind `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), patience: PATIENCE }
    }

    /// The same, waiting at most so long for the beginning of each answer.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The agent's state.
    pub async fn status(&self) -> Result<Status, ClientError> {
        json(self.call(Method::GET, "/v1/status", Bytes::new()).await?).await
    }

    /// Who waits for data.
    pub async fn waiters(&self) -> Result<Vec<Waiter>, ClientError> {
        json(self.call(Method::GET, "/v1/waiters", Bytes::new()).await?).await
    }

    /// Ends the wait of one process with an error.
    pub async fn abort_waiter(&self, id: u64) -> Result<(), ClientError> {
        let uri = format!("/v1/waiters/{id}/abort");
        self.call(Method::POST, &uri, Bytes::new()).await.map(drop)
    }

    /// The states of `paths`, in order. Splits long lists by itself.
    pub async fn state(&self, paths: &[WirePath]) -> Result<Vec<StateEntry>, ClientError> {
        let mut entries = Vec::with_capacity(paths.len());
        for batch in batches(paths) {
            let answer = self.call(Method::POST, "/v1/state", body(batch)?).await?;
            let part: Vec<StateEntry> = json(answer).await?;
            if part.len() != batch.len() {
                return Err(ClientError::Garbled("not one entry per path".into()));
            }
            entries.extend(part);
        }
        Ok(entries)
    }

    /// Starts one job. The list of paths must fit into a request: see [`batches`].
    pub async fn job(&self, request: &JobRequest) -> Result<JobStream, ClientError> {
        let answer = self.call(Method::POST, "/v1/jobs", body(request)?).await?;
        Ok(JobStream { body: answer.into_body(), rest: BytesMut::new(), ended: false })
    }

    /// Asks a job to stop between files; its stream goes on to the summary.
    pub async fn cancel_job(&self, id: &str) -> Result<(), ClientError> {
        let uri = format!("/v1/jobs/{id}/cancel");
        self.call(Method::POST, &uri, Bytes::new()).await.map(drop)
    }

    /// One request; while the agent is at its limit, tries again.
    async fn call(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let deadline = Instant::now() + self.patience;
        let mut pause = PAUSE.0;
        loop {
            let attempt = self.attempt(method.clone(), uri, body.clone());
            match tokio::time::timeout_at(deadline, attempt).await {
                Err(_) => return Err(ClientError::Silent(self.patience)),
                Ok(Err(ClientError::Refused(refusal)))
                    if refusal.kind == ApiErrorKind::Busy && Instant::now() + pause < deadline =>
                {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Ok(result) => return result,
            }
        }
    }

    async fn attempt(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let cut_off = |error: hyper::Error| ClientError::CutOff(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(cut_off)?;
        // Ends with the answer or with the drop of its body. Its errors show there too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "hsm")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Garbled(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(cut_off)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.socket.clone())
            }
            _ => ClientError::Connect { socket: self.socket.clone(), source },
        })
    }
}

/// `paths` in pieces that each fit into one request.
pub fn batches(paths: &[WirePath]) -> impl Iterator<Item = &[WirePath]> {
    let mut rest = paths;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = rest.iter().take_while(|path| {
            // Every byte may become a six-byte escape, in the lossy text, and two in hexadecimal.
            bytes += path.as_path().as_os_str().len() * 8 + 40;
            bytes <= BATCH_BYTES
        });
        // A single path always goes: PATH_MAX keeps it far below the limit.
        let count = fit.count().max(1).min(rest.len());
        let (batch, tail) = rest.split_at(count);
        rest = tail;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The lines of a running job.
#[derive(Debug)]
pub struct JobStream {
    body: Incoming,
    rest: BytesMut,
    ended: bool,
}

impl JobStream {
    /// The next event; `None` after the summary. Safe to drop and call again (cancel-safe).
    pub async fn next(&mut self) -> Result<Option<JobEvent>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                let event: JobEvent = parse(&line)?;
                self.ended = matches!(event, JobEvent::Summary(_));
                return Ok(Some(event));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::CutOff(error.to_string())),
                None => return Err(ClientError::CutOff("no summary".into())),
            }
        }
    }
}

fn body(value: &(impl Serialize + ?Sized)) -> Result<Bytes, ClientError> {
    let bytes = serde_json::to_vec(value).map_err(|e| ClientError::Garbled(e.to_string()))?;
    Ok(bytes.into())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Garbled(error.to_string()))
}

async fn json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let body = response.into_body().collect().await;
    parse(&body.map_err(|error| ClientError::CutOff(error.to_string()))?.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status: StatusCode = response.status();
    match json::<ApiError>(response).await {
        Ok(error) => ClientError::Refused(error),
        Err(_) => ClientError::Garbled(format!("status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_path_once_and_fit() {
        let paths: Vec<WirePath> =
            (0..5_000).map(|n| WirePath::from(format!("/{n}/{}", "\u{1}".repeat(400)))).collect();
        let split: Vec<&[WirePath]> = batches(&paths).collect();
        assert!(split.len() > 1);
        for batch in &split {
            assert!(serde_json::to_vec(batch).expect("serialises").len() <= BATCH_BYTES);
        }
        assert_eq!(split.concat(), paths);
        assert_eq!(batches(&[]).count(), 0);
    }

    #[test]
    fn a_path_of_any_length_goes_alone() {
        let paths = [WirePath::from("/x".repeat(BATCH_BYTES)), "/y".into()];
        assert_eq!(batches(&paths).map(<[_]>::len).collect::<Vec<_>>(), [1, 1]);
    }
}
