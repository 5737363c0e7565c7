//! All cases, one file per subject.

use crate::fixture::{Case, Needs};

mod copying;
mod deadlocks;
mod external;
mod failpoints;
mod files;
mod guarded;
mod hostile;
mod luck;
mod mapping;
mod marked;
mod metadata;
mod modifying;
mod mounts;
mod nfs;
mod operating;
mod overload;
mod processes;
mod programs;
mod reading;
mod refusing;
mod regressions;
mod remote;
mod subtrees;
mod subvolumes;
mod syscalls;
pub(crate) mod torture;
mod ways;
mod workloads;

/// Lists cases: `name`, `name with configure`, `name; needs Something`, `name; only Xfs`.
macro_rules! cases {
    ($($name:ident $(with $configure:expr)? $(; needs $needs:ident)? $(; only $only:ident)?),* $(,)?) => {
        /// The cases of this file.
        pub(super) const CASES: &[$crate::fixture::Case] = &[$(
            $crate::fixture::Case {
                name: stringify!($name),
                configure: cases!(@configure $($configure)?),
                needs: cases!(@needs $($needs)?),
                only: cases!(@only $($only)?),
                run: $name,
            }
        ),*];
    };
    (@needs) => { $crate::fixture::Needs::Anything };
    (@needs $needs:ident) => { $crate::fixture::Needs::$needs };
    (@only) => { None };
    (@only $only:ident) => { Some(hsm_lab::FsKind::$only) };
    (@configure) => { |_| {} };
    (@configure $configure:expr) => { $configure };
}
use cases;

/// Every case, with the name of its subject.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, Case)> {
    let guarded = guarded::CASES.iter().map(|case| Case { needs: Needs::Programs, ..*case });
    let marked = marked::CASES.iter().map(|case| Case { needs: Needs::Filter, ..*case });
    let guarded = guarded.map(|case| ("guarded", case));
    anywhere().chain(guarded).chain(marked.map(|case| ("marked", case)))
}

fn anywhere() -> impl Iterator<Item = (&'static str, Case)> {
    let lists = [
        ("reading", reading::CASES),
        ("copying", copying::CASES),
        ("workloads", workloads::CASES),
        ("programs", programs::CASES),
        ("mapping", mapping::CASES),
        ("syscalls", syscalls::CASES),
        ("modifying", modifying::CASES),
        ("files", files::CASES),
        ("mounts", mounts::CASES),
        ("metadata", metadata::CASES),
        ("refusing", refusing::CASES),
        ("luck", luck::CASES),
        ("remote", remote::CASES),
        ("hostile", hostile::CASES),
        ("processes", processes::CASES),
        ("failpoints", failpoints::CASES),
        ("deadlocks", deadlocks::CASES),
        ("external", external::CASES),
        ("torture", torture::CASES),
        ("ways", ways::CASES),
        ("nfs", nfs::CASES),
        ("subvolumes", subvolumes::CASES),
        ("subtrees", subtrees::CASES),
        ("operating", operating::CASES),
        ("overload", overload::CASES),
        ("regressions", regressions::CASES),
    ];
    lists.into_iter().flat_map(|(subject, cases)| cases.iter().map(move |case| (subject, *case)))
}

/// The names of all cases.
pub(crate) fn names() -> Vec<&'static str> {
    all().map(|(_, case)| case.name).collect()
}
