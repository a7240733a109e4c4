//! What a node says of its volumes, and what it is told of them.

use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, NODES, ObjectKey};

use super::{AttachDetach, Attachment, is_ours, unique_name};
use crate::{
    api::Patch,
    context::Error,
    views::{Condition, condition, nullable},
    volume_views::Volume,
};

const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What matters of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Volumes are attached to it here, not by itself.
    pub managed: bool,
    /// It is ready.
    pub ready: bool,
    /// Somebody said that it is off.
    pub out_of_service: bool,
    /// Volumes that it has not let go of.
    pub in_use: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    #[serde(deserialize_with = "nullable")]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "nullable")]
    taints: Vec<Taint>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Taint {
    key: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "nullable")]
    volumes_in_use: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    volumes_attached: Vec<Value>,
}

impl Facts {
    /// Reads a node.
    pub fn of(node: &Cached) -> Result<Self, Error> {
        let view: View = node.view()?;
        Ok(Self {
            managed: view.metadata.annotations.contains_key(MANAGED),
            ready: condition(&view.status.conditions, "Ready").is_some_and(Condition::is_true),
            out_of_service: view.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE),
            in_use: view.status.volumes_in_use,
        })
    }
}

impl AttachDetach {
    /// What a node says; `None`: there is no such node.
    pub(super) fn facts(&self, node: &str) -> Result<Option<Facts>, Error> {
        self.nodes.get(&ObjectKey::cluster(node)).map(|n| Facts::of(&n)).transpose()
    }

    /// Tells a node which volumes it may use.
    pub(super) async fn report(&self, name: &str) -> Result<(), Error> {
        let key = ObjectKey::cluster(name);
        let Some(node) = self.nodes.get(&key) else { return Ok(()) };
        let mut attached = Vec::new();
        for object in self.attachments.list() {
            if object.node_name() != Some(name) || self.memory.lock().detaching.contains(object.uid()) {
                continue;
            }
            let view: Attachment = object.view()?;
            let usable = view.status.attached && view.metadata.deletion_timestamp.is_none();
            let Some(volume) = view.spec.source.persistent_volume_name.filter(|_| usable) else { continue };
            let Some(volume) = self.volumes.get(&ObjectKey::cluster(&volume)) else { continue };
            if let Some(csi) = volume.view::<Volume>()?.spec.csi
                && is_ours(object.name(), Some(&csi), name)
            {
                attached.push(unique_name(&csi));
            }
        }
        attached.sort_unstable();
        let list: Vec<Value> = attached.iter().map(|n| json!({"name": n, "devicePath": ""})).collect();
        let now: View = node.view()?;
        let same = now.status.volumes_attached.len() == list.len()
            && now.status.volumes_attached.iter().zip(&attached).all(|(have, want)| have["name"] == **want);
        if same {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"volumesAttached": list}});
        match self.context.api.patch(&NODES, &key, "/status", Patch::Merge, &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}
