//! NodeRestriction: a kubelet changes only its own node, its own pods and what belongs to them, and labels
//! itself only with what nodes may say about themselves.

use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use yare_auth::Action;
use yare_kinds::{
    strategy::certificates::request_subject,
    view::{View, ViewMut, same},
};
use yare_schema::local_path;

use super::{Attributes, Operation, references};
use crate::{
    auth,
    status::{ApiError, ApiResult, GroupResource},
};

const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASES: &str = "kube-node-lease";
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' own that a kubelet may set on its node.
const ALLOWED_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const ALLOWED_SUFFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Signers of kubelets' certificates.
const SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

/// One request of a kubelet.
struct Kubelet<'a> {
    attributes: &'a Attributes<'a>,
    node: &'a str,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
}

/// Refuses what a kubelet must not do. Other callers pass.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(node) = attributes.call.user.node_name() else { return Ok(()) };
    let stored = &attributes.served.stored;
    let kubelet = Kubelet { attributes, node, object, old };
    match (&*stored.group, &*stored.plural) {
        ("", "pods") => kubelet.pods(),
        ("", "nodes") => kubelet.nodes(),
        ("", "persistentvolumeclaims") => kubelet.claims(),
        ("", "persistentvolumes") => kubelet.volumes(),
        ("", "serviceaccounts") => kubelet.tokens(),
        ("coordination.k8s.io", "leases") => kubelet.leases(),
        ("storage.k8s.io", "csinodes") => kubelet.own_name("CSINode"),
        ("resource.k8s.io", "resourceslices") => kubelet.slices(),
        ("certificates.k8s.io", "certificatesigningrequests") => kubelet.requests(),
        ("certificates.k8s.io", "podcertificaterequests") => kubelet.pod_certificates(),
        _ => Ok(()),
    }
}

/// Asks whether the kubelet may have a token for an audience that no volume of its pod names (KEP-4935).
pub fn ask<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    _old: Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>> {
    let node = attributes.call.user.node_name()?;
    if !attributes.is("", "serviceaccounts") || attributes.subresource != "token" {
        return None;
    }
    let request = object?;
    let audience = audiences(attributes, request).first().copied().unwrap_or_default();
    let pod = attributes
        .call
        .core
        .read("pods", &format!("{}/{}", attributes.namespace, request.str_at("spec.boundObjectRef.name")))?;
    let found = names_audience(attributes, &pod, audience);
    if matches!(found, Ok(true)) {
        return None;
    }
    Some(
        async move {
            let call = attributes.call;
            if let Err(why) = found {
                return Err(attributes.forbidden(format!("error validating audience {audience:?}: {why}")));
            }
            let action = Action {
                verb: "request-serviceaccounts-token-audience",
                resource: audience,
                namespace: attributes.namespace,
                name: attributes.name,
                ..Action::default()
            };
            if auth::decide(&call.core, &call.user, &action).await.is_ok() {
                return Ok(());
            }
            Err(attributes.forbidden(format!(
                "audience {audience:?} not found in pod spec volume, system:node:{node} is not authorized to request tokens for this audience"
            )))
        }
        .boxed(),
    )
}

/// The audiences that a request for a token asks for. One that asked for none has got the server's own by now.
fn audiences<'a>(attributes: &Attributes<'_>, request: &'a Value) -> Vec<&'a str> {
    let asked = request.strings("spec.audiences");
    if attributes.call.core.config.auth.audiences() == asked { Vec::new() } else { asked }
}

/// Whether a volume of the pod, or the CSI driver behind one, takes tokens for the audience.
fn names_audience(attributes: &Attributes<'_>, pod: &Value, audience: &str) -> Result<bool, String> {
    let core = &attributes.call.core;
    let mut errors = Vec::new();
    let behind_claim = |claim: &str| -> Result<String, String> {
        let claim = core
            .read("persistentvolumeclaims", &format!("{}/{claim}", attributes.namespace))
            .ok_or_else(|| format!("persistentvolumeclaim {claim:?} not found"))?;
        let name = claim.str_at("spec.volumeName").to_owned();
        let volume = core
            .read("persistentvolumes", &name)
            .ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
        Ok(volume.str_at("spec.csi.driver").to_owned())
    };
    for volume in pod.items("spec.volumes") {
        let tokens = volume.items("projected.sources").iter().filter(|s| s.has("serviceAccountToken"));
        if tokens.into_iter().any(|s| s.str_at("serviceAccountToken.audience") == audience) {
            return Ok(true);
        }
        let driver = if volume.has("ephemeral.volumeClaimTemplate") {
            behind_claim(&format!("{}-{}", pod.str_at("metadata.name"), volume.str_at("name")))
        } else if volume.has("persistentVolumeClaim") {
            behind_claim(volume.str_at("persistentVolumeClaim.claimName"))
        } else {
            Ok(volume.str_at("csi.driver").to_owned())
        };
        match driver {
            Ok(driver) if driver.is_empty() => {}
            Ok(driver) => match core.read("storage.k8s.io/csidrivers", &driver) {
                Some(driver) => {
                    if driver.items("spec.tokenRequests").iter().any(|t| t.str_at("audience") == audience) {
                        return Ok(true);
                    }
                }
                None => errors.push(format!("csidriver.storage.k8s.io {driver:?} not found")),
            },
            Err(why) => errors.push(why),
        }
    }
    if errors.is_empty() { Ok(false) } else { Err(errors.join(", ")) }
}

