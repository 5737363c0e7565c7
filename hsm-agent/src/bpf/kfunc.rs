//! Linker for calls of the running kernel's own functions (kfuncs).
//!
//! In the compiled object such a call is a `call` instruction with a relocation against an undefined
//! symbol, which no loader of this language resolves. The kernel wants the id of the function in
//! its type information in the instruction itself: this puts it there, and takes the relocation
//! out of the object, so that the loader never meets it.
//!
//! The object is patched in place, in its file form: nothing is moved, a relocation section only
//! gets shorter. A reference to an undefined symbol that is no call is an error.

use object::elf::{
    FileHeader64, R_BPF_64_32, SHF_EXECINSTR, SHN_UNDEF, SHT_REL, SHT_SYMTAB, SectionHeader64,
};
use object::read::elf::{FileHeader, Rel, SectionHeader, Sym};
use object::{LittleEndian, U64, pod};

use super::LinkError;

type Elf = FileHeader64<LittleEndian>;
type Header = SectionHeader64<LittleEndian>;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// Source register that says: a function of the kernel.
const PSEUDO_KFUNC_CALL: u8 = 2;
/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
/// Bytes of a relocation.
const RELOCATION: usize = 16;
/// Instructions of one object at most, to bound the work on hostile bytes.
const MAX_OBJECT: usize = 64 << 20;

/// One call to be linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    /// Where its instruction lies in the file.
    at: usize,
    /// Id of the function.
    id: u32,
}

/// What is to be done to one relocation section.
#[derive(Debug)]
struct Section {
    /// Where the section's header lies in the file.
    header: usize,
    /// The relocations that stay.
    kept: Vec<[u8; RELOCATION]>,
    /// Where they lie.
    at: usize,
}

/// Links every call of an undefined function in `object`, an ELF file for little-endian BPF.
/// `resolve` tells the id of a kernel function. Returns the number of linked calls.
///
/// When it fails, the object is as it was.
pub fn link(
    object: &mut [u8],
    mut resolve: impl FnMut(&str) -> Option<u32>,
) -> Result<usize, LinkError> {
    let (calls, sections) = plan(object, &mut resolve)?;
    for call in &calls {
        let instruction = &mut object[call.at..call.at + INSTRUCTION];
        instruction[1] = (instruction[1] & 0x0f) | (PSEUDO_KFUNC_CALL << 4);
        instruction[2..4].fill(0);
        instruction[4..].copy_from_slice(&call.id.to_le_bytes());
    }
    for section in &sections {
        let bytes = section.kept.concat();
        object[section.at..section.at + bytes.len()].copy_from_slice(&bytes);
        let size = U64::new(LittleEndian, bytes.len() as u64);
        let field = section.header + std::mem::offset_of!(Header, sh_size);
        object[field..field + 8].copy_from_slice(pod::bytes_of(&size));
    }
    Ok(calls.len())
}

fn plan(
    data: &[u8],
    resolve: &mut dyn FnMut(&str) -> Option<u32>,
) -> Result<(Vec<Call>, Vec<Section>), LinkError> {
    if data.len() > MAX_OBJECT {
        return Err(LinkError::Elf("it is larger than any object of programs".into()));
    }
    let elf = Elf::parse(data)?;
    let endian = elf.endian()?;
    let headers = elf.section_headers(endian, data)?;
    let sections = elf.sections(endian, data)?;
    let symbols = sections.symbols(endian, data, SHT_SYMTAB)?;
    let table = usize::try_from(elf.e_shoff.get(endian)).map_err(|_| out_of_bounds())?;
    let (mut calls, mut changed) = (Vec::new(), Vec::new());
    for (number, header) in headers.iter().enumerate() {
        if header.sh_type(endian) != SHT_REL {
            continue;
        }
        let target = headers.get(header.sh_info(endian) as usize).ok_or_else(out_of_bounds)?;
        if target.sh_flags(endian) & u64::from(SHF_EXECINSTR) == 0 {
            continue;
        }
        let Some((relocations, _)) = header.rel(endian, data)? else { continue };
        let mut kept = Vec::with_capacity(relocations.len());
        let before = calls.len();
        for relocation in relocations {
            let index = object::SymbolIndex(relocation.r_sym(endian) as usize);
            let symbol = symbols.symbol(index)?;
            if symbol.st_shndx(endian) != SHN_UNDEF || index.0 == 0 {
                kept.push(*pod::bytes_of(relocation).first_chunk().ok_or_else(out_of_bounds)?);
                continue;
            }
            let name = symbol.name(endian, symbols.strings())?;
            let name =
                str::from_utf8(name).map_err(|_| LinkError::Elf("a name is no text".into()))?;
            let place = Place { data, target, endian, name };
            let at = place.call(relocation.r_offset(endian), relocation.r_type(endian))?;
            let id = resolve(name).ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
            calls.push(Call { at, id });
        }
        if calls.len() > before {
            let at = usize::try_from(header.sh_offset(endian)).map_err(|_| out_of_bounds())?;
            let header = table + number * size_of::<Header>();
            changed.push(Section { header, kept, at });
        }
    }
    Ok((calls, changed))
}

/// A reference to an undefined symbol.
struct Place<'a> {
    data: &'a [u8],
    target: &'a Header,
    endian: LittleEndian,
    name: &'a str,
}

impl Place<'_> {
    /// Where in the file the call instruction lies.
    fn call(&self, offset: u64, kind: u32) -> Result<usize, LinkError> {
        if kind != R_BPF_64_32 {
            return Err(LinkError::NotACall(self.name.to_owned()));
        }
        let (begin, size) = self.target.file_range(self.endian).ok_or_else(out_of_bounds)?;
        let fits = offset.checked_add(INSTRUCTION as u64).is_some_and(|end| end <= size);
        if !fits || !offset.is_multiple_of(INSTRUCTION as u64) {
            return Err(out_of_bounds());
        }
        let at = begin.checked_add(offset).and_then(|at| usize::try_from(at).ok());
        let at = at.ok_or_else(out_of_bounds)?;
        let end = at.checked_add(INSTRUCTION).ok_or_else(out_of_bounds)?;
        let code = self.data.get(at..end).ok_or_else(out_of_bounds)?[0];
        if code == CALL { Ok(at) } else { Err(LinkError::NotACall(self.name.to_owned())) }
    }
}

fn out_of_bounds() -> LinkError {
    LinkError::Elf("an offset is out of bounds".into())
}

impl From<object::Error> for LinkError {
    fn from(error: object::Error) -> Self {
        Self::Elf(error.to_string())
    }
}

#[cfg(test)]
#[path = "kfunc_tests.rs"]
mod tests;
