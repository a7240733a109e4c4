//! Drivers and device plugins that register through the plugin watcher.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::devices::{Refused, api};
use super::dra::service;
use crate::kubelet::Kubelet;
use crate::plugins::{Plugin, PluginHandler};

/// Drivers of dynamic resources.
pub(crate) struct DraPlugins;

#[async_trait]
impl PluginHandler for DraPlugins {
    fn kind(&self) -> &'static str {
        "DRAPlugin"
    }

    fn validate(&self, _kubelet: &Kubelet, plugin: &Plugin) -> Result<(), String> {
        service(&plugin.name, &plugin.endpoint, &plugin.versions).map(drop)
    }

    async fn register(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) -> Result<(), String> {
        kubelet
            .managers
            .dra
            .register(&kubelet.metrics, &plugin.name, &plugin.endpoint, &plugin.versions)
            .await
    }

    async fn deregister(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) {
        kubelet.managers.dra.deregister(kubelet, &plugin.name, &plugin.endpoint);
    }
}

/// Device plugins, by the name of their resource.
pub(crate) struct DevicePlugins;

#[async_trait]
impl PluginHandler for DevicePlugins {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    fn validate(&self, kubelet: &Kubelet, plugin: &Plugin) -> Result<(), String> {
        let Plugin { name, versions, .. } = plugin;
        kubelet.managers.devices.validate(name, versions).map_err(|refused| match refused {
            Refused::Version => format!(
                "manager version, {}, is not among plugin supported versions [{}]",
                api::VERSION,
                versions.join(" ")
            ),
            Refused::Name => {
                format!("invalid name of device plugin socket: the ResourceName {name:?} is invalid")
            }
        })
    }

    async fn register(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) -> Result<(), String> {
        kubelet.managers.devices.connect(&plugin.name, Path::new(&plugin.endpoint)).await
    }

    async fn deregister(&self, kubelet: &Arc<Kubelet>, plugin: &Plugin) {
        kubelet.managers.devices.disconnect(&plugin.name);
    }
}
