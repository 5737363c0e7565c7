//! From the object file to loaded programs.

use std::path::Path;
use std::time::Duration;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Lsm, ProgramError};
use aya::{Ebpf, EbpfLoader};
use hsm_common::filter::{self, ABSENT, Name, READS};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol};

use super::{BpfError, Btf, Settings, kernel, kfunc, told};
use crate::sys::probe::kernel_release;

/// Where a program is attached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    /// A hook of the security modules.
    Lsm(&'static str),
    /// A tracepoint.
    Tracepoint(&'static str),
}

/// One of the object's programs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// Name in the object and of its pinned link.
    pub(super) name: &'static str,
    /// Where it is attached.
    pub(super) hook: Hook,
}

const fn lsm(name: &'static str, hook: &'static str) -> Program {
    Program { name, hook: Hook::Lsm(hook) }
}

/// All programs, in the order in which they are attached; they are detached in the opposite one. (The second net,
/// `guard_post_open`, is attached when the set is complete: see `second_net.rs`.)
///
/// Those that make cached verdicts invalid come before those that cache: otherwise a verdict
/// "online" could outlive a marker that was set in between.
pub(super) const PROGRAMS: &[Program] = &[
    Program { name: "server_gone", hook: Hook::Tracepoint("sched_process_exit") },
    lsm("invalidate_set", "inode_post_setxattr"),
    lsm("invalidate_removed", "inode_post_removexattr"),
    lsm("guard_setxattr", "inode_setxattr"),
    lsm("guard_removexattr", "inode_removexattr"),
    lsm("guard_ioctl", "file_ioctl"),
    lsm("guard_ioctl_compat", "file_ioctl_compat"),
    lsm("guard_setattr", "inode_setattr"),
    lsm("guard_truncate", "path_truncate"),
    lsm("guard_post_open", "file_post_open"),
    lsm("guard_open", "file_open"),
];

/// Maps that are pinned.
pub(super) const MAPS: &[&str] = &[
    filter::FILESYSTEMS,
    filter::CLASSES,
    filter::TRUSTED,
    filter::SERVER,
    filter::REQUESTS,
    filter::WAITS,
    filter::ANSWERS,
    filter::VERDICTS,
    filter::HELD,
    filter::RESIDENT,
    filter::SCRATCH,
    filter::COUNTERS,
    filter::NUMBERS,
    filter::UNDER_WAY,
    filter::IN_FLIGHT,
    filter::ARMED,
    told::RECORDS,
];

/// An object that fits the running kernel.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) object: Vec<u8>,
    pub(super) settings: filter::Settings,
}

impl Image {
    /// Links the object to the running kernel, whose type information is `types`.
    pub(super) fn prepare(
        object: &[u8],
        settings: &Settings,
        types: &Btf<'_>,
    ) -> Result<Self, BpfError> {
        let settings = encode(settings, kernel::offsets(types)?)?;
        let mut object = object.to_vec();
        if layout(&object) != Some(filter::FINGERPRINT) {
            return Err(BpfError::Layout);
        }
        kfunc::link(&mut object, |name| types.function(name))
            .map_err(|source| BpfError::Link { release: kernel_release(), source })?;
        Ok(Self { object, settings })
    }

    /// Creates the maps, or takes those that are pinned in `maps` already.
    pub(super) fn load(&self, maps: &Path) -> Result<Ebpf, BpfError> {
        let mut loader = EbpfLoader::new();
        // aya has no type for task storage; it creates the map all the same.
        loader.allow_unsupported_maps();
        loader.override_global(filter::SETTINGS, bytemuck::bytes_of(&self.settings), true);
        for name in MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        loader.load(&self.object).map_err(|source| BpfError::Object {
            release: kernel_release(),
            source: Box::new(source),
        })
    }
}

