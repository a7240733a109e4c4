//! One claim: finds it a volume, binds both, or says why it waits.

use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};
use yare_schema::quantity::Quantity;

use super::{Binder, migration};
use crate::{
    context::Error,
    views::PodView,
    volume_protection::claims_of_pod,
    volume_views::{
        BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, Class, PROVISIONER, PROVISIONER_BETA, SELECTED_NODE,
        Volume,
    },
};

/// The size that a claim has until its node has enlarged the file system.
const PRE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

impl Binder {
    pub(super) async fn sync_claim(&self, claim: &Cached) -> Result<(), Error> {
        let view: Claim = claim.view()?;
        if let Some(driver) = migration::of_claim(&view) {
            let write = |body: &mut Value| migration::write(body, driver);
            self.context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
            return Ok(());
        }
        match view.has(BIND_COMPLETED) {
            true => self.sync_bound(claim, &view).await,
            false if claim.deletion_timestamp().is_some() => Ok(()),
            false if view.spec.volume_name.is_empty() => self.sync_unbound(claim, &view).await,
            false => self.sync_prebound(claim, &view).await,
        }
    }

    async fn sync_bound(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        let name = &view.spec.volume_name;
        if name.is_empty() {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, view, "ClaimLost", message).await;
        }
        let key = ObjectKey::cluster(name);
        let volume = match self.volumes.get(&key) {
            Some(volume) => Some(volume),
            // The cache may be behind, and there is hardly a way back from this.
            None => self.context.api.get(&PERSISTENT_VOLUMES, &key).await?,
        };
        let Some(volume) = volume else {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, view, "ClaimLost", message).await;
        };
        let state: Volume = volume.view()?;
        if state.spec.claim_ref.is_none() || state.belongs_to(claim) {
            return self.bind(claim, view, &volume, &state).await;
        }
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(claim, view, "ClaimMisbound", message).await
    }

    /// The user asked for one volume.
    async fn sync_prebound(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        let name = &view.spec.volume_name;
        let Some(volume) = self.volumes.get(&ObjectKey::cluster(name)) else {
            return self.pend(claim, view).await;
        };
        let state: Volume = volume.view()?;
        let (reason, message) = if state.spec.claim_ref.is_none() {
            match state.unfit_for(view) {
                None => return self.bind(claim, view, &volume, &state).await,
                Some(why) => ("VolumeMismatch", format!("Cannot bind to requested volume \"{name}\": {why}")),
            }
        } else if state.is_for(claim) {
            return self.bind(claim, view, &volume, &state).await;
        } else {
            ("FailedBinding", format!("volume \"{name}\" already bound to a different claim."))
        };
        self.context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
        self.pend(claim, view).await
    }

    /// Any volume will do.
    async fn sync_unbound(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        let key = ObjectKey::cluster(view.class());
        let class = self.classes.get(&key).filter(|_| !view.class().is_empty());
        let class: Option<Class> = class.map(|c| c.view()).transpose()?;
        let delayed = class.as_ref().is_some_and(|c| c.volume_binding_mode == "WaitForFirstConsumer");
        if let Some((volume, state)) = self.find(claim, view, delayed)? {
            return self.bind(claim, view, &volume, &state).await;
        }
        if !view.has_class()
            && let Some(name) = self.default_class()?
        {
            let write = |body: &mut Value| body["spec"]["storageClassName"] = name.into();
            self.context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
            return Ok(());
        }
        let say = |reason: &str, message: String| {
            self.context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
        };
        if delayed && !view.has(SELECTED_NODE) {
            let (reason, message) = self.first_consumers(claim)?;
            say(reason, message);
        } else if !view.class().is_empty() {
            return self.provision(claim, view, class).await;
        } else {
            let message = "no persistent volumes available for this claim and no storage class is set";
            say("FailedBinding", message.into());
        }
        self.pend(claim, view).await
    }

    /// A volume that names the claim, or the smallest free one that satisfies it, of those with the fewest
    /// access modes. A `delayed` claim gets only one that names it: the others are the scheduler's.
    fn find(&self, claim: &Cached, view: &Claim, delayed: bool) -> Result<Option<(Cached, Volume)>, Error> {
        // Where most volumes are made for their claims, there is no need to look at all.
        if let Some(volume) = self.volumes.get(&ObjectKey::cluster(&format!("pvc-{}", claim.uid()))) {
            let state: Volume = volume.view()?;
            if state.is_for(claim) && would_do(&state, view) {
                return Ok(Some((volume, state)));
            }
        }
        let mut best: Option<((usize, Quantity), Cached, Volume)> = None;
        for volume in self.volumes.list() {
            let state: Volume = volume.view()?;
            if !would_do(&state, view) {
                continue;
            }
            if state.is_for(claim) {
                return Ok(Some((volume, state)));
            }
            let free = state.spec.claim_ref.is_none()
                && state.status.phase == "Available"
                && state.class() == view.class()
                && view.spec.selector.as_ref().is_none_or(|s| s.matches(volume.labels()));
            if delayed || !free {
                continue;
            }
            let Some(size) = state.size() else { continue };
            let rank = (state.spec.access_modes.len(), size);
            if best.as_ref().is_none_or(|(other, ..)| rank < *other) {
                best = Some((rank, volume, state));
            }
        }
        Ok(best.map(|(_, volume, state)| (volume, state)))
    }

    /// The newest class that is marked as the default.
    fn default_class(&self) -> Result<Option<String>, Error> {
        let mut found = Vec::new();
        for class in self.classes.list() {
            let view: Class = class.view()?;
            let marked = |name| view.metadata.annotations.get(name).is_some_and(|v: &String| v == "true");
            if marked(DEFAULT_CLASS) || marked(DEFAULT_CLASS_BETA) {
                found.push((std::cmp::Reverse(view.metadata.creation_timestamp), class.name().to_owned()));
            }
        }
        Ok(found.into_iter().min().map(|(_, name)| name))
    }

    /// For whom a claim waits.
    fn first_consumers(&self, claim: &Cached) -> Result<(&'static str, String), Error> {
        let mut waiting = Vec::new();
        for pod in self.pods.in_namespace(claim.namespace()) {
            if pod.node_name().is_none()
                && claims_of_pod(&pod).iter().any(|c| c == claim.name())
                && !pod.view::<PodView>()?.is_finished()
            {
                waiting.push(pod.name().to_owned());
            }
        }
        waiting.sort_unstable();
        Ok(match waiting.as_slice() {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
            [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
        })
    }

    /// Asks the class's provisioner for a volume.
    async fn provision(&self, claim: &Cached, view: &Claim, class: Option<Class>) -> Result<(), Error> {
        let context = &self.context;
        let fail = |message: String| {
            context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, "ProvisioningFailed", message);
            Ok(())
        };
        let Some(class) = class else {
            return fail(format!("storageclass.storage.k8s.io \"{}\" not found", view.class()));
        };
        let driver = migration::driver_of(&class.provisioner);
        if driver.is_none() && class.provisioner.starts_with("kubernetes.io/") {
            return fail(format!("no volume plugin matched name: {}", class.provisioner));
        }
        let name = driver.unwrap_or(&class.provisioner);
        if view.metadata.annotations.get(PROVISIONER).is_none_or(|by| by != name) {
            let write = |body: &mut Value| {
                for annotation in [PROVISIONER, PROVISIONER_BETA] {
                    body["metadata"]["annotations"][annotation] = name.into();
                }
            };
            context.api.update(&PERSISTENT_VOLUME_CLAIMS, claim, write).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{name}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        context.normal(&PERSISTENT_VOLUME_CLAIMS, claim, "ExternalProvisioning", message);
        Ok(())
    }

    /// Has no volume (yet).
    async fn pend(&self, claim: &Cached, view: &Claim) -> Result<(), Error> {
        self.without_volume(claim, view, "Pending").await
    }

    async fn lose(&self, claim: &Cached, view: &Claim, reason: &str, message: &str) -> Result<(), Error> {
        if view.status.phase != "Lost" {
            self.without_volume(claim, view, "Lost").await?;
            self.context.warning(&PERSISTENT_VOLUME_CLAIMS, claim, reason, message);
        }
        Ok(())
    }

    async fn without_volume(&self, claim: &Cached, view: &Claim, phase: &str) -> Result<(), Error> {
        let status = &view.status;
        let clean = status.access_modes.is_empty()
            && status.capacity.is_empty()
            && status.current_volume_attributes_class_name.is_none();
        if status.phase == phase && clean {
            return Ok(());
        }
        let write = |body: &mut Value| {
            body["status"]["phase"] = phase.into();
            if let Some(status) = body["status"].as_object_mut() {
                for field in ["accessModes", "capacity", "currentVolumeAttributesClassName"] {
                    status.remove(field);
                }
            }
        };
        self.context.api.put(&PERSISTENT_VOLUME_CLAIMS, claim, "/status", write).await?;
        Ok(())
    }

    /// Writes what is missing of a binding: the volume's reference and phase, then the claim's.
    async fn bind(&self, claim: &Cached, view: &Claim, volume: &Cached, state: &Volume) -> Result<(), Error> {
        let api = &self.context.api;
        let mut volume = volume.clone();
        if !state.belongs_to(claim) {
            let ours = !state.is_for(claim);
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
        self.set_phase(&volume, state, "Bound").await?;
        let mut claim = claim.clone();
        let ours = view.spec.volume_name != volume.name();
        if ours || !view.has(BIND_COMPLETED) {
            let write = |body: &mut Value| {
                body["spec"]["volumeName"] = volume.name().into();
                body["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
                if ours {
                    body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
                }
            };
            claim = api.update(&PERSISTENT_VOLUME_CLAIMS, &claim, write).await?;
        }
        let (status, spec) = (&view.status, &state.spec);
        let becomes = status.phase != "Bound";
        let attributes = status.phase == "Pending"
            && status.current_volume_attributes_class_name != spec.volume_attributes_class_name;
        if !becomes && status.access_modes == spec.access_modes {
            return Ok(());
        }
        let write = |body: &mut Value| {
            let status = &mut body["status"];
            status["phase"] = "Bound".into();
            status["accessModes"] = json!(spec.access_modes);
            // Afterwards the size is the resizer's to say: that of a file system may be another.
            if becomes {
                match state.metadata.annotations.get(PRE_RESIZE).filter(|size| Quantity::parse(size).is_ok())
                {
                    Some(size) => status["capacity"]["storage"] = size.clone().into(),
                    None => status["capacity"] = json!(spec.capacity),
                }
            }
            if attributes {
                status["currentVolumeAttributesClassName"] = json!(spec.volume_attributes_class_name);
            }
        };
        api.put(&PERSISTENT_VOLUME_CLAIMS, &claim, "/status", write).await?;
        Ok(())
    }
}

/// Whether a volume has what the claim asks for, whoever has it and whatever its class.
fn would_do(state: &Volume, claim: &Claim) -> bool {
    let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
    let wanted = &claim.spec;
    state.metadata.deletion_timestamp.is_none()
        && claim.request().is_none_or(|w| state.size().is_some_and(|have| have >= w))
        && !state.mode_differs(claim)
        && attributes(&state.spec.volume_attributes_class_name)
            == attributes(&wanted.volume_attributes_class_name)
        && wanted.access_modes.iter().all(|m| state.spec.access_modes.contains(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_satisfy_claims() {
        let volume: Volume = serde_json::from_value(json!({"spec": {"capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "fast"}}))
        .unwrap();
        for (change, expected) in [
            (json!({}), None),
            (json!({"resources": {"requests": {"storage": "11Gi"}}}), Some("requested PV is too small")),
            (json!({"accessModes": ["ReadWriteMany"]}), Some("incompatible accessMode")),
            (json!({"accessModes": ["ReadWriteOncePod"]}), Some("incompatible accessMode")),
            (json!({"storageClassName": ""}), Some("storageClassName does not match")),
            (json!({"volumeMode": "Block"}), Some("incompatible volumeMode")),
            (json!({"volumeMode": "Filesystem"}), None),
            (json!({"volumeAttributesClassName": "gold"}), Some("volumeAttributesClassName does not match")),
        ] {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast"});
            for (k, v) in change.as_object().unwrap() {
                spec[k] = v.clone();
            }
            let claim: Claim = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(volume.unfit_for(&claim).as_deref(), expected, "{change}");
            // A volume that names the claim need not be of its class.
            let class = expected == Some("storageClassName does not match");
            assert_eq!(would_do(&volume, &claim), expected.is_none() || class, "{change}");
        }
    }
}
