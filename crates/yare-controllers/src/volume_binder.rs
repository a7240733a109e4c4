//! Binds PersistentVolumeClaims to PersistentVolumes.
//!
//! A claim gets the smallest volume that satisfies it, or the one it or the volume names. Binding takes
//! several writes; whatever is missing is written in the next round, and the claim reference on the volume,
//! written first, decides who has it. Claims of a class that waits for its first consumer are left to the
//! scheduler; claims that no volume satisfies are announced to the class's provisioner.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{
    Cached, Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES,
};
use yare_schema::quantity::Quantity;

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    selector::LabelSelector,
    views::{Meta, nullable},
};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

struct Binder {
    context: Context,
    claims: Informer,
    volumes: Informer,
    classes: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Claim {
    metadata: Meta,
    spec: ClaimSpec,
    status: ClaimStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: String,
    #[serde(deserialize_with = "nullable")]
    access_modes: Vec<String>,
    resources: Resources,
    storage_class_name: Option<String>,
    volume_mode: Option<String>,
    selector: Option<LabelSelector>,
    volume_attributes_class_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Resources {
    requests: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClaimStatus {
    phase: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Volume {
    metadata: Meta,
    spec: VolumeSpec,
    status: VolumeStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    capacity: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    access_modes: Vec<String>,
    claim_ref: Option<ClaimRef>,
    storage_class_name: String,
    volume_mode: Option<String>,
    volume_attributes_class_name: Option<String>,
}

#[derive(Deserialize, Default, Clone, PartialEq)]
#[serde(default)]
struct ClaimRef {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct VolumeStatus {
    phase: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Class {
    provisioner: String,
    volume_binding_mode: String,
}

impl Claim {
    fn class(&self) -> &str {
        let annotated = self.metadata.annotations.get(CLASS_BETA).map(String::as_str);
        annotated.or(self.spec.storage_class_name.as_deref()).unwrap_or_default()
    }

    fn has(&self, annotation: &str) -> bool {
        self.metadata.annotations.contains_key(annotation)
    }
}

impl Volume {
    fn is_bound_to(&self, claim: &Cached) -> bool {
        self.spec.claim_ref.as_ref().is_some_and(|r| {
            r.name == claim.name()
                && r.namespace == claim.namespace()
                && (r.uid.is_empty() || r.uid == claim.uid())
        })
    }

    fn storage(&self) -> Option<Quantity> {
        self.spec.capacity.get("storage").and_then(|v| Quantity::from_value(v).ok())
    }

    /// Whether it has what the claim asks for, whoever may have it now.
    fn satisfies(&self, volume: &Cached, claim: &Claim) -> bool {
        let mode = |m: &Option<String>| m.clone().unwrap_or_else(|| "Filesystem".into());
        let wanted = claim.spec.resources.requests.get("storage").and_then(|v| Quantity::from_value(v).ok());
        let class = self.metadata.annotations.get(CLASS_BETA).unwrap_or(&self.spec.storage_class_name);
        class == claim.class()
            && mode(&self.spec.volume_mode) == mode(&claim.spec.volume_mode)
            && self.spec.volume_attributes_class_name.as_deref().unwrap_or_default()
                == claim.spec.volume_attributes_class_name.as_deref().unwrap_or_default()
            && claim.spec.access_modes.iter().all(|m| self.spec.access_modes.contains(m))
            && wanted.is_none_or(|w| self.storage().is_some_and(|have| have >= w))
            && claim.spec.selector.as_ref().is_none_or(|s| s.matches(volume.labels()))
    }
}

/// The controller; keys with a namespace are claims, those without are volumes.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Binder {
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        volumes: context.informer(PERSISTENT_VOLUMES),
        classes: context.informer(STORAGE_CLASSES),
        context: context.clone(),
    })
}

/// A volume concerns itself and the claim it names; one that became available, every claim that waits.
pub fn changed_volume(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    add(object.key().clone());
    let Ok(volume) = object.view::<Volume>() else { return };
    match volume.spec.claim_ref {
        Some(claim) => add(ObjectKey::new(&claim.namespace, &claim.name)),
        None => waiting_claims(context, add),
    }
}

/// A claim concerns itself and its volume.
pub fn changed_claim(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    add(object.key().clone());
    if let Ok(claim) = object.view::<Claim>()
        && !claim.spec.volume_name.is_empty()
    {
        add(ObjectKey::cluster(&claim.spec.volume_name));
    }
}

/// A new class may be what claims wait for.
pub fn changed_class(context: &Context, _: &Change, add: &mut dyn FnMut(ObjectKey)) {
    waiting_claims(context, add);
}

fn waiting_claims(context: &Context, add: &mut dyn FnMut(ObjectKey)) {
    for claim in context.informer(PERSISTENT_VOLUME_CLAIMS).list() {
        if claim.view::<Claim>().is_ok_and(|c| !c.has(BIND_COMPLETED)) {
            add(claim.key().clone());
        }
    }
}

#[async_trait]
impl Reconcile for Binder {
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

impl Binder {
    async fn sync_claim(&self, claim: &Cached) -> Result<(), Error> {
        let view: Claim = claim.view()?;
        let named = &view.spec.volume_name;
        let volume = self.volumes.get(&ObjectKey::cluster(named)).filter(|_| !named.is_empty());
        if view.has(BIND_COMPLETED) {
            let Some(volume) = volume else {
                let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                return self.lose(claim, &view, "ClaimLost", message).await;
            };
            let state: Volume = volume.view()?;
            if state.spec.claim_ref.is_some() && !state.is_bound_to(claim) {
                let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                return self.lose(claim, &view, "ClaimMisbound", message).await;
            }
            return self.bind(claim, &view, &volume).await;
        }
        if claim.deletion_timestamp().is_some() {
            return Ok(());
        }
        if !named.is_empty() {
            let Some(volume) = volume else { return self.pend(claim, &view).await };
            let state: Volume = volume.view()?;
            let free = state.spec.claim_ref.is_none() && state.satisfies(&volume, &view);
            if free || state.is_bound_to(claim) {
                return self.bind(claim, &view, &volume).await;
            }
            let reason = if state.spec.claim_ref.is_some() { "FailedBinding" } else { "VolumeMismatch" };
            let message = match reason {
                "FailedBinding" => format!("volume \"{named}\" already bound to a different claim."),
                _ => format!("Cannot bind to requested volume \"{named}\": it does not satisfy the claim"),
            };
            self.context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
            return self.pend(claim, &view).await;
        }
        let class = self.classes.get(&ObjectKey::cluster(view.class())).filter(|_| !view.class().is_empty());
        let class: Option<Class> = class.map(|c| c.view()).transpose()?;
        let waits = class.as_ref().is_some_and(|c| c.volume_binding_mode == "WaitForFirstConsumer")
            && !view.has(SELECTED_NODE);
        match self.find(claim, &view, waits)? {
            Some(volume) => self.bind(claim, &view, &volume).await,
            None => {
                self.announce(claim, &view, class, waits).await?;
                self.pend(claim, &view).await
            }
        }
    }

    /// A volume that names the claim, or the smallest free one that satisfies it.
    fn find(&self, claim: &Cached, view: &Claim, waits: bool) -> Result<Option<Cached>, Error> {
        let mut best: Option<(Quantity, Cached)> = None;
        for volume in self.volumes.list() {
            let state: Volume = volume.view()?;
            if volume.deletion_timestamp().is_some() || !state.satisfies(&volume, view) {
                continue;
            }
            if state.is_bound_to(claim) {
                return Ok(Some(volume));
            }
            let free = state.spec.claim_ref.is_none()
                && matches!(&*state.status.phase, "Available" | "Pending" | "");
            if waits || !free {
                continue;
            }
            let Some(size) = state.storage() else { continue };
            if best.as_ref().is_none_or(|(other, _)| size < *other) {
                best = Some((size, volume));
            }
        }
        Ok(best.map(|(_, volume)| volume))
    }

    /// Says why a claim is not bound, and asks the class's provisioner for a volume.
    async fn announce(
        &self,
        claim: &Cached,
        view: &Claim,
        class: Option<Class>,
        waits: bool,
    ) -> Result<(), Error> {
        let context = &self.context;
        let say =
            |reason: &str, message: String| context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
        if waits {
            let message = "waiting for first consumer to be created before binding";
            say("WaitForFirstConsumer", message.into());
            return Ok(());
        }
        let Some(class) = class else {
            if view.class().is_empty() {
                let message = "no persistent volumes available for this claim and no storage class is set";
                say("FailedBinding", message.into());
            } else {
                let message = format!("storageclass.storage.k8s.io \"{}\" not found", view.class());
                context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, "ProvisioningFailed", message);
            }
            return Ok(());
        };
        if class.provisioner == NO_PROVISIONER {
            say(
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set".into(),
            );
            return Ok(());
        }
        if view.metadata.annotations.get(PROVISIONER) != Some(&class.provisioner) {
            let write = |body: &mut Value| {
                for name in [PROVISIONER, PROVISIONER_BETA] {
                    body["metadata"]["annotations"][name] = class.provisioner.clone().into();
                }
            };
            context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            class.provisioner
        );
        say("ExternalProvisioning", message);
        Ok(())
    }

    async fn pend(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        if view.status.phase != "Pending" {
            let patch = json!({"status": {"phase": "Pending"}});
            let (api, kind) = (&self.context.api, crate::api::Patch::Merge);
            api.patch(&PERSISTENT_VOLUME_CLAIMS, claim.key(), "/status", kind, &patch).await?;
        }
        Ok(())
    }

    async fn lose(&self, claim: &Cached, view: &Claim, reason: &str, message: &str) -> Result<(), Error> {
        if view.status.phase != "Lost" {
            let write = |body: &mut Value| body["status"]["phase"] = "Lost".into();
            self.context.api.put(&PERSISTENT_VOLUME_CLAIMS, claim, "/status", write).await?;
            self.context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
        }
        Ok(())
    }

    /// Writes what is missing of a binding: the volume's reference and phase, then the claim's.
    async fn bind(&self, claim: &Cached, view: &Claim, volume: &Cached) -> Result<(), Error> {
        let api = &self.context.api;
        let state: Volume = volume.view()?;
        let mut volume = volume.clone();
        let complete = state.spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.uid());
        if !complete {
            let ours = state.spec.claim_ref.is_none();
            let write = |body: &mut Value| {
                body["spec"]["claimRef"] = json!({
                    "kind": "PersistentVolumeClaim",
                    "apiVersion": "v1",
                    "namespace": claim.namespace(),
                    "name": claim.name(),
                    "uid": claim.uid(),
                    "resourceVersion": claim.resource_version().to_string(),
                });
                if ours {
                    body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
                }
            };
            volume = api.update(&PERSISTENT_VOLUMES, &volume, write).await?;
        }
        if state.status.phase != "Bound" {
            let write = |body: &mut Value| body["status"]["phase"] = "Bound".into();
            volume = api.put(&PERSISTENT_VOLUMES, &volume, "/status", write).await?;
        }
        let mut claim = claim.clone();
        if view.spec.volume_name != volume.name() || !view.has(BIND_COMPLETED) {
            let ours = view.spec.volume_name != volume.name();
            let write = |body: &mut Value| {
                body["spec"]["volumeName"] = volume.name().into();
                body["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
                if ours {
                    body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
                }
            };
            claim = api.update(&PERSISTENT_VOLUME_CLAIMS, &claim, write).await?;
        }
        if view.status.phase != "Bound" {
            let write = |body: &mut Value| {
                body["status"]["phase"] = "Bound".into();
                body["status"]["accessModes"] = json!(state.spec.access_modes);
                body["status"]["capacity"] = json!(state.spec.capacity);
            };
            api.put(&PERSISTENT_VOLUME_CLAIMS, &claim, "/status", write).await?;
        }
        Ok(())
    }

    async fn sync_volume(&self, volume: &Cached) -> Result<(), Error> {
        let state: Volume = volume.view()?;
        let phase = match &state.spec.claim_ref {
            None => "Available",
            // Meant for a claim that has not come yet.
            Some(claim) if claim.uid.is_empty() => "Available",
            Some(claim) => {
                let key = ObjectKey::new(&claim.namespace, &claim.name);
                let found = match self.claims.get(&key).filter(|c| c.uid() == claim.uid) {
                    Some(found) => Some(found),
                    // The cache may be behind; data depends on this.
                    None => {
                        let found = self.context.api.get(&PERSISTENT_VOLUME_CLAIMS, &key).await?;
                        found.filter(|c| c.uid() == claim.uid)
                    }
                };
                let Some(found) = found else { return self.set_phase(volume, &state, "Released").await };
                let other: Claim = found.view()?;
                if other.spec.volume_name.is_empty() || other.spec.volume_name == volume.name() {
                    // The claim's own turn completes the binding.
                    return Ok(());
                }
                if !state.metadata.annotations.contains_key(BOUND_BY_CONTROLLER) {
                    return Ok(());
                }
                // We were too late: the claim is bound elsewhere.
                let write = |body: &mut Value| {
                    if let Some(spec) = body["spec"].as_object_mut() {
                        spec.remove("claimRef");
                    }
                    if let Some(annotations) = body["metadata"]["annotations"].as_object_mut() {
                        annotations.remove(BOUND_BY_CONTROLLER);
                    }
                };
                self.context.api.update(&PERSISTENT_VOLUMES, volume, write).await?;
                return Ok(());
            }
        };
        self.set_phase(volume, &state, phase).await
    }

    async fn set_phase(&self, volume: &Cached, state: &Volume, phase: &str) -> Result<(), Error> {
        if state.status.phase != phase {
            let write = |body: &mut Value| body["status"]["phase"] = phase.into();
            self.context.api.put(&PERSISTENT_VOLUMES, volume, "/status", write).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_satisfy_claims() {
        let cached = Cached::new(r#"{"metadata":{"name":"v","labels":{"disk":"ssd"}}}"#.into()).unwrap();
        let volume: Volume = serde_json::from_value(json!({"spec": {"capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "fast"}}))
        .unwrap();
        let claim = |change: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast"});
            for (k, v) in change.as_object().unwrap() {
                spec[k] = v.clone();
            }
            serde_json::from_value::<Claim>(json!({"spec": spec})).unwrap()
        };
        for (change, expected) in [
            (json!({}), true),
            (json!({"resources": {"requests": {"storage": "11Gi"}}}), false),
            (json!({"accessModes": ["ReadWriteMany"]}), false),
            (json!({"storageClassName": ""}), false),
            (json!({"volumeMode": "Block"}), false),
            (json!({"selector": {"matchLabels": {"disk": "ssd"}}}), true),
            (json!({"selector": {"matchLabels": {"disk": "hdd"}}}), false),
        ] {
            assert_eq!(volume.satisfies(&cached, &claim(change.clone())), expected, "{change}");
        }
    }
}
