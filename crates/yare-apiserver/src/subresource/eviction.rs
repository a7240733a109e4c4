//! `pods/eviction`: a deletion that asks the pod's disruption budget first
//! (`k8s.io/kubernetes/pkg/registry/core/pod/storage/eviction.go`).

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};
use yare_kinds::{
    conditions,
    view::{View, ViewMut},
};
use yare_schema::{
    field::{FieldError, Path},
    selector::LabelSelector,
};
use yare_store::{CommitError, Expect, Op, Write};

use crate::{
    admission::{self, Attributes, Operation},
    body::Reply,
    bootstrap::own_options,
    codec,
    core::{Call, Core},
    hooks, managed,
    options::{DeleteOptions, FieldValidation, WriteOptions},
    path::Query,
    registry::{Served, TypeHandle},
    render,
    status::{ApiError, ApiResult, Cause, GroupResource},
    verbs::{delete, write},
    wire,
};

const PODS: &str = "pods";
const BUDGETS: &str = "policy/poddisruptionbudgets";
const MAX_DISRUPTED: usize = 2000;
const MAX_ATTEMPTS: usize = 32;

/// The version of a body: evictions are also taken in the one before, which is served no more.
fn version(body: &[u8]) -> &'static str {
    let said = wire::type_meta(body).map(|(api_version, _)| api_version);
    let said = said.or_else(|| Some(codec::from_yaml(body).ok()?.str_at("apiVersion").to_owned()));
    if said.as_deref() == Some("policy/v1beta1") { "v1beta1" } else { "v1" }
}

/// Evicts a pod.
pub async fn create(call: &Call, served: &Arc<Served>, body: &[u8]) -> ApiResult<Reply> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let version = version(body);
    let expected = codec::Expected { group: "policy", version, kind: "Eviction", custom: false };
    let ty = codec::builtin_type("policy", version, "Eviction")
        .ok_or_else(|| ApiError::internal("no type for Eviction"))?;
    let mut eviction =
        codec::decode_body(call, &TypeHandle::Static(ty), &expected, body, FieldValidation::Ignore)?;
    eviction.set("apiVersion", "policy/v1");
    write::settle_namespace(served, &mut eviction, &call.info.namespace)?;
    let name = call.info.name.as_str();
    if eviction.str_at("metadata.name") != name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut deletion = match eviction.at("deleteOptions") {
        Value::Null => DeleteOptions::default(),
        given => DeleteOptions::parse(&Query::default(), Some(given))?,
    };
    if deletion.ignore_read_error {
        let root = Path::new("deleteOptions");
        let why = "can not be set for pod eviction, try after removing the option";
        let field = root.child("ignoreStoreReadErrorWithClusterBreakingPotential");
        let kind = GroupResource { group: "policy", resource: "Eviction" };
        return Err(ApiError::invalid(kind, name, &[FieldError::invalid(&field, true, why)]));
    }
    deletion.dry_run |= options.dry_run;
    let attributes = Attributes::new(call, served, Operation::Create, deletion.dry_run);
    admission::admit(&attributes, &mut eviction).await?;
    let namespace = call.info.namespace.as_str();
    let key = format!("{namespace}/{name}");
    for _ in 0..MAX_ATTEMPTS {
        let Some(current) = call.core.store().get(PODS, &key) else {
            return Err(ApiError::not_found(served.group_resource(), name));
        };
        let pod: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        // Where the decision hangs on the pod's state, it holds for this state only.
        let mut guarded = deletion.clone();
        let is_meant = deletion.uid.as_deref().is_none_or(|uid| uid == pod.str_at("metadata.uid"));
        let guard = is_meant && deletion.resource_version.is_none();
        if guard {
            guarded.resource_version = Some(current.revision.to_string());
        }
        let evicted = if ignores_budget(&pod) {
            let is_pending =
                pod.str_at("status.phase") == "Pending" && !pod.has("metadata.deletionTimestamp");
            finish(call, served, name, if is_pending { guarded } else { deletion.clone() }).await
        } else {
            let mut budgets = matching(&call.core, namespace, &pod);
            if budgets.len() > 1 {
                return Err(ApiError::new(
                    500,
                    "",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
            match budgets.pop() {
                None => finish(call, served, name, deletion.clone()).await,
                Some((budget, _))
                    if !conditions::is_true(pod.items("status.conditions"), "Ready")
                        && unready_may_go(&budget) =>
                {
                    finish(call, served, name, guarded).await
                }
                Some((budget, revision)) => {
                    let now = call.core.now_rfc3339();
                    let taken = take(budget.clone(), name, &now)?;
                    if !deletion.dry_run && !store_budget(call, &budget, taken, revision, &now).await? {
                        continue;
                    }
                    return finish(call, served, name, deletion).await;
                }
            }
        };
        match evicted {
            Err(error) if error.reason == "Conflict" && guard => {}
            done => return done,
        }
    }
    Err(ApiError::too_many_requests("the pod or its disruption budget keeps changing, please try again", 1))
}

/// Says in the pod's status why it goes, and deletes it.
async fn finish(
    call: &Call,
    served: &Arc<Served>,
    name: &str,
    mut options: DeleteOptions,
) -> ApiResult<Reply> {
    if !options.dry_run {
        mark(call, served, name, &mut options).await?;
    }
    // Admission has seen the eviction.
    delete::admitted(call, served, &call.info.namespace, name, &options).await?;
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    render::document(call, StatusCode::CREATED, &status)
}

/// Sets the condition by which others (a Job's pod failure policy) know that the pod did not fail by itself.
/// Preconditions of the deletion hold for this write, and then for what it made.
async fn mark(call: &Call, served: &Arc<Served>, name: &str, options: &mut DeleteOptions) -> ApiResult<()> {
    let stored = &served.stored;
    let key = stored.key(&call.info.namespace, name);
    for _ in 0..MAX_ATTEMPTS {
        let Some(current) = call.core.store().get(PODS, &key) else {
            return Err(ApiError::not_found(served.group_resource(), name));
        };
        let old: Value = serde_json::from_slice(&current.bytes).map_err(ApiError::internal)?;
        delete::check_preconditions(served, name, &old, &current, options)?;
        let mut new = old.clone();
        if !disrupt(&mut new, &call.core.now_rfc3339()) {
            return Ok(());
        }
        let draft = codec::draft(stored, &mut new)?;
        let write = Write {
            kind: stored.kind_key.clone(),
            key: key.clone(),
            expect: Expect::Revision(current.revision),
            op: Op::Put(draft),
        };
        match call.core.store().commit(vec![write]).await {
            Ok(written) => {
                hooks::after_update(call, served, &new, &old);
                if let (Some(wanted), Some(written)) = (&mut options.resource_version, written.first()) {
                    *wanted = written.revision.to_string();
                }
                return Ok(());
            }
            Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => {}
            Err(error) => return Err(ApiError::from_commit(error, served.group_resource(), name)),
        }
    }
    Err(ApiError::modified(served.group_resource(), name))
}

/// Puts the condition into a pod; whether that changed anything.
fn disrupt(pod: &mut Value, now: &str) -> bool {
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastProbeTime": null,
    });
    conditions::set(pod, condition, now)
}

