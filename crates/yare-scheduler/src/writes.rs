//! What the scheduler writes: bindings with what has to be bound before them, evictions, and what pods are told.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use yare_client::{Cached, EventKind, Informer, ObjectKey, ObjectRef, PODS, Recorder};

use crate::{
    devices::bind::{self as claims, Work, Written},
    pod::PodInfo,
    preemption::Choice,
    storage::bind::{self, Sources, Waiting},
};

/// What became of a binding.
pub(crate) struct Bound {
    pub(crate) key: ObjectKey,
    /// The pod has its node, is gone or bound elsewhere: no retry.
    pub(crate) settled: bool,
    /// It has its node by us.
    pub(crate) placed: bool,
    /// Its volumes are bound, where there was something to bind.
    pub(crate) volumes: bool,
    /// Claims for devices that were written.
    pub(crate) written: Written,
    /// It waited for others, and does not count as a binding.
    pub(crate) long: bool,
}

/// Ends the victims: says why in their status, deletes them, and tells in an event.
pub(crate) async fn evict(
    client: kube::Client,
    recorder: Recorder,
    scheduler: String,
    pod: Arc<PodInfo>,
    choice: Choice,
) {
    for victim in &choice.victims {
        let object = &victim.object;
        if object.deletion_timestamp().is_some() {
            continue;
        }
        let patch = json!({"metadata": {"uid": object.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "observedGeneration": generation(object),
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": now(),
        }]}});
        patch_status(client.clone(), object, &patch).await;
        let pods: Api<Pod> = Api::namespaced(client.clone(), object.namespace());
        let preconditions = Preconditions { uid: Some(object.uid().to_owned()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match pods.delete(object.name(), &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                tracing::warn!(%error, pod = %object.key(), "preempted pod not deleted");
                continue;
            }
        }
        let message = format!("Preempted by pod {} on node {}", pod.object.uid(), choice.node);
        recorder.event(ObjectRef::of(&PODS, object), EventKind::Normal, "Preempted", message);
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Patches a pod's status; tries a few times.
pub(crate) async fn patch_status(client: kube::Client, pod: &Cached, patch: &serde_json::Value) {
    let pods: Api<Pod> = Api::namespaced(client, pod.namespace());
    for delay_ms in [0, 100, 1000] {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        match pods.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::debug!(%error, pod = %pod.key(), "status not written"),
        }
    }
}

/// A pod on its way to its node.
pub(crate) struct Binding {
    pub(crate) client: kube::Client,
    pub(crate) recorder: Recorder,
    pub(crate) sources: Arc<Sources>,
    /// Where the pod has claims.
    pub(crate) resource_claims: Option<Informer>,
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) node: String,
}

impl Binding {
    fn done(&self, settled: bool, volumes: bool) -> Bound {
        let key = self.pod.key().clone();
        Bound { key, settled, placed: false, volumes, written: Written::default(), long: false }
    }

    /// Binds the pod's volumes, writes its claims, then the binding, and says so in an event.
    pub(crate) async fn run(self, volumes: Option<Waiting>, claims: Option<Work>) -> Bound {
        if let Some(work) = volumes
            && let Err(why) = bind::volumes(self.client.clone(), &self.sources, &work).await
        {
            return self.failed("VolumeBinding", &why, false).await;
        }
        let mut written = Written::default();
        let mut done = match self.claims(claims.as_ref(), &mut written).await {
            Ok(()) => self.bind().await,
            Err(why) => self.failed("DynamicResources", &why, true).await,
        };
        if let Some(work) = claims.filter(|_| !done.settled) {
            let own = self.pod.object.uid();
            let reserved = work.claims.iter().map(|(claim, _)| claim).filter(|claim| {
                claim.is_reserved_for(own) || written.claims.iter().any(|(key, _)| key == claim.object.key())
            });
            let reserved = reserved.map(|claim| (claim.object.key(), &claim.object));
            claims::unreserve(&self.client, &self.pod, reserved).await;
        }
        if !done.placed
            && let Some(key) = written.made.clone()
        {
            claims::unmake(self.client.clone(), key).await;
        }
        done.written = written;
        done
    }

