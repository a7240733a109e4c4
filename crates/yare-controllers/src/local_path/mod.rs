//! Makes, grows and gives up the volumes of `yare.io/local-path`: directories on the node of a claim's first
//! consumer.
//!
//! Only the API is written here. A volume says where its files are; the node that has them makes the
//! directory, or copies it from the volume that the claim is to be a copy of, and removes it when the volume is
//! deleted: until then the node's finalizer keeps the object.

mod copies;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{
    Cached, Change, Informer, NODES, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES,
};
use yare_schema::local_path::{DRIVER, FINALIZER, NODE_LABEL, PENDING, PROVISIONED_BY};

use self::copies::{CLONING, copied_from, copy_of, let_go};
use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Condition, nullable},
    volume_views::{Claim, Class, PROVISIONER, PROVISIONER_BETA, SELECTED_NODE, Volume, storage},
};

const HOSTNAME: &str = "kubernetes.io/hostname";

struct Provisioner {
    context: Context,
    claims: Informer,
    volumes: Informer,
    classes: Informer,
    nodes: Informer,
}

/// Whether a volume is to be made for the claim here.
fn is_asked_of_us(claim: &Claim) -> bool {
    let by = |name: &str| claim.metadata.annotations.get(name).map(String::as_str);
    by(PROVISIONER).or_else(|| by(PROVISIONER_BETA)) == Some(DRIVER)
}

/// What no node could give a claim.
fn cannot_be(claim: &Claim, class: &Class) -> Option<String> {
    let spec = &claim.spec;
    if let Some(mode) =
        spec.access_modes.iter().find(|m| !matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
    {
        return Some(format!(
            "access mode {mode} is not possible: a volume of {DRIVER} is a directory of one node; only ReadWriteOnce and ReadWriteOncePod are"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some(format!(
            "volume mode Block is not possible: a volume of {DRIVER} is a directory, not a device"
        ));
    }
    if spec.selector.is_some() {
        return Some("claim.Spec.Selector is not supported".to_owned());
    }
    if spec.volume_attributes_class_name.as_ref().is_some_and(|c| !c.is_empty()) {
        return Some(format!("{DRIVER} has no volume attributes that a class could set"));
    }
    if let Some(name) = class.parameters.keys().next() {
        return Some(format!("{DRIVER} has no parameter {name:?}"));
    }
    let source = claim.source()?;
    let elsewhere = source.namespace.as_ref().is_some_and(|n| !n.is_empty());
    let core = source.api_group.as_deref().unwrap_or_default().is_empty();
    if source.kind == "PersistentVolumeClaim" && core && !elsewhere {
        return None;
    }
    Some(format!(
        "the content of a volume of {DRIVER} can come from a PersistentVolumeClaim of the same namespace, not from {} {}",
        source.kind, source.name
    ))
}

fn is_ours(volume: &Volume) -> bool {
    volume.metadata.annotations.get(PROVISIONED_BY).is_some_and(|by| by == DRIVER)
}

fn goes_with_its_claim(volume: &Volume) -> bool {
    volume.spec.persistent_volume_reclaim_policy == "Delete"
}

/// The controller; keys with a namespace are claims, those without are volumes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Provisioner {
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        classes: context.informer(STORAGE_CLASSES),
        nodes: context.informer(NODES),
        context: context.clone(),
    })
}

/// Claims that a volume is to be made for, or whose volume was made here.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    let Ok(claim) = object.view::<Claim>() else { return };
    if let Some(source) = let_go(change) {
        add(source);
    }
    if is_asked_of_us(&claim) || claim.held_by(CLONING) {
        add(object.key().clone());
    }
}

