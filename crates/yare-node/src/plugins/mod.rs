//! Plugins that register themselves with the node: storage drivers, resource drivers, devices.
//!
//! A plugin puts a socket into `<data dir>/plugins_registry`, at any depth; the kernel tells when one appears or
//! goes. Over it the node asks the plugin what it is (`pluginregistration.Registration`), hands it to the
//! handler of its type, and tells it how that ended. When the socket goes, the handler hears of it.
//!
//! ```text
//! socket appears ─► GetInfo ─► validate ─► register ─► NotifyRegistrationStatus(true) ── socket goes ─► deregister
//!                      └──────────┴───────────┴─► NotifyRegistrationStatus(false), again after a while
//! ```
//!
//! Adding a type of plugin is: write its handler, add the row.

mod directory;
pub mod proto;
mod socket;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::csi;
use crate::kubelet::Kubelet;
use crate::managers::plugins::{DevicePlugins, DraPlugins};
use directory::{Directory, Identity};

/// The types of plugins, each with what becomes of its plugins.
const HANDLERS: &[&dyn PluginHandler] = &[&csi::CsiPlugins, &DraPlugins, &DevicePlugins];

/// Sockets that are attended to at a time; a directory with more of them is somebody's mistake.
const SOCKETS_MAX: usize = 512;

/// A plugin, as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plugin {
    /// Unique within its type: a driver's name.
    pub(crate) name: String,
    /// The socket that serves it; the one it registered with where it names none.
    pub(crate) endpoint: String,
    /// Versions of the type's API that it speaks.
    pub(crate) versions: Vec<String>,
    /// The socket it registered with.
    pub(crate) socket: PathBuf,
}

/// One row of the table: a type of plugin.
#[async_trait]
pub(crate) trait PluginHandler: Send + Sync {
    /// What plugins of this type say they are: `CSIPlugin`, `DRAPlugin`, `DevicePlugin`.
    fn kind(&self) -> &'static str;
    /// Whether it may be registered. The plugin is told the error.
    fn validate(&self, kubelet: &Kubelet, plugin: &Plugin) -> Result<(), String>;
    /// Takes it into use. The plugin is told the error, and is tried again later.
    async fn register(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) -> Result<(), String>;
    /// Its socket is gone.
    async fn deregister(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin);
}

/// Watches the directory for as long as the node runs, once the node is known to the API server.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    kubelet.csi.node.uid().await;
    let root = kubelet.data_dir.join("plugins_registry");
    let (mut directory, found) = match Directory::open(&root) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(%error, path = %root.display(), "plugins cannot register");
            return;
        }
    };
    let mut sockets = Sockets { kubelet, wanted: HashMap::new(), tasks: JoinSet::new() };
    for path in found {
        sockets.look(path);
    }
    loop {
        tokio::select! {
            changed = directory.changed() => match changed {
                Ok(paths) => paths.into_iter().for_each(|path| sockets.look(path)),
                Err(error) => {
                    tracing::error!(%error, path = %root.display(), "plugins are not noticed any more");
                    return;
                }
            },
            Some(ended) = sockets.tasks.join_next(), if !sockets.tasks.is_empty() => {
                if let Ok(path) = ended {
                    sockets.ended(path);
                }
            }
        }
    }
}

/// One task per socket, and which socket each should serve.
struct Sockets {
    kubelet: Arc<Kubelet>,
    wanted: HashMap<PathBuf, watch::Sender<Option<Identity>>>,
    tasks: JoinSet<PathBuf>,
}

impl Sockets {
    /// Something happened at this path: whatever is there now counts.
    fn look(&mut self, path: PathBuf) {
        let found = Identity::of(&path);
        if let Some(wanted) = self.wanted.get(&path) {
            wanted.send_if_modified(|before| std::mem::replace(before, found) != found);
            return;
        }
        if found.is_none() {
            return;
        }
        if self.wanted.len() >= SOCKETS_MAX {
            tracing::warn!(path = %path.display(), "too many plugins: this one is not registered");
            return;
        }
        let (sender, receiver) = watch::channel(found);
        self.wanted.insert(path.clone(), sender);
        self.tasks.spawn(socket::attend(self.kubelet.clone(), path, receiver));
    }

    /// A socket's task saw it go and ended; if it came back meanwhile, there is a next one.
    fn ended(&mut self, path: PathBuf) {
        self.wanted.remove(&path);
        self.look(path);
    }
}
