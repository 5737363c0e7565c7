//! Release: the data of archived files is taken away.
//!
//! The order of steps is what makes it safe, see [`batch`](self) for the argument at each:
//!
//! ```text
//! eligible? ─▶ claim ─▶ invisible descriptor ─▶ watch ─▶ exclusive lease ─▶ unchanged?
//!   ─▶ intent, durable ─▶ marker ─▶ sync ─▶ lease taken again ─▶ punch ─▶ times ─▶ catalogue
//! ```
//!
//! It goes in batches, because two steps wait for the device (intent and sync), and one wait
//! serves many files.

mod batch;
mod compare;
mod eligible;

pub use batch::{PATIENCE, Unfinished, release, repunch};
pub(crate) use compare::{read_full, same_content};
