//! Writes allocations and reservations into claims, and waits until devices are attached (upstream's PreBind).

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::Notify;
use yare_client::{Cached, Informer, ObjectKey, RESOURCE_CLAIMS};

use super::claim::{Claim, Readiness};
use super::extended::{ANNOTATION, Mapping, Wish};
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
    /// The claim to be made for its extended resources.
    pub extended: Option<ToMake>,
    /// Allocations are dated, since their devices may have to be attached.
    pub dated: bool,
    /// To be notified when one of the claims changed.
    pub told: Arc<Notify>,
}

/// A claim for extended resources that does not exist yet.
#[derive(Clone, Debug)]
pub struct ToMake {
    /// The pod's uid.
    pub pod: Box<str>,
    /// What it asks for, and for whom.
    pub wish: Arc<Wish>,
    /// `status.allocation`.
    pub allocation: Value,
}

/// What was written, also where it fails in the end.
#[derive(Debug, Default)]
pub struct Written {
    /// Claims, and their versions.
    pub claims: Vec<(ObjectKey, u64)>,
    /// The claim that was made for extended resources.
    pub made: Option<ObjectKey>,
    /// Whether making it succeeded, where it was tried.
    pub creation: Option<bool>,
    /// How devices came to be attached, where that was waited for.
    pub attachment: Option<Attachment>,
}

/// How a wait for devices ended.
#[derive(Debug)]
pub struct Attachment {
    /// `success`, `failure`, `timeout` or `error`.
    pub status: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Drivers of the devices that the pod's claims have, and whether the device had to be attached.
    pub drivers: Vec<(String, bool)>,
}

impl Work {
    /// Whether devices may have to be attached, which takes time.
    pub fn may_wait(&self) -> bool {
        let waits = |allocation: &Value| {
            let results = allocation["devices"]["results"].as_array();
            results.into_iter().flatten().any(|r| r.get("bindingConditions").is_some())
        };
        self.extended.as_ref().is_some_and(|to_make| waits(&to_make.allocation))
            || self.claims.iter().any(|(claim, new)| {
                claim.allocation.as_ref().is_some_and(|a| a.must_be_attached())
                    || new.as_ref().is_some_and(waits)
            })
    }

    /// Whether a claim is made for this pod's extended resources.
    pub fn makes_for(&self, pod_uid: &str) -> bool {
        self.extended.as_ref().is_some_and(|to_make| *to_make.pod == *pod_uid)
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

/// Allocates and reserves all claims for the pod, and makes the one for its extended resources.
pub async fn reserve(
    kube: &kube::Client,
    pod: &PodInfo,
    work: &Work,
    written: &mut Written,
) -> Result<(), Failure> {
    for (claim, allocation) in &work.claims {
        if claim.is_reserved_for(pod.object.uid()) {
            continue;
        }
        let object = serde_json::from_slice(claim.object.bytes()).map_err(|e| e.to_string())?;
        let version = one(kube, pod, object, claim.object.key(), allocation.as_ref(), work.dated).await?;
        written.claims.push((claim.object.key().clone(), version));
    }
    match &work.extended {
        Some(to_make) => make(kube, pod, to_make, work.dated, written).await,
        None => Ok(()),
    }
}

/// Makes the claim for a pod's extended resources, and tells the pod's node which request serves whom.
async fn make(
    kube: &kube::Client,
    pod: &PodInfo,
    to_make: &ToMake,
    dated: bool,
    written: &mut Written,
) -> Result<(), Failure> {
    let (namespace, name, uid) = (pod.object.namespace(), pod.object.name(), pod.object.uid());
    let demand = &to_make.wish.demand;
    let body = json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "namespace": namespace,
            "generateName": format!("{name}-extended-resources-"),
            "annotations": {ANNOTATION: "true"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": true}],
        },
        "spec": {"devices": {"requests": demand.to_json()}},
    });
    let body: DynamicObject = serde_json::from_value(body).map_err(|e| e.to_string())?;
    let created = claims_of(kube, namespace).create(&PostParams::default(), &body).await;
    written.creation = Some(created.is_ok());
    let created = created.map_err(|e| {
        format!("create claim for extended resources {namespace}/<extended-resources>: {}", text(e))
    })?;
    let claim = created.metadata.name.clone().unwrap_or_default();
    let key = ObjectKey::new(namespace, &claim);
    written.made = Some(key.clone());
    let object = serde_json::to_value(created).map_err(|e| e.to_string())?;
    one(kube, pod, object, &key, Some(&to_make.allocation), dated).await?;
    let mapping = |m: &Mapping| json!({"containerName": m.container, "resourceName": m.resource, "requestName": m.request});
    let mappings: Vec<Value> = demand.mappings.iter().map(mapping).collect();
    let status = json!({"metadata": {"uid": uid}, "status": {"extendedResourceClaimStatus": {
        "requestMappings": mappings, "resourceClaimName": claim}}});
    let pods: Api<Pod> = Api::namespaced(kube.clone(), namespace);
    let told = pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await;
    told.map(drop)
        .map_err(|e| format!("update pod {namespace}/{name} ExtendedResourceClaimStatus: {}", text(e)))
}

