//! The control plane: how `hsm` verbs and the agent talk.
//!
//! HTTP with JSON bodies on a Unix socket. A request that works on files is a *job*: its answer
//! is a stream of [`JobEvent`] lines that ends with exactly one [`JobEvent::Summary`]. A stream
//! that ends without one was cut off, and the client says so.
//!
//! ```text
//! cli → client ──socket──→ server (limits, peer credentials, who may what) → AgentApi (the engine)
//! ```
//!
//! Invariant: nothing that the peer sends decides who the peer is. The kernel's SO_PEERCRED does,
//! once per connection, and the server refuses what that user may not ask for before the engine
//! sees the request.

mod api;
pub mod client;
pub mod server;
pub mod types;

pub use api::{AgentApi, ApiError, ApiErrorKind, Peer};
pub use types::{
    FileReport, JobEvent, JobRequest, Op, Outcome, PathError, PoolStatus, ProgramCount, Queue,
    Reason, StateEntry, StateReport, Status, Summary, UserQueue, Waiter, WirePath,
};
