//! The running kernel's type information, and what the programs need of it.

use std::path::Path;

use hsm_common::filter::{ABSENT, Offsets};

use super::{BpfError, Btf};
use crate::sys::probe::kernel_release;

/// The kernel's own.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Of the module, where btrfs is one.
const BTRFS: &str = "/sys/kernel/btf/btrfs";

/// Reads the running kernel's type information.
pub(super) fn types() -> Result<Btf<'static>, BpfError> {
    let path = Path::new(VMLINUX);
    let bytes = std::fs::read(path)
        .map_err(|source| BpfError::BtfFile { path: path.to_owned(), source })?;
    Btf::parse(bytes).map_err(|source| BpfError::Btf { path: path.to_owned(), source })
}

/// Where the members are that the programs look at.
pub(super) fn offsets(types: &Btf<'_>) -> Result<Offsets, BpfError> {
    let module = module(types)?;
    let mut words = Vec::with_capacity(Offsets::MEMBERS.len());
    for member in Offsets::MEMBERS {
        let (structure, field) = member.path.split_once('.').unwrap_or((member.path, ""));
        let found = types
            .member_offset(structure, field)
            .or_else(|| module.as_ref()?.member_offset(structure, field));
        match found {
            Some(offset) => words.push(offset),
            None if !member.needed => words.push(ABSENT),
            None => {
                let release = kernel_release();
                return Err(BpfError::Member { member: member.path, release });
            }
        }
    }
    Ok(*bytemuck::from_bytes(bytemuck::cast_slice(&words)))
}

/// Type information of the btrfs module; `None` when there is no such module.
fn module<'base>(types: &'base Btf<'base>) -> Result<Option<Btf<'base>>, BpfError> {
    let path = Path::new(BTRFS);
    match std::fs::read(path) {
        Ok(bytes) => Btf::parse_module(bytes, types)
            .map(Some)
            .map_err(|source| BpfError::Btf { path: path.to_owned(), source }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BpfError::BtfFile { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_needed_member_is_found_in_the_running_kernel() {
        if !Path::new(VMLINUX).exists() {
            eprintln!("NOT TESTED: this kernel tells no type information ({VMLINUX})");
            return;
        }
        let types = types().expect("readable");
        let offsets = offsets(&types).expect("all there");
        assert_ne!(offsets.file_inode, ABSENT);
        assert_ne!(offsets.mm_arg_start, ABSENT);
    }
}
