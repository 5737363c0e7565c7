//! All cases, one file per subject.

use crate::fixture::Case;

mod copying;
mod files;
mod luck;
mod mapping;
mod metadata;
mod modifying;
mod mounts;
mod operating;
mod processes;
mod programs;
mod reading;
mod refusing;
mod regressions;
mod remote;
mod syscalls;

/// Lists cases: `name` or `name with configure`.
macro_rules! cases {
    ($($name:ident $(with $configure:expr)?),* $(,)?) => {
        /// The cases of this file.
        pub(super) const CASES: &[$crate::fixture::Case] = &[$(
            $crate::fixture::Case {
                name: stringify!($name),
                configure: cases!(@configure $($configure)?),
                run: $name,
            }
        ),*];
    };
    (@configure) => { |_| {} };
    (@configure $configure:expr) => { $configure };
}
use cases;

/// Every case.
pub(crate) fn all() -> impl Iterator<Item = Case> {
    let lists = [
        reading::CASES,
        copying::CASES,
        programs::CASES,
        mapping::CASES,
        syscalls::CASES,
        modifying::CASES,
        files::CASES,
        mounts::CASES,
        metadata::CASES,
        refusing::CASES,
        luck::CASES,
        remote::CASES,
        processes::CASES,
        operating::CASES,
        regressions::CASES,
    ];
    lists.into_iter().flatten().copied()
}

/// The names of all cases.
pub(crate) fn names() -> Vec<&'static str> {
    all().map(|case| case.name).collect()
}
