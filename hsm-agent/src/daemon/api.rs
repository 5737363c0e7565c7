//! The engine behind the control socket.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use globset::GlobSet;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use super::crowd::Crowd;
use super::jobs::{self, Job, Places};
use super::link::restarts;
use super::outcome::Candidate;
use super::pool::Pool;
use super::programs::Programs;
use super::queue;
use super::waiters::Who;
use super::work::Workers;
use crate::control::types::{
    JobEvent, JobRequest, PathError, PoolStatus, Reason, StateCount, StateEntry, StateReport,
    Status, StoreStatus, Waiter, WirePath,
};
use crate::control::{AgentApi, ApiError, ApiErrorKind, Peer};
use crate::core::{FileState, Subtrees};
use crate::marker::InodeFd;
use crate::scanner::{Found, Walker, relative_to};
use crate::store::{StoreConfig, StoreKind};
use crate::sys::process;

/// The engine, for the control server.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) pools: Vec<Arc<Pool>>,
    pub(super) workers: Arc<Workers>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) programs: Programs,
    pub(super) started: Instant,
    pub(super) default_jobs: usize,
    pub(super) release_batch: usize,
    pub(super) places: Places,
    pub(super) stop: CancellationToken,
}

#[async_trait]
impl AgentApi for Api {
    async fn status(&self, _peer: Peer) -> Status {
        let mut pools = Vec::new();
        for pool in &self.pools {
            pools.push(pool_status(pool).await);
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            engine_pid: Some(std::process::id()),
            holder_pid: Some(std::os::unix::process::parent_id()),
            programs: self.programs.counts(),
            uptime_seconds: self.started.elapsed().as_secs(),
            engine_restarts: restarts(),
            queue: queue::report(&self.workers, &self.crowd),
            pools,
        }
    }

    async fn waiters(&self, _peer: Peer) -> Vec<Waiter> {
        self.pools.iter().enumerate().flat_map(|(n, pool)| pool_waiters(n, pool)).collect()
    }

    async fn abort_waiter(&self, id: u64, _peer: Peer) -> Result<(), ApiError> {
        let (number, ticket) = split(id);
        let pool = self.pools.get(number);
        if pool.is_some_and(|p| p.abandon(ticket, libc::EIO)) {
            return Ok(());
        }
        Err(ApiError::new(ApiErrorKind::NotFound, format!("nobody waits under the number {id}")))
    }

    async fn state(&self, paths: Vec<WirePath>, peer: Peer) -> Result<Vec<StateEntry>, ApiError> {
        let pools = self.pools.clone();
        let look = move || paths.iter().map(|p| state_of(&pools, p, peer)).collect();
        tokio::task::spawn_blocking(look)
            .await
            .map_err(|e| ApiError::new(ApiErrorKind::Internal, e.to_string()))
    }

    async fn job(
        &self,
        request: JobRequest,
        peer: Peer,
        events: Sender<JobEvent>,
        cancel: CancellationToken,
    ) -> Result<(), ApiError> {
        let stop = self.stop.clone();
        let both = cancel.child_token();
        let watched = both.clone();
        let watcher = tokio::spawn(async move {
            stop.cancelled().await;
            watched.cancel();
        });
        let job = Job {
            request,
            peer,
            pools: self.pools.clone(),
            events,
            cancel: both,
            default_jobs: self.default_jobs,
            release_batch: self.release_batch,
            places: self.places.for_a_job(peer.is_root()),
        };
        let done = tokio::task::spawn_blocking(move || jobs::run(&job)).await;
        watcher.abort();
        done.map_err(|e| ApiError::new(ApiErrorKind::Internal, e.to_string()))?
    }
}

async fn pool_status(pool: &Arc<Pool>) -> PoolStatus {
    let catalogue = Arc::clone(pool);
    let totals = tokio::task::spawn_blocking(move || {
        (catalogue.catalog.totals(), catalogue.catalog.retired_count())
    })
    .await;
    let (states, retired) = match totals {
        Ok((Ok(totals), retired)) => {
            let count = |(state, t): (FileState, crate::catalog::StateTotals)| StateCount {
                state,
                files: t.files,
                bytes: t.bytes,
            };
            (totals.iter().map(count).collect(), retired.unwrap_or(0))
        }
        _ => (Vec::new(), 0),
    };
    let check = tokio::time::timeout(std::time::Duration::from_secs(5), pool.store.check()).await;
    let error = match check {
        Ok(Ok(())) => None,
        Ok(Err(e)) => Some(e.to_string()),
        Err(_) => Some("no answer within 5 s".into()),
    };
    let in_flight = pool.inflight().len() as u64;
    PoolStatus {
        name: pool.config.name.clone(),
        mount: pool.config.mount.clone(),
        fs_type: pool.fs_type.clone(),
        tier: pool.interceptor.tier().to_string(),
        tier_reason: pool.tier_reason.clone(),
        store: StoreStatus {
            description: Some(describe_store(&pool.config.store)),
            ok: Some(error.is_none()),
            error,
        },
        states,
        counters: pool.metrics.counters(in_flight),
        recall_latency: pool.metrics.latency(),
        retired_objects: retired,
    }
}

