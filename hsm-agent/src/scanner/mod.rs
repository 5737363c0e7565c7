//! Finding files: named ones, and all below a directory. Never through a symbolic link, never
//! into another file system.

mod walk;

pub use walk::{Found, WalkError, Walker, relative_to};
