//! Nobody grants what he does not have: writes of roles and bindings are checked against the writer's own
//! permissions (`k8s.io/kubernetes/pkg/registry/rbac/validation`), unless he may `escalate` or `bind`.

use serde_json::Value;
use yare_auth::{
    Action, gotext,
    rbac::{Rule, describe_rules},
};
use yare_kinds::view::{View, ViewMut};

use crate::{
    auth,
    core::Call,
    status::{ApiError, ApiResult, GroupResource},
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Whether the caller may grant anything.
pub fn exempt(call: &Call) -> bool {
    call.core.config.auth.permissive || call.user.in_group("system:masters")
}

fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role.at("rules").clone()).unwrap_or_default()
}

fn check(call: &Call, what: GroupResource<'_>, name: &str, namespace: &str, rules: &[Rule]) -> ApiResult<()> {
    let rbac = &call.core.config.auth.rbac;
    let missing = rbac.not_held(&call.user, namespace, rules);
    if missing.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        gotext::list(&call.user.groups),
        describe_rules(&missing)
    );
    let (_, unresolved) = rbac.rules_for(&call.user, namespace);
    if !unresolved.is_empty() {
        why.push_str(&format!("; resolution errors: [{unresolved}]"));
    }
    Err(ApiError::forbidden(what, name, why))
}

/// Whether an update only lets the garbage collector get on: whoever may write the object may do that.
fn only_for_collection(new: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            object.remove(&format!("metadata.{field}"));
        }
        object
    };
    without(new) == without(old)
}

fn aggregates(role: &Value) -> bool {
    !role.items("aggregationRule.clusterRoleSelectors").is_empty()
}

/// A role (or cluster role) that is being written.
pub async fn role(call: &Call, role: &Value, old: Option<&Value>) -> ApiResult<()> {
    if exempt(call) {
        return Ok(());
    }
    let cluster = role.str_at("kind") == "ClusterRole";
    let resource = if cluster { "clusterroles" } else { "roles" };
    let namespace = call.info.namespace.as_str();
    // The name of what is created is not known to whom permissions are given.
    let (verb, name) = ("escalate", call.info.name.as_str());
    let escalate =
        Action { verb, group: GROUP, version: "*", resource, namespace, name, ..Action::default() };
    if auth::decide(&call.core, &call.user, &escalate).await.is_ok() {
        return Ok(());
    }
    if old.is_some_and(|old| only_for_collection(role, old)) {
        return Ok(());
    }
    let name = role.str_at("metadata.name");
    let what = || GroupResource { group: GROUP, resource };
    check(call, what(), name, namespace, &rules_of(role))?;
    // An aggregation rule gathers whatever there will be.
    if cluster && (aggregates(role) || old.is_some_and(aggregates)) {
        let auth = &call.core.config.auth;
        if !auth.rbac.not_held(&call.user, "", &Rule::everything()).is_empty() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(ApiError::forbidden(what(), name, why));
        }
    }
    Ok(())
}

/// A role binding (or cluster role binding) that is being written.
pub async fn binding(call: &Call, binding: &Value, old: Option<&Value>) -> ApiResult<()> {
    if exempt(call) || old.is_some_and(|old| only_for_collection(binding, old)) {
        return Ok(());
    }
    let bindings =
        if binding.str_at("kind") == "ClusterRoleBinding" { "clusterrolebindings" } else { "rolebindings" };
    let name = binding.str_at("metadata.name");
    let namespace = call.info.namespace.as_str();
    let cluster = binding.str_at("roleRef.kind") == "ClusterRole";
    let role_name = binding.str_at("roleRef.name");
    let resource = if cluster { "clusterroles" } else { "roles" };
    let bind = Action {
        verb: "bind",
        group: GROUP,
        version: "*",
        resource,
        namespace,
        name: role_name,
        ..Action::default()
    };
    if auth::decide(&call.core, &call.user, &bind).await.is_ok() {
        return Ok(());
    }
    let key = if cluster { role_name.to_owned() } else { format!("{namespace}/{role_name}") };
    let Some(rules) = call.core.config.auth.rbac.role_rules(cluster, &key) else {
        // Upstream calls the role that is not there by what the request is about.
        return Err(ApiError::not_found(GroupResource { group: GROUP, resource: bindings }, role_name));
    };
    check(call, GroupResource { group: GROUP, resource: bindings }, name, namespace, &rules)
}
