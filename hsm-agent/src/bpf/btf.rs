//! Reader for the kernel's type information (BTF): where members of structures lie, and the ids of
//! functions.
//!
//! Takes the raw form that `/sys/kernel/btf/*` has. Everything is bounds-checked; whatever does
//! not fit is an error or absent, never a panic. Kinds that are of no use here are stepped over;
//! an unknown kind ends the reading with an error, because its length is unknown.

use super::BtfError;

const MAGIC: u16 = 0xeb9f;
/// Bytes of a type before what its kind adds.
const TYPE_LEN: usize = 12;
/// Anonymous structures inside one another, and qualifiers in a row, at most. Real ones need
/// four; type ids of hostile bytes can point in circles.
const MAX_DEPTH: u32 = 16;
/// Bytes of type information at most: four times what the largest kernels have.
const MAX_LEN: usize = 64 << 20;

/// Type kinds of `<linux/btf.h>`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Type information of the kernel, or of a module on top of the kernel's.
#[derive(Debug)]
pub struct Btf<'base> {
    bytes: Vec<u8>,
    /// Where each type begins in `bytes`; the first has the id `first_id`.
    types: Vec<u32>,
    /// Functions and structures: offset of the name, id. A kernel has 100,000 types; what is looked
    /// for is found by where its name lies.
    named: Vec<(u32, u32)>,
    first_id: u32,
    strings: std::ops::Range<usize>,
    /// Offset of this string section behind that of the base.
    first_string: usize,
    base: Option<&'base Btf<'base>>,
}

/// One type's fixed part.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Size or type id, whichever the kind has.
    of: u32,
    /// Where what the kind adds begins.
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x7f
    }

    fn len(self) -> usize {
        (self.info & 0x00ff_ffff) as usize
    }

    /// Bit fields have their size beside their offset.
    fn has_bit_fields(self) -> bool {
        self.info >> 31 != 0
    }
}

impl Btf<'static> {
    /// Reads the kernel's type information.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        Self::read(bytes, None)
    }
}

impl<'base> Btf<'base> {
    /// Reads a module's type information, which refers to the kernel's.
    pub fn parse_module(bytes: Vec<u8>, base: &'base Btf<'base>) -> Result<Self, BtfError> {
        Self::read(bytes, Some(base))
    }

