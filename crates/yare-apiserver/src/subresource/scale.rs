//! `scale`: how many replicas a workload should have and has, in the one shape that autoscalers know.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};
use yare_schema::{
    field::{FieldError, Path},
    patch,
    selector::LabelSelector,
};

use crate::{
    body::Reply,
    codec,
    core::Call,
    jsonpath,
    options::WriteOptions,
    registry::{Served, TypeHandle},
    render,
    status::{ApiError, ApiResult, GroupResource},
    verbs::{
        self, list,
        write::{self, AdmissionView, Target, Update},
    },
};

const SCALE: GroupResource<'_> = GroupResource { group: "autoscaling", resource: "Scale" };

/// Where a resource keeps its replicas.
struct Paths {
    spec: String,
    status: String,
    /// Path of a selector: an object for built-in kinds, text for custom ones.
    selector: String,
}

fn paths(served: &Served) -> ApiResult<Paths> {
    if let Some(custom) = &served.stored.custom {
        let scale = custom
            .version(&served.version)
            .and_then(|v| v.scale.as_ref())
            .ok_or_else(ApiError::unknown_resource)?;
        let plain = |p: &str| p.trim_start_matches('.').to_owned();
        return Ok(Paths {
            spec: plain(&scale.spec_replicas),
            status: plain(&scale.status_replicas),
            selector: scale.label_selector.as_deref().map(plain).unwrap_or_default(),
        });
    }
    Ok(Paths {
        spec: "spec.replicas".into(),
        status: "status.replicas".into(),
        selector: "spec.selector".into(),
    })
}

/// Reads or writes the scale.
pub async fn handle(call: &Call, served: &Arc<Served>, body: Bytes) -> ApiResult<Reply> {
    let paths = paths(served)?;
    let scale = match call.info.verb {
        "get" => {
            let object = list::find(call, served).await?;
            let mut value: Value = serde_json::from_slice(&object.bytes).map_err(ApiError::internal)?;
            served.from_rest(&mut value)?;
            shown(served, &paths, &value)
        }
        _ => change(call, served, &paths, &body).await?,
    };
    render::document(call, StatusCode::OK, &scale)
}

fn shown(served: &Served, paths: &Paths, object: &Value) -> Value {
    let selector = if served.stored.custom.is_some() {
        jsonpath::scalar(object, &paths.selector)
    } else {
        match object.at(&paths.selector) {
            // A replication controller's selector is a plain map.
            map if &*served.kind == "ReplicationController" => LabelSelector::from_set_value(map).to_string(),
            Value::Null => String::new(),
            selector => LabelSelector::from_object(selector).map(|s| s.to_string()).unwrap_or_default(),
        }
    };
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata.copy_from(object.at("metadata"), field);
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": object.int_at(&paths.spec) },
        "status": { "replicas": object.int_at(&paths.status) },
    });
    if !selector.is_empty() {
        scale.set("status.selector", selector);
    }
    scale
}

/// The scale in the place of its object.
struct ScaleView<'a> {
    served: &'a Served,
    paths: &'a Paths,
}

impl AdmissionView for ScaleView<'_> {
    fn show(&self, object: &Value) -> Value {
        shown(self.served, self.paths, object)
    }

    fn put(&self, object: &mut Value, shown: &Value) {
        object.set(&self.paths.spec, shown.int_at("spec.replicas"));
    }
}

const TARGET: Target = Target {
    subresource: "scale",
    prepare: |served, new, old, ctx| served.stored.strategy.prepare_for_update(new, old, ctx),
    validate: |served, new, old, ctx, warnings| {
        served.stored.strategy.judge_update("", new, old, ctx, warnings)
    },
};

async fn change(call: &Call, served: &Arc<Served>, paths: &Paths, body: &[u8]) -> ApiResult<Value> {
    let name = call.info.name.as_str();
    let ty = codec::builtin_type("autoscaling", "v1", "Scale")
        .ok_or_else(|| ApiError::internal("no type for Scale"))?;
    let ty = TypeHandle::Static(ty);
    let is_patch = call.info.verb == "patch";
    let media = if is_patch { verbs::patch::media_type(call, served)? } else { "" };
    let kind = if is_patch { "PatchOptions" } else { "UpdateOptions" };
    let options = WriteOptions::parse(&call.query, kind, is_patch.then_some(media), call.user_agent())?;
    let given = if is_patch {
        verbs::patch::read(media, body)
            .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?
    } else {
        let expected = codec::Expected { group: "autoscaling", version: "v1", kind: "Scale", custom: false };
        codec::decode_body(call, &ty, &expected, body, options.field_validation)?
    };
    let make = |current: &Value| {
        let scale = if is_patch {
            let before = shown(served, paths, current);
            let patched = match media {
                "application/json-patch+json" => patch::json::apply(before, &given).map_err(|e| {
                    ApiError::new(
                        422,
                        "Invalid",
                        format!("the server rejected our request due to an error in our request: {e}"),
                    )
                })?,
                _ => patch::merge::apply(before, given.clone())
                    .map_err(|e| ApiError::bad_request(e.to_string()))?,
            };
            codec::conform(&ty, patched).map_err(ApiError::bad_request)?.value
        } else {
            given.clone()
        };
        let scale_name = scale.str_at("metadata.name");
        if !scale_name.is_empty() && scale_name != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({scale_name}) does not match the name on the URL ({name})"
            )));
        }
        let replicas = scale.int_at("spec.replicas");
        if replicas < 0 {
            let spec = Path::new("spec");
            let error =
                FieldError::invalid(&spec.child("replicas"), replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid(SCALE, name, &[error]));
        }
        let mut object = current.clone();
        object.set(&paths.spec, replicas);
        // The scale's revision is a condition, if it names one.
        match scale.str_opt("metadata.resourceVersion") {
            Some(version) if !is_patch && !version.is_empty() => {
                object.set("metadata.resourceVersion", version)
            }
            _ => {
                if !is_patch {
                    object.set(
                        "metadata.resourceVersion",
                        current.str_at("metadata.resourceVersion").to_owned(),
                    );
                }
            }
        }
        let uid = scale.str_at("metadata.uid");
        if !uid.is_empty() {
            object.set("metadata.uid", uid);
        }
        Ok(object)
    };
    let update = Update {
        call,
        served,
        name,
        target: &TARGET,
        options: &options,
        make: &make,
        apply: false,
        retry: true,
        view: Some(&ScaleView { served, paths }),
    };
    let written = write::update(&update).await?;
    let mut value: Value = serde_json::from_slice(&written.bytes).map_err(ApiError::internal)?;
    served.from_storage(&mut value)?;
    Ok(shown(served, paths, &value))
}
