//! What can go wrong in a node agent, each error naming the object or path.

use std::path::PathBuf;

/// An error of the node agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("{context}: {source}")]
    Api {
        /// What was being asked, with the object's name.
        context: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// A request could not even be built.
    #[error("{0}")]
    Request(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, to which path.
        context: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The node's settings make no sense, or not on this machine.
    #[error("{0}")]
    Settings(String),
    /// The container runtime refused.
    #[error(transparent)]
    Runtime(#[from] yare_runtime::RuntimeError),
    /// A setting that cannot be.
    #[error("{0}")]
    Config(String),
    /// A path that must not be used.
    #[error("{path}: {reason}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Result of the node agent.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The HTTP status of an API error, if it is one.
    pub fn status_code(&self) -> Option<u16> {
        match self {
            Error::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.status_code() == Some(404)
    }
}

/// Adds what was being done to an operating system's error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Io { context: what(), source: e.into() })
    }
}
