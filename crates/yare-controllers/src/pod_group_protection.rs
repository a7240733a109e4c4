//! Keeps PodGroups that pods belong to from going: each carries a finalizer, which admission gave it, until the last
//! of its pods has ended.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Change, Informer, ObjectKey, POD_GROUPS, PODS};

use crate::{
    context::{Context, Error},
    harness::{Next, Reconcile},
    views::{Meta, PodView},
};

/// The feature.
pub const GATE: &str = "GenericWorkload";
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

struct Protection {
    context: Context,
    groups: Informer,
    pods: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Member {
    spec: MemberSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct MemberSpec {
    scheduling_group: Option<SchedulingGroup>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SchedulingGroup {
    pod_group_name: Option<String>,
}

/// The controller; keys are groups.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Protection {
        groups: context.informer(POD_GROUPS),
        pods: context.informer(PODS),
        context: context.clone(),
    })
}

fn group_of(pod: &Cached) -> Option<String> {
    pod.view::<Member>().ok()?.spec.scheduling_group?.pod_group_name
}

fn has_ended(pod: &Cached) -> bool {
    pod.view::<PodView>().is_ok_and(|view| view.is_finished())
}

/// The groups of pods that have ended or are gone.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let gone = change.old.as_ref().filter(|old| change.new.as_ref().is_none_or(|new| new.uid() != old.uid()));
    let ended = change.new.as_ref().filter(|pod| has_ended(pod));
    for pod in [gone, ended].into_iter().flatten() {
        if let Some(group) = group_of(pod) {
            add(ObjectKey::new(pod.namespace(), &group));
        }
    }
}

#[async_trait]
impl Reconcile for Protection {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let going = self.groups.get(key).filter(|group| group.deletion_timestamp().is_some());
        let Some(group) = going else { return Ok(Next::Done) };
        let View { metadata } = group.view()?;
        let member = |pod: &Cached| !has_ended(pod) && group_of(pod).as_deref() == Some(group.name());
        if !metadata.finalizers.iter().any(|f| f == FINALIZER)
            || self.pods.in_namespace(group.namespace()).iter().any(member)
        {
            return Ok(Next::Done);
        }
        let left: Vec<String> = metadata.finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        let edit = |body: &mut Value| body["metadata"]["finalizers"] = json!(left);
        self.context.api.update(&POD_GROUPS, &group, edit).await?;
        Ok(Next::Done)
    }
}
