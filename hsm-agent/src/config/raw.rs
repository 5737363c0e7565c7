//! The file as it is written: forms are checked, values are not.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use super::origin::Origins;
use super::types::{AgentConfig, Limits, RecallMode, TierChoice, Verify};
use super::{ConfigError, schema};
use crate::store::StoreConfig;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) agent: AgentConfig,
    pub(super) limits: Limits,
    pub(super) pool: Vec<RawPool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawCompression {
    #[default]
    None,
    Zstd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: String,
    pub(super) mount: PathBuf,
    pub(super) directories: Vec<PathBuf>,
    pub(super) tier: TierChoice,
    pub(super) recall: RecallMode,
    pub(super) range_programs: Vec<PathBuf>,
    pub(super) whole_programs: Option<Vec<PathBuf>>,
    pub(super) range_min_size: Option<ByteSize>,
    pub(super) early_answer: Option<bool>,
    pub(super) emergency_release: Option<bool>,
    pub(super) min_size: Option<ByteSize>,
    pub(super) compression: RawCompression,
    pub(super) compression_level: Option<i64>,
    pub(super) verify: Verify,
    pub(super) marker: Option<String>,
    #[serde(with = "humantime_serde")]
    pub(super) retention: Option<Duration>,
    pub(super) store: Option<StoreConfig>,
}

impl RawConfig {
    /// Reads the values. The first that has the wrong form ends it.
    pub(super) fn parse(text: &str, origins: &Origins) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let key = error.span().and_then(|span| origins.key_at(&span)).unwrap_or_default();
            let problem = origins.problem(key, error.message().trim());
            let hint = match schema::find(key) {
                Some(known) => format!("expected {}", known.kind.form()),
                None => "docs/CONFIGURATION.md describes the section".to_owned(),
            };
            problem.hint(hint).into()
        })
    }
}
