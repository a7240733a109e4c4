//! Approves requests of kubelets for client certificates, where who asks may create the virtual subresource
//! that says so: `selfnodeclient` to renew its own, `nodeclient` for any node's (the first one, of a machine
//! that joins).

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_auth::pki::CertificateRequest;
use yare_client::{CERTIFICATE_SIGNING_REQUESTS, Informer, ObjectKey};

use super::{
    Spec, View,
    policy::{KUBELET_CLIENT, kubelet_client},
};
use crate::{
    api::ApiError,
    context::{Context, Error},
    harness::{Next, Reconcile},
};

/// One way to be approved.
struct Way {
    subresource: &'static str,
    /// Whether it is about the caller's own certificate.
    own: bool,
    message: &'static str,
}

const WAYS: [Way; 2] = [
    Way {
        subresource: "selfnodeclient",
        own: true,
        message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
    },
    Way {
        subresource: "nodeclient",
        own: false,
        message: "Auto approving kubelet client certificate after SubjectAccessReview.",
    },
];

impl Way {
    fn is_open(&self, spec: &Spec, request: &CertificateRequest) -> bool {
        spec.signer_name == KUBELET_CLIENT
            && (!self.own || spec.username == request.subject.common_name())
            && kubelet_client(request, &spec.usages).is_ok()
    }
}

struct Approver {
    context: Context,
    requests: Informer,
}

/// The controller; keys are CertificateSigningRequests.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Approver { requests: context.informer(CERTIFICATE_SIGNING_REQUESTS), context: context.clone() })
}

impl Approver {
    /// Whether who asks may create the subresource.
    async fn may(&self, spec: &Spec, subresource: &str) -> Result<bool, ApiError> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Review {
            status: Answer,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Answer {
            allowed: bool,
        }
        const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let mut review = json!({
            "kind": "SubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": {
                "user": spec.username,
                "uid": spec.uid,
                "groups": spec.groups,
                "resourceAttributes": {
                    "group": "certificates.k8s.io",
                    "version": "*",
                    "resource": "certificatesigningrequests",
                    "subresource": subresource,
                    "verb": "create",
                },
            },
        });
        if spec.extra.is_object() {
            review["spec"]["extra"] = spec.extra.clone();
        }
        let answer = self.context.api.call(http::Method::POST, PATH, "", Some(&review)).await?;
        let review: Review = serde_json::from_slice(&answer)
            .map_err(|source| ApiError::Json { what: format!("POST {PATH}"), source })?;
        Ok(review.status.allowed)
    }
}

#[async_trait]
impl Reconcile for Approver {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(object) = self.requests.get(key) else { return Ok(Next::Done) };
        let View { spec, status, .. } = object.view()?;
        if status.is_issued() || status.has("Approved") || status.has("Denied") {
            return Ok(Next::Done);
        }
        let request = spec.parse()?;
        let mut tried = Vec::new();
        for way in WAYS.iter().filter(|way| way.is_open(&spec, &request)) {
            tried.push(way.subresource);
            if !self.may(&spec, way.subresource).await? {
                continue;
            }
            let approve = |body: &mut Value| {
                let condition = json!({
                    "type": "Approved", "status": "True", "reason": "AutoApproved", "message": way.message,
                });
                super::add_condition(body, condition);
            };
            self.context.api.put(&CERTIFICATE_SIGNING_REQUESTS, &object, "/approval", approve).await?;
            return Ok(Next::Done);
        }
        if tried.is_empty() {
            return Ok(Next::Done);
        }
        // Who asks may be given the right later.
        Err(Error::NotYet(format!(
            "recognized csr {:?} as [{}] but subject access review was not approved",
            key.name,
            tried.join(" ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use yare_auth::pki::Name;

    use super::*;

    #[test]
    fn which_ways_are_open() {
        let usages = ["client auth", "digital signature"].map(str::to_owned).to_vec();
        let ways = |signer: &str, username: &str, of: &str, groups: &[&str]| -> Vec<&str> {
            let spec = Spec {
                signer_name: signer.into(),
                username: username.into(),
                usages: usages.clone(),
                ..Spec::default()
            };
            let request = CertificateRequest::of(Name::new(of, groups));
            WAYS.iter().filter(|w| w.is_open(&spec, &request)).map(|w| w.subresource).collect()
        };
        let (node, nodes) = ("system:node:a", &["system:nodes"][..]);
        assert_eq!(ways(KUBELET_CLIENT, node, node, nodes), ["selfnodeclient", "nodeclient"]);
        assert_eq!(ways(KUBELET_CLIENT, "system:bootstrap:x", node, nodes), ["nodeclient"]);
        assert_eq!(ways("kubernetes.io/kubelet-serving", node, node, nodes), [""; 0]);
        assert_eq!(ways(KUBELET_CLIENT, "jane", "jane", nodes), [""; 0]);
        assert_eq!(ways(KUBELET_CLIENT, node, node, &["system:masters"]), [""; 0]);
    }
}
