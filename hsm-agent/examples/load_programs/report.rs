//! What was found, part by part, and which tiers follow from it.

use std::process::ExitCode;

use hsm_agent::sys::probe::Support;

pub(crate) const PATCHES: &str =
    "a kernel with vm-tests/kernel/patches (cargo xtask kernel --patched)";
pub(crate) const BUG: &str = "report it with this output: the verifier's words are in it";

/// What each part is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// All tiers.
    All,
    /// `lsm-filter` and `mark-filter`.
    Programs,
    /// `mark-filter`.
    Filter,
}

/// What was found, told as it comes.
#[derive(Default)]
pub(crate) struct Report {
    lacking: Vec<(For, &'static str)>,
}

impl Report {
    pub(crate) fn good(&mut self, part: &str, fact: &str) {
        println!("  ok      {part:<26} {fact}");
    }

    pub(crate) fn lacks(&mut self, what: For, part: &'static str, fact: &str, remedy: &str) {
        println!("  LACKING {part:<26} {fact}\n          {:<26} remedy: {remedy}", "");
        self.lacking.push((what, part));
    }

    /// `None`: it could not be tried.
    pub(crate) fn has(
        &mut self,
        tier: For,
        part: &'static str,
        what: &str,
        support: Option<Support>,
        remedy: &str,
    ) {
        match support {
            Some(Support::Yes) => self.good(part, what),
            Some(Support::No) => self.lacks(tier, part, "this kernel does not know it", remedy),
            None => self.untried(part, "not tried: no pre-content events"),
        }
    }

    pub(crate) fn untried(&mut self, part: &str, fact: &str) {
        println!("  -       {part:<26} {fact}");
    }

    pub(crate) fn end(&self) -> ExitCode {
        let lacking = |what| -> Vec<&str> {
            let found = self.lacking.iter().filter(|(tier, _)| *tier == what);
            found.map(|(_, part)| *part).collect()
        };
        let [all, programs, filter] = [For::All, For::Programs, For::Filter].map(lacking);
        let tell = |tier: &str, lacks: &[&str]| match lacks {
            [] => println!("tier {tier:<12} can be had"),
            parts => println!("tier {tier:<12} CANNOT BE HAD: {}", parts.join(", ")),
        };
        let with_programs = [&all[..], &programs].concat();
        let with_filter = [&with_programs[..], &filter].concat();
        tell("mark-filter", &with_filter);
        tell("lsm-filter", &with_programs);
        tell("user-filter", &all);
        if with_filter.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
