//! The storage of a StatefulSet's pods: claims made from templates, and who takes them along when it goes.

use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS};

use super::{Retention, Round};
use crate::{
    claim_owners::{Claimants, Party},
    context::Error,
    ownership,
};

impl Round<'_> {
    /// Template and claim names of a pod.
    pub(super) fn claim_names(&self, ordinal: i32) -> Vec<(String, String)> {
        let names =
            self.view.spec.volume_claim_templates.iter().filter_map(|t| t["metadata"]["name"].as_str());
        names.map(|n| (n.to_owned(), format!("{n}-{}-{ordinal}", self.set.name()))).collect()
    }

    pub(super) async fn create_claims(&self, ordinal: i32) -> Result<(), Error> {
        let context = &self.this.context;
        let names = self.claim_names(ordinal);
        for (template, (_, name)) in self.view.spec.volume_claim_templates.iter().zip(names) {
            let key = ObjectKey::new(self.set.namespace(), &name);
            if let Some(claim) = self.this.claims.get(&key) {
                if claim.deletion_timestamp().is_some() {
                    return Err(Error::Other(format!("PersistentVolumeClaim {key} is being deleted")));
                }
                continue;
            }
            let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            for (k, v) in &self.view.spec.selector.match_labels {
                labels.insert(k.clone(), v.clone().into());
            }
            let mut claim = json!({
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "metadata": {"name": name, "namespace": self.set.namespace(), "labels": labels},
                "spec": template["spec"],
            });
            if let Some(annotations) = template["metadata"].get("annotations") {
                claim["metadata"]["annotations"] = annotations.clone();
            }
            if self.retention().is_some_and(|p| p.when_deleted == "Delete") {
                let set = ownership::controller_ref(&STATEFUL_SETS, &self.set);
                claim["metadata"]["ownerReferences"] = json!([set]);
            }
            match context.api.create(&PERSISTENT_VOLUME_CLAIMS, self.set.namespace(), &claim).await {
                Ok(_) => {
                    let (pod, set) = (format!("{}-{ordinal}", self.set.name()), self.set.name());
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {set} success");
                    context.normal(&STATEFUL_SETS, &self.set, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let (pod, set) = (format!("{}-{ordinal}", self.set.name()), self.set.name());
                    let message = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {error}"
                    );
                    context.warning(&STATEFUL_SETS, &self.set, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn retention(&self) -> Option<&Retention> {
        self.view.spec.persistent_volume_claim_retention_policy.as_ref()
    }

    pub(super) fn claimants<'a>(&'a self, pod: Party<'a>, surplus: bool) -> Claimants<'a> {
        Claimants {
            set: Party::of("apps/v1", "StatefulSet", &self.set),
            pod,
            when_scaled: self.retention().is_some_and(|p| p.when_scaled == "Delete"),
            when_deleted: self.retention().is_some_and(|p| p.when_deleted == "Delete"),
            surplus,
        }
    }

    /// Makes sure that a pod's claims exist, and that they go when the retention policy wants it.
    pub(super) async fn ensure_claims(&self, pod: &Cached, ordinal: i32, surplus: bool) -> Result<(), Error> {
        let names = self.claim_names(ordinal);
        if names.is_empty() {
            return Ok(());
        }
        if !surplus {
            self.create_claims(ordinal).await?;
        }
        let context = &self.this.context;
        let claimants = self.claimants(Party::of("v1", "Pod", pod), surplus);
        for (_, name) in names {
            let key = ObjectKey::new(self.set.namespace(), &name);
            let Some(claim) = self.this.claims.get(&key) else { continue };
            let owners = claim.owners();
            if claimants.conflict(owners) {
                let message = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                );
                context.warning(&STATEFUL_SETS, &self.set, "ConflictingController", message);
            }
            if claimants.is_right(owners) {
                continue;
            }
            // The controller may update claims, not patch them.
            let references =
                [ownership::controller_ref(&STATEFUL_SETS, &self.set), ownership::controller_ref(&PODS, pod)];
            let write = |c: &mut Value| claimants.write(owners, c, references);
            match context.api.put(&PERSISTENT_VOLUME_CLAIMS, &claim, "", write).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
