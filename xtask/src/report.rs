//! What came of each suite. One that did not run is named in capitals and fails the whole.

use std::time::Duration;

use crate::results::Results;

/// How a suite ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It ran.
    Ran {
        /// Its exit code was 0.
        ok: bool,
        /// What its tests said.
        results: Results,
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
            Verdict::Ran { ok, ref results } => ok && results.failed == 0,
            Verdict::NotRun(_) => false,
            Verdict::NotAsked(_) => true,
        })
    }

    /// Tests that passed and failed, over all suites. A suite that failed without a failing test
    /// (it did not build, it crashed, it left something behind) counts as one.
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(p, f), suite| match &suite.verdict {
            Verdict::Ran { ok, results } => {
                (p + results.passed, f + results.failed.max(u64::from(!ok)))
            }
            Verdict::NotRun(_) => (p, f + 1),
            Verdict::NotAsked(_) => (p, f),
        })
    }

    /// What failed and why, once more: whoever keeps only the end of the output has it. Then the summary, with
    /// the plain closing line at its end.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for suite in &self.0 {
            let Verdict::Ran { results, .. } = &suite.verdict else { continue };
            if !results.failures.is_empty() {
                text += &format!("\nFailures of {}\n  ", suite.name);
                text += &results.failures.join("\n  ");
                text += "\n";
            }
        }
        text += "\nSummary\n";
        for suite in &self.0 {
            let seconds = suite.elapsed.as_secs_f64();
            let line = match &suite.verdict {
                Verdict::Ran { ok, results } => {
                    let Results { passed, failed, .. } = results;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(ok: bool) -> Verdict {
        Verdict::Ran { ok, results: Results::of("test result: ok. 5 passed; 0 failed") }
    }

    #[test]
    fn a_suite_that_did_not_run_is_shouted_and_fails() {
        let mut report = Report::default();
        report.push("unit", ran(true), Duration::ZERO);
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
        report.push("unit", ran(false), Duration::ZERO);
        assert_eq!(report.totals(), (5, 1));
        assert!(!report.ok());
    }

    #[test]
    fn what_failed_is_told_again_before_the_summary() {
        let results = Results::of("---- a ----\nwhy\n\ntest result: FAILED. 1 passed; 1 failed");
        let mut report = Report::default();
        report.push("unit", Verdict::Ran { ok: false, results }, Duration::ZERO);
        let text = report.render();
        assert!(
            text.starts_with("\nFailures of unit\n  ---- a ----\n  why\n\nSummary\n"),
            "{text}"
        );
        assert!(text.ends_with("\n1 passed, 1 failed\n"), "{text}");
    }
}
