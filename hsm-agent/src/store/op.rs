//! The operations of a store by name, for decorators that treat them alike.

use serde::Serialize;

/// One operation of [`Store`](super::Store) or [`ObjectSink`](super::ObjectSink).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// A whole object in one step.
    Put,
    /// The beginning of a streamed object.
    Writer,
    /// A piece of a streamed object.
    Write,
    /// The end of a streamed object.
    Finish,
    /// A range.
    GetRange,
    /// The end of an object.
    GetTail,
    /// Length and age.
    Head,
    /// Removal.
    Delete,
    /// Durability barrier.
    Flush,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Put,
        Self::Writer,
        Self::Write,
        Self::Finish,
        Self::GetRange,
        Self::GetTail,
        Self::Head,
        Self::Delete,
        Self::Flush,
    ];
}
