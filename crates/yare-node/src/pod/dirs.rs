//! Where a pod's files are on the node; the layout is upstream's.

use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::view::Pod;

/// Paths of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodDirs {
    /// `<data dir>/pods/<uid>`
    pub(crate) root: PathBuf,
    /// `<log dir>/pods/<namespace>_<name>_<uid>`
    pub(crate) logs: PathBuf,
}

impl PodDirs {
    pub(crate) fn new(data_dir: &Path, log_dir: &Path, pod: &Pod) -> Self {
        let m = &pod.metadata;
        PodDirs {
            root: data_dir.join("pods").join(&m.uid),
            logs: log_dir.join("pods").join(format!("{}_{}_{}", m.namespace, m.name, m.uid)),
        }
    }

    /// The directory of a volume: `volumes/kubernetes.io~configmap/<name>`.
    pub(crate) fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.root.join("volumes").join(plugin.replace('/', "~")).join(name)
    }

    pub(crate) fn subpaths(&self) -> PathBuf {
        self.root.join("volume-subpaths")
    }

    pub(crate) fn hosts_file(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }

    pub(crate) fn container(&self, name: &str) -> PathBuf {
        self.root.join("containers").join(name)
    }

    /// The file in which the `attempt`th instance of a container leaves its termination message.
    pub(crate) fn termination_message(&self, container: &str, attempt: u32) -> PathBuf {
        self.container(container).join(format!("termination-log.{attempt}"))
    }

    pub(crate) fn container_logs(&self, container: &str) -> PathBuf {
        self.logs.join(container)
    }

    /// A container's log, relative to [`PodDirs::logs`].
    pub(crate) fn log_path(container: &str, attempt: u32) -> PathBuf {
        PathBuf::from(container).join(format!("{attempt}.log"))
    }

    /// Makes the directories every pod has.
    pub(crate) fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        for (path, mode) in [
            (self.root.clone(), 0o750),
            (self.root.join("volumes"), 0o750),
            (self.root.join("plugins"), 0o750),
            (self.logs.clone(), 0o755),
        ] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&path)
                .context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    }

    /// One more than the highest log number of a container: its restart count when the runtime forgot it.
    pub(crate) fn attempts_by_logs(&self, container: &str) -> u32 {
        std::fs::read_dir(self.container_logs(container))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.split('.').next()?.parse::<u32>().ok())
            .max()
            .map_or(0, |highest| highest.saturating_add(1))
    }
}
