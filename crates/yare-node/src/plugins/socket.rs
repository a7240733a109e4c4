//! One socket's life: from its appearance to its end, one step after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use yare_grpc::{Client, describe};

use super::directory::Identity;
use super::proto::{GET_INFO, NOTIFY, Nothing, PluginInfo, RegistrationStatus};
use super::{HANDLERS, Plugin, PluginHandler};
use crate::kubelet::Kubelet;

/// How long a plugin has to listen and to say what it is.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a plugin has to hear how its registration ended.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Between attempts, doubling.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// A plugin in use.
struct Registered {
    identity: Identity,
    handler: &'static dyn PluginHandler,
    plugin: Plugin,
}

/// Keeps what is registered in step with what is at `path`, until nothing is. Answers the path.
pub(super) async fn attend(
    kubelet: Arc<Kubelet>,
    path: PathBuf,
    mut wanted: watch::Receiver<Option<Identity>>,
) -> PathBuf {
    let mut registered: Option<Registered> = None;
    let mut wait = RETRY_MIN;
    loop {
        let now = *wanted.borrow_and_update();
        if let Some(old) = registered.take_if(|r| Some(r.identity) != now) {
            tracing::info!(plugin = old.plugin.name, kind = old.handler.kind(), "a plugin is gone");
            old.handler.deregister(&kubelet, &old.plugin).await;
        }
        let Some(identity) = now else { return path };
        if registered.is_none() {
            match register(&kubelet, &path).await {
                Ok((handler, plugin)) => {
                    tracing::info!(plugin = plugin.name, kind = handler.kind(), "a plugin is registered");
                    registered = Some(Registered { identity, handler, plugin });
                    wait = RETRY_MIN;
                }
                Err(error) => {
                    tracing::warn!(error, path = %path.display(), "registering a plugin");
                    tokio::select! {
                        changed = wanted.changed() => {
                            if changed.is_err() {
                                return path;
                            }
                            wait = RETRY_MIN;
                        }
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
                    }
                    continue;
                }
            }
        }
        if wanted.changed().await.is_err() {
            return path;
        }
    }
}

async fn register(
    kubelet: &Arc<Kubelet>,
    path: &Path,
) -> Result<(&'static dyn PluginHandler, Plugin), String> {
    let socket = path.display();
    // A socket can be seen a moment before anybody listens at it.
    let client = Client::unix(path).waiting();
    let info: PluginInfo = client.call(GET_INFO, Nothing {}, INFO_TIMEOUT).await.map_err(|status| {
        let why = describe(&status);
        format!("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {socket}, err: {why}")
    })?;
    let Some(handler) = HANDLERS.iter().find(|handler| handler.kind() == info.kind) else {
        let why = format!(
            "RegisterPlugin error -- no handler registered for plugin type: {} at socket {socket}",
            info.kind
        );
        return Err(refuse(&client, why).await);
    };
    let endpoint = if info.endpoint.is_empty() { socket.to_string() } else { info.endpoint };
    let plugin =
        Plugin { name: info.name, endpoint, versions: info.supported_versions, socket: path.to_owned() };
    if let Err(error) = handler.validate(kubelet, &plugin) {
        let why = format!("RegisterPlugin error -- plugin validation failed with err: {error}");
        return Err(refuse(&client, why).await);
    }
    if let Err(error) = handler.register(kubelet, &plugin).await {
        let why = format!("RegisterPlugin error -- plugin registration failed with err: {error}");
        return Err(refuse(&client, why).await);
    }
    if let Err(error) = notify(&client, true, String::new()).await {
        handler.deregister(kubelet, &plugin).await;
        return Err(format!(
            "RegisterPlugin error -- failed to send registration status at socket {socket}, err: {error}"
        ));
    }
    Ok((*handler, plugin))
}

/// Tells the plugin why it is not taken; answers the same for the log.
async fn refuse(client: &Client, why: String) -> String {
    match notify(client, false, why.clone()).await {
        Ok(()) => why,
        Err(error) => format!("{why}; and failed to say so: {error}"),
    }
}

async fn notify(client: &Client, plugin_registered: bool, error: String) -> Result<(), String> {
    let status = RegistrationStatus { plugin_registered, error };
    match client.call::<_, Nothing>(NOTIFY, status, NOTIFY_TIMEOUT).await {
        Ok(Nothing {}) => Ok(()),
        Err(status) => Err(describe(&status)),
    }
}
