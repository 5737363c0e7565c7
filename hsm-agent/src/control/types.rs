//! What travels over the control socket, and what `--json` prints.
//!
//! Names of fields, and the kebab-case codes of [`Reason`], are a promise to scripts: add, never
//! rename.

mod job;
mod path;
mod reason;
mod status;

pub use job::{FileReport, JobEvent, JobRequest, Op, Outcome, Summary};
pub use path::WirePath;
pub use reason::Reason;
pub use status::{
    Latency, PathError, PoolCounters, PoolStatus, ProgramCount, Queue, StateCount, StateEntry,
    StateReport, Status, StoreStatus, UserQueue, Waiter,
};
