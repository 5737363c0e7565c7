//! The laboratory: everything that the end-to-end suite, `cargo xtask demo` and `cargo xtask bench`
//! need around a real agent on a real, loop-mounted file system.
//!
//! ```text
//! sandbox      own mount and pid namespace, own directory; gone when the run is gone
//!   loopfs     image → mkfs → loop mount
//!   agent      `hsm agent` on it, watched, killable, measured
//!   hsm        the command line, its JSON read back
//!   run        any other program, with a time limit
//!   truncate   a system call that has no wrapper
//!   readers    many readers of any user
//!   threads    where an agent stands that does not answer
//!   openers    who has files open
//!   s3         an S3 server that can stall
//!   content    what the bytes must be
//!   tier       which tier all of this is about
//!   pace       how patient all of this is
//! ```
//!
//! Invariant: nothing here outlives the process that made it. Mounts live in a mount namespace of
//! their own, processes in a pid namespace of their own, loop devices detach with their mount, and
//! the directory is removed by the process outside. [`census`] proves it afterwards.

pub mod agent;
pub mod census;
pub mod config;
pub mod content;
pub mod hsm;
pub mod loopfs;
pub mod openers;
pub mod pace;
pub mod readers;
pub mod run;
pub mod s3;
pub mod sandbox;
pub mod stats;
pub mod threads;
pub mod tier;
mod tools;
mod truncate;

pub use agent::Agent;
pub use config::PoolConfig;
pub use content::Content;
pub use hsm::Hsm;
pub use loopfs::{FsKind, LoopFs};
pub use pace::{cases_at_once, patience};
pub use run::{Output, Run};
pub use tier::Tier;
pub use tools::tool;
pub use truncate::truncate;
