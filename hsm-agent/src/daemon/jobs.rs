//! Jobs of users: find files, do something with each, report.
//!
//! One thread walks, a few work. Between them is a bounded queue; a cancelled job stops between
//! files.

mod ops;
mod places;
mod runner;
pub(super) mod scan;

pub(super) use places::{Places, for_jobs};
pub(super) use runner::{Job, run};
