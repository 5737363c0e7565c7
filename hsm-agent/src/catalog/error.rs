//! What can be wrong with a catalogue, and what the operator does about it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the catalogue did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file could not be created or opened.
    #[error("catalogue {}: {source}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A database of another program.
    #[error("{} is a database, but not a catalogue of hsm: choose another state_dir", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// Written by a newer hsm.
    #[error(
        "catalogue {} has schema version {found}, this hsm knows {known}: run the newer hsm, or \
         stop the agent, move the file away and run `hsm scan --rebuild`", path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The version of this build.
        known: i64,
    },
    /// Damaged. No file's data depends on it.
    #[error(
        "catalogue {} is damaged ({detail}): stop the agent, move the file and its -wal and -shm \
         away, start the agent and run `hsm scan --rebuild`", path.display()
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file system of the state directory is full.
    #[error("catalogue {}: no space left for {doing}", path.display())]
    Full {
        /// The database.
        path: PathBuf,
        /// What needed the space.
        doing: &'static str,
    },
    /// Any other error of the database.
    #[error("catalogue {}: {doing}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: Box<rusqlite::Error>,
    },
}

impl CatalogError {
    /// For `map_err`: sorts an SQLite error into the kinds above.
    pub(super) fn at(path: &Path, doing: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::sort(path.clone(), doing, source)
    }

    fn sort(path: PathBuf, doing: &'static str, source: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path, detail: source.to_string() }
            }
            Some(ErrorCode::DiskFull) => Self::Full { path, doing },
            _ => match source {
                E::FromSqlConversionFailure(..)
                | E::IntegralValueOutOfRange(..)
                | E::InvalidColumnType(..) => Self::Corrupt { path, detail: source.to_string() },
                source => Self::Sqlite { path, doing, source: Box::new(source) },
            },
        }
    }
}