/// What the object says about its layout.
fn layout(object: &[u8]) -> Option<u64> {
    let file = ElfFile64::<LittleEndian>::parse(object).ok()?;
    let symbol = file.symbol_by_name(filter::LAYOUT)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let bytes = section.data_range(symbol.address(), 8).ok()??;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// The kernel's type information as aya wants it.
pub(super) fn kernel_types() -> Result<aya::Btf, BpfError> {
    aya::Btf::from_sys_fs().map_err(|source| BpfError::Object {
        release: kernel_release(),
        source: Box::new(source.into()),
    })
}

/// Has the kernel verify one program of the security modules' hooks, and pins it, to be attached later.
pub(super) fn pin_program(
    ebpf: &mut Ebpf,
    program: Program,
    types: &aya::Btf,
    path: &Path,
) -> Result<(), BpfError> {
    let found = ebpf.program_mut(program.name).ok_or(BpfError::NoProgram(program.name))?;
    let failed = |doing, source| BpfError::Program {
        program: program.name,
        doing,
        release: kernel_release(),
        source: Box::new(source),
    };
    let Hook::Lsm(hook) = program.hook else { return Err(BpfError::NoProgram(program.name)) };
    let found: &mut Lsm = found.try_into().map_err(|e| failed("loading", e))?;
    found.load(hook, types).map_err(|e| failed("loading", e))?;
    found.pin(path).map_err(|e| BpfError::Pin {
        path: path.to_owned(),
        doing: "pinning a program",
        source: std::io::Error::other(e.to_string()),
    })
}

/// Has the kernel verify one program, and attaches it.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    program: Program,
    types: &aya::Btf,
) -> Result<FdLink, BpfError> {
    let found = ebpf.program_mut(program.name).ok_or(BpfError::NoProgram(program.name))?;
    let failed = |doing| {
        move |source: ProgramError| BpfError::Program {
            program: program.name,
            doing,
            release: kernel_release(),
            source: Box::new(source),
        }
    };
    let link = match program.hook {
        Hook::Lsm(hook) => {
            let found: &mut Lsm = found.try_into().map_err(failed("loading"))?;
            found.load(hook, types).map_err(failed("loading"))?;
            let id = found.attach().map_err(failed("attaching"))?;
            FdLink::from(found.take_link(id).map_err(failed("attaching"))?)
        }
        Hook::Tracepoint(name) => {
            let found: &mut BtfTracePoint = found.try_into().map_err(failed("loading"))?;
            found.load(name, types).map_err(failed("loading"))?;
            let id = found.attach().map_err(failed("attaching"))?;
            FdLink::from(found.take_link(id).map_err(failed("attaching"))?)
        }
    };
    Ok(link)
}

fn encode(settings: &Settings, offsets: filter::Offsets) -> Result<filter::Settings, BpfError> {
    if !["security.bpf.", "user."].iter().any(|prefix| settings.marker.starts_with(prefix)) {
        return Err(BpfError::Setting {
            what: "the marker's name",
            value: settings.marker.clone(),
            why: "they may read attributes of security.bpf.* (and user.*) only; choose such a name",
        });
    }
    Ok(filter::Settings {
        marker: name("the marker's name", &settings.marker)?,
        record: name("the record's name", &settings.record)?,
        map: name("the residency map's name", &settings.map)?,
        open_limit: nanoseconds(settings.open_limit),
        recall_limit: nanoseconds(settings.recall_limit),
        spin_limit: nanoseconds(settings.spin_limit),
        offsets,
        reserved: Default::default(),
        reads: reads(),
    })
}

fn name(what: &'static str, value: &str) -> Result<Name, BpfError> {
    filter::name(value).ok_or_else(|| BpfError::Setting {
        what,
        value: value.to_owned(),
        why: "it must have 1 to 63 bytes, none of them NUL",
    })
}

/// The system calls that read and do not map. `lseek` tells of holes, and asks.
fn reads() -> [u32; READS] {
    let mut numbers = [ABSENT; READS];
    let calls = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_readv,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_sendfile,
        libc::SYS_splice,
        libc::SYS_copy_file_range,
        libc::SYS_io_uring_enter,
    ];
    for (number, call) in numbers.iter_mut().zip(calls) {
        *number = u32::try_from(call).unwrap_or(ABSENT);
    }
    numbers
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_functions_refuse_are_refused_here() {
        let settings = Settings { marker: "trusted.mark".into(), ..Settings::default() };
        let error = encode(&settings, bytemuck::zeroed()).expect_err("not readable by programs");
        assert!(error.to_string().contains("security.bpf.*"), "{error}");
        let settings = Settings { record: String::new(), ..Settings::default() };
        assert!(encode(&settings, bytemuck::zeroed()).is_err());
    }

    #[test]
    fn settings_are_encoded_as_the_programs_read_them() {
        let encoded = encode(&Settings::default(), bytemuck::zeroed()).expect("the defaults");
        assert!(encoded.marker.starts_with(b"security.bpf.hsm\0"));
        assert_eq!(encoded.open_limit, 1_000_000_000);
        let endless = Settings { recall_limit: Duration::MAX, ..Settings::default() };
        let encoded = encode(&endless, bytemuck::zeroed()).expect("a long time");
        assert!(encoded.recall_limit.checked_add(1 << 62).is_some(), "no overflow in the hook");
    }

    #[test]
    fn what_invalidates_verdicts_is_attached_before_what_caches_them() {
        let place = |name| PROGRAMS.iter().position(|program| program.name == name);
        for caching in ["guard_open", "guard_post_open", "guard_setattr", "guard_truncate"] {
            for invalidating in ["invalidate_set", "invalidate_removed"] {
                assert!(place(invalidating) < place(caching), "{invalidating} {caching}");
            }
        }
    }

    #[test]
    fn the_built_in_object_fits_the_running_kernel() {
        let Some(object) = super::super::object() else {
            eprintln!("NOT TESTED: built without kernel programs (cargo xtask build)");
            return;
        };
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            eprintln!("NOT TESTED: this kernel tells no type information");
            return;
        }
        let types = kernel::types().expect("readable");
        let image = Image::prepare(object, &Settings::default(), &types).expect("linked");
        assert_eq!(image.object.len(), object.len());
    }
}