fn describe_store(store: &StoreConfig) -> String {
    match store.kind {
        StoreKind::Local => {
            format!("local directory {}", store.path.as_deref().unwrap_or(Path::new("")).display())
        }
        StoreKind::S3 => {
            let text = |s: &Option<String>| s.clone().unwrap_or_default();
            format!("s3 {} bucket {}", text(&store.endpoint), text(&store.bucket))
        }
        StoreKind::Memory => "memory".into(),
    }
}

/// Tickets are per pool; the number that users see tells the pool in its upper bits.
const POOL_SHIFT: u32 = 48;

fn split(id: u64) -> (usize, u64) {
    ((id >> POOL_SHIFT) as usize, id & ((1 << POOL_SHIFT) - 1))
}

fn pool_waiters(number: usize, pool: &Pool) -> Vec<Waiter> {
    let waiter = |(ticket, waiting): (u64, super::waiters::Waiting)| {
        let Who::Kernel(frame, fd) = &waiting.who else { return None };
        let size = crate::sys::inode::stat(&**fd).map_or(0, |s| s.size);
        Some(Waiter {
            id: ((number as u64) << POOL_SHIFT) | ticket,
            pool: pool.config.name.clone(),
            pid: u32::try_from(frame.pid).unwrap_or(0),
            uid: process::uid(frame.pid),
            command: Some(process::command(frame.pid)).filter(|c| !c.is_empty()),
            path: pool.name_of(fd.as_fd()).as_path().into(),
            since_ms: u64::try_from(waiting.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            phase: "recall".into(),
            bytes_done: pool.progress.get(&waiting.file.key).map_or(0, |p| p.bytes()),
            bytes_total: size,
        })
    };
    pool.waiters.list().into_iter().filter_map(waiter).collect()
}

fn state_of(pools: &[Arc<Pool>], path: &WirePath, peer: Peer) -> StateEntry {
    let failed = |reason, detail: &str| {
        StateEntry::Error(PathError { path: path.clone(), reason, detail: detail.into() })
    };
    let real = path.0.clone();
    let pool = pools.iter().find(|p| relative_to(&real, p.mount()).is_some());
    let Some(pool) = pool else {
        return failed(Reason::NotManaged, "on no managed file system");
    };
    let none = GlobSet::empty();
    let walker = Walker {
        root: pool.root.as_fd(),
        mount: pool.mount(),
        recursive: false,
        subtrees: &Subtrees::everything(),
        include: &none,
        exclude: &none,
    };
    let mut entry = None;
    let _ = walker.walk(&real, &mut |found| {
        entry = Some(match found {
            Found::File(c) if peer.is_root() || c.stat.uid == peer.uid => report(pool, path, &c),
            // The same answer for "not yours" and "not there".
            Found::File(_) => failed(Reason::NotFound, "no such file of yours"),
            // The walk is about all of them.
            Found::Outside(_) => failed(Reason::Internal, "outside"),
            Found::Directory(_) => failed(Reason::IsDirectory, "a directory"),
            Found::Error(_) if !peer.is_root() => failed(Reason::NotFound, "no such file of yours"),
            Found::Error(e) => failed(Reason::of_io(&e.error), &e.error.to_string()),
        });
        ControlFlow::Break(())
    });
    entry.unwrap_or_else(|| failed(Reason::NotFound, "no such file"))
}

fn report(pool: &Pool, path: &WirePath, candidate: &Candidate) -> StateEntry {
    let fd = InodeFd::Path(candidate.path.as_fd());
    let facts = match pool.attributes.facts(fd, &candidate.stat, Some(&candidate.file.key)) {
        Ok(facts) => facts,
        Err(e) => {
            let (reason, detail) = (Reason::of_inode(&e), e.to_string());
            return StateEntry::Error(PathError { path: path.clone(), reason, detail });
        }
    };
    StateEntry::File(StateReport::new(path.clone(), facts, &candidate.stat))
}
