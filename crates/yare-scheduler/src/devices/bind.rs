//! Writes allocations and reservations into claims, and waits until devices are attached (upstream's PreBind).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::Notify;
use yare_client::{Cached, Informer, ObjectKey, RESOURCE_CLAIMS};

use super::claim::{Claim, Readiness};
use crate::pod::PodInfo;

/// Keeps a claim that is allocated from going.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How long devices may take to be attached.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// How often a claim is read again because somebody else wrote it.
const TRIES: usize = 5;

/// A pod whose claims are being written.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its node.
    pub node: String,
    /// Its claims, each with `status.allocation` where that is new.
    pub claims: Vec<(Arc<Claim>, Option<Value>)>,
    /// Allocations are dated, since their devices may have to be attached.
    pub dated: bool,
    /// To be notified when one of the claims changed.
    pub told: Arc<Notify>,
}

impl Work {
    /// Whether devices may have to be attached, which takes time.
    pub fn may_wait(&self) -> bool {
        self.claims.iter().any(|(claim, new)| {
            claim.allocation.as_ref().is_some_and(|a| a.must_be_attached())
                || new.as_ref().is_some_and(|allocation| {
                    let results = allocation["devices"]["results"].as_array();
                    results.into_iter().flatten().any(|r| r.get("bindingConditions").is_some())
                })
        })
    }

    /// Whether the pod uses the claim.
    pub fn uses(&self, key: &ObjectKey) -> bool {
        self.claims.iter().any(|(claim, _)| claim.object.key() == key)
    }
}

/// Why claims are not ready, as upstream words it.
pub type Failure = String;

fn claims_of(kube: &kube::Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(kube.clone(), namespace, &RESOURCE_CLAIMS.api_resource())
}

fn parameters() -> PatchParams {
    PatchParams { field_manager: Some("kube-scheduler".to_owned()), ..PatchParams::default() }
}

fn text(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

/// Why one write failed.
enum Refused {
    /// Somebody else wrote meanwhile.
    Conflict(String),
    /// It will not do.
    Final(String),
}

/// Allocates and reserves all claims for the pod. `written`: which have been, and their versions, also where it
/// fails in the end.
pub async fn reserve(
    kube: &kube::Client,
    pod: &PodInfo,
    work: &Work,
    written: &mut Vec<(ObjectKey, u64)>,
) -> Result<(), Failure> {
    for (claim, allocation) in &work.claims {
        if claim.is_reserved_for(pod.object.uid()) {
            continue;
        }
        let version = one(kube, pod, claim, allocation.as_ref(), work.dated).await?;
        written.push((claim.object.key().clone(), version));
    }
    Ok(())
}

/// The version of the claim that is reserved.
async fn one(
    kube: &kube::Client,
    pod: &PodInfo,
    claim: &Claim,
    allocation: Option<&Value>,
    dated: bool,
) -> Result<u64, Failure> {
    let api = claims_of(kube, claim.object.namespace());
    let key = claim.object.key();
    let mut object: Value = serde_json::from_slice(claim.object.bytes()).map_err(|e| e.to_string())?;
    let mut last = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
            let fresh = api.get(claim.object.name()).await;
            let fresh = fresh.map_err(|e| format!("get updated claim {key} after conflict: {}", text(e)))?;
            object = serde_json::to_value(fresh).map_err(|e| e.to_string())?;
        }
        match write(&api, pod, key, &object, allocation, dated).await {
            Ok(version) => return Ok(version),
            Err(Refused::Conflict(why)) => last = why,
            Err(Refused::Final(why)) => return Err(why),
        }
    }
    Err(last)
}

