//! Wiring: what exists in the engine, in which order it starts and stops.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, mpsc};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::canary;
use super::crowd::{Crowd, Room};
use super::cutters::Cutters;
use super::jobs::Places;
use super::link::{Incoming, Link, restarts};
use super::lock::{AgentLock, LockError};
use super::metrics::Metrics;
use super::mount::{self, MountError};
use super::pool::Pool;
use super::programs::Programs;
use super::second_net::SecondNet;
use super::waiters::Waiters;
use super::work::Workers;
use super::{recover, sentinel};
use crate::catalog::{Catalog, CatalogError};
use crate::config::{Config, ConfigError, Limits, PoolConfig};
use crate::control::server::{BindError, ControlSocket, ServerOptions, serve};
use crate::core::{Inflight, Share};
use crate::failpoint::{Point, reach};
use crate::holder::protocol::EventFrame;
use crate::intercept::{Able, Interceptor, LsmFilter, Tier, UserFilter, choose};
use crate::marker::Attributes;
use crate::recall::{Budget, Progresses, Settler, settle};
use crate::store::{Remembered, StoreError};
use crate::sys::fanotify::{Class, Verdict};
use crate::sys::lease::BreakWatch;
use crate::sys::{process, signal};

/// Threads that take events from the holder. Each only looks at a marker; more than one, because
/// reading it may wait for the disk.
const EVENT_THREADS: usize = 4;
/// A recall that notices its deadline itself gives the better error: it gets a moment for that.
const DEADLINE_SLACK: Duration = Duration::from_secs(2);
/// A stopping engine lets recalls in work finish for so long, then denies who still waits.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Then it waits so long for what is in place to become durable.
const SETTLE_GRACE: Duration = Duration::from_secs(15);

/// Why the engine could not serve.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A mount point that cannot be managed.
    #[error("pool {pool}: {source}")]
    Mount {
        /// Pool.
        pool: String,
        /// Why.
        source: MountError,
    },
    /// The store of a pool.
    #[error("pool {pool}: {source}")]
    Store {
        /// Pool.
        pool: String,
        /// Why.
        source: StoreError,
    },
    /// The catalogue of a pool.
    #[error("pool {pool}: {source}")]
    Catalog {
        /// Pool.
        pool: String,
        /// Why.
        source: Box<CatalogError>,
    },
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The tier that a pool insists on, or its kernel programs.
    #[error("pool {pool}: {why}")]
    Tier {
        /// Pool.
        pool: String,
        /// Why it cannot be had.
        why: String,
    },
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> EngineError {
    let what = what.into();
    move |source| EngineError::System { what, source }
}

