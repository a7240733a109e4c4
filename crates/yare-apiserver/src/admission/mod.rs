//! Admission: what may change or refuse a write after it is authorized and before it is validated.
//!
//! [`TABLE`] is the order. A row names the resources and operations it sees; each row's behaviour is one file
//! beside this one. Objects pass through as JSON of the storage version.

use std::sync::Arc;

use serde_json::Value;
use yare_store::Object;

use crate::{core::Call, registry::Served, status::ApiResult};

mod default_classes;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
pub mod resource_quota;
mod runtime_class;
mod service_account;
mod taint_nodes;
pub mod webhook;

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed one.
    Update,
    /// A deletion.
    Delete,
    /// `exec`, `proxy` and the like.
    Connect,
}

/// What admission knows of a request.
pub struct Attributes<'a> {
    /// The request.
    pub call: &'a Call,
    /// The resource.
    pub served: &'a Arc<Served>,
    /// What is being done.
    pub operation: Operation,
    /// Object's name; empty where it is still to be generated.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Nothing will be stored.
    pub dry_run: bool,
}

impl Attributes<'_> {
    /// Whether this is about the resource itself.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        &*self.served.stored.group == group && &*self.served.stored.plural == plural
    }

    /// A refusal in the usual words.
    pub fn forbidden(&self, why: impl std::fmt::Display) -> crate::status::ApiError {
        crate::status::ApiError::forbidden(self.served.group_resource(), self.name, why)
    }
}

type Mutate = fn(&Attributes<'_>, &mut Value, Option<&Value>) -> ApiResult<()>;
type Validate = fn(&Attributes<'_>, Option<&Value>, Option<&Value>) -> ApiResult<()>;

/// One admission plugin.
pub struct Row {
    /// Upstream's name, by which it is switched off.
    pub name: &'static str,
    /// Group and plural of what it sees; empty: everything.
    pub resources: &'static [(&'static str, &'static str)],
    /// Subresources it sees beside the object itself.
    pub subresources: &'static [&'static str],
    /// Operations it sees.
    pub operations: &'static [Operation],
    /// Changes the object.
    pub mutate: Option<Mutate>,
    /// Refuses it.
    pub validate: Option<Validate>,
}

use Operation::{Create, Delete, Update};

const PODS: &[(&str, &str)] = &[("", "pods")];

/// Admission plugins in upstream's order.
pub const TABLE: &[Row] = &[
    Row {
        name: "NamespaceLifecycle",
        resources: &[("", "namespaces")],
        subresources: &[],
        operations: &[Delete],
        mutate: None,
        validate: Some(namespace_lifecycle::validate),
    },
    Row {
        name: "LimitRanger",
        resources: &[("", "pods"), ("", "persistentvolumeclaims")],
        subresources: &[],
        operations: &[Create, Update],
        mutate: Some(limit_ranger::mutate),
        validate: Some(limit_ranger::validate),
    },
    Row {
        name: "ServiceAccount",
        resources: PODS,
        subresources: &[],
        operations: &[Create],
        mutate: Some(service_account::mutate),
        validate: None,
    },
    Row {
        name: "NodeRestriction",
        resources: &[],
        subresources: &["status", "eviction", "binding", "token"],
        operations: &[Create, Update, Delete],
        mutate: None,
        validate: Some(node_restriction::validate),
    },
    Row {
        name: "TaintNodesByCondition",
        resources: &[("", "nodes")],
        subresources: &[],
        operations: &[Create],
        mutate: Some(taint_nodes::mutate),
        validate: None,
    },
    Row {
        name: "Priority",
        resources: &[("", "pods"), ("scheduling.k8s.io", "priorityclasses")],
        subresources: &[],
        operations: &[Create, Update],
        mutate: Some(priority::mutate),
        validate: Some(priority::validate),
    },
    Row {
        name: "DefaultTolerationSeconds",
        resources: PODS,
        subresources: &[],
        operations: &[Create, Update],
        mutate: Some(default_toleration_seconds::mutate),
        validate: None,
    },
    Row {
        name: "DefaultStorageClass",
        resources: &[("", "persistentvolumeclaims")],
        subresources: &[],
        operations: &[Create],
        mutate: Some(default_classes::storage),
        validate: None,
    },
    Row {
        name: "RuntimeClass",
        resources: PODS,
        subresources: &[],
        operations: &[Create],
        mutate: Some(runtime_class::mutate),
        validate: None,
    },
    Row {
        name: "DefaultIngressClass",
        resources: &[("networking.k8s.io", "ingresses")],
        subresources: &[],
        operations: &[Create],
        mutate: Some(default_classes::ingress),
        validate: None,
    },
];

impl Row {
    fn sees(&self, attributes: &Attributes<'_>) -> bool {
        self.operations.contains(&attributes.operation)
            && (attributes.subresource.is_empty() || self.subresources.contains(&attributes.subresource))
            && (self.resources.is_empty() || self.resources.iter().any(|(g, p)| attributes.is(g, p)))
            && !attributes.call.core.config.disabled_admission.iter().any(|d| d == self.name)
    }
}

/// Runs what may change the object. For a new object in a namespace, gives the namespace as it was seen: the
/// transaction checks that it is still so.
pub async fn mutate(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> ApiResult<Option<Arc<Object>>> {
    let namespace = namespace_lifecycle::namespace(attributes)?;
    for row in TABLE.iter().filter(|row| row.mutate.is_some() && row.sees(attributes)) {
        if let Some(mutate) = row.mutate {
            mutate(attributes, object, old)?;
        }
    }
    webhook::mutate(attributes, object, old).await?;
    Ok(namespace)
}

/// Runs what may refuse the object. `object` is absent for deletions.
pub async fn validate(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    for row in TABLE.iter().filter(|row| row.validate.is_some() && row.sees(attributes)) {
        if let Some(validate) = row.validate {
            validate(attributes, object, old)?;
        }
    }
    if object.is_none() || attributes.operation == Operation::Connect {
        webhook::observe(attributes, object, old).await?;
    }
    webhook::validate(attributes, object, old).await
}
