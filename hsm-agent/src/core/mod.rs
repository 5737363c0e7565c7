//! Names and rules that everything else shares. No IO.

mod fair;
mod inflight;
mod key;
mod subtrees;
mod types;

pub use fair::{Distance, Fair, Line, Owner, Share, Turn};
pub use inflight::{Access, Effect, Event, Inflight, Job, Look, Recalled, Ticket, Want};
pub use key::FileKey;
pub use subtrees::{Subtrees, is_plain};
pub use types::{DataVersion, FileState, ObjectId, ParseObjectIdError};
