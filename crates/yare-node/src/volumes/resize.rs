//! A claim that grew: its file system on this node grows with it, and the claim is told.
//!
//! The controller expands the volume first and leaves the rest to the node: by `allocatedResourceStatuses` of the
//! claim, or, an older one, by a volume that is larger than the claim says. What comes of it is written into the
//! claim's status.

use serde_json::{Value, json};
use yare_client::{EventKind, ObjectRef};

use super::{Bound, Failure, Mounted, Turn, VolumeKind, Work};
use crate::api::PatchKind;
use crate::quantity;
use crate::view::Claim;

/// The claim is expanded by the controller alone.
const NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";
/// Conditions about resizing; all others of a claim are left alone.
const RESIZE_CONDITIONS: [&str; 6] = [
    "Resizing",
    "FileSystemResizePending",
    "ControllerResizeError",
    "NodeResizeError",
    "ModifyVolumeError",
    "ModifyingVolume",
];

/// What failed where a volume of a running pod did not grow.
pub(super) const IN_USE: &str = "NodeExpandVolume.NodeExpandVolume failed";

/// Why a volume did not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExpandError {
    /// It does not have to.
    Unsupported,
    /// Not while it is used.
    InUse(String),
    /// Never.
    Infeasible(String),
    /// Not this time.
    Final(String),
    /// Perhaps it did.
    Uncertain(String),
}

impl std::fmt::Display for ExpandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExpandError::Unsupported => f.write_str("NodeExpand is not supported"),
            ExpandError::InUse(text)
            | ExpandError::Infeasible(text)
            | ExpandError::Final(text)
            | ExpandError::Uncertain(text) => f.write_str(text),
        }
    }
}

/// What is to be done about a claim's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// Expand to so many bytes.
    Expand {
        bytes: i64,
        /// The claim says so already: another node did it before.
        known: bool,
        /// The controller recovers from failures, and reads how it went.
        recovers: bool,
    },
}

fn storage(map: &std::collections::BTreeMap<String, String>) -> i64 {
    map.get("storage").map_or(0, |q| quantity::value(q))
}

fn plan(bound: &Bound, served: Option<i64>) -> Plan {
    let status = &bound.claim.status;
    let (is, wanted) = (storage(&status.capacity), storage(&bound.volume.spec.capacity));
    let has = served.unwrap_or(is).min(is);
    if wanted <= has {
        return Plan::Nothing;
    }
    let phase = status.allocated_resource_statuses.get("storage").map(String::as_str);
    if phase.is_none() && status.allocated_resources.is_empty() {
        return Plan::Expand { bytes: wanted, known: is >= wanted, recovers: false };
    }
    let bytes = storage(&status.allocated_resources);
    let known = is >= bytes && phase.is_none();
    let many = bound.claim.spec.access_modes.iter().any(|m| m == "ReadWriteMany");
    if known {
        // Every node that uses it has to do its part.
        let again = many && !bound.claim.metadata.annotations.contains_key(NOT_REQUIRED);
        return if again { Plan::Expand { bytes, known, recovers: true } } else { Plan::Nothing };
    }
    match phase {
        Some("NodeResizePending" | "NodeResizeInProgress") => {
            Plan::Expand { bytes, known: false, recovers: true }
        }
        _ => Plan::Nothing,
    }
}

