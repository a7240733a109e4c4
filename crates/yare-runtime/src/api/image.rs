//! Images: how they are pulled, what is known of one, and the space they take.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An image's id: the digest of its configuration, `sha256:…`.
pub type ImageId = String;

/// How to authenticate with a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// A token got from the registry's identity service (exchanged for an access token).
    pub identity_token: String,
    /// A bearer token to send as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Layers there are; 0 until the manifest is known.
    pub layers: u32,
    /// Layers that are complete.
    pub layers_done: u32,
    /// Compressed bytes read so far.
    pub bytes: u64,
    /// Compressed bytes in all.
    pub total_bytes: u64,
}

/// Called as a pull goes on.
pub type ProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageStatus {
    /// `sha256:…` of the configuration.
    pub id: ImageId,
    /// `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// Numeric user of the configuration.
    pub uid: Option<i64>,
    /// User name of the configuration, when it is not a number.
    pub username: String,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: PathBuf,
    /// Stop signal.
    pub stop_signal: String,
    /// Declared volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Never collected as garbage.
    pub pinned: bool,
    /// It is the running program itself: no registry has it.
    #[serde(default)]
    pub built_in: bool,
}

/// Space used by a filesystem's images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FsUsage {
    /// The directory.
    pub mountpoint: PathBuf,
    /// Bytes used by images and layers.
    pub used_bytes: u64,
    /// Inodes used by images and layers.
    pub inodes_used: u64,
    /// Size of the filesystem, bytes.
    pub capacity_bytes: u64,
    /// Free for us, bytes.
    pub available_bytes: u64,
    /// Inodes of the filesystem.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// When this was read, nanoseconds since 1970.
    pub timestamp_ns: i64,
}
