//! The requests: who may, what they carry, what they answer.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::Context;
use crate::control::api::{ApiError, ApiErrorKind, Peer};
use crate::control::types::{JobRequest, Op, StateEntry, Status, Waiter, WirePath};

/// All routes. Handlers expect a [`Peer`] extension, which the connection adds.
pub(super) fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/waiters", get(waiters))
        .route("/v1/waiters/{id}/abort", post(abort_waiter))
        .route("/v1/state", post(state))
        .route("/v1/jobs", post(start_job))
        .route("/v1/jobs/{id}/cancel", post(cancel_job))
        .fallback(async || ApiError::new(ApiErrorKind::NotFound, "no such request"))
        .method_not_allowed_fallback(async || {
            ApiError::new(ApiErrorKind::BadRequest, "not with this method")
        })
        .with_state(context)
}

async fn status(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
) -> Result<Json<Status>, ApiError> {
    let status = in_time(&context, context.api.status(peer)).await?;
    Ok(Json(if peer.is_root() { status } else { status.reduced() }))
}

async fn waiters(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
) -> Result<Json<Vec<Waiter>>, ApiError> {
    root_only(peer, "list the waiting processes")?;
    Ok(Json(in_time(&context, context.api.waiters(peer)).await?))
}

async fn abort_waiter(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    root_only(peer, "abort a waiting process")?;
    let bad = |_| ApiError::new(ApiErrorKind::BadRequest, "the id of a waiter is a number");
    let id = id.parse().map_err(bad)?;
    in_time(&context, context.api.abort_waiter(id, peer)).await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn state(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Result<Json<Vec<StateEntry>>, ApiError> {
    let paths: Vec<WirePath> = read_json(&context, body).await?;
    absolute(&paths)?;
    Ok(Json(in_time(&context, context.api.state(paths, peer)).await??))
}

async fn start_job(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: JobRequest = read_json(&context, body).await?;
    if !request.op.open_to_owners() {
        root_only(peer, &format!("{} files", request.op))?;
    }
    check(&request)?;
    context.jobs.start(context.api.clone(), request, peer)
}

async fn cancel_job(
    State(context): State<Context>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    context.jobs.cancel(&id, peer)?;
    Ok(StatusCode::NO_CONTENT)
}

fn root_only(peer: Peer, what: &str) -> Result<(), ApiError> {
    if peer.is_root() {
        return Ok(());
    }
    Err(ApiError::new(ApiErrorKind::Forbidden, format!("only root may {what}")))
}

/// What needs no look at a file.
fn check(request: &JobRequest) -> Result<(), ApiError> {
    let complaint = match request.op {
        Op::Scan if request.pool.is_none() => "a scan needs the name of a pool",
        Op::Scan if !request.paths.is_empty() => "a scan is of a pool, not of paths",
        Op::Scan => return Ok(()),
        _ if request.paths.is_empty() => "no paths",
        _ => return absolute(&request.paths),
    };
    Err(ApiError::new(ApiErrorKind::BadRequest, complaint))
}

fn absolute(paths: &[WirePath]) -> Result<(), ApiError> {
    match paths.iter().find(|path| !path.as_path().is_absolute()) {
        None => Ok(()),
        Some(path) => {
            let message = format!("{path:?} is not absolute: the agent has another directory");
            Err(ApiError::new(ApiErrorKind::BadRequest, message))
        }
    }
}

async fn in_time<T>(context: &Context, work: impl Future<Output = T>) -> Result<T, ApiError> {
    deadline(context.options.answer_timeout, work, "the agent did not answer in time").await
}

async fn deadline<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    message: &str,
) -> Result<T, ApiError> {
    let late = |_| ApiError::new(ApiErrorKind::Timeout, message);
    tokio::time::timeout(limit, work).await.map_err(late)
}

/// The body as a `T`, within size and time.
async fn read_json<T: DeserializeOwned>(context: &Context, body: Body) -> Result<T, ApiError> {
    let options = &context.options;
    let collect = Limited::new(body, options.body_limit).collect();
    let body = deadline(options.body_timeout, collect, "the request did not come in time")
        .await?
        .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            let message = format!("a request has at most {} bytes", options.body_limit);
            ApiError::new(ApiErrorKind::TooLarge, message)
        }
        None => ApiError::new(ApiErrorKind::BadRequest, "the request is incomplete"),
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| ApiError::new(ApiErrorKind::BadRequest, format!("bad JSON: {error}")))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ApiErrorKind::BadRequest => StatusCode::BAD_REQUEST,
            ApiErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ApiErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ApiErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ApiErrorKind::NotFound => StatusCode::NOT_FOUND,
            ApiErrorKind::Busy | ApiErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ApiErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}
