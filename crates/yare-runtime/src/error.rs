//! What can go wrong in a runtime, in the terms a kubelet needs: which object, and whether trying again helps.

use std::path::PathBuf;

/// The result of every runtime operation.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// An error of the runtime. [`RuntimeError::code`] gives CRI's (gRPC's) name for the kind of error.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The sandbox, container or image is not known (any more).
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// The id or reference that was asked for.
        id: String,
    },
    /// What was asked for makes no sense; the caller must change it.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is in the wrong state for the operation.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The container's process could not be made: missing executable, bad mount, unknown user.
    /// The text is worded as runc words it, because people search for it.
    #[error("{0}")]
    CannotRun(String),
    /// An image could not be pulled or imported.
    #[error("failed to pull image {reference:?}: {message}")]
    Pull {
        /// The normalized reference.
        reference: String,
        /// What the registry or the archive said.
        message: String,
    },
    /// The image's bytes are not what they should be.
    #[error("image {reference:?} is corrupt: {message}")]
    CorruptImage {
        /// Reference, or path of the archive.
        reference: String,
        /// What is wrong.
        message: String,
    },
    /// The image is used by a container.
    #[error("image {image:?} is in use by container {container}")]
    ImageInUse {
        /// The image's reference.
        image: String,
        /// One of the containers.
        container: String,
    },
    /// The pod network refused.
    #[error("pod network for sandbox {sandbox}: {message}")]
    Network {
        /// The sandbox's id.
        sandbox: String,
        /// What the network said.
        message: String,
    },
    /// An operation took longer than it may.
    #[error("{0}: deadline exceeded")]
    DeadlineExceeded(String),
    /// The runtime does not answer; it may later.
    #[error("{0}")]
    Unavailable(String),
    /// The runtime cannot do this at all; worded as gRPC's clients word it.
    #[error("rpc error: code = Unimplemented desc = {0}")]
    Unimplemented(&'static str),
    /// A runtime behind CRI refused, in its own words.
    #[error("{0}")]
    Remote(String),
    /// The sandbox's shim process is gone.
    #[error("the shim of sandbox {0} is gone")]
    ShimGone(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, to which path.
        context: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// State on disk that cannot be understood.
    #[error("{path}: {message}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl RuntimeError {
    /// CRI's status code name for this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "NotFound",
            Self::InvalidArgument(_) => "InvalidArgument",
            Self::FailedPrecondition(_) | Self::ImageInUse { .. } => "FailedPrecondition",
            Self::DeadlineExceeded(_) => "DeadlineExceeded",
            Self::ShimGone(_) | Self::Unavailable(_) => "Unavailable",
            Self::Unimplemented(_) => "Unimplemented",
            _ => "Unknown",
        }
    }

    /// Whether the object is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn io(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { context: context.into(), source: source.into() }
    }
}

/// Adds what was being done to an operating system error.
pub(crate) trait IoContext<T> {
    fn ctx(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn ctx(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| RuntimeError::io(context(), e))
    }
}
