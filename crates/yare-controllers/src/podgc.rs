//! Removes pods that nobody else will: of nodes that no longer exist, terminating without ever having been
//! scheduled, terminating on nodes that are out of service, and the oldest finished ones beyond a limit.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use yare_client::{Cached, Change, Informer, NODES, ObjectKey, PODS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    node_view::NodeView,
    pod_end,
    views::PodView,
};

/// How long a node must be gone before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct PodGc {
    context: Context,
    pods: Informer,
    nodes: Informer,
    /// Nodes that pods name but that do not exist, since when.
    missing: Mutex<HashMap<String, Instant>>,
}

/// The controller; keys are pods, the empty key is the number of finished ones.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(PodGc {
        pods: context.informer(PODS),
        nodes: context.informer(NODES),
        missing: Mutex::default(),
        context: context.clone(),
    })
}

/// Pods that may be nobody's.
pub fn changed_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = &change.new else { return };
    let lost = pod.node_name().is_some_and(|n| context.informer(NODES).get(&ObjectKey::cluster(n)).is_none());
    if lost || pod.deletion_timestamp().is_some() {
        add(pod.key().clone());
    }
    let limit = context.config.terminated_pod_gc_threshold;
    if limit > 0
        && context.informer(PODS).len() > limit
        && pod.view::<PodView>().is_ok_and(|v| v.is_finished())
    {
        add(ObjectKey::default());
    }
}

/// The pods of a node that has gone, or that was declared out of service.
pub fn changed_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(node) = change.object() else { return };
    let out = node.view::<NodeView>().is_ok_and(|v| v.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE));
    if change.new.is_none() || out {
        for pod in context.informer(PODS).list() {
            if pod.node_name() == Some(node.name()) {
                add(pod.key().clone());
            }
        }
    }
}

#[async_trait]
impl Reconcile for PodGc {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if key.name.is_empty() {
            return self.limit_finished().await;
        }
        let Some(pod) = self.pods.get(key) else { return Ok(Next::Done) };
        let view: PodView = pod.view()?;
        let terminating = pod.deletion_timestamp().is_some();
        let Some(name) = pod.node_name() else {
            if terminating {
                self.end(&pod, &view).await?;
            }
            return Ok(Next::Done);
        };
        match self.nodes.get(&ObjectKey::cluster(name)) {
            Some(node) => {
                self.missing.lock().remove(name);
                let node: NodeView = node.view()?;
                if terminating && !node.is_ready() && node.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE)
                {
                    self.end(&pod, &view).await?;
                }
                Ok(Next::Done)
            }
            None => self.orphan(&pod, &view, name).await,
        }
    }
}

impl PodGc {
    async fn orphan(&self, pod: &Cached, view: &PodView, node: &str) -> Result<Next, Error> {
        let since = *self.missing.lock().entry(node.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        if self.context.api.get(&NODES, &ObjectKey::cluster(node)).await?.is_some() {
            self.missing.lock().remove(node);
            return Ok(Next::Done);
        }
        let now = self.context.now();
        let condition = pod_end::disruption("DeletionByPodGC", "PodGC: node no longer exists", now);
        pod_end::mark(&self.context, pod, view, true, Some(&condition)).await?;
        pod_end::force_delete(&self.context, pod).await?;
        Ok(Next::Done)
    }

    async fn end(&self, pod: &Cached, view: &PodView) -> Result<(), Error> {
        pod_end::mark(&self.context, pod, view, true, None).await?;
        pod_end::force_delete(&self.context, pod).await
    }

    /// Evicted ones go first, then the oldest.
    async fn limit_finished(&self) -> Result<Next, Error> {
        let limit = self.context.config.terminated_pod_gc_threshold;
        let mut finished = Vec::new();
        for pod in self.pods.list() {
            let view: PodView = pod.view()?;
            if view.is_finished() {
                let evicted = view.status.phase == "Failed" && view.status.reason == "Evicted";
                finished.push((!evicted, view.metadata.creation_timestamp, pod));
            }
        }
        let surplus = finished.len().saturating_sub(limit);
        if limit == 0 || surplus == 0 {
            return Ok(Next::Done);
        }
        finished.sort_by(|a, b| (a.0, a.1, a.2.name()).cmp(&(b.0, b.1, b.2.name())));
        for (_, _, pod) in finished.into_iter().take(surplus) {
            pod_end::force_delete(&self.context, &pod).await?;
        }
        Ok(Next::Done)
    }
}
