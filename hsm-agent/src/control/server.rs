//! The control server: HTTP+JSON on a Unix socket that everybody may connect to.
//!
//! Because everybody may, nothing here trusts the peer: headers, bodies and requests have
//! deadlines and sizes, and every user has their own small share of connections and jobs, so that
//! one cannot lock out another, and none root. One connection carries one request (no keep-alive):
//! the peer's credentials, its limits and the life of its job are then the same thing.
//!
//! Invariant: a job never outlives its connection by more than the files that it has in work.

mod gate;
mod jobs;
mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::{AgentApi, Peer};
pub use gate::Shares;
use gate::{Gate, Pass};
use jobs::Jobs;
pub use socket::{BindError, ControlSocket};

/// Peers that are being refused at the same time; more are cut off without a word.
const REFUSALS: usize = 64;

/// Time for a refused peer to read why.
const REFUSAL_TIME: Duration = Duration::from_millis(200);

/// Limits of the server. The defaults are for production; tests shorten them.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// A peer that has not sent its header by then is cut off.
    pub header_timeout: Duration,
    /// The same for the body.
    pub body_timeout: Duration,
    /// For answers that are not jobs.
    pub answer_timeout: Duration,
    /// After a stop, running jobs have so long for the files that they have in work.
    pub stop_grace: Duration,
    /// Bytes of a request body. The client splits longer lists of paths.
    pub body_limit: usize,
    /// Open connections.
    pub connections: Shares,
    /// Running jobs.
    pub jobs: Shares,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(15),
            answer_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
            // What others than root can make the agent hold: this times their share, 32 MiB.
            body_limit: 2 << 20,
            connections: Shares { root: 256, per_user: 8, others: 16 },
            jobs: Shares { root: 64, per_user: 2, others: 8 },
        }
    }
}

/// Everything that a handler needs.
#[derive(Clone)]
struct Context {
    api: Arc<dyn AgentApi>,
    options: Arc<ServerOptions>,
    jobs: Arc<Jobs>,
}

/// Serves until `stop` fires; then stops the jobs between files, waits for them within the grace
/// time, and removes the socket.
pub async fn serve(
    socket: ControlSocket,
    api: Arc<dyn AgentApi>,
    options: ServerOptions,
    stop: CancellationToken,
) {
    let connections = Gate::new(options.connections);
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let tracker = TaskTracker::new();
    let jobs = Arc::new(Jobs::new(options.jobs, tracker.clone(), stop.clone()));
    let context = Context { api, options: Arc::new(options), jobs };
    let router = routes::router(context.clone());
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = accept(socket.listener()) => stream,
        };
        let Some((stream, peer)) = stream else { continue };
        let Some(pass) = connections.enter(peer.uid) else {
            if let Ok(place) = refusals.clone().try_acquire_owned() {
                tracker.spawn(refuse(stream, place));
            }
            continue;
        };
        let options = context.options.clone();
        tracker.spawn(connection(stream, peer, pass, router.clone(), options, stop.clone()));
    }
    tracker.close();
    if tokio::time::timeout(context.options.stop_grace, tracker.wait()).await.is_err() {
        tracing::warn!("control jobs did not end within the grace time; leaving them");
    }
}

/// The next connection with its credentials. `None`: that one is not usable, try again.
async fn accept(listener: &UnixListener) -> Option<(UnixStream, Peer)> {
    match listener.accept().await {
        Ok((stream, _)) => {
            let cred = stream.peer_cred().ok()?;
            Some((stream, Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() }))
        }
        Err(error) => {
            // Mostly EMFILE: it stays true until a connection ends, so do not spin on it.
            tracing::warn!(%error, "cannot accept a control connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Says why, and hangs up. The peer first gets a moment to write its request: answered before it
/// has begun, or cut off while it writes, it would not understand.
async fn refuse(mut stream: UnixStream, _place: OwnedSemaphorePermit) {
    let body = r#"{"kind":"busy","reason":"busy","message":"too many connections of this user"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut request = [0; 4096];
    // A peer that does not get the answer sees the connection end, which is answer enough.
    let _ = tokio::time::timeout(REFUSAL_TIME, stream.read(&mut request)).await;
    let _ = stream.try_write(answer.as_bytes());
    let rest = async { while matches!(stream.read(&mut request).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(REFUSAL_TIME, rest).await;
}

/// One connection, from header to the end of the answer.
async fn connection(
    stream: UnixStream,
    peer: Peer,
    pass: Pass,
    router: Router,
    options: Arc<ServerOptions>,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_headers(32)
        .max_buf_size(16 << 10)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(options.stop_grace, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, ?peer, "control connection ended early");
    }
    drop(pass);
}
