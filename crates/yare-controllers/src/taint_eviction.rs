//! Evicts pods that do not tolerate a `NoExecute` taint of their node, at once or when their
//! `tolerationSeconds` have passed.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use yare_client::{Change, Informer, NODES, ObjectKey, PODS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    node_view::{NodeView, Taint, Toleration},
    pod_end,
    views::{PodView, after, nullable, since},
};

struct TaintEviction {
    context: Context,
    pods: Informer,
    nodes: Informer,
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
    tolerations: Vec<Toleration>,
}

/// The controller; keys are pods.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(TaintEviction {
        pods: context.informer(PODS),
        nodes: context.informer(NODES),
        context: context.clone(),
    })
}

/// A pod that has been bound, or whose tolerations may have changed.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(pod) =
        change.new.as_ref().filter(|p| p.node_name().is_some() && p.deletion_timestamp().is_none())
    {
        add(pod.key().clone());
    }
}

/// The pods of a node whose `NoExecute` taints are different now.
pub fn changed_node(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let taints = |node: &Option<yare_client::Cached>| {
        node.as_ref().and_then(|n| n.view::<NodeView>().ok()).map(no_execute).unwrap_or_default()
    };
    let Some(node) = &change.new else { return };
    if taints(&change.old) == taints(&change.new) {
        return;
    }
    for pod in context.informer(PODS).list() {
        if pod.node_name() == Some(node.name()) {
            add(pod.key().clone());
        }
    }
}

fn no_execute(node: NodeView) -> Vec<Taint> {
    node.spec.taints.into_iter().filter(|t| t.effect == "NoExecute").collect()
}

#[async_trait]
impl Reconcile for TaintEviction {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|p| p.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        let node = pod.node_name().and_then(|n| self.nodes.get(&ObjectKey::cluster(n)));
        let Some(node) = node else { return Ok(Next::Done) };
        let taints = no_execute(node.view()?);
        if taints.is_empty() {
            return Ok(Next::Done);
        }
        let view: View = pod.view()?;
        let now = self.context.now();
        match evict_in(&taints, &view.spec.tolerations, now) {
            None => Ok(Next::Done),
            Some(delay) if !delay.is_zero() => Ok(Next::After(delay)),
            Some(_) => {
                let state: PodView = pod.view()?;
                let message = format!("Marking for deletion Pod {key}");
                self.context.normal(&PODS, &pod, "TaintManagerEviction", message);
                let why = "Taint manager: deleting due to NoExecute taint";
                let condition = pod_end::disruption("DeletionByTaintManager", why, now);
                pod_end::mark(&self.context, &pod, &state, false, Some(&condition)).await?;
                pod_end::delete(&self.context, &pod).await?;
                Ok(Next::Done)
            }
        }
    }
}

/// How long until the pod has to go; `None`: it may stay for ever.
fn evict_in(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Duration> {
    let mut first: Option<Duration> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| t.tolerates(taint)).collect();
        if matching.is_empty() {
            return Some(Duration::ZERO);
        }
        // The shortest of all that match; one without a limit does not lengthen it.
        let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let left = since(after(taint.time_added.unwrap_or(now), seconds), now);
        first = Some(first.map_or(left, |f| f.min(left)));
    }
    first
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_limit_counts() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            ..Taint::default()
        };
        let tolerations = |v| serde_json::from_value::<Vec<Toleration>>(v).unwrap();
        let seconds = |t, v| evict_in(t, &tolerations(v), now).map(|d| d.as_secs());
        let (a, both) = ([taint("a")], [taint("a"), taint("b")]);
        assert_eq!(seconds(&a, json!([])), Some(0));
        assert_eq!(seconds(&a, json!([{"operator": "Exists"}])), None);
        assert_eq!(
            seconds(&a, json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}])),
            Some(240)
        );
        assert_eq!(
            seconds(&a, json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 30}])),
            Some(0)
        );
        let mixed = json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}, {"key": "b", "operator": "Exists"}]);
        assert_eq!(seconds(&both, mixed), Some(240));
    }
}
