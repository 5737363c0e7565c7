//! Programs behind a structure of functions of the kernel (`struct_ops`), which aya does not load.
//!
//! ```text
//! linked object ─ aya-obj: parse, settings into .rodata ─ maps: those of the guard's set, and
//!   .rodata as one of its own ─ calls ─ PROG_LOAD for each member ─ MAP_CREATE struct_ops,
//!   MAP_UPDATE with the programs' descriptors
//! ```
//!
//! Where members lie and which number they have is the kernel's type information's word. The
//! settings are those of the guard's programs; nothing else is kept outside of the shared maps.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Map, Object};
use hsm_common::filter;

use super::load::{Image, MAPS};
use super::{BpfError, Btf};
use crate::sys::bpf;
use crate::sys::probe::kernel_release;

/// The structure.
const OPS: &str = "fanotify_filter_ops";
/// What the kernel wraps it in, as the value of a map.
const VALUE: &str = "bpf_struct_ops_fanotify_filter_ops";
/// Its members, and the programs behind them.
const MEMBERS: [(&str, &str); 2] = [("open", "mark_open"), ("pre_access", "mark_access")];
/// Bytes of the member `name`, with a terminating NUL.
const NAME_LEN: usize = 16;

/// What the running kernel says of the structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ops {
    /// Type id.
    id: u32,
    /// Type id of the value.
    value: u32,
    /// Bytes of the value.
    size: usize,
    /// Number and place in the value of each of [`MEMBERS`].
    members: [(u32, usize); 2],
    /// Place of the group's descriptor.
    group: usize,
    /// Place of the name.
    name: usize,
}

impl Ops {
    /// Looks it up.
    pub(super) fn find(types: &Btf<'_>) -> Result<Self, BpfError> {
        let lacking =
            |what: &str| BpfError::NoFilters { release: kernel_release(), what: what.into() };
        let (id, _) = types.structure(OPS).ok_or_else(|| lacking(OPS))?;
        let (value, size) = types.structure(VALUE).ok_or_else(|| lacking(VALUE))?;
        let data = types.member_offset(VALUE, "data").ok_or_else(|| lacking(VALUE))?;
        let place = |member: &str| {
            let offset = types.member_offset(OPS, member);
            let offset = offset.ok_or_else(|| lacking(&format!("{OPS}.{member}")))?;
            Ok::<_, BpfError>((data + offset) as usize)
        };
        let number = |member: &str| {
            let number = types.member_index(OPS, member);
            number.ok_or_else(|| lacking(&format!("{OPS}.{member}")))
        };
        let [(open, _), (access, _)] = MEMBERS;
        Ok(Self {
            id,
            value,
            size: size as usize,
            members: [(number(open)?, place(open)?), (number(access)?, place(access)?)],
            group: place("group_fd")?,
            name: place("name")?,
        })
    }

    /// The map's value.
    fn encode(&self, programs: &[OwnedFd], group: u32, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; self.size];
        for ((_, at), program) in self.members.iter().zip(programs) {
            let number = u64::from(program.as_raw_fd().cast_unsigned());
            value.get_mut(*at..at + 8)?.copy_from_slice(&number.to_ne_bytes());
        }
        value.get_mut(self.group..self.group + 4)?.copy_from_slice(&group.to_ne_bytes());
        let field = value.get_mut(self.name..self.name + NAME_LEN)?;
        for (byte, of) in field.iter_mut().zip(name.bytes().take(NAME_LEN - 1)) {
            let known = of.is_ascii_alphanumeric() || of == b'_' || of == b'.';
            *byte = if known { of } else { b'_' };
        }
        Some(value)
    }
}

/// Loads the programs, with the maps that are pinned in `maps`; a map that can be attached.
pub(super) fn load(
    image: &Image,
    ops: &Ops,
    maps: &Path,
    name: &str,
    group: u32,
) -> Result<OwnedFd, BpfError> {
    let failed = |doing: &'static str, source: io::Error, log: String| BpfError::Filter {
        name: name.to_owned(),
        doing,
        release: kernel_release(),
        source,
        log,
    };
    let linked = relocate(image, maps)
        .map_err(|source| failed("preparing the programs", source, String::new()))?;
    let mut programs = Vec::with_capacity(MEMBERS.len());
    for ((_, program), (member, _)) in MEMBERS.into_iter().zip(ops.members) {
        let code = linked.code.get(program).ok_or(BpfError::NoProgram(program))?;
        let loaded = bpf::load_struct_ops(program, ops.id, member, code);
        programs.push(loaded.map_err(|(source, log)| failed("loading", source, told(&log)))?);
    }
    let value = ops.encode(&programs, group, name);
    let value = value.ok_or_else(|| BpfError::NoFilters {
        release: kernel_release(),
        what: format!("{VALUE} of a known form"),
    })?;
    let types = bpf::load_smallest_types();
    let map = types.and_then(|types| bpf::create_struct_ops(ops.value, ops.size, types.as_fd()));
    let map = map.map_err(|source| failed("creating its map", source, String::new()))?;
    bpf::set_first(map.as_fd(), &value)
        .map_err(|source| failed("registering its programs", source, String::new()))?;
    Ok(map)
}

