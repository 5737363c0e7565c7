//! The HTTP client: no redirects, no proxies from the environment, and errors that keep the status.
//!
//! A redirect would carry file content, or the promise of it, to a host that nobody configured, so
//! it is an error. Answers that mean trouble are turned into [`StatusError`] here, because
//! `object_store` hides the status of those it does not name.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

/// A server's explanation is kept up to here.
const MAX_MESSAGE: usize = 2048;
/// Longer silence in the middle of a body means that the connection is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection is made within this time, or the host is taken for absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer that was no success, and none that `object_store` knows by name.
#[derive(Debug, thiserror::Error)]
#[error("HTTP status {status}: {message}")]
pub(super) struct StatusError {
    pub(super) status: u16,
    pub(super) message: String,
}

/// Makes clients as the module head says.
#[derive(Debug)]
pub(super) struct Connector {
    deadline: Duration,
    allow_http: bool,
}

impl Connector {
    pub(super) fn new(deadline: Duration, allow_http: bool) -> Self {
        Self { deadline, allow_http }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(!self.allow_http)
            .connect_timeout(CONNECT_TIMEOUT.min(self.deadline))
            .read_timeout(READ_TIMEOUT.min(self.deadline))
            .timeout(self.deadline)
            .build();
        let failed = |e| object_store::Error::Generic { store: "S3", source: Box::new(e) };
        Ok(HttpClient::new(Gate(client.map_err(failed)?)))
    }
}

#[derive(Debug)]
struct Gate(reqwest::Client);

#[async_trait]
impl HttpService for Gate {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = HttpService::call(&self.0, request).await?;
        let status = response.status().as_u16();
        match status {
            200..=299 | 304 | 401 | 403 | 409 | 412 => Ok(response),
            404 => not_found(response).await,
            _ => Err(status_error(status, message(response).await)),
        }
    }
}

/// A missing bucket must not look like missing objects, whose files would count as lost.
async fn not_found(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let text = message(HttpResponse::from_parts(parts.clone(), body)).await;
    if text.contains("NoSuchBucket") {
        return Err(status_error(404, text));
    }
    Ok(HttpResponse::from_parts(parts, text.into()))
}

fn status_error(status: u16, message: String) -> HttpError {
    let error = StatusError { status, message };
    let kind = match super::errors::is_passing(status) {
        true => HttpErrorKind::Request,
        false => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

/// The beginning of the body as text, for people.
async fn message(response: HttpResponse) -> String {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while bytes.len() < MAX_MESSAGE {
        let Some(Ok(frame)) = body.frame().await else { break };
        let Ok(data) = frame.into_data() else { break };
        bytes.extend_from_slice(&data[..data.len().min(MAX_MESSAGE - bytes.len())]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