/// Volumes that were made here; and the claim that one was copied from, since that may be over.
pub fn changed_volume(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    let Some(volume) = object.view::<Volume>().ok().filter(is_ours) else { return };
    add(object.key().clone());
    if let Some(claim) = &volume.spec.claim_ref {
        let claim = claim.key();
        // Who was not told that it was being copied learns from its claim what of.
        if let Some(source) =
            context.informer(PERSISTENT_VOLUME_CLAIMS).get(&claim).as_ref().and_then(copy_of)
        {
            add(source);
        }
        add(claim);
    }
    let before = change.old.as_ref().and_then(|o| o.view::<Volume>().ok()).unwrap_or_default();
    let Some(from) = copied_from(&before) else { return };
    for other in context.informer(PERSISTENT_VOLUMES).list() {
        let other: Volume = other.view().unwrap_or_default();
        if let (Some(local), Some(claim)) = (other.spec.local, other.spec.claim_ref)
            && local.path == from
        {
            add(ObjectKey::new(&claim.namespace, &claim.name));
        }
    }
}

/// A node that is gone takes the files of its volumes along.
pub fn changed_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let (None, Some(node)) = (&change.new, &change.old) else { return };
    for volume in context.informer(PERSISTENT_VOLUMES).list() {
        if volume.label(NODE_LABEL) == Some(node.name()) {
            add(volume.key().clone());
        }
    }
}

#[async_trait]
impl Reconcile for Provisioner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if key.namespace.is_empty() {
            if let Some(volume) = self.volumes.get(key) {
                self.sync_volume(&volume).await?;
            }
        } else if let Some(claim) = self.claims.get(key) {
            self.sync_claim(&claim).await?;
        }
        Ok(Next::Done)
    }
}

/// Why no volume was made.
enum Refusal {
    /// Nothing that could change by itself: said once.
    Final(String),
    /// May be otherwise soon.
    Later(String),
    /// The node is not one that could have it: the scheduler is to choose again.
    OtherNode(String),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Provisioner {
    async fn sync_claim(&self, claim: &Cached) -> Result<(), Error> {
        let view: Claim = claim.view()?;
        if view.held_by(CLONING) && !self.is_copied(claim, &view)? {
            let write = |body: &mut Value| remove_finalizer(body, CLONING);
            self.context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
            return Ok(());
        }
        if !is_asked_of_us(&view) {
            return Ok(());
        }
        if !view.spec.volume_name.is_empty() {
            return self.grow(claim, &view).await;
        }
        if claim.deletion_timestamp().is_some() {
            return Ok(());
        }
        match self.provision(claim, &view).await {
            Ok(()) => Ok(()),
            Err(Refusal::Failed(error)) if error.is_race() => Err(error),
            Err(Refusal::Failed(error)) => {
                self.refuse(claim, &view, &error.to_string());
                Err(error)
            }
            Err(Refusal::Final(why)) => {
                self.refuse(claim, &view, &why);
                Ok(())
            }
            Err(Refusal::Later(why)) => {
                self.refuse(claim, &view, &why);
                Err(Error::NotYet(why))
            }
            Err(Refusal::OtherNode(why)) => {
                self.refuse(claim, &view, &why);
                let write = |body: &mut Value| {
                    if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
                        annotations.remove(SELECTED_NODE);
                    }
                };
                self.context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
                Ok(())
            }
        }
    }

