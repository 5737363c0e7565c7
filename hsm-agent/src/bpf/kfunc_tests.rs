use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};
use proptest::prelude::*;

use super::*;

/// Two programs; three calls of `bpf_first_function` and `bpf_second_function`. Its source lies
/// beside it.
const FIXTURE: &[u8] = include_bytes!("../../tests/golden/kfunc.bpf.o");

fn resolve(name: &str) -> Option<u32> {
    match name {
        "bpf_first_function" => Some(0x0102_0304),
        "bpf_second_function" => Some(5),
        _ => None,
    }
}

/// Instructions of a program that call a kernel function: their ids.
fn kernel_calls(object: &[u8], section: &str) -> Vec<u32> {
    let file = ElfFile64::<LittleEndian>::parse(object).expect("an ELF file");
    let section = file.section_by_name(section).expect("a program");
    let code = section.data().expect("inside the file");
    code.chunks(8)
        .filter(|bytes| bytes[0] == CALL && bytes[1] >> 4 == PSEUDO_KFUNC_CALL)
        .map(|bytes| {
            assert_eq!(bytes[2..4], [0, 0], "the function is not a module's");
            u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"))
        })
        .collect()
}

/// Names of the symbols that relocations of a program refer to.
fn references(object: &[u8], section: &str) -> Vec<String> {
    let file = ElfFile64::<LittleEndian>::parse(object).expect("an ELF file");
    let section = file.section_by_name(section).expect("a program");
    let names = section.relocations().map(|(_, relocation)| match relocation.target() {
        object::RelocationTarget::Symbol(index) => {
            file.symbol_by_index(index).expect("a symbol").name().unwrap_or("").to_owned()
        }
        other => panic!("not a symbol: {other:?}"),
    });
    names.collect()
}

#[test]
fn calls_get_the_kernels_ids_and_lose_their_relocations() {
    let mut object = FIXTURE.to_vec();
    assert_eq!(references(&object, "lsm.s/file_open").len(), 3);
    assert_eq!(link(&mut object, resolve), Ok(3));
    assert_eq!(kernel_calls(&object, "lsm.s/file_open"), [0x0102_0304, 5]);
    assert_eq!(kernel_calls(&object, "lsm.s/file_post_open"), [0x0102_0304]);
    assert_eq!(references(&object, "lsm.s/file_open"), ["GLOBAL"], "others stay");
    assert_eq!(object.len(), FIXTURE.len());
    assert_eq!(link(&mut object, |_| None), Ok(0), "nothing is left to be linked");
}

#[test]
fn an_unknown_function_is_named_and_nothing_changed() {
    let mut object = FIXTURE.to_vec();
    let result = link(&mut object, |name| (name == "bpf_first_function").then_some(1));
    assert_eq!(result, Err(LinkError::Unknown("bpf_second_function".into())));
    assert_eq!(object, FIXTURE);
}

#[test]
fn a_reference_that_is_no_call_is_refused() {
    let mut object = FIXTURE.to_vec();
    let file = ElfFile64::<LittleEndian>::parse(FIXTURE).expect("an ELF file");
    let section = file.section_by_name("lsm.s/file_post_open").expect("a program");
    let (at, size) = section.file_range().expect("in the file");
    for instruction in object[at as usize..(at + size) as usize].chunks_mut(8) {
        if instruction[0] == CALL {
            instruction[0] = 0x05; // a jump
        }
    }
    assert_eq!(link(&mut object, resolve), Err(LinkError::NotACall("bpf_first_function".into())));
}

#[test]
fn what_is_no_object_is_refused() {
    for bytes in [&b""[..], b"\x7fELF", &FIXTURE[..100]] {
        let mut bytes = bytes.to_vec();
        assert!(matches!(link(&mut bytes, resolve), Err(LinkError::Elf(_))));
    }
}

proptest! {
    #[test]
    fn hostile_objects_do_no_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut object = FIXTURE.to_vec();
        for (at, value) in flips {
            let at = at.index(object.len());
            object[at] = value;
        }
        object.truncate(cut.index(FIXTURE.len() * 2).max(1));
        let before = object.clone();
        if link(&mut object, |_| Some(1)).is_err() {
            prop_assert_eq!(object, before, "a failure changes nothing");
        }
    }
}
