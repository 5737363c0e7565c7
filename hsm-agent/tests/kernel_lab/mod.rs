//! What the suites `guard` and `mark_filter` have in common: each tries kernel programs without an agent.
//!
//! ```text
//! suite   the test program: where it cannot run it says so, otherwise every case on every file system
//! lab     a case's file system and pinned programs, and this process as the agent when it says so
//! access  accesses by others than the agent
//! ```
//! Each pins into a directory of its own, and runs in a mount and pid namespace of its own.

pub(crate) mod access;
mod lab;
mod suite;

pub(crate) use access::{EAGAIN, assert_errno, wait_for};
pub(crate) use lab::{Case, Lab, marker};
pub(crate) use suite::Suite;
