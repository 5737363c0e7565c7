//! What every verb has at hand: options, output, configuration, client, runtime.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;

use crate::config::{AgentConfig, Config, ConfigError};
use crate::control::client::Client;
use crate::marker::MARKER_XATTR;

use super::exit::{Exit, Failure};
use super::inspect::MarkerNames;
use super::output::Output;
use super::{DEFAULT_CONFIG, Global};

/// One run of the command.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) out: Output,
    config: PathBuf,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        let verbosity =
            if global.quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(i8::MAX) };
        Self { out: Output::new(global.json, verbosity), config: global.config }
    }

    /// Where the configuration is.
    pub(super) fn config_path(&self) -> &Path {
        &self.config
    }

    /// A client of the agent that the configuration names.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let agent = self.config()?.map_or_else(AgentConfig::default, |config| config.agent);
        Ok(Client::new(&agent.socket))
    }

    /// The marker's name on each pool.
    pub(super) fn marker_names(&self) -> Result<MarkerNames, Failure> {
        let name = |text: &str| CString::new(text).map_err(Failure::usage);
        let mut pools = Vec::new();
        for pool in self.config()?.iter().flat_map(|config| &config.pools) {
            let mount = pool.mount.canonicalize().unwrap_or_else(|_| pool.mount.clone());
            pools.push((mount, name(&pool.marker)?));
        }
        Ok(MarkerNames { pools, default: name(MARKER_XATTR)? })
    }

    /// The configuration. `None`: nobody named one and the usual place has none that this user
    /// may read; then the defaults hold.
    fn config(&self) -> Result<Option<Config>, Failure> {
        match Config::load(&self.config) {
            Ok(config) => Ok(Some(config)),
            Err(ConfigError::Read { source, .. })
                if self.config == Path::new(DEFAULT_CONFIG) && is_not_for_us(&source) =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::usage(error)),
        }
    }

    /// Runs `future` to its end. One thread is enough: the agent does the work.
    pub(super) fn block_on<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure>
    where
        Failure: From<E>,
    {
        let runtime: Runtime =
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
        Ok(runtime.block_on(future)?)
    }
}

fn is_not_for_us(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}
