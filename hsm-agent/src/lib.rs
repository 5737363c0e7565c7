//! hsm: a hierarchical storage manager for Linux.
//!
//! The way of a read of an offline file through this crate, in one direction:
//!
//! ```text
//! kernel → holder → intercept → core → recall → store → file → marker → answer
//! ```

pub mod archive;
pub mod bpf;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod failpoint;
pub mod holder;
pub mod intercept;
pub mod marker;
pub mod recall;
pub mod release;
pub mod scanner;
pub mod store;
pub mod sys;
