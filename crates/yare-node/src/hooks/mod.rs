//! Starting a pod or a container is an ordered list of small hooks, one file per concern.
//!
//! Pod hooks run before the sandbox is made and fill in its configuration; on the way out they undo, in
//! reverse order, what has to be undone. Container hooks run before each start of a container and fill in
//! its configuration. Adding a concern is: write the file, add the row.

mod block;
mod command;
mod credentials;
mod devices;
mod directories;
mod dns;
mod dynamic_resources;
mod environment;
mod hosts;
mod identity;
mod image;
mod labels;
mod mounts;
mod namespaces;
mod network;
mod resources;
mod runtime_class;
mod security;
mod termination;
mod volumes;

pub(crate) use labels::{GRACE_PERIOD_ANNOTATION, MESSAGE_POLICY_ANNOTATION as MESSAGE_POLICY};
pub(crate) use mounts::release_subpaths;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use yare_runtime::{ContainerConfig, ImageStatus, SandboxConfig};

use crate::images::keyring::Login;
use crate::images::volumes::ImageVolumes;
use crate::kubelet::Kubelet;
use crate::pod::dirs::PodDirs;
use crate::pod::fields::Facts;
use crate::pod::mailbox::Mailbox;
use crate::view::{Container, Pod};
use crate::volumes::Volumes;

/// Before the sandbox, in this order.
pub(crate) const POD_HOOKS: &[&dyn PodHook] = &[
    &network::NetworkReady,
    &directories::Directories,
    &credentials::Credentials,
    &volumes::MountVolumes,
    &identity::Identity,
    &dns::Dns,
    &runtime_class::RuntimeClass,
    &namespaces::Namespaces,
    &dynamic_resources::DynamicResources,
];

/// Before each container, in this order.
pub(crate) const CONTAINER_HOOKS: &[&dyn ContainerHook] = &[
    &image::Image,
    &labels::Labels,
    &environment::Environment,
    &devices::Devices,
    &command::Command,
    &resources::ContainerResources,
    &security::Security,
    &mounts::Mounts,
    &block::BlockDevices,
    &hosts::Hosts,
    &termination::Termination,
];

/// What a pod hook works on.
pub(crate) struct PodStart<'a> {
    pub(crate) kubelet: &'a Arc<Kubelet>,
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) dirs: &'a PodDirs,
    pub(crate) facts: &'a Facts,
    /// A sandbox is about to be made; otherwise the pod runs and only what can change is looked at.
    pub(crate) fresh: bool,
    pub(crate) volumes: &'a mut Volumes,
    /// Logins of the pod's secrets.
    pub(crate) logins: &'a mut Vec<Login>,
    pub(crate) sandbox: &'a mut SandboxConfig,
}

/// Why a pod cannot start now: an event's reason and message.
#[derive(Debug, Clone)]
pub(crate) struct PodFailure {
    pub(crate) reason: &'static str,
    /// Empty: it was told already, or is nothing to tell.
    pub(crate) message: String,
}

/// One step before a sandbox.
#[async_trait]
pub(crate) trait PodHook: Send + Sync {
    /// For logs.
    fn name(&self) -> &'static str;
    /// Prepares; may run again and again, also for a pod that runs.
    async fn set_up(&self, start: &mut PodStart<'_>) -> Result<(), PodFailure>;
    /// Undoes, after the sandbox has stopped; may run again and again.
    async fn tear_down(&self, _kubelet: &Arc<Kubelet>, _dirs: &PodDirs) -> crate::error::Result<()> {
        Ok(())
    }
}

/// What a container hook works on.
pub(crate) struct ContainerStart<'a> {
    pub(crate) kubelet: &'a Arc<Kubelet>,
    pub(crate) mailbox: &'a Arc<Mailbox>,
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) dirs: &'a PodDirs,
    pub(crate) facts: &'a Facts,
    /// The runtime's handler that made the sandbox; empty for the default.
    pub(crate) runtime_handler: &'a str,
    pub(crate) volumes: &'a Volumes,
    /// Those of them that are images.
    pub(crate) image_volumes: &'a ImageVolumes,
    /// Logins of the pod's secrets.
    pub(crate) logins: &'a [Login],
    /// Filled in by the image hook.
    pub(crate) image: Option<ImageStatus>,
    /// Filled in by the environment hook; by name, for expansion.
    pub(crate) env: BTreeMap<String, String>,
    /// What is being built.
    pub(crate) config: ContainerConfig,
}

/// Why a container cannot start now.
#[derive(Debug, Clone)]
pub(crate) struct StartFailure {
    /// `waiting.reason` in the status.
    pub(crate) reason: String,
    /// `waiting.message` in the status.
    pub(crate) message: String,
    /// Text of the `Failed` event.
    pub(crate) event: String,
    /// When to try again, if the failure knows.
    pub(crate) retry_at: Option<Timestamp>,
}

impl StartFailure {
    /// The configuration cannot be made: a missing key, an impossible user.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        let message = message.into();
        StartFailure {
            reason: "CreateContainerConfigError".into(),
            event: format!("Error: {message}"),
            message,
            retry_at: None,
        }
    }
}

/// One step before a container.
#[async_trait]
pub(crate) trait ContainerHook: Send + Sync {
    /// For logs.
    fn name(&self) -> &'static str;
    /// Adds its part to `start.config`.
    async fn apply(&self, start: &mut ContainerStart<'_>) -> Result<(), StartFailure>;
}
