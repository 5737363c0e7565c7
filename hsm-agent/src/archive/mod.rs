//! Archive: a file's bytes are copied to the store, and a record says so.
//!
//! ```text
//! claim ─▶ read lease ─▶ data version ─▶ read ─▶ object ─▶ store flushed ─▶ (read back)
//!   ─▶ lease still held, version unchanged? ─▶ record ─▶ catalogue
//! ```
//!
//! The read lease is what makes the copy trustworthy: while it holds, nobody has the file open
//! for writing, nor mapped for writing. (A data version alone would not do: writes through a
//! mapping move mtime only when a page becomes dirty, not each time.) Whoever opens it for
//! writing breaks the lease, is let through at once, and the copy is thrown away.

mod attributes;
mod batch;
mod upload;

pub use batch::archive;
