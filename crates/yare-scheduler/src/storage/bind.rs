//! Writes what a pod's place means for its claims, and waits until they are bound (upstream's PreBind).
//!
//! The scheduler only begins: it names the claim in a volume, or the node in a claim. The binder and the
//! provisioner do the rest; each change of a claim or volume that the pod waits for is told by [`Waiting::told`].

use std::{sync::Arc, time::Duration};

use kube::{
    api::{Api, DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use tokio::sync::Notify;
use yare_client::{
    Cached, Client, Informer, NODES, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, Resource,
};

use super::{
    Decision,
    objects::{BOUND_BY_CONTROLLER, Claim, SELECTED_NODE, Volume},
};

/// How long volumes may take to be bound.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A pod whose volumes are being bound.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The pod.
    pub pod: ObjectKey,
    /// Its node.
    pub node: String,
    /// What is to be done.
    pub decision: Decision,
    /// To be notified when something changed that may matter.
    pub told: Arc<Notify>,
}

/// What is looked at while volumes are being bound.
pub struct Sources {
    pods: Informer,
    nodes: Informer,
    claims: Informer,
    volumes: Informer,
}

impl Sources {
    /// The shared informers of a client.
    pub fn of(client: &Client) -> Self {
        let informers = client.informers();
        Self {
            pods: informers.of(PODS),
            nodes: informers.of(NODES),
            claims: informers.of(PERSISTENT_VOLUME_CLAIMS),
            volumes: informers.of(PERSISTENT_VOLUMES),
        }
    }

    /// A pod as it is now.
    pub fn pod(&self, key: &ObjectKey) -> Option<Cached> {
        self.pods.get(key)
    }
}

/// The least versions at which the objects that we wrote tell something new.
struct Written {
    volumes: Vec<(Arc<Claim>, ObjectKey, u64)>,
    claims: Vec<(ObjectKey, u64)>,
}

/// Binds the volumes. `Err`: why the pod has to be tried again, as upstream words it.
pub async fn volumes(kube: kube::Client, sources: &Sources, work: &Waiting) -> Result<(), String> {
    let written = write(kube, work).await?;
    let bound = async {
        loop {
            if check(sources, work, &written)? {
                return Ok(());
            }
            work.told.notified().await;
        }
    };
    match tokio::time::timeout(TIMEOUT, bound).await {
        Ok(outcome) => outcome.map_err(|why: String| format!("binding volumes: {why}")),
        Err(_) => Err("binding volumes: context deadline exceeded".to_owned()),
    }
}

async fn write(kube: kube::Client, work: &Waiting) -> Result<Written, String> {
    let mut written = Written { volumes: Vec::new(), claims: Vec::new() };
    for (claim, volume) in &work.decision.bind {
        let reference = json!({
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "namespace": claim.object.namespace(),
            "name": claim.object.name(),
            "uid": claim.object.uid(),
            "resourceVersion": claim.object.resource_version().to_string(),
        });
        let mut body = json!({"spec": {"claimRef": reference}});
        if !volume.is_for(claim) {
            body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
        }
        let version = patch(&kube, &PERSISTENT_VOLUMES, &volume.object, body).await?;
        written.volumes.push((claim.clone(), volume.object.key().clone(), version));
    }
    for claim in &work.decision.provision {
        let body = json!({"metadata": {"annotations": {SELECTED_NODE: work.node}}});
        let version = patch(&kube, &PERSISTENT_VOLUME_CLAIMS, &claim.object, body).await?;
        written.claims.push((claim.object.key().clone(), version));
    }
    Ok(written)
}

/// Patches exactly the version that the decision was made on; the version that comes of it.
async fn patch(
    kube: &kube::Client,
    resource: &Resource,
    object: &Cached,
    mut body: Value,
) -> Result<u64, String> {
    body["metadata"]["resourceVersion"] = object.resource_version().to_string().into();
    body["metadata"]["uid"] = object.uid().into();
    let kind: ApiResource = resource.api_resource();
    let api: Api<DynamicObject> = match object.namespace() {
        "" => Api::all_with(kube.clone(), &kind),
        namespace => Api::namespaced_with(kube.clone(), namespace, &kind),
    };
    let parameters =
        PatchParams { field_manager: Some("kube-scheduler".to_owned()), ..PatchParams::default() };
    let new = api.patch(object.name(), &parameters, &Patch::Merge(&body)).await;
    let new = new.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    })?;
    Ok(new.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or_default())
}

/// Whether all is bound. `Err`: it will not be.
fn check(sources: &Sources, work: &Waiting, written: &Written) -> Result<bool, String> {
    let Some(node) = sources.nodes.get(&ObjectKey::cluster(&work.node)) else {
        return Err(format!("failed to get node \"{}\": node \"{0}\" not found", work.node));
    };
    if sources.pods.get(&work.pod).is_none() {
        return Err(format!("pod does not exist any more: pod \"{}\" not found", work.pod.name));
    }
    let reachable = |volume: &Volume| {
        if volume.reachable_from(node.name(), node.labels()) {
            return Ok(());
        }
        Err(format!(
            "pv \"{}\" node affinity doesn't match node \"{}\": no matching NodeSelectorTerms",
            volume.object.name(),
            node.name()
        ))
    };
    let claim_of = |key: &ObjectKey, doing: &str| {
        let missing = || format!("failed to check {doing}: persistentvolumeclaim \"{}\" not found", key.name);
        sources.claims.get(key).ok_or_else(missing).and_then(|c| Claim::new(c).map_err(|e| e.to_string()))
    };
    let mut all = true;
    for (claim, key, version) in &written.volumes {
        let Some(volume) = sources.volumes.get(key) else {
            return Err(format!("failed to check binding: persistentvolume \"{}\" not found", key.name));
        };
        if volume.resource_version() < *version {
            return Ok(false);
        }
        let volume = Volume::new(volume).map_err(|e| e.to_string())?;
        reachable(&volume)?;
        if volume.claim.as_ref().is_none_or(|r| r.uid.is_empty()) {
            return Err(format!("ClaimRef got reset for pv \"{}\"", key.name));
        }
        all &= claim_of(claim.object.key(), "binding")?.bound;
    }
    for (key, version) in &written.claims {
        let claim = claim_of(key, "provisioning pvc")?;
        if claim.object.resource_version() < *version {
            return Ok(false);
        }
        // A provisioner that cannot do it takes the node away again.
        if claim.selected_node.as_deref() != Some(&*work.node) {
            return Err(format!("provisioning failed for PVC \"{}\"", key.name));
        }
        if !claim.volume.is_empty() {
            // It may only not have arrived here yet.
            let Some(volume) = sources.volumes.get(&ObjectKey::cluster(&claim.volume)) else {
                return Ok(false);
            };
            reachable(&Volume::new(volume).map_err(|e| e.to_string())?)?;
        }
        all &= claim.bound;
    }
    Ok(all)
}
