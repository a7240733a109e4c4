//! Makes the ResourceClaims of pods from their templates, and takes them back when pods have ended: whoever does
//! not run any more has nothing reserved, what nobody has reserved is not allocated, and what was made for a pod
//! goes with it.
//!
//! Allocating and reserving is the scheduler's; only for pods that it did not place is it done here.

mod counts;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use yare_client::{Cached, Change, Informer, ObjectKey, PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS};

use crate::{
    api::Deletion,
    context::{Context, Error},
    harness::{Next, Reconcile},
    metrics,
    ownership::is_controlled_by,
    views::{Meta, nullable},
};

/// Keeps a claim that is allocated from going.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Which entry of its pod's `resourceClaims` a claim was made for.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Tells a claim that the scheduler made for extended resources.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";
/// What may stand before the random end of a name of 63 characters.
const MAX_BASE: usize = 57;
/// Before the name in the keys of claims; other keys are pods. No name has a colon.
const CLAIM: &str = "claim:";

struct ResourceClaims {
    context: Context,
    pods: Informer,
    claims: Informer,
    templates: Informer,
    /// Claims that were made and that the cache may not show yet, by pod (uid) and entry: a second try must find
    /// them.
    made: Mutex<HashMap<(PodUid, Box<str>), Cached>>,
}

type PodUid = Box<str>;

/// The claims of a pod.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct PodClaims {
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    resource_claims: Vec<Entry>,
}

/// An entry of a pod's `resourceClaims`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Entry {
    name: String,
    resource_claim_name: Option<String>,
    resource_claim_template_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(deserialize_with = "nullable")]
    resource_claim_statuses: Vec<EntryStatus>,
    extended_resource_claim_status: Option<ExtendedStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct EntryStatus {
    name: String,
    resource_claim_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ExtendedStatus {
    resource_claim_name: String,
}

/// Which claim an entry means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named<'a> {
    /// This one; `made`: it was made for the pod, and must belong to it.
    Claim { name: &'a str, made: bool },
    /// It was found that none is needed.
    NotNeeded,
    /// None was made yet.
    NotYet,
}

impl PodClaims {
    /// Whether there are none.
    pub(crate) fn has_none(&self) -> bool {
        self.spec.resource_claims.is_empty() && self.status.extended_resource_claim_status.is_none()
    }

    /// The entries of its spec.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.spec.resource_claims
    }

    /// Which claim an entry means.
    pub(crate) fn named<'a>(&'a self, entry: &'a Entry) -> Named<'a> {
        if let Some(name) = &entry.resource_claim_name {
            return Named::Claim { name, made: false };
        }
        match self.status.resource_claim_statuses.iter().find(|s| s.name == entry.name) {
            Some(EntryStatus { resource_claim_name: Some(name), .. }) => Named::Claim { name, made: true },
            Some(_) => Named::NotNeeded,
            None => Named::NotYet,
        }
    }

    /// Names of all claims that it has.
    fn names(&self) -> impl Iterator<Item = &str> {
        let named = self.spec.resource_claims.iter().filter_map(|entry| match self.named(entry) {
            Named::Claim { name, .. } => Some(name),
            _ => None,
        });
        let extended = self.status.extended_resource_claim_status.as_ref();
        named.chain(extended.map(|s| s.resource_claim_name.as_str()))
    }

    /// None of its containers runs, and none ever will again.
    fn is_done(&self, pod: &Cached) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
            || pod.deletion_timestamp().is_some() && pod.node_name().is_none()
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClaimView {
    metadata: Meta,
    status: ClaimStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    reserved_for: Vec<Consumer>,
}

/// Who has a claim.
#[derive(Clone, Deserialize, Serialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Consumer {
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    resource: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid.
    pub(crate) uid: String,
}

impl Consumer {
    /// Whether it is a pod. Others are not known here.
    pub(crate) fn is_pod(&self) -> bool {
        self.api_group.is_empty() && self.resource == "pods"
    }
}

