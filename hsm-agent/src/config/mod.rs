//! The configuration: one TOML file.
//!
//! Text becomes a [`Config`] in four steps, each of which reports everything it finds, with line,
//! key and a hint: syntax, unknown keys (with the key that was probably meant), values of the
//! wrong form, values and combinations that cannot work. What works but is probably not meant is a
//! warning. All of it is pure: whether a mount point exists is the agent's question, not the
//! parser's.

mod explain;
mod origin;
mod problem;
mod raw;
mod schema;
mod types;
mod units;
mod validate;

use std::path::Path;

pub use problem::{ConfigError, Problem};
pub use schema::{KEYS, Key, Kind};
pub use types::{
    AgentConfig, Limits, LogFormat, PoolConfig, RangePrograms, RecallMode, TierChoice, Verify,
    WholePrograms,
};

use origin::Origins;
use raw::RawConfig;

/// A configuration that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[limits]`.
    pub limits: Limits,
    /// Each `[[pool]]`, in the order of the file.
    pub pools: Vec<PoolConfig>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Problem>,
    origins: Origins,
}

impl Config {
    /// The one marker that kernel programs look for in all pools: that of a pool that cannot do without
    /// them, or the first one's. `None`: there is no pool.
    pub fn programs_marker(&self) -> Option<&str> {
        let insists = |pool: &&PoolConfig| pool.tier == TierChoice::LsmFilter;
        let pool = self.pools.iter().find(insists).or(self.pools.first())?;
        Some(&pool.marker)
    }

    /// The file that it was read from, as it was named.
    pub fn file(&self) -> &Path {
        Path::new(self.origins.file())
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(read)?;
        Self::parse_bytes(&bytes, &path.to_string_lossy())
    }

    /// Like [`Config::parse`], for bytes that may not be UTF-8.
    pub fn parse_bytes(bytes: &[u8], name: &str) -> Result<Self, ConfigError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            let hint = "save the file as UTF-8";
            ConfigError::from(Problem::new(name, "", "not UTF-8 text").at(line).hint(hint))
        })?;
        Self::parse(text, name)
    }

    /// Checks a text; `name` is what errors call the file.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let origins = Origins::parse(text, name)?;
        let unknown = schema::unknown_keys(&origins);
        if !unknown.is_empty() {
            return Err(ConfigError::Invalid(unknown));
        }
        let raw = RawConfig::parse(text, &origins)?;
        let (agent, limits, pools, warnings) = validate::build(raw, &origins)?;
        Ok(Self { agent, limits, pools, warnings, origins })
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// The configuration in effect as TOML, each line with where its value comes from.
    pub fn explain(&self) -> String {
        explain::explain(self, &self.origins)
    }
}

#[cfg(test)]
mod doc_tests;
#[cfg(test)]
mod tests;
