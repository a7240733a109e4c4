//! CertificateApproval, CertificateSigning, ClusterTrustBundleAttest and CertificateSubjectRestriction: who may
//! act for a signer, and what nobody may ask of one.

use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use yare_auth::Action;
use yare_kinds::{
    strategy::certificates::request_subject,
    view::{View, ViewMut, same},
};

use yare_schema::field::{FieldError, Path};

use super::{Attributes, Operation};
use crate::{auth, status::ApiResult};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

type Answer<'a> = Option<BoxFuture<'a, ApiResult<()>>>;

/// Whether the caller may do `verb` for the signer, or for all signers of its domain.
async fn may(attributes: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let call = attributes.call;
    for name in [signer, &domain] {
        let action =
            Action { verb, group: "certificates.k8s.io", resource: "signers", name, ..Action::default() };
        if auth::decide(&call.core, &call.user, &action).await.is_ok() {
            return true;
        }
    }
    false
}

/// Approving or denying a request takes `approve` on its signer. The old object counts: an update could name
/// another signer.
pub fn approval<'a>(
    attributes: &'a Attributes<'a>,
    _object: Option<&'a Value>,
    old: Option<&'a Value>,
) -> Answer<'a> {
    let signer = old?.str_at("spec.signerName");
    Some(
        async move {
            if may(attributes, "approve", signer).await {
                return Ok(());
            }
            Err(attributes
                .forbidden(format!("user not permitted to approve requests with signerName {signer:?}")))
        }
        .boxed(),
    )
}

/// Issuing a certificate takes `sign` on its signer.
pub fn signing<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
) -> Answer<'a> {
    let (new, old) = (object?, old?);
    let changed = |field: &str| !same(new.at("status").at(field), old.at("status").at(field));
    if !changed("certificate") && !changed("conditions") {
        return None;
    }
    let signer = old.str_at("spec.signerName");
    Some(
        async move {
            if may(attributes, "sign", signer).await {
                return Ok(());
            }
            Err(attributes
                .forbidden(format!("user not permitted to sign requests with signerName {signer:?}")))
        }
        .boxed(),
    )
}

/// Answering a pod's request takes `sign` on its signer. No plugin asks this: it is part of what makes the
/// write valid, after everything else.
pub async fn signing_errors(attributes: &Attributes<'_>, new: &Value, old: &Value) -> Option<FieldError> {
    let stored = &attributes.served.stored;
    if attributes.subresource != "status"
        || (&*stored.group, &*stored.plural) != ("certificates.k8s.io", "podcertificaterequests")
        || same(new.at("status"), old.at("status"))
    {
        return None;
    }
    let signer = old.str_at("spec.signerName");
    if may(attributes, "sign", signer).await {
        return None;
    }
    let user = &attributes.call.user.name;
    let detail = format!("User {user:?} is not permitted to \"sign\" for signer {signer:?}");
    Some(FieldError::forbidden(&Path::new("spec.signerName"), detail))
}

/// Publishing a signer's trust anchors takes `attest` on it.
pub fn attest<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
) -> Answer<'a> {
    let new = object?;
    let signer = new.str_at("spec.signerName");
    if signer.is_empty()
        || (attributes.operation == Operation::Update && old.is_some_and(|old| changes_only_owners(new, old)))
    {
        return None;
    }
    Some(
        async move {
            if may(attributes, "attest", signer).await {
                return Ok(());
            }
            Err(attributes.forbidden(format!("user not permitted to attest for signerName {signer:?}")))
        }
        .boxed(),
    )
}

/// What garbage collection and storage migration do to an object.
fn changes_only_owners(new: &Value, old: &Value) -> bool {
    let mut new = new.clone();
    for field in ["metadata.ownerReferences", "metadata.finalizers", "metadata.managedFields"] {
        new.copy_from(old, field);
    }
    same(&new, old)
}

/// Nobody becomes an administrator by a certificate that the cluster signs.
pub fn subject(attributes: &Attributes<'_>, object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    let Some(request) = object.filter(|r| r.str_at("spec.signerName") == CLIENT_SIGNER) else {
        return Ok(());
    };
    let subject = request_subject(request.str_at("spec.request"))
        .map_err(|why| attributes.forbidden(format!("failed to parse CSR: {why}")))?;
    if subject.organizations.iter().any(|o| o == MASTERS) {
        return Err(attributes
            .forbidden(format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")));
    }
    Ok(())
}
