//! What the programs count.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What the programs count, each in one `u64` per CPU.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Counter] = &[$(Counter::$variant,)*];

            /// Name in reports and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)*
                }
            }

            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;
        }
    };
}

counters! {
    /// Opens that a cached verdict let pass.
    PassedCached = "open_passed_cached",
    /// Opens that passed because the marker attribute was absent.
    PassedAbsent = "open_passed_absent",
    /// Opens by an exempt process.
    PassedExempt = "open_passed_exempt",
    /// Opens of marked files that passed on to fanotify, which asks the agent.
    PassedWatched = "open_passed_watched",
    /// Opens that passed because the agent said that the file is online.
    PassedAnswered = "open_passed_answered",
    /// Opens whose marker could not be read.
    Unreadable = "open_unreadable",
    /// Requests that were submitted.
    Requested = "requests",
    /// Turns of all waits: how often a waiting caller looked and yielded.
    WaitTurns = "wait_turns",
    /// Opens refused in guard mode: marked and nobody watches.
    DeniedUnwatched = "open_denied_unwatched",
    /// Accesses refused because nobody serves requests.
    DeniedNoServer = "denied_no_server",
    /// Accesses refused because the request could not be submitted.
    DeniedFull = "denied_full",
    /// Accesses refused because the agent made no progress.
    DeniedTimeout = "denied_timeout",
    /// Accesses refused by the agent's own answer.
    DeniedAnswer = "denied_answer",
    /// Opens refused because fanotify would not have asked about them (event descriptors of
    /// somebody else's listener).
    DeniedSilent = "open_denied_silent",
    /// Opens refused by the second check, after the lease break.
    DeniedPostOpen = "open_denied_post_open",
    /// Waits of threads that were killed.
    Killed = "wait_killed",
    /// Truncations by path that were asked about.
    TruncateAsked = "truncate_asked",
    /// Truncations that were refused.
    TruncateDenied = "truncate_denied",
    /// Recalls that were asked for on behalf of somebody who was refused meanwhile.
    RecallWanted = "recall_wanted",
    /// Changes of marker, record or map by others that were refused.
    XattrDenied = "xattr_denied",
    /// `ioctl` calls that were refused.
    IoctlDenied = "ioctl_denied",
    /// Cached verdicts that a change of an attribute made invalid.
    Invalidated = "verdict_invalidated",
    /// Servers whose end was seen.
    ServerGone = "server_gone",
    /// Accesses to resident ranges of partial files that the filter let pass.
    PassedResident = "access_passed_resident",
    /// Opens and accesses that the filter gave to fanotify.
    Notified = "filter_notified",
    /// Of those: marker gone, and that not durable yet.
    Held = "filter_held",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_numbered_in_order_and_named_apart() {
        for (at, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, at);
            assert!(Counter::ALL[at + 1..].iter().all(|other| other.name() != counter.name()));
        }
    }
}
