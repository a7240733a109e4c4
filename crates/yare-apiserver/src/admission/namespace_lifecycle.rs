//! NamespaceLifecycle: new objects need a namespace that exists and stays; three namespaces never go.

use std::sync::Arc;

use serde_json::Value;
use yare_store::Object;

use super::{Attributes, Operation};
use crate::{
    span,
    status::{ApiError, ApiResult, Cause, GroupResource},
};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The namespace that a new object goes into.
pub fn namespace(attributes: &Attributes<'_>, object: &Value) -> ApiResult<Option<Arc<Object>>> {
    // Asking what one may do in a namespace must not tell whether it is there.
    if attributes.operation != Operation::Create
        || !attributes.served.namespaced
        || attributes.is("authorization.k8s.io", "localsubjectaccessreviews")
    {
        return Ok(None);
    }
    let name = attributes.namespace;
    let Some(namespace) = attributes.call.core.store().get("namespaces", name) else {
        return Err(ApiError::not_found(GroupResource { group: "", resource: "namespaces" }, name));
    };
    let metadata = span::member(&namespace.bytes, "metadata").map_or(&b"{}"[..], |at| &namespace.bytes[at]);
    if span::member(metadata, "deletionTimestamp").is_some() {
        let mut error = attributes.forbidden_object(
            object,
            format!("unable to create new content in namespace {name} because it is being terminated"),
        );
        error.details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {name} is being terminated"),
            field: "metadata.namespace".into(),
        });
        return Err(error);
    }
    Ok(Some(namespace))
}

/// Refuses the deletion of namespaces that the cluster cannot do without.
pub fn validate(attributes: &Attributes<'_>, _object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    if IMMORTAL.contains(&attributes.name) {
        return Err(attributes.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
