//! NamespaceExists and NamespaceAutoProvision: writes into namespaces that are not there are refused, or make
//! the namespace.

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::{
    bootstrap,
    status::{ApiError, ApiResult, GroupResource},
};

const NAMESPACES: &str = "namespaces";

fn is_missing(attributes: &Attributes<'_>) -> bool {
    !attributes.namespace.is_empty()
        && attributes.served.namespaced
        && attributes.call.core.store().get(NAMESPACES, attributes.namespace).is_none()
}

/// Refuses what has no namespace.
pub fn validate(attributes: &Attributes<'_>, _object: Option<&Value>, _old: Option<&Value>) -> ApiResult<()> {
    if is_missing(attributes) {
        let what = GroupResource { group: "", resource: NAMESPACES };
        return Err(ApiError::not_found(what, attributes.namespace));
    }
    Ok(())
}

/// Makes the namespace of a new object. Boxed, because making it passes through admission itself.
pub fn provision<'a>(attributes: &'a Attributes<'a>) -> BoxFuture<'a, ApiResult<()>> {
    async move {
        if attributes.operation != Operation::Create || attributes.dry_run || !is_missing(attributes) {
            return Ok(());
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": attributes.namespace },
        });
        bootstrap::ensure(&attributes.call.core, namespace).await.map_err(|e| attributes.forbidden(e))
    }
    .boxed()
}
