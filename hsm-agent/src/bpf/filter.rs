//! The filter of tier `mark-filter`: two programs that decide which accesses to a marked file system
//! become events (`hsm-ebpf/src/mark_filter.rs`, docs/KERNEL-PATCHES.md).
//!
//! A filter belongs to one fanotify group and is tied to it by a link, which is pinned and so outlives
//! the agent: what it passes goes on working when the group is dead, and what it does not is denied by
//! the kernel. The filters of a name are numbered. The next agent attaches one more for its own group,
//! has that group's mark take over, and only then removes the others
//! ([`retire_others`](Filter::retire_others)): at no time is there a mark without its filter.
//!
//! The programs use the maps of the guard's set, and are attached only where that is installed: they
//! cache verdicts, which the guard's programs make invalid.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::load::Image;
use super::struct_ops::{self, Ops};
use super::{BpfError, Settings, kernel, object, pin, probe};
use crate::sys::bpf;
use crate::sys::probe::{Support, kernel_release, mark_filters};

/// The filter's programs, linked to the running kernel: made once (the kernel's type information is
/// large), loaded for each filter.
#[derive(Debug)]
pub struct FilterPrograms {
    image: Image,
    ops: Ops,
    /// Where the guard's set has pinned its maps.
    maps: PathBuf,
}

impl FilterPrograms {
    /// With these settings, for the set of the guard that is installed with them.
    pub fn prepare(settings: &Settings) -> Result<Self, BpfError> {
        let object = object::object().ok_or(BpfError::NotBuiltIn)?;
        let maps = pin::installed_maps(settings)?;
        let types = kernel::types()?;
        let ops = Ops::find(&types)?;
        Ok(Self { image: Image::prepare(object, settings, &types)?, ops, maps })
    }

    /// A map that can be attached, for the group with this descriptor.
    fn load(&self, name: &str, group: u32) -> Result<OwnedFd, BpfError> {
        struct_ops::load(&self.image, &self.ops, &self.maps, name, group)
    }
}

/// An attached and pinned filter.
#[derive(Debug)]
pub struct Filter {
    link: OwnedFd,
    name: String,
    path: PathBuf,
}

impl Filter {
    /// Loads the programs for this group, which has no marks yet, and pins them beside earlier ones of
    /// this name (that of the pool); a group that has its filter already gets these programs. Then the group can mark: FAN_PRE_ACCESS and FAN_PRE_MODIFY, without
    /// the latter every read of a partial file is an event.
    pub fn attach(
        settings: &Settings,
        name: &str,
        group: BorrowedFd<'_>,
    ) -> Result<Self, BpfError> {
        let group = group.as_raw_fd().cast_unsigned();
        check_name(name)?;
        let map = FilterPrograms::prepare(settings)?.load(name, group)?;
        let link = match bpf::create_link(map.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                return Self::adopt(settings, name, map.as_fd());
            }
            result => result.map_err(failed(name, "attaching"))?,
        };
        let path = pin::add_filter(settings, name, link.as_fd())?;
        Ok(Self { link, name: name.to_owned(), path })
    }

    /// The group has its filter: an engine before this one attached it. It gets these programs, which may be
    /// of another version. The last link of the name is that group's, since nobody attaches but an
    /// engine to its holder's group.
    fn adopt(settings: &Settings, name: &str, map: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let lost = || io::Error::other("the group has a filter, and its link is pinned nowhere");
        let path = pin::last_filter_of(settings, name)?;
        let path = path.ok_or_else(|| failed(name, "taking over its filter")(lost()))?;
        let link = bpf::open_pinned(&path).map_err(failed(name, "opening its link"))?;
        bpf::update_link(link.as_fd(), map).map_err(failed(name, "replacing"))?;
        Ok(Self { link, name: name.to_owned(), path })
    }

    /// Detaches the other filters of this name: to be called when this one's group has its mark.
    pub fn retire_others(&self) -> Result<(), BpfError> {
        let others = self.path.parent().map_or(Ok(Vec::new()), pin::children)?;
        others.iter().filter(|path| **path != self.path).try_for_each(|path| pin::detach(path))
    }

    /// Replaces the programs by these. No access goes unasked meanwhile, and when this returns the old
    /// ones run nowhere.
    pub fn replace(&self, programs: &FilterPrograms) -> Result<(), BpfError> {
        let map = programs.load(&self.name, 0)?;
        bpf::update_link(self.link.as_fd(), map.as_fd()).map_err(failed(&self.name, "replacing"))
    }

    /// [`replace`](Self::replace) for all pinned filters of this name; how many there were.
    pub fn replace_pinned(settings: &Settings, name: &str) -> Result<usize, BpfError> {
        check_name(name)?;
        let links = pin::filters_of(settings, name)?;
        if links.is_empty() {
            return Ok(0);
        }
        let programs = FilterPrograms::prepare(settings)?;
        for path in &links {
            let link = bpf::open_pinned(path).map_err(failed(name, "opening its link"))?;
            let filter = Self { link, name: name.to_owned(), path: path.clone() };
            filter.replace(&programs)?;
        }
        Ok(links.len())
    }

    /// Detaches the filters of this name, of all versions, and removes them. The marks of their groups
    /// then raise all events; those of a dead group deny everything. `false`: there were none.
    pub fn unpin(base: &Path, name: &str) -> Result<bool, BpfError> {
        pin::remove_filters(base, name)
    }
}

/// Whether this kernel runs filters; if not, what exactly is lacking.
///
/// BPF LSM is needed as well: without the guard's programs nothing would make a cached verdict
/// invalid.
pub fn filter_probe() -> Result<(), String> {
    let types = probe::types().map_err(|e| e.to_string())?;
    Ops::find(&types).map_err(|e| e.to_string())?;
    match mark_filters() {
        Ok(Support::Yes) => Ok(()),
        Ok(Support::No) => {
            Err("this kernel has no FAN_MARK_FILTER (docs/KERNEL-PATCHES.md)".into())
        }
        Err(error) => Err(format!("trying FAN_MARK_FILTER: {error}")),
    }
}

/// What the kernel accepts, and what is a name of a file.
fn check_name(name: &str) -> Result<(), BpfError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits) {
        return Ok(());
    }
    Err(BpfError::Setting {
        what: "the filter's name",
        value: name.to_owned(),
        why: "use letters, digits, `_`, `-` and `.`, the latter not at the beginning",
    })
}

/// Which attempt failed, without the verifier's account.
fn failed(name: &str, doing: &'static str) -> impl Fn(io::Error) -> BpfError {
    let name = name.to_owned();
    move |source| BpfError::Filter {
        name: name.clone(),
        doing,
        release: kernel_release(),
        source,
        log: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files() {
        for name in ["media", "a-b_c.d9", "x"] {
            check_name(name).expect(name);
        }
        for name in ["", ".", "..", "a/b", "a b", ".hidden", "\u{e4}"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_kernel_without_filters_is_told_in_words() {
        if let Err(why) = filter_probe() {
            eprintln!("filters here: {why}");
            assert!(!why.is_empty());
        }
    }
}
