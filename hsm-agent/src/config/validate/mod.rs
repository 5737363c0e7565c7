//! Values and combinations that cannot work, and those that are probably not meant.
//!
//! Every check runs; the operator sees all findings at once.

mod agent;
mod cross;
mod pool;
mod store;

use std::path::{Component, Path};

use super::origin::Origins;
use super::raw::RawConfig;
use super::{AgentConfig, ConfigError, Limits, PoolConfig, Problem};

/// What has been found so far.
pub(super) struct Findings<'a> {
    origins: &'a Origins,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings<'_> {
    fn error(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(self.origins.problem(key, message).hint(hint));
    }

    fn warning(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.warnings.push(self.origins.problem(key, message).hint(hint));
    }

    /// An error unless the file sets the key.
    fn required(&mut self, key: &str, hint: &str) -> bool {
        let set = self.origins.sets(key);
        if !set {
            self.error(key, "is required", hint);
        }
        set
    }

    /// An error unless the path is absolute and says where it leads without following `..`.
    fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            let message = format!("{} is not an absolute path", path.display());
            self.error(key, message, "begin it with /");
        } else if path.components().any(|part| part == Component::ParentDir) {
            self.error(key, format!("{} contains ..", path.display()), "write where it leads to");
        }
    }

    /// An error unless the number is in the range.
    fn within(&mut self, key: &str, value: u64, range: std::ops::RangeInclusive<u64>) {
        if !range.contains(&value) {
            let hint = format!("{} to {} is allowed", range.start(), range.end());
            self.error(key, format!("{value} is out of range"), hint);
        }
    }
}

/// The parts of a configuration, with the warnings.
pub(super) type Parts = (AgentConfig, Limits, Vec<PoolConfig>, Vec<Problem>);

/// Checks everything.
pub(super) fn build(raw: RawConfig, origins: &Origins) -> Result<Parts, ConfigError> {
    let mut findings = Findings { origins, errors: Vec::new(), warnings: Vec::new() };
    agent::check_agent(&raw.agent, &mut findings);
    agent::check_limits(&raw.limits, &mut findings);
    let numbered = raw.pool.into_iter().enumerate();
    let pools: Vec<_> =
        numbered.map(|(index, pool)| pool::build(index, pool, &mut findings)).collect();
    cross::check(&raw.agent, &raw.limits, &pools, &mut findings);
    let Findings { mut errors, mut warnings, .. } = findings;
    errors.sort_by_key(|problem| problem.line);
    warnings.sort_by_key(|problem| problem.line);
    if errors.is_empty() {
        Ok((raw.agent, raw.limits, pools, warnings))
    } else {
        Err(ConfigError::Invalid(errors))
    }
}
