use proptest::prelude::*;

use super::*;

/// Writes type information as the kernel's tools do.
#[derive(Default)]
pub(crate) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Writer {
    fn name(&mut self, text: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.types.extend(word.to_ne_bytes()));
    }

    fn function(&mut self, text: &str) {
        let name = self.name(text);
        self.words(&[name, kind::FUNC << 24, 0]);
    }

    /// Members: name, type id, offset as stored.
    fn composite(&mut self, kind: u32, flag: bool, text: &str, members: &[(&str, u32, u32)]) {
        let name = self.name(text);
        let info = (kind << 24) | members.len() as u32 | (u32::from(flag) << 31);
        self.words(&[name, info, 64]);
        for &(member, ty, offset) in members {
            let name = self.name(member);
            self.words(&[name, ty, offset]);
        }
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [0x0001_eb9f, 24, 0, types, types, strings] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

fn sample() -> Vec<u8> {
    let mut writer = Writer::default();
    let int = writer.name("int");
    writer.words(&[int, kind::INT << 24, 4, 32]); // 1
    writer.composite(kind::UNION, false, "", &[("left", 1, 0), ("right", 1, 0)]); // 2
    writer.words(&[0, kind::CONST << 24, 2]); // 3
    writer.composite(kind::STRUCT, false, "plain", &[("a", 1, 0), ("", 3, 64), ("b", 1, 96)]); // 4
    let bits = (3 << 24) | 8;
    writer.composite(kind::STRUCT, true, "packed", &[("bits", 1, bits), ("whole", 1, 32)]); // 5
    writer.words(&[0, kind::ARRAY << 24, 0, 1, 1, 4]); // 6
    writer.function("do_it"); // 7
    // A structure that contains itself without a name.
    writer.composite(kind::STRUCT, false, "ring", &[("", 8, 8)]); // 8
    writer.finish()
}

#[test]
fn members_are_found_through_anonymous_unions_and_qualifiers() {
    let btf = Btf::parse(sample()).expect("well-formed");
    assert_eq!(btf.len(), 8);
    assert_eq!(btf.member_offset("plain", "a"), Some(0));
    assert_eq!(btf.member_offset("plain", "right"), Some(8));
    assert_eq!(btf.member_offset("plain", "b"), Some(12));
    assert_eq!(btf.member_offset("plain", "c"), None);
    assert_eq!(btf.member_offset("nothing", "a"), None);
}

#[test]
fn bit_fields_have_no_byte_offset() {
    let btf = Btf::parse(sample()).expect("well-formed");
    assert_eq!(btf.member_offset("packed", "bits"), None);
    assert_eq!(btf.member_offset("packed", "whole"), Some(4));
}

#[test]
fn functions_have_the_id_of_their_place() {
    let btf = Btf::parse(sample()).expect("well-formed");
    assert_eq!(btf.function("do_it"), Some(7));
    assert_eq!(btf.function("plain"), None, "a structure is not a function");
}

#[test]
fn circles_end() {
    let btf = Btf::parse(sample()).expect("well-formed");
    assert_eq!(btf.member_offset("ring", "x"), None);
}

#[test]
fn a_module_refers_to_the_kernel() {
    let base = Btf::parse(sample()).expect("well-formed");
    let mut module = Writer::default();
    // As the kernel's tools do: string offsets count on behind the base's.
    let shift = base.strings.len() as u32;
    module.strings.extend(b"mine\0inner\0");
    module.words(&[shift, (kind::STRUCT << 24) | 2, 8]);
    module.words(&[0, 2, 32]);
    module.words(&[shift + 5, 1, 64]);
    let module = Btf::parse_module(module.finish(), &base).expect("well-formed");
    assert_eq!(module.member_offset("mine", "inner"), Some(8));
    assert_eq!(module.member_offset("mine", "left"), Some(4), "the base's union");
}

#[test]
fn damage_is_named() {
    let good = sample();
    assert!(matches!(Btf::parse(Vec::new()), Err(BtfError::Truncated)));
    let mut magic = good.clone();
    magic[0] ^= 1;
    assert!(matches!(Btf::parse(magic), Err(BtfError::Magic)));
    assert!(matches!(Btf::parse(good[..good.len() - 1].to_vec()), Err(BtfError::Truncated)));
    let mut unknown = good;
    unknown[24 + 7] = 0x70;
    assert!(matches!(Btf::parse(unknown), Err(BtfError::Kind(0x70))));
}

#[test]
fn the_running_kernel_is_understood() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        eprintln!("NOT TESTED: this kernel tells no type information (/sys/kernel/btf/vmlinux)");
        return;
    };
    let btf = Btf::parse(bytes).expect("the kernel's own");
    assert!(btf.len() > 10_000);
    for member in hsm_common::filter::Offsets::MEMBERS.iter().filter(|member| member.needed) {
        let (structure, field) = member.path.split_once('.').expect("a dot");
        assert!(btf.member_offset(structure, field).is_some(), "{}", member.path);
    }
    assert!(btf.function("bpf_get_file_xattr").is_some());
    assert_eq!(btf.function("no_such_function_anywhere"), None);
}

proptest! {
    #[test]
    fn hostile_bytes_do_no_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2).max(1));
        if let Ok(btf) = Btf::parse(bytes) {
            btf.member_offset("plain", "right");
            btf.member_offset("ring", "x");
            btf.function("do_it");
        }
    }
}