    fn refuse(&self, claim: &Cached, view: &Claim, why: &str) {
        let message = format!("failed to provision volume with StorageClass \"{}\": {why}", view.class());
        self.context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, "ProvisioningFailed", message);
    }

    /// Makes the volume of a claim, where it is known on which node.
    async fn provision(&self, claim: &Cached, view: &Claim) -> Result<(), Refusal> {
        let Some(class) = self.classes.get(&ObjectKey::cluster(view.class())) else { return Ok(()) };
        let class: Class = class.view()?;
        if class.provisioner != DRIVER {
            return Ok(());
        }
        let selected = view.metadata.annotations.get(SELECTED_NODE);
        let waits = class.volume_binding_mode == "WaitForFirstConsumer";
        if waits && selected.is_none() {
            return Ok(());
        }
        if let Some(why) = cannot_be(view, &class) {
            return Err(Refusal::Final(why));
        }
        let Some(size) = storage(&view.spec.resources.requests) else { return Ok(()) };
        let from = match view.source() {
            Some(source) => Some(self.source(claim, source, size).await?),
            None => None,
        };
        let home = from.as_ref().and_then(|(volume, _)| volume.label(NODE_LABEL)).map(str::to_owned);
        let node = match (selected.filter(|_| waits), &home) {
            (Some(node), Some(home)) if node != home => {
                return Err(Refusal::OtherNode(format!(
                    "the volume that is to be copied is on node \"{home}\", not on \"{node}\""
                )));
            }
            (Some(node), _) | (None, Some(node)) => node.clone(),
            (None, None) => self.any_node()?,
        };
        let Some(place) = self.nodes.get(&ObjectKey::cluster(&node)) else {
            return Err(Refusal::OtherNode(format!("node \"{node}\" not found")));
        };
        let context = &self.context;
        let message = format!("External provisioner is provisioning volume for claim \"{}\"", claim.key());
        context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, "Provisioning", message);
        let volume = self.volume(claim, view, &class, &place, from.as_ref().map(|(_, path)| &**path));
        match context.api.create(&PERSISTENT_VOLUMES, "", &volume).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let name = volume["metadata"]["name"].as_str().unwrap_or_default();
        let message = format!("Successfully provisioned volume {name}");
        context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, "ProvisioningSucceeded", message);
        Ok(())
    }

    /// For a class that does not wait: the node that has the fewest volumes.
    fn any_node(&self) -> Result<String, Refusal> {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for node in self.nodes.list() {
            let view: Node = node.view()?;
            let ready = view.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True");
            if ready && !view.spec.unschedulable {
                count.insert(node.name().to_owned(), 0);
            }
        }
        for volume in self.volumes.list() {
            if let Some(count) = volume.label(NODE_LABEL).and_then(|n| count.get_mut(n)) {
                *count += 1;
            }
        }
        let fewest = count.into_iter().min_by_key(|(name, volumes)| (*volumes, name.clone()));
        fewest.map(|(name, _)| name).ok_or_else(|| Refusal::Later("no node is ready".to_owned()))
    }

    fn volume(
        &self,
        claim: &Cached,
        view: &Claim,
        class: &Class,
        node: &Cached,
        from: Option<&str>,
    ) -> Value {
        let name = format!("pvc-{}", claim.uid());
        let root = self.context.config.local_storage_path.trim_end_matches('/');
        let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
        let mut out = json!({
            "kind": "PersistentVolume",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "labels": {NODE_LABEL: node.name()},
                "annotations": {PROVISIONED_BY: DRIVER, PENDING: from.unwrap_or_default()},
            },
            "spec": {
                "capacity": {"storage": view.spec.resources.requests.get("storage")},
                "accessModes": view.spec.access_modes,
                "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": policy,
                "storageClassName": view.class(),
                "claimRef": {
                    "kind": "PersistentVolumeClaim",
                    "apiVersion": "v1",
                    "namespace": claim.namespace(),
                    "name": claim.name(),
                    "uid": claim.uid(),
                    "resourceVersion": claim.resource_version().to_string(),
                },
                "local": {"path": format!("{root}/{name}_{}_{}", claim.namespace(), claim.name())},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{
                    "key": HOSTNAME,
                    "operator": "In",
                    "values": [node.label(HOSTNAME).unwrap_or(node.name())],
                }]}]}},
            },
        });
        if policy == "Delete" {
            out["metadata"]["finalizers"] = json!([FINALIZER]);
        }
        if !class.mount_options.is_empty() {
            out["spec"]["mountOptions"] = json!(class.mount_options);
        }
        out
    }

    /// Records the size that a bound claim asks for: a directory has as much room as its file system.
    async fn grow(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        let Some(wanted) = storage(&view.spec.resources.requests) else { return Ok(()) };
        let bound = view.status.phase == "Bound";
        let Some(volume) = self.volumes.get(&ObjectKey::cluster(&view.spec.volume_name)).filter(|_| bound)
        else {
            return Ok(());
        };
        let state: Volume = volume.view()?;
        if !is_ours(&state) || !state.belongs_to(claim) {
            return Ok(());
        }
        let size = &view.spec.resources.requests["storage"];
        if storage(&state.spec.capacity).is_none_or(|have| have < wanted) {
            let write = |body: &mut Value| body["spec"]["capacity"]["storage"] = size.clone();
            self.context.api.update(&PERSISTENT_VOLUMES, &volume, write).await?;
        }
        if storage(&view.status.capacity).is_some_and(|have| have < wanted) {
            let write = |body: &mut Value| body["status"]["capacity"]["storage"] = size.clone();
            self.context.api.put(&PERSISTENT_VOLUME_CLAIMS, claim, "/status", write).await?;
            let message = "Resize volume succeeded";
            self.context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, "VolumeResizeSuccessful", message);
        }
        Ok(())
    }

    async fn sync_volume(&self, volume: &Cached) -> Result<(), Error> {
        let state: Volume = volume.view()?;
        if !is_ours(&state) {
            return Ok(());
        }
        let api = &self.context.api;
        let goes = goes_with_its_claim(&state);
        let has = state.metadata.finalizers.iter().any(|f| f == FINALIZER);
        if volume.deletion_timestamp().is_some() {
            // Files that are to be kept, or that went with their node, hold nothing up.
            if has && (!goes || self.node_is_gone(volume).await?) {
                api.update(&PERSISTENT_VOLUMES, volume, |body| remove_finalizer(body, FINALIZER)).await?;
            }
            return Ok(());
        }
        if has != goes {
            let write = |body: &mut Value| match goes {
                true => {
                    let mut finalizers = state.metadata.finalizers.clone();
                    finalizers.push(FINALIZER.to_owned());
                    body["metadata"]["finalizers"] = json!(finalizers);
                }
                false => remove_finalizer(body, FINALIZER),
            };
            api.update(&PERSISTENT_VOLUMES, volume, write).await?;
            return Ok(());
        }
        if goes && state.status.phase == "Released" {
            api.delete(&PERSISTENT_VOLUMES, volume.key(), Deletion::of(volume)).await?;
        }
        Ok(())
    }

    /// Asked of the server itself: files depend on it.
    async fn node_is_gone(&self, volume: &Cached) -> Result<bool, Error> {
        let Some(node) = volume.label(NODE_LABEL) else { return Ok(true) };
        let key = ObjectKey::cluster(node);
        Ok(self.nodes.get(&key).is_none() && self.context.api.get(&NODES, &key).await?.is_none())
    }
}

