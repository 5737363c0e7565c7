//! The engine process: everything but holding the fanotify group.
//!
//! ```text
//! holder ─▶ link ─▶ dispatch ─▶ core::Inflight ─▶ effects ─▶ recall / settle ─▶ link ─▶ holder
//!                                    ▲
//!                    api (control socket): archive, release, recall jobs
//! ```
//!
//! Threads: a few that take events, a pool of recall workers, one settler per pool, one for lease
//! breaks, and a small tokio runtime for the control socket and asynchronous stores.

mod api;
mod canary;
mod crowd;
mod cutters;
pub mod dispatch;
mod engine;
mod failures;
mod jobs;
mod link;
mod lock;
pub mod metrics;
mod mount;
pub mod outcome;
pub mod pool;
mod programs;
mod queue;
mod recover;
mod room;
pub mod second_net;
mod sentinel;
mod waiters;
mod work;

pub use canary::{COMMAND as CANARY, read_stdin_anew as canary};
pub use engine::{EngineError, run_engine};
pub use link::Link;
