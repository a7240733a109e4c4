//! Makes the PersistentVolumeClaims of pods' generic ephemeral volumes.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PODS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    ownership::{controller_ref, is_controlled_by},
    views::nullable,
};

struct EphemeralVolumes {
    context: Context,
    pods: Informer,
    claims: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "nullable")]
    volumes: Vec<Volume>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Volume {
    name: String,
    ephemeral: Option<Ephemeral>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Ephemeral {
    volume_claim_template: Value,
}

/// The controller; keys are pods.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(EphemeralVolumes {
        pods: context.informer(PODS),
        claims: context.informer(PERSISTENT_VOLUME_CLAIMS),
        context: context.clone(),
    })
}

/// New pods; and pods whose claim has gone too early.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let (Some(pod), None) = (&change.new, &change.old) {
        add(pod.key().clone());
    }
}

impl EphemeralVolumes {
    fn fail(&self, pod: &Cached, volume: &str, why: &str) {
        let message = format!("ephemeral volume {volume}: {why}");
        self.context.warning(&PODS, pod, "FailedBinding", message);
    }
}

#[async_trait]
impl Reconcile for EphemeralVolumes {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|p| p.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        let view: View = pod.view()?;
        for volume in view.spec.volumes {
            let Some(ephemeral) = volume.ephemeral else { continue };
            let name = format!("{}-{}", pod.name(), volume.name);
            let claim_key = ObjectKey::new(pod.namespace(), &name);
            if let Some(claim) = self.claims.get(&claim_key) {
                if is_controlled_by(&claim, &pod) {
                    continue;
                }
                let why = format!("PVC \"{claim_key}\" was not created for pod \"{key}\" (pod is not owner)");
                self.fail(&pod, &volume.name, &why);
                return Err(Error::Other(why));
            }
            let template = ephemeral.volume_claim_template;
            let mut metadata = json!({"name": name, "namespace": pod.namespace()});
            for field in ["labels", "annotations"] {
                if let Some(value) = template["metadata"].get(field) {
                    metadata[field] = value.clone();
                }
            }
            metadata["ownerReferences"] = json!([controller_ref(&PODS, &pod)]);
            let claim = json!({
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "metadata": metadata,
                "spec": template["spec"],
            });
            match self.context.api.create(&PERSISTENT_VOLUME_CLAIMS, pod.namespace(), &claim).await {
                Ok(_) => {}
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    self.fail(&pod, &volume.name, &format!("create PVC {name}: {error}"));
                    return Err(error.into());
                }
            }
        }
        Ok(Next::Done)
    }
}
