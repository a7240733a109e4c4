//! What becomes of a volume whose claim is gone: `Retain` keeps it, `Delete` is its driver's, and `Recycle`
//! (deprecated, of NFS and hostPath only) runs a pod that removes its files.

use std::time::Duration;

use serde_json::{Value, json};
use yare_client::{Cached, ObjectKey, PERSISTENT_VOLUMES, PODS};
use yare_schema::local_path::PROVISIONED_BY;

use super::{Binder, migration::MIGRATED_TO};
use crate::{
    api::Deletion, context::Error, harness::Next, views::PodView, volume_protection::claims_of_pod,
    volume_views::Volume,
};

/// After a failure, or while somebody still uses it.
const RETRY: Duration = Duration::from_secs(15);
const RECYCLER: &str = "recycler-for-";
/// Namespace of recycling pods.
const NAMESPACE: &str = "default";
const IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.6";
const SCRUB: &str =
    "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" || exit 1";
const GIB: i64 = 1 << 30;

/// The volume that a pod cleans.
pub(super) fn volume_of_recycler(pod: &Cached) -> Option<&str> {
    pod.name().strip_prefix(RECYCLER).filter(|_| pod.namespace() == NAMESPACE)
}

/// Why nobody here can delete a volume; `None`: somebody else does.
fn undeletable(volume: &Cached, state: &Volume) -> Option<String> {
    if let Some(by) = state.metadata.annotations.get(PROVISIONED_BY).filter(|by| !by.is_empty()) {
        let ours = by.starts_with("kubernetes.io/");
        return ours.then(|| format!("no volume plugin matched name: {by}"));
    }
    if state.spec.csi.is_some() {
        return None;
    }
    Some(match &state.spec.host_path {
        Some(host) => format!("host_path deleter only supports /tmp/.+ but received provided {}", host.path),
        None => format!(
            "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched",
            volume.name()
        ),
    })
}

/// How long a pod may take to clean a volume, seconds.
fn deadline_s(state: &Volume) -> i64 {
    let (least, per_gib) = if state.spec.nfs.is_some() { (300, 30) } else { (60, 30) };
    let gib = state.size().map_or(0, |size| size.value() / GIB);
    gib.saturating_mul(per_gib).max(least)
}

impl Binder {
    pub(super) async fn reclaim(&self, volume: &Cached, state: &Volume) -> Result<Next, Error> {
        if state.metadata.annotations.get(MIGRATED_TO).is_some_and(|to| !to.is_empty()) {
            return Ok(Next::Done);
        }
        match &*state.spec.persistent_volume_reclaim_policy {
            "Retain" => {}
            "Recycle" => return self.recycle(volume, state).await,
            "Delete" => {
                if let Some(why) = undeletable(volume, state) {
                    self.fail(volume, state, "VolumeFailedDelete", &why).await?;
                }
            }
            _ => {
                let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
                self.fail(volume, state, "VolumeUnknownReclaimPolicy", message).await?;
            }
        }
        Ok(Next::Done)
    }