/// Expands a volume that is mounted, if it is to.
pub(super) async fn keep_up(
    kind: &dyn VolumeKind,
    work: &Work<'_>,
    mounted: &Mounted,
    turn: &mut Turn,
) -> Result<(), Failure> {
    let Some(bound) = work.source.bound.clone() else { return Ok(()) };
    let Plan::Expand { bytes, known, recovers } = plan(&bound, turn.claim_bytes) else {
        turn.claim_bytes.get_or_insert(storage(&bound.claim.status.capacity));
        return Ok(());
    };
    if turn.not_in_use {
        return Ok(());
    }
    let name = &bound.volume.metadata.name;
    if work.source.read_only() {
        let text = format!(
            "MountVolume.NodeExpandVolume failed for volume {name:?} requested read-only file system"
        );
        tell(work, &bound.claim, EventKind::Warning, "FileSystemResizeFailed", text);
        return Ok(());
    }
    if recovers && !known {
        let status = json!({ "allocatedResourceStatuses": { "storage": "NodeResizeInProgress" } });
        write(work, &bound.claim, status).await.map_err(step(work))?;
    }
    match kind.expand(work, mounted, bytes).await {
        Ok(()) => {}
        Err(ExpandError::Unsupported) if known || !recovers => {
            turn.claim_bytes = Some(bytes);
            return Ok(());
        }
        Err(error) => return failed(work, &bound, turn, recovers, error).await,
    }
    let text = format!(
        "MountVolume.NodeExpandVolume succeeded for volume {name:?} {}",
        work.context.kubelet.node_name
    );
    tell(work, &bound.claim, EventKind::Normal, "FileSystemResizeSuccessful", text);
    turn.failed_expansion = false;
    if !known {
        let status = json!({
            "capacity": { "storage": size(&bound, bytes) },
            "allocatedResourceStatuses": { "storage": Value::Null },
            "conditions": conditions(&bound.claim, None),
        });
        write(work, &bound.claim, status).await.map_err(step(work))?;
    }
    turn.claim_bytes = Some(bytes);
    Ok(())
}

async fn failed(
    work: &Work<'_>,
    bound: &Bound,
    turn: &mut Turn,
    recovers: bool,
    error: ExpandError,
) -> Result<(), Failure> {
    let is_final = !matches!(error, ExpandError::Uncertain(_));
    if recovers && is_final {
        // The user asked for another size meanwhile: the controller has to begin anew.
        let asked = storage(&bound.claim.spec.resources.requests);
        let hopeless = turn.failed_expansion && asked != storage(&bound.claim.status.allocated_resources);
        turn.failed_expansion = true;
        let condition = json!({
            "type": "NodeResizeError",
            "status": "True",
            "lastTransitionTime": work.context.kubelet.seams.now_text(),
            "message": format!("failed to expand pvc with {error}"),
        });
        let mut status = json!({ "conditions": conditions(&bound.claim, Some(condition)) });
        if hopeless || matches!(error, ExpandError::Infeasible(_)) {
            status["allocatedResourceStatuses"] = json!({ "storage": "NodeResizeInfeasible" });
        }
        if let Err(error) = write(work, &bound.claim, status).await {
            tracing::warn!(error, claim = bound.claim.metadata.name, "noting a failed expansion");
        }
    }
    if let ExpandError::InUse(text) = &error {
        // Mounted it may be all the same.
        tracing::warn!(error = text, volume = bound.volume.metadata.name, "expanding a volume");
        turn.not_in_use = true;
        return Ok(());
    }
    Err(step(work)(error.to_string()))
}

fn step(work: &Work<'_>) -> impl Fn(String) -> Failure {
    let block = work.source.is_block();
    let again = work.again;
    move |text| {
        let step = match (again, block) {
            (true, _) => IN_USE,
            (false, false) => "MountVolume.Setup failed while expanding volume",
            (false, true) => "MapVolume.MarkVolumeAsMounted failed while expanding volume",
        };
        Failure::at(step, text)
    }
}

/// The size as the claim's own objects write it.
fn size(bound: &Bound, bytes: i64) -> String {
    let written = [&bound.claim.status.allocated_resources, &bound.volume.spec.capacity];
    let same = written.into_iter().filter_map(|m| m.get("storage")).find(|q| quantity::value(q) == bytes);
    same.cloned().unwrap_or_else(|| quantity::from_bytes(u64::try_from(bytes).unwrap_or(0)))
}

/// The claim's conditions, without those about resizing, or with one more of them.
fn conditions(claim: &Claim, more: Option<Value>) -> Vec<Value> {
    let kind = |c: &Value| c["type"].as_str().unwrap_or_default().to_owned();
    let Some(more) = more else {
        let about_others = |c: &&Value| !RESIZE_CONDITIONS.contains(&kind(c).as_str());
        return claim.status.conditions.iter().filter(about_others).cloned().collect();
    };
    let mut all = claim.status.conditions.clone();
    match all.iter_mut().find(|c| kind(c) == kind(&more)) {
        Some(before) if before["status"] == more["status"] => {}
        Some(before) => *before = more,
        None => all.push(more),
    }
    all
}