fn remove_finalizer(body: &mut Value, finalizer: &str) {
    if let Some(finalizers) = body["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| f != finalizer);
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Node {
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_in_clear_words() {
        for (spec, parameters, expected) in [
            (json!({"accessModes": ["ReadWriteOnce", "ReadWriteOncePod"]}), json!({}), None),
            (
                json!({"accessModes": ["ReadWriteMany"]}),
                json!({}),
                Some("access mode ReadWriteMany is not possible"),
            ),
            (json!({"volumeMode": "Block"}), json!({}), Some("volume mode Block is not possible")),
            (json!({"selector": {}}), json!({}), Some("claim.Spec.Selector is not supported")),
            (json!({"volumeAttributesClassName": "gold"}), json!({}), Some("has no volume attributes")),
            (json!({}), json!({"nodePath": "/x"}), Some("has no parameter \"nodePath\"")),
            (json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}), json!({}), None),
            (
                json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}}),
                json!({}),
                Some("not from VolumeSnapshot s"),
            ),
            (
                json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "a", "namespace": "b"}}),
                json!({}),
                Some("of the same namespace"),
            ),
        ] {
            let claim: Claim = serde_json::from_value(json!({"spec": spec})).unwrap();
            let class: Class = serde_json::from_value(json!({"parameters": parameters})).unwrap();
            let why = cannot_be(&claim, &class);
            match expected {
                Some(text) => assert!(why.as_ref().is_some_and(|w| w.contains(text)), "{spec}: {why:?}"),
                None => assert_eq!(why, None, "{spec}"),
            }
        }
    }
}
