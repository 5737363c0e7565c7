//! The ways in which the agent gets between a file and its reader, and what tells them apart for a test.

use std::fmt;
use std::str::FromStr;

/// Names the tier that pools in the lab insist on; without it the agent chooses.
pub const VARIABLE: &str = "HSM_TIER";

/// A tier, as configuration files name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// fanotify only: any kernel from 6.14 on.
    UserFilter,
    /// BPF LSM programs and recall at open: a stock kernel from 6.15 on.
    LsmFilter,
    /// A mark on the file system with a filter in the kernel: the project's patches.
    MarkFilter,
}

impl Tier {
    /// All of them, in the order in which they are tested.
    pub const ALL: [Self; 3] = [Self::UserFilter, Self::LsmFilter, Self::MarkFilter];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserFilter => "user-filter",
            Self::LsmFilter => "lsm-filter",
            Self::MarkFilter => "mark-filter",
        }
    }

    /// What [`VARIABLE`] asks for. Without it pools in the lab get what any kernel has.
    ///
    /// Panics when it names no tier: a suite for a tier that nobody meant is worse.
    pub fn of_this_run() -> Self {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        if text.is_empty() {
            return Self::UserFilter;
        }
        text.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}"))
    }

    /// Kernel programs guard the files, also when the agent is dead.
    pub fn has_programs(self) -> bool {
        self != Self::UserFilter
    }

    /// Nobody but the agent ever has an offline file open: no ranges, no answer before all is durable.
    pub fn recalls_at_open(self) -> bool {
        self == Self::LsmFilter
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|tier| tier.name() == s);
        found.ok_or_else(|| format!("'{s}' is none of user-filter, lsm-filter, mark-filter"))
    }
}