/// Runs the engine until it is told to stop. The configuration is read, and with it the log begun,
/// only after the holder's greeting: the file may lie on a managed file system.
pub fn run_engine(
    config: &Path,
    start_log: impl FnOnce(&Config) -> io::Result<()>,
) -> Result<(), EngineError> {
    // SIGIO would kill us: it is what the kernel sends for a broken lease without a signal of its
    // own. Blocked before any thread exists, so in all of them. (And nothing else: the holder blocks
    // the signals that stop it, and a child inherits that.)
    signal::block_only(&[libc::SIGIO, signal::lease_break_signal()]).map_err(system("signals"))?;
    let descriptors = process::raise_descriptor_limit();
    let link = Arc::new(Link::from_holder().map_err(system("no holder"))?);
    let config = Config::load(config)?;
    start_log(&config).map_err(system("no log"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("no runtime"))?;
    // From here on it watches: whoever stops it then, by a signal, must not let those pass who wait.
    let mut signals = runtime.block_on(async { Signals::new() }).map_err(system("signals"))?;
    let engine = Engine::start(&config, &link, runtime.handle(), descriptors)?;
    let served =
        engine.recover().and_then(|()| runtime.block_on(engine.serve(&config, &mut signals)));
    let result = match served {
        Err(error) => runtime.block_on(engine.give_up(error, &config, &mut signals)),
        served => served,
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

struct Engine {
    pools: Vec<Arc<Pool>>,
    /// Those of the pools whose files programs may have opened unseen.
    unseen: Vec<Arc<Pool>>,
    workers: Arc<Workers>,
    crowd: Arc<Crowd>,
    places: Places,
    programs: Programs,
    second_net: Arc<SecondNet>,
    link: Arc<Link>,
    stopping: Arc<AtomicBool>,
    /// The holder is gone.
    orphaned: CancellationToken,
    _lock: AgentLock,
}

impl Engine {
    /// Watches. From here on an event is answered, by the sentinel if the holder dies.
    fn start(
        config: &Config,
        link: &Arc<Link>,
        runtime: &tokio::runtime::Handle,
        descriptors: u64,
    ) -> Result<Self, EngineError> {
        std::fs::create_dir_all(&config.agent.state_dir)
            .map_err(system(format!("{}", config.agent.state_dir.display())))?;
        let lock = AgentLock::look(&config.agent)?;
        let programs = Programs::prepare(config, link);
        let predecessor = (restarts() > 0 || lock.orphan().is_some()).then(Instant::now);
        let shared = Shared {
            predecessor,
            breaks: BreakWatch::start().map_err(system("no watch on leases"))?,
            budget: Arc::new(Budget::new(config.limits.recall_memory.as_u64())),
            workers: start_workers(&config.limits).map_err(system("no threads"))?,
            crowd: Crowd::new(Room::new(
                config.limits.waiting,
                config.limits.waiting_per_user,
                descriptors,
            )),
            second_net: programs.second_net(),
            stopping: Arc::new(AtomicBool::new(false)),
            runtime: runtime.clone(),
        };
        let mut watched = Vec::new();
        for pool in &config.pools {
            watched.push(Watched::begin(config, pool, link, &programs)?);
        }
        reach(Point::RecoverWatched);
        // Only now, with our own watch in place, may an orphan of an earlier agent go.
        let lock = take_over(lock, link)?;
        let mut pools = Vec::new();
        let mut unseen = Vec::new();
        for watched in watched {
            let opens_were_marked = watched.opens_were_marked;
            let pool = watched.open(config, link, &shared)?;
            if !opens_were_marked {
                unseen.push(Arc::clone(&pool));
            }
            pools.push(pool);
        }
        let engine = Self {
            pools,
            unseen,
            workers: shared.workers,
            crowd: shared.crowd,
            places: Places::new(descriptors),
            programs,
            second_net: shared.second_net,
            link: Arc::clone(link),
            stopping: shared.stopping,
            orphaned: CancellationToken::new(),
            _lock: lock,
        };
        reach(Point::RecoverOpened);
        engine.start_event_threads(runtime)?;
        Ok(engine)
    }

    /// Brings what was cut off to its end; then it can serve.
    fn recover(&self) -> Result<(), EngineError> {
        for pool in &self.pools {
            let failed =
                |e| EngineError::Catalog { pool: pool.config.name.clone(), source: Box::new(e) };
            let left = recover::intents(pool).map_err(failed)?;
            if !left.is_empty() {
                let pool = Arc::clone(pool);
                std::thread::Builder::new()
                    .name("recovery".into())
                    .spawn(move || recover::finish(&pool, left))
                    .map_err(system("no threads"))?;
            }
        }
        self.prove_watches()?;
        for pool in self.unseen.iter().map(Arc::clone) {
            // On a thread of its own: other programs' files may lie on servers that do not answer.
            std::thread::Builder::new()
                .name("open-files".into())
                .spawn(move || recover::open_files(&pool))
                .map_err(system("no threads"))?;
        }
        Ok(())
    }

    /// Before anything is said to be served.
    fn prove_watches(&self) -> Result<(), EngineError> {
        self.link.serving().map_err(system("the holder does not listen"))?;
        for pool in self.pools.iter().filter(|p| p.interceptor.tier() == Tier::MarkFilter) {
            let unproven = |e: io::Error| EngineError::Tier {
                pool: pool.config.name.clone(),
                why: format!("tier mark-filter does not work on this kernel: {e}"),
            };
            canary::prove(pool).map_err(unproven)?;
        }
        Ok(())
    }

    fn start_event_threads(&self, runtime: &tokio::runtime::Handle) -> Result<(), EngineError> {
        let sentinel = Arc::new(Once::new());
        for n in 0..EVENT_THREADS {
            let (link, pools) = (Arc::clone(&self.link), self.pools.clone());
            let runtime = runtime.clone();
            let (orphaned, sentinel) = (self.orphaned.clone(), Arc::clone(&sentinel));
            std::thread::Builder::new()
                .name(format!("events-{n}"))
                .spawn(move || {
                    take_events(&link, &pools, &runtime);
                    // At once, and not when the engine serves: until then its own opens wait for it too.
                    sentinel.call_once(|| sentinel::start(&pools));
                    orphaned.cancel();
                })
                .map_err(system("no threads"))?;
        }
        Ok(())
    }

    async fn serve(&self, config: &Config, signals: &mut Signals) -> Result<(), EngineError> {
        let stop = CancellationToken::new();
        let api = Arc::new(Api {
            pools: self.pools.clone(),
            workers: Arc::clone(&self.workers),
            crowd: Arc::clone(&self.crowd),
            programs: self.programs.clone(),
            started: Instant::now(),
            default_jobs: config.limits.bulk_jobs as usize,
            release_batch: config.limits.release_batch as usize,
            places: self.places.clone(),
            stop: stop.clone(),
        });
        let socket = ControlSocket::bind(&config.agent.socket)?;
        let server = tokio::spawn(serve(socket, api, ServerOptions::default(), stop.clone()));
        self.link.ready().map_err(system("the holder does not listen"))?;
        let overdue = tokio::spawn(deny_overdue(self.pools.clone()));
        // Only now: everything is recovered.
        let watched = self.second_net.watch(self.pools.clone(), stop.clone());
        watched.map_err(system("no threads"))?;
        let orphaned = tokio::select! {
            biased;
            () = self.orphaned.cancelled() => true,
            () = signals.stop() => false,
        };
        if orphaned {
            tracing::error!(
                "the holder died; offline files are denied until an agent is started again"
            );
            leave_socket(config);
        }
        stop.cancel();
        self.stop().await;
        if let Err(error) = server.await {
            tracing::error!(%error, "the control server died");
        }
        overdue.abort();
        if orphaned {
            self.keep_closed(signals).await;
        }
        Ok(())
    }

    /// It cannot serve. If that is because the holder died, this process has the only watch.
    async fn give_up(
        &self,
        error: EngineError,
        config: &Config,
        signals: &mut Signals,
    ) -> Result<(), EngineError> {
        if self.link.is_broken() {
            self.orphaned.cancelled().await;
            tracing::error!(%error, "the holder died; offline files are denied until an agent is started again");
            leave_socket(config);
            self.stop().await;
            self.keep_closed(signals).await;
        }
        Err(error)
    }

    /// The sentinel's life, until a new agent watches or somebody ends it.
    async fn keep_closed(&self, signals: &mut Signals) {
        signals.stop().await;
        let pools = self.pools.clone();
        let ended = tokio::task::spawn_blocking(move || sentinel::end(&pools)).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the watch could not be ended in order");
        }
    }

    /// Nothing new begins, jobs end between files, recalls in work get their grace, who still
    /// waits is denied, what is in place becomes durable.
    async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + STOP_GRACE;
        while Instant::now() < deadline && self.pools.iter().any(|p| !p.waiters.is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for pool in &self.pools {
            for (ticket, _) in pool.waiters.list() {
                pool.abandon(ticket, libc::EAGAIN);
            }
        }
        let deadline = Instant::now() + SETTLE_GRACE;
        while Instant::now() < deadline && self.pools.iter().any(|p| !p.settler.is_empty()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Who finds somebody at it takes this for an agent that serves. Jobs may keep it open for long.
fn leave_socket(config: &Config) {
    drop(std::fs::remove_file(&config.agent.socket));
}

/// Recalls look at their deadline between chunks; this is for those that hang in between, or wait
/// for a worker all that time. Nobody waits for ever.
async fn deny_overdue(pools: Vec<Arc<Pool>>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        for pool in &pools {
            for ticket in pool.overdue(DEADLINE_SLACK) {
                tracing::error!(
                    pool = pool.config.name,
                    "a reader waited past the deadline; denied"
                );
                pool.abandon(ticket, libc::EAGAIN);
            }
        }
    }
}

/// The signals that mean "stop".
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the end of an orphan. Our watch is in place, so what it opens is asked about here, and nobody could
/// answer before it has ended: it is denied. (Allowing it would be unsafe: its number may be another's soon.)
fn take_over(lock: AgentLock, link: &Link) -> Result<AgentLock, EngineError> {
    let Some(orphan) = lock.orphan() else { return Ok(lock.take_over()?) };
    let told = |pid: i32| link.refuse(pid).map_err(system("the holder does not listen"));
    told(orphan)?;
    let lock = lock.take_over()?;
    told(0)?;
    Ok(lock)
}

/// Until the holder is gone.
fn take_events(link: &Arc<Link>, pools: &[Arc<Pool>], runtime: &tokio::runtime::Handle) {
    loop {
        match link.next() {
            Ok(Some(Incoming::Ping)) => prove_alive(link, pools, runtime),
            Ok(Some(Incoming::Event(frame, fd))) => {
                match pools.iter().find(|p| p.number == frame.group) {
                    Some(pool) => pool.take_event(frame, fd),
                    None => deny_unmanaged(link, &frame),
                }
            }
            Ok(None) => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "the holder cannot be heard");
                return;
            }
        }
    }
}

/// Answers the holder's question by way of everything that an answer to a reader needs: this thread
/// took it, the state machines are not locked up, and the runtime, which deadlines and stores rely
/// on, runs tasks.
fn prove_alive(link: &Arc<Link>, pools: &[Arc<Pool>], runtime: &tokio::runtime::Handle) {
    pools.iter().for_each(|pool| drop(pool.inflight()));
    let link = Arc::clone(link);
    runtime.spawn(async move {
        if let Err(error) = link.alive() {
            tracing::error!(%error, "the holder does not take answers");
        }
    });
}

/// A group of a pool that the configuration does not have any more, or has with another mount or
/// marker: its stubs mean nothing to us.
fn deny_unmanaged(link: &Link, frame: &EventFrame) {
    tracing::error!(
        pid = frame.pid,
        "access to a file system whose pool was taken out of the configuration while the agent ran; \
         denied. Restart the agent"
    );
    if let Err(error) = link.answer(frame, Verdict::Deny(libc::EIO), false) {
        tracing::error!(%error, "the holder does not take answers");
    }
}

/// Names the watch of a pool. Mount point and marker are part of it: events of a watch must never be
/// judged by another pool's rules, whatever the configuration says when the engine starts again.
fn group_key(pool: &PoolConfig, class: Class) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(pool.mount.as_os_str().as_encoded_bytes());
    hash.update(b"\0");
    hash.update(pool.marker.as_bytes());
    if class == Class::FailClosed {
        hash.update(b"\0fails closed");
    }
    format!("{}-{}", pool.name, &hash.finalize().to_hex()[..16])
}

/// What all pools share.
struct Shared {
    /// When the engine of this agent that was there before this one was gone, if there was one.
    predecessor: Option<Instant>,
    breaks: BreakWatch,
    budget: Arc<Budget>,
    workers: Arc<Workers>,
    crowd: Arc<Crowd>,
    second_net: Arc<SecondNet>,
    stopping: Arc<AtomicBool>,
    runtime: tokio::runtime::Handle,
}

/// A file system whose watch is in place.
struct Watched {
    /// The holder's number of the group; its events carry it.
    number: u32,
    config: PoolConfig,
    root: OwnedFd,
    fs_type: &'static str,
    interceptor: Box<dyn Interceptor>,
    /// Whoever has an offline file open is asked about.
    opens_were_marked: bool,
    tier_reason: String,
    kernel: crate::sys::fanotify::Group,
    /// Differs whenever the file system may have lost what it had in memory.
    instance: Vec<u8>,
}

impl Watched {
    fn begin(
        config: &Config,
        pool: &PoolConfig,
        link: &Link,
        programs: &Programs,
    ) -> Result<Self, EngineError> {
        let name = &pool.name;
        let failed = |source| EngineError::Mount { pool: name.clone(), source };
        let (root, fs_type) = mount::open(&pool.mount).map_err(failed)?;
        mount::refuse_own_files(&root, config, pool).map_err(failed)?;
        let tier = |why| EngineError::Tier { pool: name.clone(), why };
        let usable = programs.usable(pool, &root);
        let able = Able {
            programs: usable.as_ref().map(drop).map_err(String::as_str),
            patches: programs.patches(),
        };
        let chosen = choose(pool, able).map_err(tier)?;
        let class = match chosen.tier {
            Tier::MarkFilter => Class::FailClosed,
            Tier::LsmFilter | Tier::UserFilter => Class::PreContent,
        };
        let (number, group) = link
            .open_group(&group_key(pool, class), class)
            .map_err(system(format!("pool {name}: no watch")))?;
        let parts = || -> io::Result<_> { Ok((group.try_clone()?, root.try_clone()?)) };
        let (kernel, watched) = parts().map_err(system("descriptors"))?;
        let interceptor: Box<dyn Interceptor> = match chosen.tier {
            Tier::MarkFilter => Box::new(programs.mark_filter(pool, group, watched).map_err(tier)?),
            Tier::UserFilter => Box::new(UserFilter::new(group, watched)),
            Tier::LsmFilter => Box::new(LsmFilter::new(group)),
        };
        interceptor
            .attach()
            .map_err(|e| failed(MountError::not_watchable(pool.mount.clone(), e)))?;
        let opens_were_marked =
            chosen.tier == Tier::MarkFilter && programs.opens_were_marked(&usable);
        programs.cover(pool, chosen.tier, usable, number, &root, link).map_err(tier)?;
        tracing::info!(pool = name, tier = %chosen.tier, why = chosen.why, "watching");
        let tier_reason = chosen.why;
        let instance = mount::instance(&root).map_err(failed)?;
        let config = pool.clone();
        Ok(Self {
            number,
            config,
            root,
            fs_type,
            interceptor,
            opens_were_marked,
            tier_reason,
            kernel,
            instance,
        })
    }

    fn open(
        self,
        config: &Config,
        link: &Arc<Link>,
        shared: &Shared,
    ) -> Result<Arc<Pool>, EngineError> {
        let name = self.config.name.clone();
        let _inside = shared.runtime.enter();
        let remembered = Remembered::in_file(config.agent.store_identity_path(&name));
        let store = crate::store::open(&self.config.store, Some(remembered))
            .map_err(|source| EngineError::Store { pool: name.clone(), source })?;
        let catalog = Catalog::open_for(&config.agent.catalog_path(&name), &self.instance)
            .map_err(|e| EngineError::Catalog { pool: name.clone(), source: Box::new(e) })?;
        let (settler, queue) = Settler::new();
        let unseen_cutters = self.interceptor.tier() == Tier::UserFilter;
        let predecessor = shared.predecessor.filter(|_| unseen_cutters);
        let pool = Arc::new(Pool {
            cutters: Cutters::new(predecessor),
            attributes: Attributes::new(&self.config.marker).map_err(system("marker"))?,
            number: self.number,
            config: self.config,
            root: self.root,
            fs_type: self.fs_type.into(),
            interceptor: self.interceptor,
            tier_reason: self.tier_reason,
            kernel: self.kernel,
            store,
            catalog,
            inflight: Mutex::new(Inflight::default()),
            waiters: Waiters::default(),
            crowd: Arc::clone(&shared.crowd),
            settler,
            budget: Arc::clone(&shared.budget),
            breaks: shared.breaks.clone(),
            metrics: Metrics::default(),
            runtime: shared.runtime.clone(),
            openers: Mutex::default(),
            recall_parallel: config.limits.recall_parallel as usize,
            recall_deadline: config.limits.recall_deadline,
            workers: Arc::clone(&shared.workers),
            second_net: Arc::clone(&shared.second_net),
            link: Arc::clone(link),
            progress: Progresses::default(),
            canary: canary::Canary::default(),
            failures: super::failures::Failures::default(),
            room: Mutex::new(()),
            stopping: Arc::clone(&shared.stopping),
        });
        start_settler(&pool, queue)?;
        Ok(pool)
    }
}

/// Recalls mostly wait for the store, so there are more than processors.
fn start_workers(limits: &Limits) -> io::Result<Arc<Workers>> {
    let share = Share {
        per_user: limits.recalls_per_user as usize,
        near_per_user: near_recalls(limits),
        bulk: limits.bulk_jobs as usize * 2,
    };
    Workers::start(limits.recalls as usize, share)
}

/// A local store's recalls have the processors work for them. Two for each: one writes while another is asked
/// about, or waits for the disk.
fn near_recalls(limits: &Limits) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    limits.local_recalls_per_user.map_or_else(|| processors() * 2, |most| most as usize)
}

fn start_settler(pool: &Arc<Pool>, queue: mpsc::Receiver<settle::Work>) -> Result<(), EngineError> {
    let settled = Arc::clone(pool);
    let device = pool.own_root().map_err(system("the mount point"))?;
    // An earlier engine may have died between a marker's removal and its sync; writers wait for this.
    rustix::fs::syncfs(&device)
        .map_err(|e| system("the file system cannot be synced")(e.into()))?;
    std::thread::Builder::new()
        .name(format!("settle-{}", pool.config.name))
        .spawn(move || settle::run(&settled, &device, &queue))
        .map_err(system("no threads"))?;
    Ok(())
}
