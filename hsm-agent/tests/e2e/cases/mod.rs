//! All cases, one file per subject.

use crate::fixture::{Case, Needs};

mod copying;
mod files;
mod guarded;
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
                needs: $crate::fixture::Needs::Anything,
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
    let guarded = guarded::CASES.iter().map(|case| Case { needs: Needs::LsmFilter, ..*case });
    anywhere().chain(guarded)
}

fn anywhere() -> impl Iterator<Item = Case> {
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