impl ClaimStatus {
    fn is_reserved_for(&self, pod: &Cached) -> bool {
        self.reserved_for.iter().any(|c| c.uid == pod.uid())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Template {
    spec: TemplateSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TemplateSpec {
    #[serde(deserialize_with = "nullable")]
    metadata: TemplateMeta,
    spec: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TemplateMeta {
    #[serde(deserialize_with = "nullable")]
    labels: serde_json::Map<String, Value>,
    #[serde(deserialize_with = "nullable")]
    annotations: serde_json::Map<String, Value>,
}

/// The controller; keys are pods and, with [`CLAIM`] before their names, claims.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    let claims = context.informer(RESOURCE_CLAIMS);
    context.config.metrics.tells(&metrics::CLAIMS, move |counts| counts::tell(&claims, counts));
    Arc::new(ResourceClaims {
        pods: context.informer(PODS),
        claims: context.informer(RESOURCE_CLAIMS),
        templates: context.informer(RESOURCE_CLAIM_TEMPLATES),
        made: Mutex::default(),
        context: context.clone(),
    })
}

fn claim_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, &format!("{CLAIM}{name}"))
}

/// Pods that have claims; and the claims of those that have ended.
pub fn changed_pod(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(pod) = change.object() else { return };
    let Ok(view) = pod.view::<PodClaims>() else { return };
    if view.has_none() {
        return;
    }
    if change.new.is_none() || view.is_done(pod) {
        view.names().for_each(|name| add(claim_key(pod.namespace(), name)));
    }
    if change.new.is_some() && pod.deletion_timestamp().is_none() {
        add(pod.key().clone());
    }
}

/// Claims, the pods that they were made for, and pods that were placed before a claim was allocated.
pub fn changed_claim(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(claim) = change.object() else { return };
    if let Some(owner) = claim.controller().filter(|o| &*o.kind == "Pod" && &*o.api_version == "v1") {
        add(ObjectKey::new(claim.namespace(), &owner.name));
    }
    let Some(new) = &change.new else { return };
    add(claim_key(claim.namespace(), claim.name()));
    let allocated = |claim: &Cached| claim.view::<ClaimView>().is_ok_and(|c| c.status.allocation.is_some());
    if allocated(new) && !change.old.as_ref().is_some_and(allocated) {
        for pod in context.informer(PODS).in_namespace(claim.namespace()) {
            let uses = |view: PodClaims| view.names().any(|name| name == claim.name());
            if pod.node_name().is_some() && pod.view().is_ok_and(uses) {
                add(pod.key().clone());
            }
        }
    }
}

/// Pods that wait for a template.
pub fn changed_template(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(template) = &change.new else { return };
    for pod in context.informer(PODS).in_namespace(template.namespace()) {
        let wants = |entry: &Entry| entry.resource_claim_template_name.as_deref() == Some(template.name());
        if pod.view::<PodClaims>().is_ok_and(|p| p.spec.resource_claims.iter().any(wants)) {
            add(pod.key().clone());
        }
    }
}

/// What a name is generated from. Where it is too long, both names are shortened alike.
fn base_of(pod: &str, entry: &str) -> String {
    let base = format!("{pod}-{entry}-");
    if base.len() <= MAX_BASE {
        return base;
    }
    let part = |text: &str| text.chars().take(text.len() * MAX_BASE / base.len()).collect::<String>();
    format!("{}-{}", part(pod), part(entry))
}

fn not_owned(claim: &Cached, pod: &Cached) -> String {
    let (claim, pod) = (claim.key(), pod.key());
    format!("ResourceClaim {claim} was not created for Pod {pod} (Pod is not owner)")
}

#[async_trait]
impl Reconcile for ResourceClaims {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        match key.name.strip_prefix(CLAIM) {
            Some(name) => self.sync_claim(&ObjectKey::new(&key.namespace, name)).await?,
            None => self.sync_pod(key).await?,
        }
        Ok(Next::Done)
    }
}

impl ResourceClaims {
    async fn sync_pod(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(pod) = self.pods.get(key).filter(|p| p.deletion_timestamp().is_none()) else {
            return Ok(());
        };
        let view: PodClaims = pod.view()?;
        let seen = self.claims.version();
        self.made.lock().retain(|_, claim| claim.resource_version() > seen);
        // A pod that has ended needs no claims any more.
        if !view.is_done(&pod) {
            let mut made = Vec::new();
            for entry in &view.spec.resource_claims {
                match self.ensure(&pod, &view, entry).await {
                    Ok(None) => {}
                    Ok(Some(claim)) => {
                        made.push(json!({"name": entry.name, "resourceClaimName": claim.name()}));
                    }
                    Err(error) => {
                        let message = format!("PodResourceClaim {}: {error}", entry.name);
                        self.context.warning(&PODS, &pod, "FailedResourceClaimCreation", message);
                        return Err(error);
                    }
                }
            }
            if !made.is_empty() {
                let patch =
                    json!({"metadata": {"uid": pod.uid()}, "status": {"resourceClaimStatuses": made}});
                let strategic = crate::api::Patch::Strategic;
                self.context.api.patch(&PODS, key, "/status", strategic, &patch).await?;
            }
        }
        if pod.node_name().is_some() {
            self.reserve(&pod, &view).await?;
        }
        Ok(())
    }