/// The verifier's account, on lines of its own.
fn told(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("\n{log}") }
}

/// In place of the descriptor of a map that only the guard's programs use.
const NO_MAP: i32 = -1;

/// Programs with descriptors of maps in them.
struct Linked {
    /// Instructions by the programs' names.
    code: HashMap<String, Vec<[u8; 8]>>,
    /// Open until the programs are loaded, which then keep them.
    _maps: Vec<OwnedFd>,
}

/// Puts settings, maps and calls into the programs.
fn relocate(image: &Image, dir: &Path) -> io::Result<Linked> {
    let mut object = Object::parse(&image.object).map_err(io::Error::other)?;
    let settings = bytemuck::bytes_of(&image.settings);
    let globals = HashMap::from([(filter::SETTINGS, (settings, true))]);
    object.patch_map_data(globals).map_err(io::Error::other)?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let ours = |name: &str| MEMBERS.iter().any(|(_, program)| *program == name);
    // aya's own programs go; functions that any of them calls are no programs, and stay.
    let others: Vec<_> = object.programs.iter().filter(|(name, _)| !ours(name)).collect();
    let others: HashSet<_> =
        others.into_iter().map(|(_, program)| program.function_key()).collect();
    object.functions.retain(|key, _| !others.contains(key));
    object.programs.retain(|name, _| ours(name));
    let mut maps = Vec::new();
    for (name, map) in std::mem::take(&mut object.maps) {
        let fd = open(dir, &name, &map)?;
        maps.push((name, fd, map));
    }
    // Every map has a place: of one that is left out aya would take another in its stead.
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map_or(NO_MAP, AsRawFd::as_raw_fd);
    let places = maps.iter().map(|(name, fd, map)| (name.as_str(), number(fd), map));
    object.relocate_maps(places, &text).map_err(io::Error::other)?;
    object.relocate_calls(&text).map_err(io::Error::other)?;
    let mut code = HashMap::new();
    for (name, program) in &object.programs {
        if let Some(function) = object.functions.get(&program.function_key()) {
            code.insert(name.clone(), encode(&function.instructions));
        }
    }
    Ok(Linked { code, _maps: maps.into_iter().filter_map(|(_, fd, _)| fd).collect() })
}

/// A map of the guard's set, or one with the object's constants. `None`: the filter has no use for it; a
/// program that refers to it all the same is refused by the kernel ([`NO_MAP`]).
fn open(dir: &Path, name: &str, map: &Map) -> io::Result<Option<OwnedFd>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("map {name}: {e}"));
    if MAPS.contains(&name) {
        return bpf::open_pinned(&dir.join(name)).map(Some).map_err(named);
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        return bpf::create_constants(map.data()).map(Some).map_err(named);
    }
    Ok(None)
}

/// As `struct bpf_insn` lies in memory, on machines with the low byte first as on others.
fn encode(instructions: &[bpf_insn]) -> Vec<[u8; 8]> {
    let encode = |of: &bpf_insn| {
        let mut bytes = [0; 8];
        bytes[0] = of.code;
        bytes[1] = if cfg!(target_endian = "little") {
            of.dst_reg() | (of.src_reg() << 4)
        } else {
            (of.dst_reg() << 4) | of.src_reg()
        };
        bytes[2..4].copy_from_slice(&of.off.to_ne_bytes());
        bytes[4..].copy_from_slice(&of.imm.to_ne_bytes());
        bytes
    };
    instructions.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_X86_64: Ops =
        Ops { id: 7, value: 8, size: 192, members: [(0, 64), (1, 72)], group: 80, name: 84 };

    #[test]
    fn a_value_has_its_members_where_the_kernel_has_them() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
        let programs = [null(), null()];
        let value = OF_X86_64.encode(&programs, 9, "a-pool-with-a-long-name").expect("fits");
        let number = |at: usize| u64::from_ne_bytes(*value[at..].first_chunk().expect("8 bytes"));
        assert_eq!(number(64), u64::try_from(programs[0].as_raw_fd()).expect("valid"));
        assert_eq!(number(72), u64::try_from(programs[1].as_raw_fd()).expect("valid"));
        assert_eq!(value[80..84], 9u32.to_ne_bytes());
        assert_eq!(&value[84..100], b"a_pool_with_a_l\0");
        assert!(value[..64].iter().chain(&value[100..]).all(|&byte| byte == 0));
    }

    #[test]
    fn a_form_that_is_not_known_is_refused() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
        let short = Ops { size: 90, ..OF_X86_64 };
        assert_eq!(short.encode(&[null], 9, "x"), None);
    }

    #[test]
    fn instructions_keep_their_form() {
        let bytes = [0x18, 0x23, 0xfe, 0xff, 0xfe, 0xff, 0xff, 0x7f];
        let read = aya_obj::copy_instructions(&bytes.repeat(2)).expect("two instructions");
        assert_eq!(encode(&read), [bytes, bytes]);
    }
}
