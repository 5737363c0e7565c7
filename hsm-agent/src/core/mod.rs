//! Names and rules that everything else shares. No IO.

mod types;

pub use types::{DataVersion, FileState, ObjectId, ParseObjectIdError};
