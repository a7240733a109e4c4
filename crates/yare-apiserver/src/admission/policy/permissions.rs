//! Who writes a policy with parameters, or binds one, must be able to read these parameters himself: what a policy
//! says may tell what is in them (`k8s.io/kubernetes/pkg/registry/admissionregistration`).

use serde_json::Value;
use yare_auth::Action;
use yare_kinds::view::View;
use yare_schema::field::{FieldError, Path};

use super::{
    Mutations, Rules, Validations,
    params::{ParamKind, split},
};
use crate::{
    auth,
    core::Call,
    escalation,
    status::{ApiError, ApiResult, GroupResource},
};

/// Refuses a policy or binding whose writer may not read its parameters. What is not changed is not asked again.
pub async fn check(call: &Call, object: &Value, old: Option<&Value>) -> ApiResult<()> {
    let is_binding = object.str_at("kind").ends_with("Binding");
    let (field, same_too) = if is_binding { ("paramRef", "policyName") } else { ("paramKind", "paramKind") };
    let (spec, before) = (object.at("spec"), old.map(|old| old.at("spec")));
    let unchanged = before.is_some_and(|old| {
        old.has(field) && old.at(field) == spec.at(field) && old.at(same_too) == spec.at(same_too)
    });
    if !spec.has(field) || unchanged || escalation::exempt(call) {
        return Ok(());
    }
    let why = if is_binding { binding(call, object).await } else { policy(call, spec.at("paramKind")).await };
    let Some(why) = why else { return Ok(()) };
    let path = Path::new("spec");
    let error = FieldError::forbidden(&path.child(field), why);
    let what = GroupResource { group: super::super::webhook::GROUP, resource: object.str_at("kind") };
    Err(ApiError::invalid(what, object.str_at("metadata.name"), &[error]))
}

/// The user as Go prints it.
fn shown(call: &Call) -> String {
    let user = &call.user;
    let extra: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k}:[{}]", v.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}

/// Group and plural of a kind of parameters; the plural is `*` where there is no such kind.
fn resource_of(call: &Call, param_kind: &Value) -> (String, String, Option<String>) {
    let (group, _) = split(param_kind.str_at("apiVersion"));
    match ParamKind::new(param_kind).find(&call.core) {
        Ok(served) => (group.to_owned(), served.plural.to_string(), None),
        Err(why) => (group.to_owned(), "*".to_owned(), Some(why)),
    }
}

async fn policy(call: &Call, param_kind: &Value) -> Option<String> {
    let (group, resource, _) = resource_of(call, param_kind);
    let wanted = Action {
        verb: "get",
        group: &group,
        resource: &resource,
        namespace: "*",
        name: "*",
        ..Action::default()
    };
    auth::decide(&call.core, &call.user, &wanted).await.is_err().then(|| {
        format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            shown(call),
            param_kind.str_at("kind"),
            param_kind.str_at("apiVersion"),
        )
    })
}

async fn binding(call: &Call, binding: &Value) -> Option<String> {
    let spec = binding.at("spec");
    let (name, policy_name) = (spec.str_at("paramRef.name"), spec.str_at("policyName"));
    let verb = if name.is_empty() { "list" } else { "get" };
    let policies = if binding.str_at("kind").starts_with("Mutating") {
        Mutations::POLICIES
    } else {
        Validations::POLICIES
    };
    let policy = call.core.read(policies, policy_name);
    let param_kind = policy.as_ref().map(|policy| policy.at("spec.paramKind")).filter(|kind| !kind.is_null());
    let (group, resource, unresolved) = match param_kind {
        Some(kind) => resource_of(call, kind),
        None => ("*".to_owned(), "*".to_owned(), None),
    };
    let wanted = Action {
        verb,
        group: &group,
        resource: &resource,
        namespace: spec.str_at("paramRef.namespace"),
        name,
        ..Action::default()
    };
    auth::decide(&call.core, &call.user, &wanted).await.is_err().then(|| {
        let (user, everything) = (shown(call), "permission for all groups, versions and resources");
        let determine = format!(
            "to determine minimum required permissions and user {user} does not have {verb:?} {everything}"
        );
        match (policy.is_some(), unresolved) {
            (false, _) => format!("unable to get policy {policy_name} {determine}"),
            (true, Some(_)) => {
                let kind = param_kind.map(Value::to_string).unwrap_or_default();
                format!("unable to resolve paramKind {kind} {determine}")
            }
            (true, None) => {
                format!("user {user} does not have {verb:?} permission on the object referenced by paramRef")
            }
        }
    })
}