async fn write(work: &Work<'_>, claim: &Claim, status: Value) -> Result<(), String> {
    let m = &claim.metadata;
    let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}/status", m.namespace, m.name);
    let written = work.context.kubelet.api.patch(&path, PatchKind::Merge, &json!({ "status": status })).await;
    written.map_err(|e| format!("mountVolume.NodeExpandVolume update pvc status failed: {e}"))
}

fn tell(work: &Work<'_>, claim: &Claim, kind: EventKind, reason: &str, text: String) {
    let kubelet = work.context.kubelet;
    kubelet.pod_event(work.context.pod, None, kind, reason, text.clone());
    let m = &claim.metadata;
    let regarding = ObjectRef {
        api_version: "v1".into(),
        kind: "PersistentVolumeClaim".into(),
        namespace: m.namespace.clone(),
        name: m.name.clone(),
        uid: m.uid.clone(),
        resource_version: m.resource_version.clone(),
        field_path: String::new(),
    };
    kubelet.recorder.event(regarding, kind, reason, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        // Claim's status, volume's capacity, access mode, bytes served here; what to do.
        let expand = |bytes, known, recovers| Plan::Expand { bytes, known, recovers };
        for (status, capacity, mode, served, want) in [
            (json!({"capacity": {"storage": "1"}}), "1", "ReadWriteOnce", None, Plan::Nothing),
            (json!({"capacity": {"storage": "1"}}), "2", "ReadWriteOnce", None, expand(2, false, false)),
            (json!({"capacity": {"storage": "2"}}), "2", "ReadWriteOnce", Some(1), expand(2, true, false)),
            (json!({"capacity": {"storage": "2"}}), "2", "ReadWriteOnce", Some(2), Plan::Nothing),
            (
                json!({"capacity": {"storage": "1"}, "allocatedResources": {"storage": "2"},
                    "allocatedResourceStatuses": {"storage": "NodeResizePending"}}),
                "2",
                "ReadWriteOnce",
                Some(1),
                expand(2, false, true),
            ),
            (
                json!({"capacity": {"storage": "1"}, "allocatedResources": {"storage": "2"},
                    "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"}}),
                "2",
                "ReadWriteOnce",
                Some(1),
                Plan::Nothing,
            ),
            (
                json!({"capacity": {"storage": "1"}, "allocatedResources": {"storage": "2"},
                    "allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}}),
                "2",
                "ReadWriteOnce",
                Some(1),
                Plan::Nothing,
            ),
            (
                json!({"capacity": {"storage": "2"}, "allocatedResources": {"storage": "2"}}),
                "2",
                "ReadWriteMany",
                Some(1),
                expand(2, true, true),
            ),
            (
                json!({"capacity": {"storage": "2"}, "allocatedResources": {"storage": "2"}}),
                "2",
                "ReadWriteOnce",
                Some(1),
                Plan::Nothing,
            ),
        ] {
            let bound: Bound = Bound {
                claim: serde_json::from_value(json!({"spec": {"accessModes": [mode]}, "status": status}))
                    .unwrap(),
                volume: serde_json::from_value(json!({"spec": {"capacity": {"storage": capacity}}})).unwrap(),
                read_only: false,
            };
            assert_eq!(plan(&bound, served), want, "{status} {capacity} {served:?}");
        }
    }

    #[test]
    fn conditions_of_others_stay() {
        let claim: Claim = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "Mine", "status": "True"}, {"type": "Resizing", "status": "True"},
        ]}}))
        .unwrap();
        assert_eq!(conditions(&claim, None), [json!({"type": "Mine", "status": "True"})]);
        let error = json!({"type": "NodeResizeError", "status": "True", "message": "no"});
        let all = conditions(&claim, Some(error.clone()));
        assert_eq!((all.len(), &all[2]), (3, &error));
    }
}