    async fn recycle(&self, volume: &Cached, state: &Volume) -> Result<Next, Error> {
        let users = self.users(state)?;
        if !users.is_empty() {
            let message = format!("Volume is used by pods: {}", users.join(","));
            self.context.normal(&PERSISTENT_VOLUMES, volume, "VolumeFailedRecycle", message);
            return Ok(Next::After(RETRY));
        }
        let source = match &state.spec {
            spec if spec.host_path.is_some() => {
                json!({"hostPath": {"path": spec.host_path.as_ref().map(|h| &h.path)}})
            }
            spec if spec.nfs.is_some() => json!({"nfs": spec.nfs}),
            _ => {
                let message = "No recycler plugin found for the volume!";
                self.fail(volume, state, "VolumeFailedRecycle", message).await?;
                return Ok(Next::Done);
            }
        };
        let api = &self.context.api;
        let key = ObjectKey::new(NAMESPACE, &format!("{RECYCLER}{}", volume.name()));
        let Some(pod) = self.pods.get(&key) else {
            // What is cached may be older than what was written here when the last pod was done: another one would
            // clean the next claim's files.
            let now = api.get(&PERSISTENT_VOLUMES, volume.key()).await?;
            if now.is_none_or(|now| now.resource_version() != volume.resource_version()) {
                return Ok(Next::Done);
            }
            let pod = recycler(&key, source, deadline_s(state));
            return match api.create(&PODS, NAMESPACE, &pod).await {
                Ok(_) => Ok(Next::Done),
                Err(error) if error.is_already_exists() => Ok(Next::After(RETRY)),
                Err(error) => {
                    let why = format!("Recycle failed: unexpected error creating recycler pod:  {error}");
                    self.fail(volume, state, "VolumeFailedRecycle", &why).await?;
                    Ok(Next::After(RETRY))
                }
            };
        };
        // One that is on its way out has said what it had to say.
        let finished = pod.view::<PodView>()?.is_finished();
        if !finished || pod.deletion_timestamp().is_some() {
            return Ok(Next::Done);
        }
        let outcome: Outcome = pod.view()?;
        // First of all, so that it does not speak for the next claim's files as well.
        api.delete(&PODS, &key, Deletion { grace_period_s: Some(0), ..Deletion::of(&pod) }).await?;
        if outcome.status.phase != "Succeeded" {
            let said = Some(outcome.status.message).filter(|m| !m.is_empty());
            let why = said.unwrap_or_else(|| "pod failed, pod.Status.Message unknown".to_owned());
            let why = format!("Recycle failed: failed to recycle volume: {why}");
            self.fail(volume, state, "VolumeFailedRecycle", &why).await?;
            return Ok(Next::After(RETRY));
        }
        self.context.normal(&PERSISTENT_VOLUMES, volume, "VolumeRecycled", "Volume recycled");
        self.unbind(volume, state).await?;
        Ok(Next::Done)
    }

    /// Pods that still use the volume of a claim that is gone. Those of a new claim of the name have another.
    fn users(&self, state: &Volume) -> Result<Vec<String>, Error> {
        let Some(claim) = &state.spec.claim_ref else { return Ok(Vec::new()) };
        if self.claims.get(&claim.key()).is_some() {
            return Ok(Vec::new());
        }
        let mut users = Vec::new();
        for pod in self.pods.in_namespace(&claim.namespace) {
            if claims_of_pod(&pod).contains(&claim.name) && !pod.view::<PodView>()?.is_finished() {
                users.push(pod.key().to_string());
            }
        }
        users.sort_unstable();
        Ok(users)
    }
}

fn recycler(key: &ObjectKey, mut source: Value, deadline_s: i64) -> Value {
    source["name"] = "vol".into();
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"namespace": NAMESPACE, "name": key.name},
        "spec": {
            "activeDeadlineSeconds": deadline_s,
            "restartPolicy": "Never",
            "volumes": [source],
            "containers": [{
                "name": "pv-recycler",
                "image": IMAGE,
                "command": ["/bin/sh"],
                "args": ["-c", SCRUB],
                "volumeMounts": [{"name": "vol", "mountPath": "/scrub"}],
            }],
        },
    })
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Outcome {
    status: OutcomeStatus,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct OutcomeStatus {
    phase: String,
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_deletes_what() {
        let cached = Cached::new(r#"{"metadata":{"name":"v"}}"#.into()).unwrap();
        let by = |by: &str| json!({"annotations": {PROVISIONED_BY: by}});
        for (metadata, spec, expected) in [
            (by("csi.example.com"), json!({}), None),
            (by("kubernetes.io/old"), json!({}), Some("no volume plugin matched name: kubernetes.io/old")),
            (json!({}), json!({"csi": {"driver": "d"}}), None),
            (
                json!({}),
                json!({"hostPath": {"path": "/srv"}}),
                Some("host_path deleter only supports /tmp/.+ but received provided /srv"),
            ),
            (
                json!({}),
                json!({"local": {"path": "/srv"}}),
                Some(
                    "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched",
                ),
            ),
        ] {
            let volume: Volume = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
            assert_eq!(undeletable(&cached, &volume).as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn large_volumes_take_longer_to_clean() {
        for (spec, expected) in [
            (json!({"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/a"}}), 60),
            (json!({"capacity": {"storage": "10Gi"}, "hostPath": {"path": "/a"}}), 300),
            (json!({"capacity": {"storage": "1Gi"}, "nfs": {}}), 300),
            (json!({}), 60),
        ] {
            let volume: Volume = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(deadline_s(&volume), expected, "{spec}");
        }
    }
}