impl Kubelet<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> ApiResult<()> {
        Err(self.attributes.forbidden(why))
    }

    /// The name that the request names, or that its body does.
    fn name(&self) -> &str {
        match (self.attributes.name, self.object) {
            ("", Some(object)) => object.str_at("metadata.name"),
            (name, _) => name,
        }
    }

    fn pods(&self) -> ApiResult<()> {
        let node = self.node;
        match (self.attributes.operation, self.attributes.subresource) {
            (Operation::Create, "") => self.mirror_pod(),
            (Operation::Delete, "") => {
                if self.old.is_some_and(|p| p.str_at("spec.nodeName") != node) {
                    return self.refuse(format!(
                        "node {node:?} can only delete pods with spec.nodeName set to itself"
                    ));
                }
                Ok(())
            }
            (operation, "") => self.refuse(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation.name()
            )),
            (Operation::Update, "status") => self.pod_status(),
            (Operation::Create, "eviction") => {
                let attributes = self.attributes;
                let name = self.name();
                let Some(pod) =
                    attributes.call.core.read("pods", &format!("{}/{name}", attributes.namespace))
                else {
                    return Err(ApiError::not_found(GroupResource { group: "", resource: "pods" }, name));
                };
                if pod.str_at("spec.nodeName") != node {
                    return self
                        .refuse(format!("node {node} can only evict pods with spec.nodeName set to itself"));
                }
                Ok(())
            }
            (operation, "status" | "eviction") => {
                self.refuse(format!("unexpected operation {:?}", operation.name()))
            }
            (_, other) => self.refuse(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
        }
    }

    fn mirror_pod(&self) -> ApiResult<()> {
        let node = self.node;
        let Some(pod) = self.object else { return Ok(()) };
        if pod.at("metadata.annotations").get(MIRROR).is_none() {
            return self.refuse(format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            ));
        }
        if pod.str_at("spec.nodeName") != node {
            return self
                .refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        let owner = match pod.items("metadata.ownerReferences") {
            [] => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            [owner] => owner,
            _ => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if (owner.str_at("apiVersion"), owner.str_at("kind"), owner.str_at("name")) != ("v1", "Node", node) {
            return self
                .refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        if !owner.bool_at("controller") {
            return self.refuse(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner.bool_at("blockOwnerDeletion") {
            return self
                .refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        let Some(own) = self.attributes.call.core.read("nodes", node) else {
            return Err(ApiError::not_found(GroupResource { group: "", resource: "nodes" }, node));
        };
        let (given, have) = (owner.str_at("uid"), own.str_at("metadata.uid"));
        if given != have {
            return self.refuse(format!("node {node} UID mismatch: expected {given} got {have}"));
        }
        match references::api_objects(pod) {
            Ok(None) => Ok(()),
            Ok(Some(resource)) => {
                self.refuse(format!("node {node:?} can not create pods that reference {resource}"))
            }
            Err(why) => self.refuse(format!("error checking mirror pod for API references: {why}")),
        }
    }

    fn pod_status(&self) -> ApiResult<()> {
        let node = self.node;
        let (Some(new), Some(old)) = (self.object, self.old) else { return Ok(()) };
        if old.str_at("spec.nodeName") != node {
            return self.refuse(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        for (field, what) in [
            ("metadata.labels", "labels through pod status"),
            ("status.resourceClaimStatuses", "resource claim statues"),
            ("status.extendedResourceClaimStatus", "extended resource claim status"),
        ] {
            if !same(new.at(field), old.at(field)) {
                return self.refuse(format!("node {node:?} cannot update {what}"));
            }
        }
        Ok(())
    }

    fn nodes(&self) -> ApiResult<()> {
        let (node, name) = (self.node, self.name());
        if name != node {
            return self.refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let Some(new) = self.object.filter(|_| self.attributes.operation != Operation::Delete) else {
            return Ok(());
        };
        if self.attributes.operation == Operation::Create {
            if new.has("spec.configSource") {
                return self.refuse(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let forbidden = forbidden_labels(new, &Value::Null);
            if !forbidden.is_empty() {
                return self.refuse(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    forbidden.join(", ")
                ));
            }
            return Ok(());
        }
        let Some(old) = self.old else { return Ok(()) };
        if new.has("spec.configSource") && !same(new.at("spec.configSource"), old.at("spec.configSource")) {
            return self.refuse(format!(
                "node {node:?} is not allowed to update configSource to a new non-nil configSource"
            ));
        }
        for (field, what) in [("spec.taints", "taints"), ("metadata.ownerReferences", "ownerReferences")] {
            if !same(new.at(field), old.at(field)) {
                return self.refuse(format!("node {node:?} is not allowed to modify {what}"));
            }
        }
        let forbidden = forbidden_labels(new, old);
        if !forbidden.is_empty() {
            return self.refuse(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
        }
        Ok(())
    }

    fn claims(&self) -> ApiResult<()> {
        if self.attributes.subresource != "status" {
            return self.refuse("may only update PVC status");
        }
        let (Some(new), Some(old)) = (self.object, self.old) else { return Ok(()) };
        let mut new = new.clone();
        for field in [
            "metadata.managedFields",
            "metadata.resourceVersion",
            "status.capacity",
            "status.conditions",
            "status.allocatedResourceStatuses",
            "status.allocatedResources",
        ] {
            new.copy_from(old, field);
        }
        if same(&new, old) {
            return Ok(());
        }
        self.refuse(format!(
            "node {:?} is not allowed to update fields other than status.quantity and status.conditions",
            self.node
        ))
    }

    /// Of a volume whose files it has, a node says that they are there, or that they are gone.
    fn volumes(&self) -> ApiResult<()> {
        let node = self.node;
        let (Some(new), Some(old)) = (self.object, self.old) else {
            return self.refuse(format!("node {node:?} may only update volumes"));
        };
        let (label, by) = (old.at("metadata.labels"), old.at("metadata.annotations"));
        if label.get(local_path::NODE_LABEL).and_then(Value::as_str) != Some(node)
            || by.get(local_path::PROVISIONED_BY).and_then(Value::as_str) != Some(local_path::DRIVER)
        {
            return self.refuse(format!("node {node:?} may only update volumes of its own directories"));
        }
        let mut allowed = old.clone();
        for field in ["metadata.managedFields", "metadata.resourceVersion"] {
            allowed.copy_from(new, field);
        }
        if new.at("metadata.annotations").get(local_path::PENDING).is_none()
            && let Some(annotations) = allowed["metadata"]["annotations"].as_object_mut()
        {
            annotations.remove(local_path::PENDING);
        }
        let has = |object: &Value| object.strings("metadata.finalizers").contains(&local_path::FINALIZER);
        if old.has("metadata.deletionTimestamp") && !has(new) {
            let mut rest = old.items("metadata.finalizers").to_vec();
            rest.retain(|f| f != local_path::FINALIZER);
            allowed.set("metadata.finalizers", rest);
        }
        if same(new, &allowed) {
            return Ok(());
        }
        self.refuse(format!("node {node:?} may only say that the files of a volume are there, or gone"))
    }

    fn tokens(&self) -> ApiResult<()> {
        let attributes = self.attributes;
        if attributes.operation != Operation::Create || attributes.subresource != "token" {
            return Ok(());
        }
        let Some(request) = self.object else { return Ok(()) };
        let bound = request.at("spec.boundObjectRef");
        let (name, uid) = (bound.str_at("name"), bound.str_at("uid"));
        if (bound.str_at("apiVersion"), bound.str_at("kind")) != ("v1", "Pod") || name.is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        if uid.is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let Some(pod) = attributes.call.core.read("pods", &format!("{}/{name}", attributes.namespace)) else {
            return Err(ApiError::not_found(GroupResource { group: "", resource: "pods" }, name));
        };
        if uid != pod.str_at("metadata.uid") {
            return self.refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if pod.str_at("spec.nodeName") != self.node {
            return self.refuse("node requested token bound to a pod scheduled on a different node");
        }
        if audiences(self.attributes, request).len() > 1 {
            return self.refuse("node may only request 0 or 1 audiences");
        }
        Ok(())
    }

    fn leases(&self) -> ApiResult<()> {
        if self.attributes.namespace != LEASES {
            return self.refuse(format!("can only access leases in the {LEASES:?} system namespace"));
        }
        self.own_name("node lease")
    }

    fn own_name(&self, what: &str) -> ApiResult<()> {
        if self.name() == self.node {
            return Ok(());
        }
        self.refuse(format!("can only access {what} with the same name as the requesting node"))
    }

    fn slices(&self) -> ApiResult<()> {
        let (slice, verb) = match self.attributes.operation {
            Operation::Create => (self.object, "create"),
            Operation::Delete => (self.old, "delete"),
            _ => return Ok(()),
        };
        if slice.is_some_and(|s| s.str_opt("spec.nodeName") == Some(self.node)) {
            return Ok(());
        }
        self.refuse(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
    }

    fn requests(&self) -> ApiResult<()> {
        let Some(request) = self.object.filter(|_| self.attributes.operation == Operation::Create) else {
            return Ok(());
        };
        if !SIGNERS.contains(&request.str_at("spec.signerName")) {
            return Ok(());
        }
        let name = format!("system:node:{}", self.node);
        match request_subject(request.str_at("spec.request")) {
            Ok(subject) if subject.common_name == name => Ok(()),
            Ok(_) => self.refuse(format!("can only create a node CSR with CN={name}")),
            Err(why) => self.refuse(format!("unable to parse csr: {why}")),
        }
    }

    /// A kubelet asks for certificates of the pods that it runs, in their names.
    fn pod_certificates(&self) -> ApiResult<()> {
        let attributes = self.attributes;
        if attributes.operation != Operation::Create {
            return self.refuse(format!("unexpected operation {}", attributes.operation.name()));
        }
        if !attributes.subresource.is_empty() {
            return self.refuse(format!("unexpected subresource {}", attributes.subresource));
        }
        let Some(request) = self.object else { return Ok(()) };
        let core = &attributes.call.core;
        let spec = |field: &str| request.at("spec").str_at(field);
        if spec("nodeName") != self.node {
            return self.refuse(format!(
                "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {:?}",
                spec("nodeName"),
                self.node
            ));
        }
        let place = |name: &str| format!("{}/{name}", attributes.namespace);
        let pod_key = place(spec("podName"));
        let account_key = place(spec("serviceAccountName"));
        let uid = |object: &Value| object.str_at("metadata.uid").to_owned();
        let missing = |what: &str, key: &str| {
            ApiError::internal(format!(
                "while retrieving {what} {key:?} named in the PodCertificateRequest: not found"
            ))
        };
        let differs = |what: &str, given: &str, have: &str| {
            ApiError::internal(format!(
                "PodCertificateRequest for pod {pod_key:?} names {what} UID {given:?}, which differs from the running one ({have:?})"
            ))
        };
        let node = core.read("nodes", self.node).ok_or_else(|| missing("node", self.node))?;
        if uid(&node) != spec("nodeUID") {
            return Err(differs("node", spec("nodeUID"), &uid(&node)));
        }
        let pod = core.read("pods", &pod_key).ok_or_else(|| missing("pod", &pod_key))?;
        if uid(&pod) != spec("podUID") {
            return Err(differs("pod", spec("podUID"), &uid(&pod)));
        }
        if pod.str_at("spec.nodeName") != self.node {
            return self.refuse(format!(
                "pod {pod_key:?} is not running on node {:?} named in the PodCertificateRequest",
                self.node
            ));
        }
        if pod.at("metadata.annotations").get(MIRROR).is_some() {
            return self.refuse(format!("pod {pod_key:?} is a mirror pod"));
        }
        let account = pod.str_at("spec.serviceAccountName");
        if spec("serviceAccountName") != account {
            return self.refuse(format!(
                "PodCertificateRequest for pod {pod_key:?} contains serviceAccountName ({:?}) that differs from running pod ({account:?})",
                spec("serviceAccountName")
            ));
        }
        let account = core
            .read("serviceaccounts", &account_key)
            .ok_or_else(|| missing("service account", &account_key))?;
        if uid(&account) != spec("serviceAccountUID") {
            return Err(differs("service account", spec("serviceAccountUID"), &uid(&account)));
        }
        Ok(())
    }
}

/// Labels that differ and that a kubelet must not touch, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let (new, old) = (new.at("metadata.labels"), old.at("metadata.labels"));
    let mut changed: Vec<String> = new
        .entries("")
        .chain(old.entries(""))
        .filter(|(k, _)| new.get(*k) != old.get(*k) && !may_label(k))
        .map(|(k, _)| k.to_owned())
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

fn may_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if within(RESTRICTED) {
        return false;
    }
    let is_ours = within("kubernetes.io") || within("k8s.io");
    !is_ours || ALLOWED_LABELS.contains(&key) || ALLOWED_SUFFIXES.iter().any(|s| within(s))
}
