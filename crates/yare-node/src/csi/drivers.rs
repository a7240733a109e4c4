//! The storage drivers that are registered on this node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use yare_grpc::Client;

use super::client::Driver;
use crate::kubelet::Kubelet;
use crate::plugins::{Plugin, PluginHandler};

/// A driver's version: numbers, compared one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(Vec<u64>);

impl Version {
    /// `1.0.0`, `v1.2`, `1.0.0-rc.1`; at least two numbers.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers: Option<Vec<u64>> = text[..end].split('.').map(|part| part.parse().ok()).collect();
        numbers.filter(|n| n.len() >= 2).map(Version)
    }

    /// The highest of a driver's versions that this node speaks.
    fn highest(versions: &[String]) -> Result<Self, String> {
        let known = versions.iter().filter_map(|v| Version::parse(v)).filter(|v| v.0[0] <= 1);
        match known.max() {
            None => Err(format!(
                "could not find a highest supported version from versions ({versions:?}) reported"
            )),
            Some(version) if version.0[0] != 1 => {
                Err(format!("highest supported version reported is {version}, must be v1.x"))
            }
            Some(version) => Ok(version),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            write!(f, "{}{number}", if index == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

/// A registered driver.
struct Registered {
    version: Version,
    /// Where it registered, which tells its registration from a later one.
    socket: PathBuf,
    driver: Driver,
}

/// Registered drivers by name.
#[derive(Default)]
pub(crate) struct Drivers(Mutex<BTreeMap<String, Registered>>);

impl Drivers {
    /// A driver by its name.
    pub(crate) fn get(&self, name: &str) -> Result<Driver, String> {
        let found = self.0.lock().get(name).map(|r| r.driver.clone());
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// The names of all.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }

    /// The version to register a plugin with, or why it must not be.
    fn judge(&self, what: &str, plugin: &Plugin) -> Result<Version, String> {
        let name = &plugin.name;
        if plugin.versions.is_empty() {
            return Err(format!(
                "kubernetes.io/csi: {what} for CSI driver {name:?} failed. Plugin returned an empty list for supported versions"
            ));
        }
        let version = Version::highest(&plugin.versions).map_err(|e| {
            let versions = &plugin.versions;
            format!(
                "kubernetes.io/csi: {what} for CSI driver {name:?} failed. None of the versions specified {versions:?} are supported. err={e}"
            )
        })?;
        match self.0.lock().get(name) {
            Some(before) if before.version >= version => Err(format!(
                "kubernetes.io/csi: {what} for CSI driver {name:?} failed. Another driver with the same name is already registered with a higher supported version: \"{}\"",
                before.version
            )),
            _ => Ok(version),
        }
    }
}

/// The handler of storage drivers.
pub(crate) struct CsiPlugins;

#[async_trait]
impl PluginHandler for CsiPlugins {
    fn kind(&self) -> &'static str {
        "CSIPlugin"
    }

    fn validate(&self, kubelet: &Kubelet, plugin: &Plugin) -> Result<(), String> {
        kubelet.csi.drivers.judge("ValidatePlugin", plugin).map(drop).map_err(|e| {
            format!("validation failed for CSI Driver {} at endpoint {}: {e}", plugin.name, plugin.endpoint)
        })
    }

    async fn register(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) -> Result<(), String> {
        let csi = &kubelet.csi;
        let version = csi.drivers.judge("RegisterPlugin", plugin)?;
        let driver = Driver::new(&plugin.name, Client::unix(&plugin.endpoint));
        let registered = Registered { version, socket: plugin.socket.clone(), driver: driver.clone() };
        csi.drivers.0.lock().insert(plugin.name.clone(), registered);
        let installed = async {
            let info = driver.node_get_info().await.map_err(|e| e.to_string())?;
            csi.node.install(kubelet, &plugin.name, info).await
        };
        if let Err(error) = installed.await {
            self.deregister(kubelet, plugin).await;
            return Err(error);
        }
        // Pods may wait for it, and volumes that nobody uses any more.
        kubelet.wake_all();
        kubelet.volumes.driver_came();
        csi.changed.notify_one();
        Ok(())
    }

    async fn deregister(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) {
        let csi = &kubelet.csi;
        {
            let mut drivers = csi.drivers.0.lock();
            // Another socket may have taken over its name.
            if drivers.get(&plugin.name).is_none_or(|r| r.socket != plugin.socket) {
                return;
            }
            drivers.remove(&plugin.name);
        }
        csi.changed.notify_one();
        if let Err(error) = csi.node.uninstall(kubelet, &plugin.name).await {
            tracing::warn!(error, driver = plugin.name, "a CSI driver's node information stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let highest = |list: &[&str]| {
            Version::highest(&list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()).map(|v| v.to_string())
        };
        assert_eq!(highest(&["1.0.0"]).unwrap(), "1.0.0");
        assert_eq!(highest(&["v1.1", "1.2.0", "1.0"]).unwrap(), "1.2.0");
        assert_eq!(highest(&["1.10.0-rc.1", "1.9.0"]).unwrap(), "1.10.0");
        assert_eq!(highest(&["2.0.0", "1.0.1"]).unwrap(), "1.0.1");
        assert!(highest(&["0.3.0"]).unwrap_err().contains("must be v1.x"));
        assert!(highest(&["2.0.0", "one"]).unwrap_err().starts_with("could not find a highest"));
    }

    #[test]
    fn a_name_is_taken_until_a_higher_version_comes() {
        let plugin = |version: &str| Plugin {
            name: "d".into(),
            endpoint: "/s".into(),
            versions: vec![version.into()],
            socket: "/s".into(),
        };
        let drivers = Drivers::default();
        let version = drivers.judge("RegisterPlugin", &plugin("1.0.0")).unwrap();
        let driver = Driver::new("d", Client::unix("/s"));
        drivers.0.lock().insert("d".into(), Registered { version, socket: "/s".into(), driver });
        assert!(
            drivers.judge("ValidatePlugin", &plugin("1.0.0")).unwrap_err().ends_with("version: \"1.0.0\"")
        );
        assert!(drivers.judge("ValidatePlugin", &plugin("1.1.0")).is_ok());
        assert!(drivers.get("e").err().unwrap().contains("driver name e not found"));
    }
}
