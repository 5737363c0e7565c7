//! Where an object lives in a store: a fan-out directory and a name, both from its identity.
//!
//! `00112233…` becomes `00/112233…`: 256 directories keep each one small enough for file systems
//! and for listings. Each archive batch takes one of them at random ([`ObjectId::random_in`]), which
//! fills them evenly and keeps objects that are written together close together. Only this file and
//! that function know the shape.

use std::fmt;
use std::str::FromStr;

use crate::core::ObjectId;

/// Name of one object in any store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(ObjectId);

impl ObjectKey {
    /// The key of the object with this identity.
    pub fn new(id: ObjectId) -> Self {
        Self(id)
    }

    /// The identity that the key stands for.
    pub fn id(&self) -> ObjectId {
        self.0
    }

    /// Number of the fan-out directory.
    pub(super) fn shard(&self) -> u8 {
        self.0.0[0]
    }

    /// Name of a fan-out directory.
    pub(super) fn shard_name(shard: u8) -> String {
        format!("{shard:02x}")
    }

    /// Name within the fan-out directory.
    pub(super) fn file_name(&self) -> String {
        self.0.to_string().split_off(2)
    }

    /// The key that a directory and a name spell, if they spell one in its only form.
    pub(super) fn from_names(dir: &str, name: &str) -> Option<Self> {
        let text = format!("{dir}{name}");
        let id = ObjectId::from_str(&text).ok()?;
        (dir.len() == 2 && id.to_string() == text).then_some(Self(id))
    }
}

impl From<ObjectId> for ObjectKey {
    fn from(id: ObjectId) -> Self {
        Self(id)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Self::shard_name(self.shard()), self.file_name())
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_have_one_spelling() {
        let key = ObjectKey::new(ObjectId(*b"\x0a\xbc\xde\xf0123456789abc"));
        assert_eq!(key.to_string(), "0a/bcdef0313233343536373839616263");
        let (dir, name) = ("0a", "bcdef0313233343536373839616263");
        assert_eq!(ObjectKey::from_names(dir, name), Some(key));
        assert_eq!(ObjectKey::from_names("0A", name), None);
        assert_eq!(ObjectKey::from_names("0ab", &name[1..]), None);
        assert_eq!(ObjectKey::from_names("0a", "tmp"), None);
    }
}
