//! Which nodes want a volume: those of the pods that use it.

use std::collections::BTreeMap;

use serde::Deserialize;
use yare_client::Cached;

use super::AttachDetach;
use crate::{
    context::Error,
    views::nullable,
    volume_protection::claims_of_pod,
    volume_views::{Claim, Volume},
};

/// Nodes with the pods there that use the volume.
pub type Wanted = BTreeMap<String, Vec<Cached>>;

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(deserialize_with = "nullable")]
    container_statuses: Vec<Container>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Container {
    state: State,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct State {
    waiting: Option<serde::de::IgnoredAny>,
    terminated: Option<serde::de::IgnoredAny>,
}

/// Whether a pod needs its volumes no more: it has run to its end, or is on its way out and runs nothing.
pub fn has_ended(pod: &Cached) -> bool {
    let Ok(View { status }) = pod.view::<View>() else { return false };
    let stopped = |c: &Container| c.state.waiting.is_some() || c.state.terminated.is_some();
    matches!(&*status.phase, "Succeeded" | "Failed")
        || (pod.deletion_timestamp().is_some() && status.container_statuses.iter().all(stopped))
}

impl AttachDetach {
    /// Who wants the volume, on nodes to which volumes are attached here.
    pub(super) fn wanted(&self, name: &str, volume: &Volume) -> Result<Wanted, Error> {
        let mut out = Wanted::new();
        let Some(reference) = &volume.spec.claim_ref else { return Ok(out) };
        let Some(claim) = self.claims.get(&reference.key()).filter(|c| c.uid() == reference.uid) else {
            return Ok(out);
        };
        let view: Claim = claim.view()?;
        if view.status.phase != "Bound" || view.spec.volume_name != name {
            return Ok(out);
        }
        for pod in self.pods.in_namespace(claim.namespace()) {
            let Some(node) = pod.node_name() else { continue };
            if !claims_of_pod(&pod).iter().any(|c| c == claim.name()) || has_ended(&pod) {
                continue;
            }
            if self.facts(node)?.is_some_and(|f| f.managed) {
                out.entry(node.to_owned()).or_default().push(pod);
            }
        }
        Ok(out)
    }
}
