//! What every verb has at hand: options, output, configuration, client, runtime.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;

use crate::control::client::Client;
use crate::marker::MARKER_XATTR;

use super::Global;
use super::exit::{Exit, Failure};
use super::inspect::MarkerNames;
use super::output::Output;

/// The socket, unless the configuration says otherwise.
const DEFAULT_SOCKET: &str = "/run/hsm/hsm.sock";

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
        Ok(Client::new(Path::new(DEFAULT_SOCKET)))
    }

    /// The marker's name on each pool.
    pub(super) fn marker_names(&self) -> Result<MarkerNames, Failure> {
        let default = CString::new(MARKER_XATTR).map_err(Failure::usage)?;
        Ok(MarkerNames { pools: Vec::new(), default })
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