/// A pod that has ended, has not begun, or is going already disrupts nothing.
fn ignores_budget(pod: &Value) -> bool {
    matches!(pod.str_at("status.phase"), "Succeeded" | "Failed" | "Pending")
        || pod.has("metadata.deletionTimestamp")
}

fn unready_may_go(budget: &Value) -> bool {
    let status = |field: &str| budget.at("status").int_at(field);
    match budget.str_at("spec.unhealthyPodEvictionPolicy") {
        "AlwaysAllow" => true,
        _ => status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0,
    }
}

fn matching(core: &Core, namespace: &str, pod: &Value) -> Vec<(Value, u64)> {
    let snapshot = core.store().snapshot(BUDGETS);
    snapshot
        .range(std::ops::Bound::Unbounded, &format!("{namespace}/"))
        .filter_map(|o| Some((serde_json::from_slice::<Value>(&o.bytes).ok()?, o.revision)))
        .filter(|(budget, _)| {
            LabelSelector::from_object(budget.at("spec.selector"))
                .is_ok_and(|s| s.matches_value(pod.at("metadata.labels")))
        })
        .collect()
}

/// Takes one disruption out of the budget, or says why there is none.
fn take(mut budget: Value, pod: &str, now: &str) -> ApiResult<Value> {
    let name = budget.str_at("metadata.name").to_owned();
    let blocked = |retry_after_s: i32, message: String| {
        let mut error = ApiError::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            retry_after_s,
        );
        error.details.causes.push(Cause { reason: "DisruptionBudget".into(), message, field: String::new() });
        error
    };
    if budget.int_at("status.observedGeneration") < budget.int_at("metadata.generation") {
        return Err(blocked(
            10,
            format!("The disruption budget {name} is still being processed by the server."),
        ));
    }
    let allowed = budget.int_at("status.disruptionsAllowed");
    if budget.entries("status.disruptedPods").count() > MAX_DISRUPTED {
        return Err(blocked(0, format!("The disruption budget {name} has too many evictions in progress")));
    }
    if allowed <= 0 {
        return Err(blocked(
            0,
            format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                budget.int_at("status.desiredHealthy"),
                budget.int_at("status.currentHealthy")
            ),
        ));
    }
    budget.set("status.disruptionsAllowed", allowed - 1);
    if allowed == 1 {
        let condition = json!({
            "type": "DisruptionAllowed",
            "status": "False",
            "observedGeneration": budget.int_at("status.observedGeneration"),
            "reason": "InsufficientPods",
            "message": "",
        });
        conditions::set(&mut budget, condition, now);
    }
    if !budget.has("status.disruptedPods") {
        budget.set("status.disruptedPods", Map::new());
    }
    if let Some(map) = budget.at_mut("status.disruptedPods").and_then(Value::as_object_mut) {
        map.insert(pod.to_owned(), now.into());
    }
    Ok(budget)
}

/// Whether the budget was still what it was.
async fn store_budget(
    call: &Call,
    old: &Value,
    mut budget: Value,
    revision: u64,
    now: &str,
) -> ApiResult<bool> {
    let registry = call.core.registry.load_full();
    let served = registry.stored(BUDGETS).ok_or_else(ApiError::unknown_resource)?;
    managed::update(call, served, Some(old), &mut budget, &own_options(), "status", now);
    managed::settle(old, &mut budget);
    let key = served.stored.key(budget.str_at("metadata.namespace"), budget.str_at("metadata.name"));
    let draft = codec::draft(&served.stored, &mut budget)?;
    let write = Write {
        kind: served.stored.kind_key.clone(),
        key,
        expect: Expect::Revision(revision),
        op: Op::Put(draft),
    };
    match call.core.store().commit(vec![write]).await {
        Ok(_) => Ok(true),
        Err(CommitError::Conflict { .. } | CommitError::Missing { .. }) => Ok(false),
        Err(error) => Err(ApiError::internal(error)),
    }
}
