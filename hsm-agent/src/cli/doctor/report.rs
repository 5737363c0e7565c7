//! What the doctor found.

use serde::Serialize;

use crate::cli::output::{Output, Tone};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warn,
    /// hsm cannot do its job because of this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    /// The pool it is about; `None`: the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pool: Option<String>,
    pub(super) verdict: Verdict,
    /// What is so.
    pub(super) fact: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, fact: impl Into<String>) -> Self {
        Self { name, pool: None, verdict: Verdict::Ok, fact: fact.into(), remedy: None }
    }

    pub(super) fn warn(
        name: &'static str,
        fact: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warn, remedy: Some(remedy.into()), ..Self::ok(name, fact) }
    }

    pub(super) fn fail(
        name: &'static str,
        fact: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(name, fact, remedy) }
    }

    pub(super) fn of_pool(mut self, pool: &str) -> Self {
        self.pool = Some(pool.to_owned());
        self
    }
}

/// Whether one way to intercept accesses can be used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Tier {
    pub(super) name: &'static str,
    pub(super) works: bool,
    pub(super) why: String,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    /// Best first.
    pub(super) tiers: Vec<Tier>,
    /// The best that works.
    pub(super) tier: Option<&'static str>,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>, tiers: Vec<Tier>) -> Self {
        let tier = tiers.iter().find(|tier| tier.works).map(|tier| tier.name);
        Self { checks, tiers, tier }
    }

    /// Whether hsm can do its job here.
    pub(super) fn healthy(&self) -> bool {
        self.tier.is_some() && self.checks.iter().all(|check| check.verdict != Verdict::Fail)
    }

    pub(super) fn print(&self, out: &Output) -> std::io::Result<()> {
        self.checks.iter().try_for_each(|check| print_check(out, check))?;
        out.line("")?;
        for tier in &self.tiers {
            let (tone, word) = if tier.works { (Tone::Good, "yes") } else { (Tone::Plain, "no") };
            let word = out.paint(tone, format!("{word:<4}"));
            out.line(format!("{word}  tier {:<12} {}", tier.name, tier.why))?;
        }
        match self.tier {
            Some(tier) => out.line(format!("\nhsm works here, with tier {tier}.")),
            None => {
                let text = out.paint(Tone::Bad, "hsm cannot intercept accesses here.");
                out.line(format!("\n{text}"))
            }
        }
    }
}

fn print_check(out: &Output, check: &Check) -> std::io::Result<()> {
    let (tone, word) = match check.verdict {
        Verdict::Ok => (Tone::Good, "ok"),
        Verdict::Warn => (Tone::Notice, "warn"),
        Verdict::Fail => (Tone::Bad, "FAIL"),
    };
    let word = out.paint(tone, format!("{word:<4}"));
    let subject = check.pool.as_deref().map_or(String::new(), |pool| format!("{pool}: "));
    out.line(format!("{word}  {:<14} {subject}{}", check.name, check.fact))?;
    match &check.remedy {
        Some(remedy) => out.line(format!("{:20} → {remedy}", "")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(name: &'static str, works: bool) -> Tier {
        Tier { name, works, why: "because".into() }
    }

    #[test]
    fn the_best_working_tier_is_the_verdict() {
        let report = Report::new(vec![], vec![tier("a", false), tier("b", true), tier("c", true)]);
        assert_eq!(report.tier, Some("b"));
        assert!(report.healthy());
        assert!(!Report::new(vec![], vec![tier("a", false)]).healthy());
    }

    #[test]
    fn a_failed_check_is_not_healthy_a_warning_is() {
        let tiers = vec![tier("a", true)];
        let warn = Check::warn("x", "odd", "look");
        assert!(Report::new(vec![warn.clone()], tiers.clone()).healthy());
        let fail = Check::fail("x", "bad", "mend");
        assert!(!Report::new(vec![warn, fail], tiers).healthy());
    }

    #[test]
    fn json_has_verdict_fact_and_remedy() {
        let check = Check::fail("store", "down", "start it").of_pool("media");
        assert_eq!(
            serde_json::to_string(&check).expect("serialises"),
            r#"{"name":"store","pool":"media","verdict":"fail","fact":"down","remedy":"start it"}"#
        );
    }
}
