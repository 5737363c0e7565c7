//! Names and rules that everything else shares. No IO.

mod key;
mod types;

pub use key::FileKey;
pub use types::{DataVersion, FileState, ObjectId, ParseObjectIdError};