    /// Type id of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(kind::FUNC, name).map(|(id, _)| id).next()
    }

    /// Offset in bytes of a structure's member, through anonymous structures and unions. `None`
    /// when there is no such structure or member, or when it is a bit field.
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.find(kind::STRUCT, structure).find_map(|(_, ty)| {
            let bits = self.member_bits(ty, member.as_bytes(), MAX_DEPTH)?;
            (bits % 8 == 0).then_some(bits / 8)
        })
    }

    /// Type id and size in bytes of a structure.
    pub fn structure(&self, name: &str) -> Option<(u32, u32)> {
        self.find(kind::STRUCT, name).map(|(id, ty)| (id, ty.of)).next()
    }

    /// Which of a structure's members, counted from zero, has this name.
    pub fn member_index(&self, structure: &str, member: &str) -> Option<u32> {
        let (_, ty) = self.find(kind::STRUCT, structure).next()?;
        let place = (0..ty.len()).position(|number| {
            let name = word(&self.bytes, ty.rest + number * 12);
            name.is_some_and(|name| self.is_named(name, member.as_bytes()))
        });
        place.and_then(|place| u32::try_from(place).ok())
    }

    /// Number of types, without those of the base.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there is no type at all.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    fn read(bytes: Vec<u8>, base: Option<&'base Btf<'base>>) -> Result<Self, BtfError> {
        if bytes.len() > MAX_LEN {
            return Err(BtfError::TooLarge(bytes.len()));
        }
        let header = |at: usize| word(&bytes, at).ok_or(BtfError::Truncated);
        let first = header(0)?;
        if first & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Magic);
        }
        let begin = header(4)? as usize;
        let section = |at: usize| -> Result<std::ops::Range<usize>, BtfError> {
            let start = begin.checked_add(header(at)? as usize).ok_or(BtfError::Truncated)?;
            let end = start.checked_add(header(at + 4)? as usize).ok_or(BtfError::Truncated)?;
            if end > bytes.len() {
                return Err(BtfError::Truncated);
            }
            Ok(start..end)
        };
        let types = section(8)?;
        let strings = section(16)?;
        let (first_id, first_string) = match base {
            // Id 0 is "void" and has no entry.
            None => (1, 0),
            Some(base) => (
                base.first_id.saturating_add(u32::try_from(base.types.len()).unwrap_or(u32::MAX)),
                base.first_string + base.strings.len(),
            ),
        };
        let types = index(&bytes, types)?;
        let named = named(&bytes, &types, first_id);
        Ok(Self { types, named, first_id, strings, first_string, base, bytes })
    }

    /// Types of this kind and name, those of the base apart.
    fn find(&self, kind: u32, name: &str) -> impl Iterator<Item = (u32, Type)> {
        let places = self.places(name.as_bytes());
        let named = self.named.iter().filter(move |(place, _)| places.contains(place));
        named.filter_map(move |&(_, id)| {
            let (_, ty) = self.by_id(id)?;
            (ty.kind() == kind).then_some((id, ty))
        })
    }

    /// Offsets at which the string lies, here or in the base.
    fn places(&self, name: &[u8]) -> Vec<u32> {
        let mut places = self.base.map_or_else(Vec::new, |base| base.places(name));
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        for at in memchr::memmem::find_iter(strings, name) {
            let begins = at == 0 || strings[at - 1] == 0;
            if begins && strings.get(at + name.len()) == Some(&0) {
                places.extend(u32::try_from(self.first_string + at));
            }
        }
        places
    }

    fn by_id(&self, id: u32) -> Option<(&Self, Type)> {
        if id < self.first_id {
            return self.base?.by_id(id);
        }
        let at = *self.types.get((id - self.first_id) as usize)?;
        Some((self, fixed(&self.bytes, at as usize)?))
    }

    /// Whether the string at this offset is `wanted`, which contains no NUL.
    fn is_named(&self, offset: u32, wanted: &[u8]) -> bool {
        let offset = offset as usize;
        if offset < self.first_string {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            return self.base.is_some_and(|base| base.is_named(offset, wanted));
        }
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        let text = strings.get(offset - self.first_string..).unwrap_or_default();
        text.strip_prefix(wanted).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn member_bits(&self, ty: Type, wanted: &[u8], depth: u32) -> Option<u32> {
        (0..ty.len()).find_map(|number| {
            let at = ty.rest + number * 12;
            let name = word(&self.bytes, at)?;
            let offset = word(&self.bytes, at + 8)?;
            let (bits, field) = if ty.has_bit_fields() {
                (offset & 0x00ff_ffff, offset >> 24)
            } else {
                (offset, 0)
            };
            if self.is_named(name, wanted) {
                return (field == 0).then_some(bits);
            }
            if !self.is_named(name, b"") || depth == 0 {
                return None;
            }
            let (btf, inner) = self.resolve(word(&self.bytes, at + 4)?)?;
            bits.checked_add(btf.member_bits(inner, wanted, depth - 1)?)
        })
    }

    /// The structure or union behind names and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<(&Self, Type)> {
        for _ in 0..MAX_DEPTH {
            let (btf, ty) = self.by_id(id)?;
            match ty.kind() {
                kind::STRUCT | kind::UNION => return Some((btf, ty)),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.of;
                }
                _ => return None,
            }
        }
        None
    }
}

/// Where each type begins.
fn index(bytes: &[u8], section: std::ops::Range<usize>) -> Result<Vec<u32>, BtfError> {
    let mut types = Vec::new();
    let mut at = section.start;
    while at < section.end {
        let ty = fixed(bytes, at).ok_or(BtfError::Truncated)?;
        types.push(u32::try_from(at).map_err(|_| BtfError::TooLarge(bytes.len()))?);
        let each = match ty.kind() {
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12,
            kind::ENUM | kind::FUNC_PROTO => 8,
            kind::INT | kind::VAR | kind::DECL_TAG | kind::ARRAY => 0,
            0 => return Err(BtfError::Kind(0)),
            known if known <= kind::ENUM64 => 0,
            unknown => return Err(BtfError::Kind(unknown)),
        };
        let fixed = match ty.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            _ => 0,
        };
        at = ty.rest + fixed + each * ty.len();
    }
    if at != section.end {
        return Err(BtfError::Truncated);
    }
    Ok(types)
}

/// Names and ids of functions and structures.
fn named(bytes: &[u8], types: &[u32], first_id: u32) -> Vec<(u32, u32)> {
    let ids = first_id..;
    let all = ids.zip(types).filter_map(|(id, &at)| Some((id, fixed(bytes, at as usize)?)));
    let wanted = all.filter(|(_, ty)| matches!(ty.kind(), kind::FUNC | kind::STRUCT));
    wanted.map(|(id, ty)| (ty.name, id)).collect()
}

fn fixed(bytes: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        name: word(bytes, at)?,
        info: word(bytes, at + 4)?,
        of: word(bytes, at + 8)?,
        rest: at + TYPE_LEN,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
