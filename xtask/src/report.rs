//! What came of each suite. One that did not run is named in capitals and fails the whole.

use std::time::Duration;

/// How a suite ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It ran.
    Ran {
        /// Its exit code was 0.
        ok: bool,
        /// Tests that passed.
        passed: u64,
        /// Tests that failed.
        failed: u64,
    },
    /// It could not run, and why.
    NotRun(String),
    /// It was not asked for.
    NotAsked(String),
}

/// A suite's line of the summary.
#[derive(Debug, Clone)]
pub(crate) struct Suite {
    /// Its name.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// All suites so far.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Suite>);

impl Report {
    /// Adds one.
    pub(crate) fn push(&mut self, name: &str, verdict: Verdict, elapsed: Duration) {
        self.0.push(Suite { name: name.to_owned(), verdict, elapsed });
    }

    /// Whether every suite that was asked for ran and passed.
    pub(crate) fn ok(&self) -> bool {
        self.0.iter().all(|suite| match suite.verdict {
            Verdict::Ran { ok, failed, .. } => ok && failed == 0,
            Verdict::NotRun(_) => false,
            Verdict::NotAsked(_) => true,
        })
    }

    /// Tests that passed and failed, over all suites. A suite that failed without a failing test
    /// (it did not build, it crashed, it left something behind) counts as one.
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(p, f), suite| match suite.verdict {
            Verdict::Ran { ok, passed, failed } => (p + passed, f + failed.max(u64::from(!ok))),
            Verdict::NotRun(_) => (p, f + 1),
            Verdict::NotAsked(_) => (p, f),
        })
    }

    /// The summary, with the plain closing line at its end.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("\nSummary\n");
        for suite in &self.0 {
            let seconds = suite.elapsed.as_secs_f64();
            let line = match &suite.verdict {
                Verdict::Ran { ok, passed, failed } => {
                    let word = if *ok { "ok" } else { "FAILED" };
                    format!("{word:<7} {passed} passed, {failed} failed ({seconds:.0} s)")
                }
                Verdict::NotRun(why) => format!("DID NOT RUN: {why}"),
                Verdict::NotAsked(why) => format!("NOT RUN ({why})"),
            };
            let name = match &suite.verdict {
                Verdict::Ran { .. } => suite.name.clone(),
                _ => suite.name.to_uppercase(),
            };
            text += &format!("  {name:<34} {line}\n");
        }
        let (passed, failed) = self.totals();
        text + &format!("\n{passed} passed, {failed} failed\n")
    }
}

/// Adds the numbers of a line `test result: ok. 3 passed; 1 failed; ...` to `counts`.
pub(crate) fn count(line: &str, counts: &mut (u64, u64)) {
    let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
    let number = |word: &str| -> u64 {
        let part = rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
        part.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    counts.0 += number(" passed");
    counts.1 += number(" failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let mut counts = (1, 0);
        count("test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured", &mut counts);
        count("test foo ... ok", &mut counts);
        assert_eq!(counts, (11, 2));
    }

    #[test]
    fn a_suite_that_did_not_run_is_shouted_and_fails() {
        let mut report = Report::default();
        report.push("unit", Verdict::Ran { ok: true, passed: 5, failed: 0 }, Duration::ZERO);
        assert!(report.ok());
        report.push("end-to-end", Verdict::NotRun("needs root".into()), Duration::ZERO);
        assert!(!report.ok());
        let text = report.render();
        assert!(text.contains("END-TO-END"));
        assert!(text.ends_with("\n5 passed, 1 failed\n"), "{text}");
    }

    #[test]
    fn a_suite_that_died_counts_as_a_failure() {
        let mut report = Report::default();
        report.push("unit", Verdict::Ran { ok: false, passed: 5, failed: 0 }, Duration::ZERO);
        assert_eq!(report.totals(), (5, 1));
        assert!(!report.ok());
    }
}