async fn write(
    api: &Api<DynamicObject>,
    pod: &PodInfo,
    key: &ObjectKey,
    object: &Value,
    allocation: Option<&Value>,
    dated: bool,
) -> Result<u64, Refused> {
    let meta = &object["metadata"];
    if meta["deletionTimestamp"].is_string() {
        return Err(Refused::Final(format!("claim {key} got deleted in the meantime")));
    }
    let refused = |what: &str, error: kube::Error| {
        let conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
        let why = format!("{what} claim {key}: {}", text(error));
        if conflict { Refused::Conflict(why) } else { Refused::Final(why) }
    };
    let mut version = meta["resourceVersion"].clone();
    let there = &object["status"]["allocation"];
    let mut status = json!({});
    if let Some(allocation) = allocation {
        if there.is_object() {
            return Err(Refused::Final(format!("claim {key} got allocated elsewhere in the meantime")));
        }
        let mut finalizers = meta["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
            let body = json!({"metadata": {
                "resourceVersion": version, "uid": meta["uid"], "finalizers": finalizers}});
            let new = api.patch(&key.name, &parameters(), &Patch::Merge(&body)).await;
            let new = new.map_err(|e| refused("add finalizer to", e))?;
            version = new.metadata.resource_version.into();
        }
        status["allocation"] = allocation.clone();
    } else if dated && !there.is_object() {
        return Err(Refused::Final(format!("claim {key} got deallocated elsewhere in the meantime")));
    }
    if dated && there["allocationTimestamp"].is_null() {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        status["allocation"]["allocationTimestamp"] = now.into();
    }
    let mut reserved = object["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    if !reserved.iter().any(|r| r["uid"] == *pod.object.uid()) {
        reserved.push(json!({"resource": "pods", "name": pod.object.name(), "uid": pod.object.uid()}));
    }
    status["reservedFor"] = reserved.into();
    let body = json!({"metadata": {"resourceVersion": version, "uid": meta["uid"]}, "status": status});
    let what = if allocation.is_some() { "add allocation and reservation to" } else { "add reservation to" };
    let new = api.patch_status(&key.name, &parameters(), &Patch::Merge(&body)).await;
    let new = new.map_err(|e| refused(what, e))?;
    Ok(new.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or_default())
}

/// Waits until the devices of all claims are attached.
pub async fn attached(claims: &Informer, work: &Work) -> Result<(), Failure> {
    loop {
        let mut until: Option<Timestamp> = None;
        let mut ready = true;
        for (claim, _) in &work.claims {
            let key = claim.object.key();
            let missing = || format!("could not find claim \"{key}\"");
            let now = claims.get(key).ok_or_else(missing)?;
            let now = Claim::new(now).map_err(|e| e.to_string())?;
            // The cache may not show our own write yet.
            let Some(allocation) = &now.allocation else {
                ready = false;
                continue;
            };
            match allocation.readiness() {
                Readiness::Ready => {}
                Readiness::Failed(reason, message) => {
                    return Err(format!(
                        "device binding failed: claim={}, reason={reason}, message={message:?}",
                        key.name
                    ));
                }
                Readiness::Waiting => {
                    ready = false;
                    let end = deadline(allocation.at);
                    if end <= Timestamp::now() {
                        return Err(format!("device binding timeout: claim={}", key.name));
                    }
                    until = Some(until.map_or(end, |u| u.min(end)));
                }
            }
        }
        if ready {
            return Ok(());
        }
        let left = until
            .map_or(TIMEOUT, |u| Duration::try_from(u.duration_since(Timestamp::now())).unwrap_or_default());
        // Woken by a change, or when the time is over.
        let _ = tokio::time::timeout(left, work.told.notified()).await;
    }
}

/// When the devices of an allocation have to be attached.
pub fn deadline(at: Option<Timestamp>) -> Timestamp {
    at.unwrap_or_else(Timestamp::now).saturating_add(TIMEOUT).unwrap_or(Timestamp::MAX)
}

/// Takes the pod's reservations back.
pub async fn unreserve<'c>(
    kube: &kube::Client,
    pod: &PodInfo,
    claims: impl Iterator<Item = (&'c ObjectKey, &'c Cached)>,
) {
    for (key, claim) in claims {
        // A strategic merge takes one entry away, whatever the claim has become.
        let body = json!({"metadata": {"uid": claim.uid()},
            "status": {"reservedFor": [{"$patch": "delete", "uid": pod.object.uid()}]}});
        let api = claims_of(kube, &key.namespace);
        if let Err(error) = api.patch_status(&key.name, &parameters(), &Patch::Strategic(&body)).await {
            tracing::debug!(%error, claim = %key, "reservation not taken back");
        }
    }
}

/// Deallocates a claim, so that other devices can be tried for it.
pub async fn deallocate(kube: kube::Client, claim: Arc<Claim>) {
    let object = &claim.object;
    let body = json!({
        "metadata": {"uid": object.uid(), "resourceVersion": object.resource_version().to_string()},
        "status": {"reservedFor": null, "allocation": null, "devices": null},
    });
    let api = claims_of(&kube, object.namespace());
    if let Err(error) = api.patch_status(object.name(), &parameters(), &Patch::Merge(&body)).await {
        tracing::debug!(%error, claim = %object.key(), "claim not deallocated");
    }
}