/// Takes away a claim that was made for a pod's extended resources.
pub async fn unmake(kube: kube::Client, key: ObjectKey) {
    let api = claims_of(&kube, &key.namespace);
    for attempt in 0..TRIES {
        tokio::time::sleep(Duration::from_millis(if attempt == 0 { 0 } else { 10 << attempt })).await;
        let gone = async {
            let now = api.get(&key.name).await?;
            let mut finalizers = now.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|f| f != FINALIZER);
            let body = json!({"metadata": {"uid": now.metadata.uid, "finalizers": finalizers,
                "resourceVersion": now.metadata.resource_version}});
            api.patch(&key.name, &parameters(), &Patch::Merge(&body)).await?;
            let preconditions = Preconditions { uid: now.metadata.uid, resource_version: None };
            let only_it = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            api.delete(&key.name, &only_it).await
        };
        match gone.await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => return,
            Err(error) => tracing::debug!(%error, claim = %key, "claim for extended resources not deleted"),
        }
    }
}

/// The version of the claim that is reserved.
async fn one(
    kube: &kube::Client,
    pod: &PodInfo,
    mut object: Value,
    key: &ObjectKey,
    allocation: Option<&Value>,
    dated: bool,
) -> Result<u64, Failure> {
    let api = claims_of(kube, &key.namespace);
    let mut last = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
            let fresh = api.get(&key.name).await;
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

/// Waits until the devices of all claims are attached, and notes how that ended.
pub async fn attached(claims: &Informer, work: &Work, written: &mut Written) -> Result<(), Failure> {
    let began = std::time::Instant::now();
    let outcome = wait(claims, work, written.made.as_ref()).await;
    let keys = work.claims.iter().map(|(claim, _)| claim.object.key()).chain(&written.made);
    let drivers = keys.filter_map(|key| claims.get(key)).flat_map(|claim| drivers(&claim)).collect();
    let status = outcome.as_ref().map_or_else(|(status, _)| *status, |()| "success");
    written.attachment = Some(Attachment { status, took: began.elapsed(), drivers });
    outcome.map_err(|(_, why)| why)
}

fn drivers(claim: &Cached) -> Vec<(String, bool)> {
    let claim: Value = claim.view().unwrap_or_default();
    let results = claim["status"]["allocation"]["devices"]["results"].as_array();
    let driver = |result: &Value| {
        let conditions = result["bindingConditions"].as_array();
        (result["driver"].as_str().unwrap_or_default().to_owned(), conditions.is_some_and(|c| !c.is_empty()))
    };
    results.into_iter().flatten().map(driver).collect()
}

/// The error comes with its status.
async fn wait(
    claims: &Informer,
    work: &Work,
    made: Option<&ObjectKey>,
) -> Result<(), (&'static str, Failure)> {
    loop {
        let mut until: Option<Timestamp> = None;
        let mut ready = true;
        for key in work.claims.iter().map(|(claim, _)| claim.object.key()).chain(made) {
            let now = match claims.get(key) {
                Some(now) => now,
                // The cache has yet to hear of it.
                None if made == Some(key) => {
                    ready = false;
                    continue;
                }
                None => return Err(("error", format!("could not find claim \"{key}\""))),
            };
            let now = Claim::new(now).map_err(|e| ("error", e.to_string()))?;
            // The cache may not show our own write yet.
            let Some(allocation) = &now.allocation else {
                ready = false;
                continue;
            };
            match allocation.readiness() {
                Readiness::Ready => {}
                Readiness::Failed(reason, message) => {
                    let why = format!(
                        "device binding failed: claim={}, reason={reason}, message={message:?}",
                        key.name
                    );
                    return Err(("failure", why));
                }
                Readiness::Waiting => {
                    ready = false;
                    let end = deadline(allocation.at);
                    if end <= Timestamp::now() {
                        return Err(("timeout", format!("device binding timeout: claim={}", key.name)));
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
