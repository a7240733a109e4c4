//! Keeps PersistentVolumeClaims that pods use, and PersistentVolumes that are bound, from being deleted:
//! each carries a finalizer until nobody needs it any more. A pod that has run to its end still uses its claims,
//! until it is gone itself; one that made a claim lets go of it when its node has.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{
    Cached, Change, Informer, ObjectKey, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, Resource,
};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    ownership::is_controlled_by,
    views::{Meta, PodView, nullable},
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

struct Protection {
    context: Context,
    resource: Resource,
    finalizer: &'static str,
    own: Informer,
    /// Users of claims; volumes know themselves whether they are bound.
    pods: Option<Informer>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    phase: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodVolumes {
    spec: PodSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    volumes: Vec<Volume>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    persistent_volume_claim: Option<ClaimSource>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

/// How far a pod's deletion has got.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Deletion {
    metadata: DeletionMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DeletionMeta {
    deletion_grace_period_seconds: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSource {
    claim_name: String,
}

/// The controller of claims.
pub fn claims(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Protection {
        own: context.informer(PERSISTENT_VOLUME_CLAIMS),
        pods: Some(context.informer(PODS)),
        resource: PERSISTENT_VOLUME_CLAIMS,
        finalizer: CLAIM_FINALIZER,
        context: context.clone(),
    })
}

/// The controller of volumes.
pub fn volumes(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Protection {
        own: context.informer(PERSISTENT_VOLUMES),
        pods: None,
        resource: PERSISTENT_VOLUMES,
        finalizer: VOLUME_FINALIZER,
        context: context.clone(),
    })
}

/// Whether the node is done with a pod, or nobody waits for it: only finalizers keep it.
fn is_shut_down(pod: &Cached) -> bool {
    pod.deletion_timestamp().is_some()
        && pod.view::<Deletion>().is_ok_and(|d| d.metadata.deletion_grace_period_seconds == Some(0))
}

/// Whether a pod on a node keeps a claim from going.
fn uses(pod: &Cached, claim: &Cached) -> bool {
    let named = |v: &Volume| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == claim.name());
    let made = |v: &Volume| {
        v.ephemeral.is_some()
            && format!("{}-{}", pod.name(), v.name) == claim.name()
            && is_controlled_by(claim, pod)
            && !is_shut_down(pod)
    };
    // Until it is on a node, it holds nothing, and it will not be started with a claim that is on its way out.
    pod.node_name().is_some()
        && pod.view::<PodVolumes>().unwrap_or_default().spec.volumes.iter().any(|v| named(v) || made(v))
}

/// The claims that a pod names.
pub fn claims_of_pod(pod: &Cached) -> Vec<String> {
    let volumes = pod.view::<PodVolumes>().unwrap_or_default().spec.volumes;
    let claim = |v: Volume| match (v.persistent_volume_claim, v.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), v.name)),
        _ => None,
    };
    volumes.into_iter().filter_map(claim).collect()
}

/// A pod that ends, goes or comes concerns its claims.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object() else { return };
    let has_ended = |p: &Cached| is_shut_down(p) || p.view::<PodView>().is_ok_and(|v| v.is_finished());
    if change.old.is_none() || change.new.as_ref().is_none_or(has_ended) {
        for claim in claims_of_pod(pod) {
            add(ObjectKey::new(pod.namespace(), &claim));
        }
    }
}

#[async_trait]
impl Reconcile for Protection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.own.get(key) else { return Ok(Next::Done) };
        let view: View = object.view()?;
        let protected = view.metadata.finalizers.iter().any(|f| f == self.finalizer);
        let going = object.deletion_timestamp().is_some();
        let mut finalizers = view.metadata.finalizers;
        match (going, protected) {
            (true, true) if !self.in_use(&object, &view.status.phase).await? => {
                finalizers.retain(|f| f != self.finalizer)
            }
            (false, false) => finalizers.push(self.finalizer.to_owned()),
            _ => return Ok(Next::Done),
        }
        let edit = |body: &mut Value| body["metadata"]["finalizers"] = json!(finalizers);
        self.context.api.update(&self.resource, &object, edit).await?;
        Ok(Next::Done)
    }
}

impl Protection {
    async fn in_use(&self, object: &Cached, phase: &str) -> Result<bool, Error> {
        let Some(pods) = &self.pods else { return Ok(phase == "Bound") };
        let used = |pods: Vec<Cached>| pods.iter().any(|pod| uses(pod, object));
        if used(pods.in_namespace(object.namespace())) {
            return Ok(true);
        }
        // The cache may not know of a pod yet that was placed a moment ago.
        Ok(used(self.context.api.list(&PODS, object.namespace()).await?))
    }
}
