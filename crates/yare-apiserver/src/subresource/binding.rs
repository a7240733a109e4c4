//! `pods/binding` and `bindings`: the scheduler's word on where a pod runs.

use std::{iter, sync::Arc};

use http::StatusCode;
use serde_json::{Map, Value, json};
use yare_kinds::{
    conditions,
    view::{View, ViewMut},
};
use yare_schema::field::{FieldError, Path};

use crate::{
    admission::{self, Attributes, Operation},
    body::Reply,
    codec,
    core::Call,
    options::WriteOptions,
    registry::Served,
    render,
    status::{ApiError, ApiResult, GroupResource},
    verbs::write,
};

const BINDINGS: GroupResource<'_> = GroupResource { group: "", resource: "pods/binding" };

/// Assigns a pod to a node.
pub async fn create(call: &Call, served: &Arc<Served>, body: &[u8]) -> ApiResult<Reply> {
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let expected = codec::Expected { group: "", version: "v1", kind: "Binding", custom: false };
    let ty =
        codec::builtin_type("", "v1", "Binding").ok_or_else(|| ApiError::internal("no type for Binding"))?;
    let mut binding = codec::decode_body(
        call,
        &crate::registry::TypeHandle::Static(ty),
        &expected,
        body,
        options.field_validation,
    )?;
    let given = binding.str_at("metadata.name").to_owned();
    let name = if call.info.name.is_empty() { given.as_str() } else { call.info.name.as_str() };
    let namespace = call.info.namespace.as_str();
    write::settle_namespace(served, &mut binding, namespace)?;
    let attributes = Attributes { name, ..Attributes::new(call, served, Operation::Create, options.dry_run) };
    admission::mutate(&attributes, &mut binding, None).await?;
    if !call.info.name.is_empty() && binding.str_at("metadata.name") != name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let target = Path::new("target");
    let mut errors = Vec::new();
    let kind = binding.str_at("target.kind");
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_listed(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if binding.str_at("target.name").is_empty() {
        errors.push(FieldError::required(&target.child("name"), ""));
    }
    if !errors.is_empty() {
        // Upstream makes no status of these.
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let message = if let [one] = all.as_slice() { one.clone() } else { format!("[{}]", all.join(", ")) };
        return Err(ApiError::new(500, "", message));
    }
    admission::validate(&attributes, Some(&binding), None).await?;
    if name.is_empty() {
        return Err(ApiError::bad_request("Name parameter required."));
    }
    let registry = call.core.registry.load_full();
    let pods = registry.find("", "v1", "pods").ok_or_else(ApiError::unknown_resource)?;
    let uid = binding.str_at("metadata.uid");
    let version = binding.str_at("metadata.resourceVersion");
    let now = call.core.now_rfc3339();
    let node = binding.str_at("target.name");
    let gates = &call.core.config.gates;
    write::modify(call, pods, namespace, name, None, options.dry_run, |pod| {
        let conflict = |why: String| ApiError::conflict(BINDINGS, name, why);
        if !uid.is_empty() && uid != pod.str_at("metadata.uid") {
            let uids = (uid, pod.str_at("metadata.uid"));
            return Err(write::another_uid(call, pods, name, uids, options.dry_run));
        }
        if !version.is_empty() && version != pod.str_at("metadata.resourceVersion") {
            return Err(ApiError::modified(GroupResource { group: "", resource: "pods" }, name));
        }
        if pod.has("metadata.deletionTimestamp") {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let assigned = pod.str_at("spec.nodeName");
        if !assigned.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {assigned:?}")));
        }
        if !pod.items("spec.schedulingGates").is_empty() {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        pod.set("spec.nodeName", node);
        if gates.is_on("ClearingNominatedNodeNameAfterBinding") {
            pod.remove("status.nominatedNodeName");
        }
        let labels = gates.is_on("PodTopologyLabelsAdmission").then_some("labels");
        for field in iter::once("annotations").chain(labels) {
            for (key, value) in binding.at("metadata").entries(field) {
                let path = format!("metadata.{field}");
                if !pod.has(&path) {
                    pod.set(&path, Map::new());
                }
                if let Some(map) = pod.at_mut(&path).and_then(Value::as_object_mut) {
                    map.insert(key.to_owned(), value.clone());
                }
            }
        }
        let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null});
        conditions::set(pod, scheduled, &now);
        Ok(())
    })
    .await?;
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    render::document(call, StatusCode::CREATED, &status)
}
