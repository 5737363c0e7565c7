//! What the output of a suite says: how many of its tests passed and failed, and why those failed.

/// Lines kept of one failure, from its beginning: the error comes first, logs after it.
const OF_ONE: usize = 16;

/// Lines kept of all failures of a suite.
const OF_ALL: usize = 80;

/// Reads the lines of libtest, and of what prints like it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Results {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// How the reports of the failures begin, line by line.
    pub(crate) failures: Vec<String>,
    /// Lines that the present report may still have; `None`: this is no report.
    room: Option<usize>,
}

impl Results {
    /// The next line.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(rest) = line.trim().strip_prefix("test result: ") {
            self.passed += number(rest, " passed");
            self.failed += number(rest, " failed");
            self.room = None;
        } else if line.trim() == "failures:" {
            // The second time it heads a list of names.
            self.room = None;
        } else if line.starts_with("---- ") {
            self.room = Some(OF_ONE);
        }
        let Some(room) = &mut self.room else { return };
        if *room > 0 && self.failures.len() < OF_ALL && !line.trim().is_empty() {
            *room -= 1;
            self.failures.push(line.to_owned());
        }
    }

    /// A whole output.
    #[cfg(test)]
    pub(crate) fn of(output: &str) -> Self {
        let mut results = Self::default();
        output.lines().for_each(|line| results.line(line));
        results
    }

    /// Whether not a single test has ended.
    pub(crate) fn is_empty(&self) -> bool {
        (self.passed, self.failed) == (0, 0)
    }
}

/// The number before `word` in `ok. 3 passed; 1 failed; ...`.
fn number(rest: &str, word: &str) -> u64 {
    let part = rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
    part.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let results = Results::of(
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\ntest foo ... ok\n\
             test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured",
        );
        assert_eq!((results.passed, results.failed), (11, 2));
        assert!(results.failures.is_empty());
    }

    #[test]
    fn the_beginning_of_each_failure_is_kept() {
        let long = "log\n".repeat(100);
        let output = format!(
            "test a ... FAILED\n\nfailures:\n\n---- a ----\nfirst\n\n---- b stdout ----\nsecond\n{long}\n\
             failures:\n    a\n    b\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored\nafterwards\n"
        );
        let results = Results::of(&output);
        let logs = OF_ONE - 2;
        assert_eq!(results.failures[..4], ["---- a ----", "first", "---- b stdout ----", "second"]);
        assert_eq!(results.failures[4..], vec!["log"; logs]);
    }
}