    /// Makes the claim of an entry, if there is none; what the pod's status has to tell.
    async fn ensure(&self, pod: &Cached, view: &PodClaims, entry: &Entry) -> Result<Option<Cached>, Error> {
        match view.named(entry) {
            Named::NotNeeded => return Ok(None),
            Named::Claim { name, made } => {
                let there = self.claims.get(&ObjectKey::new(pod.namespace(), name));
                if there.is_some_and(|claim| !made || is_controlled_by(&claim, pod)) {
                    return Ok(None);
                }
            }
            Named::NotYet => {}
        }
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        // It may have been made, and then could not be written down.
        let place = (PodUid::from(pod.uid()), Box::<str>::from(&*entry.name));
        if let Some(claim) = self.made.lock().get(&place) {
            return Ok(Some(claim.clone()));
        }
        for claim in self.claims.by_owner(pod.uid()) {
            let ClaimView { metadata, .. } = claim.view()?;
            let is_for = metadata.annotations.get(POD_CLAIM) == Some(&entry.name);
            if is_for && is_controlled_by(&claim, pod) && claim.deletion_timestamp().is_none() {
                return Ok(Some(claim));
            }
        }
        let template_key = ObjectKey::new(pod.namespace(), template);
        let Some(found) = self.templates.get(&template_key) else {
            let missing = format!("resourceclaimtemplate.resource.k8s.io \"{template}\" not found");
            return Err(Error::Other(format!("resource claim template \"{template}\": {missing}")));
        };
        let Template { spec } = found.view()?;
        let mut annotations = spec.metadata.annotations;
        annotations.insert(POD_CLAIM.into(), entry.name.as_str().into());
        let claim = json!({
            "kind": "ResourceClaim",
            "apiVersion": RESOURCE_CLAIMS.api_version(),
            "metadata": {
                "generateName": base_of(pod.name(), &entry.name),
                "namespace": pod.namespace(),
                "labels": spec.metadata.labels,
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid(), "controller": true,
                }],
            },
            "spec": spec.spec,
        });
        let created = self.context.api.create(&RESOURCE_CLAIMS, pod.namespace(), &claim).await;
        let asks: counts::Spec = serde_json::from_value(claim["spec"].clone()).unwrap_or_default();
        let admin = if asks.has_admin_access() { "true" } else { "false" };
        let status = if created.is_ok() { "success" } else { "failure" };
        self.context.config.metrics.table.count(&metrics::CLAIM_CREATES, &[admin, status]);
        let created = match created {
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) => return Err(Error::Other(format!("create ResourceClaim : {error}"))),
            Ok(created) => created,
        };
        self.made.lock().insert(place, created.clone());
        Ok(Some(created))
    }

    /// Reserves allocated claims for a pod that has a node already.
    async fn reserve(&self, pod: &Cached, view: &PodClaims) -> Result<(), Error> {
        if view.is_done(pod) {
            return Ok(());
        }
        for entry in &view.spec.resource_claims {
            let Named::Claim { name, made } = view.named(entry) else { continue };
            let Some(claim) = self.claims.get(&ObjectKey::new(pod.namespace(), name)) else { return Ok(()) };
            if made && !is_controlled_by(&claim, pod) {
                return Err(Error::Other(not_owned(&claim, pod)));
            }
            let ClaimView { mut status, .. } = claim.view()?;
            if status.allocation.is_none() || status.is_reserved_for(pod) {
                continue;
            }
            status.reserved_for.push(Consumer {
                resource: "pods".into(),
                name: pod.name().into(),
                uid: pod.uid().into(),
                ..Consumer::default()
            });
            let reserved = json!(status.reserved_for);
            let edit = |body: &mut Value| body["status"]["reservedFor"] = reserved;
            self.context.api.put(&RESOURCE_CLAIMS, &claim, "/status", edit).await?;
        }
        Ok(())
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let ClaimView { metadata, status } = claim.view()?;
        let mut remaining = Vec::with_capacity(status.reserved_for.len());
        for consumer in &status.reserved_for {
            if self.still_has(key, consumer).await? {
                remaining.push(consumer.clone());
            }
        }
        let protected = metadata.finalizers.iter().any(|f| f == FINALIZER);
        let unused = remaining.is_empty();
        if remaining.len() < status.reserved_for.len() {
            // An update and no patch: if anything changed meanwhile, it must fail.
            let api = &self.context.api;
            let deallocate = unused && protected;
            let remaining = json!(remaining);
            let edit = |body: &mut Value| {
                let Some(status) = body["status"].as_object_mut() else { return };
                status.insert("reservedFor".into(), remaining);
                if deallocate {
                    status.remove("allocation");
                }
            };
            let written = api.put(&RESOURCE_CLAIMS, &claim, "/status", edit).await?;
            let ClaimView { metadata, status } = written.view()?;
            if status.allocation.is_none() && metadata.finalizers.iter().any(|f| f == FINALIZER) {
                api.update(&RESOURCE_CLAIMS, &written, unprotect).await?;
            }
        } else if protected && unused && claim.deletion_timestamp().is_some() {
            let api = &self.context.api;
            let mut last = claim.clone();
            if status.allocation.is_some() {
                let edit = |body: &mut Value| {
                    if let Some(status) = body["status"].as_object_mut() {
                        status.remove("allocation");
                    }
                };
                last = api.put(&RESOURCE_CLAIMS, &claim, "/status", edit).await?;
            }
            api.update(&RESOURCE_CLAIMS, &last, unprotect).await?;
        }
        if unused && claim.deletion_timestamp().is_none() {
            self.remove_made(&claim).await?;
        }
        Ok(())
    }

    /// Whether who has reserved a claim may still use it. Others than pods are not known here, and keep it.
    async fn still_has(&self, claim: &ObjectKey, consumer: &Consumer) -> Result<bool, Error> {
        if !consumer.is_pod() {
            return Ok(true);
        }
        let key = ObjectKey::new(&claim.namespace, &consumer.name);
        let pod = match self.pods.get(&key) {
            Some(pod) => pod,
            // The cache may be behind: to be sure, the server is asked.
            None => match self.context.api.get(&PODS, &key).await? {
                Some(pod) => return Ok(pod.uid() == consumer.uid),
                None => return Ok(false),
            },
        };
        Ok(pod.uid() == consumer.uid && !pod.view::<PodClaims>()?.is_done(&pod))
    }

    /// A claim that was made for a pod goes when the pod has ended, and does not wait for the pod itself to go.
    async fn remove_made(&self, claim: &Cached) -> Result<(), Error> {
        let owner = claim.controller().filter(|o| &*o.kind == "Pod" && &*o.api_version == "v1");
        let Some(owner) = owner else { return Ok(()) };
        // A pod that the cache does not have may only not be there yet. If it is gone, so is the claim soon.
        let Some(pod) = self.pods.get(&ObjectKey::new(claim.namespace(), &owner.name)) else { return Ok(()) };
        if pod.uid() != &*owner.uid || pod.view::<PodClaims>()?.is_done(&pod) {
            self.context.api.delete(&RESOURCE_CLAIMS, claim.key(), Deletion::of(claim)).await?;
        }
        Ok(())
    }
}

