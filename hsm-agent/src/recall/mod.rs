//! Recall: an offline file's bytes come back.
//!
//! ```text
//! marker ─▶ manifest ─▶ plan (pure) ─▶ chunks, each verified ─▶ written ─▶ times put back
//!   ─▶ read lease? ── yes ─▶ readers go on ─▶ sync ─▶ marker removed        (settle)
//!                 └── no  ─▶ sync ─▶ marker removed ─▶ everybody goes on
//! ```
//!
//! Invariant: data is durable before the marker goes, and the marker is gone before anybody who
//! might write goes on. In between, a crash leaves an offline file with a good object.

mod budget;
mod error;
mod plan;
mod progress;
pub mod settle;
mod worker;

pub use budget::Budget;
pub use error::{RecallError, store_reason};
pub use progress::Progresses;
pub use settle::{Settle, Settler};
pub use worker::{Recall, RecallOutcome, recall};
