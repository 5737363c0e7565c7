//! What the suite's output says about each case.

use std::collections::BTreeMap;

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// And why.
    NotApplicable(String),
}

impl Outcome {
    /// Nothing is wrong.
    pub(super) fn is_good(&self) -> bool {
        *self != Self::Failed
    }
}

/// Filled line by line.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// By the name of the case, which is the paragraph's.
    pub(super) outcomes: BTreeMap<String, Outcome>,
    /// The kernel that the suite ran on.
    pub(super) kernel: Option<String>,
}

impl Results {
    /// `test ext4::NAME ... ok`, `not applicable: ext4::NAME: WHY`, `kernel: Linux 7.3.4`.
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(kernel) = line.strip_prefix("kernel: ") {
            self.kernel = Some(kernel.to_owned());
        } else if let Some((name, why)) =
            line.strip_prefix("not applicable: ").and_then(|rest| rest.split_once(": "))
        {
            self.add(name, Outcome::NotApplicable(why.to_owned()));
        } else if let Some((name, end)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            match end {
                "ok" => self.add(name, Outcome::Passed),
                // Its reason was told before.
                "ignored" => {}
                _ => self.add(name, Outcome::Failed),
            }
        }
    }

    /// Whether some case failed.
    pub(super) fn has_failures(&self) -> bool {
        !self.outcomes.values().all(Outcome::is_good)
    }

    fn add(&mut self, name: &str, outcome: Outcome) {
        // Tests of no file system are not about the semantics.
        if let Some((_, case)) = name.trim().split_once("::") {
            self.outcomes.insert(case.to_owned(), outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_suite_is_understood() {
        let mut results = Results::default();
        for line in [
            "kernel: Linux 7.3.4",
            "not applicable: xfs::ranges: recall at open: no ranges",
            "running 3 tests",
            "test xfs::cat     ... ok",
            "test semantics_document_matches_the_cases ... ok",
            "test xfs::ranges  ... ignored",
            "test xfs::dd ... FAILED",
            "test result: FAILED. 1 passed",
        ] {
            results.line(line);
        }
        assert_eq!(results.kernel.as_deref(), Some("Linux 7.3.4"));
        let why = Outcome::NotApplicable("recall at open: no ranges".into());
        let want = [("cat", Outcome::Passed), ("dd", Outcome::Failed), ("ranges", why)];
        assert_eq!(results.outcomes, want.map(|(name, o)| (name.to_owned(), o)).into());
        assert!(results.has_failures());
    }
}