fn unprotect(body: &mut Value) {
    if let Some(finalizers) = body["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| f != FINALIZER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_shortened_alike() {
        let long = "a".repeat(100);
        assert_eq!(base_of("web", "gpu"), "web-gpu-");
        assert_eq!(base_of(&long, "gpu"), format!("{}-g", "a".repeat(100 * 57 / 105)));
        let both = base_of(&long, &long);
        assert_eq!(both, format!("{0}-{0}", "a".repeat(100 * 57 / 202)));
        assert!(both.len() <= MAX_BASE);
    }

    #[test]
    fn entries_name_claims() {
        let pod: PodClaims = serde_json::from_value(json!({
            "spec": {"resourceClaims": [
                {"name": "own", "resourceClaimName": "shared"},
                {"name": "made", "resourceClaimTemplateName": "t"},
                {"name": "none", "resourceClaimTemplateName": "t"},
                {"name": "new", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "made", "resourceClaimName": "web-made-x"}, {"name": "none"}],
                       "extendedResourceClaimStatus": {"resourceClaimName": "web-extended"}},
        }))
        .unwrap();
        let named: Vec<Named<'_>> = pod.spec.resource_claims.iter().map(|e| pod.named(e)).collect();
        let expected = [
            Named::Claim { name: "shared", made: false },
            Named::Claim { name: "web-made-x", made: true },
            Named::NotNeeded,
            Named::NotYet,
        ];
        assert_eq!(named, expected);
        assert_eq!(pod.names().collect::<Vec<_>>(), ["shared", "web-made-x", "web-extended"]);
    }
}