    /// A pod that is gone needs no words.
    async fn failed(&self, plugin: &str, why: &str, volumes: bool) -> Bound {
        let message = format!("running PreBind plugin \"{plugin}\": {why}");
        let Some(now) = self.sources.pod(self.pod.key()).filter(|p| p.uid() == self.pod.object.uid()) else {
            return self.done(true, volumes);
        };
        fail(self.client.clone(), self.recorder.clone(), now, message).await;
        self.done(false, volumes)
    }

    async fn claims(&self, work: Option<&Work>, written: &mut Written) -> Result<(), String> {
        let Some(work) = work else { return Ok(()) };
        claims::reserve(&self.client, &self.pod, work, written).await?;
        if work.dated
            && work.may_wait()
            && let Some(claims) = &self.resource_claims
        {
            let about = ObjectRef::of(&PODS, &self.pod.object);
            let message = format!("waiting for binding conditions for device on node {}", work.node);
            self.recorder.event(about, EventKind::Normal, "BindingConditionsPending", message);
            claims::attached(claims, work, written).await?;
        }
        Ok(())
    }

    async fn bind(&self) -> Bound {
        let (object, node) = (&self.pod.object, &self.node);
        let (namespace, name) = (object.namespace(), object.name());
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": object.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let result = pods
            .create_subresource::<_, serde_json::Value>("binding", name, &PostParams::default(), &binding)
            .await;
        let event = |kind, reason: &str, message: String| {
            self.recorder.event(ObjectRef::of(&PODS, object), kind, reason, message);
        };
        match result {
            Ok(_) => {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                event(EventKind::Normal, "Scheduled", message);
                Bound { placed: true, ..self.done(true, true) }
            }
            // Gone, or bound by somebody else: the watch tells.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.done(status.code == 404, true)
            }
            Err(error) => {
                event(EventKind::Warning, "FailedScheduling", format!("binding rejected: {error}"));
                self.done(false, true)
            }
        }
    }
}

/// Says in an event and in the pod's condition that something went wrong that is not the pod's fault.
pub(crate) async fn fail(client: kube::Client, recorder: Recorder, pod: Cached, message: String) {
    recorder.event(ObjectRef::of(&PODS, &pod), EventKind::Warning, "FailedScheduling", message.clone());
    let condition = json!({
        "type": "PodScheduled",
        "observedGeneration": generation(&pod),
        "status": "False",
        "reason": "SchedulerError",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": now(),
    });
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
    patch_status(client, &pod, &patch).await;
}

/// Says in an event and in the pod's condition why it has no node, and where room is made for it.
pub(crate) async fn report(
    client: kube::Client,
    recorder: Recorder,
    pod: Cached,
    message: String,
    nominate: Option<String>,
) {
    recorder.event(ObjectRef::of(&PODS, &pod), EventKind::Warning, "FailedScheduling", message.clone());
    let current: Result<PodConditions, _> = pod.view();
    if nominate.is_none() && current.is_ok_and(|c| c.unschedulable_because(&message)) {
        return;
    }
    let mut status = json!({"conditions": [{
        "type": "PodScheduled",
        "observedGeneration": generation(&pod),
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": now(),
    }]});
    if let Some(node) = nominate {
        status["nominatedNodeName"] = if node.is_empty() { serde_json::Value::Null } else { node.into() };
    }
    patch_status(client, &pod, &json!({"metadata": {"uid": pod.uid()}, "status": status})).await;
}

/// The generation of a pod that is spoken of.
fn generation(pod: &Cached) -> i64 {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Generation {
        metadata: Metadata,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Metadata {
        generation: i64,
    }
    pod.view::<Generation>().map_or(0, |view| view.metadata.generation)
}

/// The conditions of a pod.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct PodConditions {
    status: ConditionList,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ConditionList {
    conditions: Vec<Condition>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

impl PodConditions {
    fn unschedulable_because(&self, message: &str) -> bool {
        self.status
            .conditions
            .iter()
            .any(|c| c.kind == "PodScheduled" && c.status == "False" && c.message == message)
    }
}
