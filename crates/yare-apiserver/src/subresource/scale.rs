//! `scale`: how many replicas a workload should have and has, in the one shape that autoscalers know.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use yare_kinds::{
    printers,
    view::{View, ViewMut},
};
use yare_schema::{
    field::{FieldError, Path},
    managed::{
        self as schema, ManagerInfo, OneType,
        scale::{self, ReplicasPaths},
    },
    selector::LabelSelector,
};

use crate::{
    body::Reply,
    codec::{self, Expected},
    core::Call,
    jsonpath, managed,
    options::{WriteOptions, is_apply},
    registry::{Registry, Served, TypeHandle},
    render,
    status::{ApiError, ApiResult, GroupResource},
    verbs::{
        list,
        patch::{self, Patch, Subject},
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
            if served.stored.custom.is_some() && value.at(&paths.spec).is_null() {
                return Err(ApiError::internal(format!(
                    "the spec replicas field \".{}\" does not exist",
                    paths.spec
                )));
            }
            shown(served, &paths, &value)
        }
        _ => change(call, served, &paths, &body).await?,
    };
    render::view(call, StatusCode::OK, &scale, &printers::SCALE)
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
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": {},
        "status": { "replicas": object.int_at(&paths.status) },
    });
    // No replicas are wanted: the one number of a scale that is left out where it is zero.
    let wanted = object.int_at(&paths.spec);
    if wanted != 0 {
        scale.set("spec.replicas", wanted);
    }
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

/// Where the versions of a resource keep their replicas.
struct Replicas<'a> {
    registry: &'a Registry,
    served: &'a Served,
}

impl ReplicasPaths for Replicas<'_> {
    fn path(&self, api_version: &str) -> Option<Vec<String>> {
        let stored = &self.served.stored;
        let versions = self.registry.versions_of(&stored.kind_key);
        let version = versions.iter().find(|s| *s.api_version == *api_version)?;
        Some(paths(version).map(|p| p.spec.split('.').map(str::to_owned).collect()).unwrap_or_default())
    }
}

/// What says that a custom resource has no replicas: a scale cannot.
const UNSET: i64 = i32::MIN as i64;

async fn change(call: &Call, served: &Arc<Served>, paths: &Paths, body: &[u8]) -> ApiResult<Value> {
    let name = call.info.name.as_str();
    let custom = served.stored.custom.is_some();
    let ty = codec::builtin_type("autoscaling", "v1", "Scale")
        .ok_or_else(|| ApiError::internal("no type for Scale"))?;
    let ty = TypeHandle::Static(ty);
    let media = if call.info.verb == "patch" { Some(patch::media_type(call, custom)?) } else { None };
    let kind = if media.is_some() { "PatchOptions" } else { "UpdateOptions" };
    let options = WriteOptions::parse(&call.query, kind, media, call.user_agent())?;
    let change = match media {
        None => {
            let expected = Expected { group: "autoscaling", version: "v1", kind: "Scale", custom: false };
            Change::Update(codec::decode_body(call, &ty, &expected, body, options.field_validation)?)
        }
        Some(media) => {
            patch::record(call, media, body);
            if is_apply(media) {
                Change::Apply(patch::configuration(media, body, scale::API_VERSION, "Scale")?)
            } else {
                Change::Patch(Patch::read(media, body, options.field_validation)?)
            }
        }
    };
    let owned = OneType { ty: ty.at(), api_versions: &[scale::API_VERSION], evolves: false };
    let subject = Subject { ty: &ty, api_version: scale::API_VERSION, kind: "Scale", custom };
    let registry = call.core.registry.load_full();
    let replicas_at = Replicas { registry: &registry, served };
    let make = |current: &Value| {
        let now = call.core.now_rfc3339();
        let info = ManagerInfo {
            manager: &options.field_manager,
            api_version: scale::API_VERSION,
            subresource: "scale",
            time: &now,
        };
        let mut before = shown(served, paths, current);
        if custom && current.at(&paths.spec).is_null() {
            before.set("spec.replicas", UNSET);
        }
        let broken = |why| ApiError::new(500, "", why);
        if let Some(entries) = scale::of_object(current, &replicas_at).map_err(broken)? {
            before.set("metadata.managedFields", entries);
        }
        let mut new = match &change {
            Change::Update(given) => given.clone(),
            Change::Patch(patch) => patch.apply(call, &subject, options.field_validation, before.clone())?,
            Change::Apply(config) => {
                let force = options.force;
                let applied = schema::apply(&owned, Some(&before), config, &info, force, None);
                let new = applied.map_err(managed::refused)?.object;
                patch::check_duplicates(call, media.unwrap_or_default(), body, &options)?;
                codec::conform(&ty, new).map_err(ApiError::bad_request)?.value
            }
        };
        if !matches!(change, Change::Apply(_)) {
            schema::update(&owned, Some(&before), &mut new, &info, None);
        }
        write::settle_namespace(served, &mut new, &call.info.namespace)?;
        write::check_name(&new, name)?;
        let replicas = new.int_at("spec.replicas");
        if custom && replicas == UNSET {
            let path = &paths.spec;
            return Err(ApiError::bad_request(format!(
                "the spec replicas field \".{path}\" cannot be empty"
            )));
        }
        if replicas < 0 && !custom {
            let spec = Path::new("spec");
            let error =
                FieldError::invalid(&spec.child("replicas"), replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid(SCALE, name, &[error]));
        }
        let mut object = current.clone();
        object.set(&paths.spec, replicas);
        // The scale's revision is a condition, if it names one.
        if new.is_set("metadata.resourceVersion") {
            object.copy_from(&new, "metadata.resourceVersion");
        }
        if new.is_set("metadata.uid") {
            object.copy_from(&new, "metadata.uid");
        }
        let entries = scale::to_object(current, &new, &served.api_version, &replicas_at).map_err(broken)?;
        match entries {
            Some(entries) => object.set("metadata.managedFields", entries),
            None => drop(object.remove("metadata.managedFields")),
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
        // Whose the replicas are is settled above.
        apply: true,
        retry: true,
        view: Some(&ScaleView { served, paths }),
    };
    let written = write::update(&update).await?;
    let mut value: Value = serde_json::from_slice(&written.bytes).map_err(ApiError::internal)?;
    served.from_storage(&mut value)?;
    Ok(shown(served, paths, &value))
}

/// What a request does to a scale.
enum Change {
    Update(Value),
    Patch(Patch),
    Apply(Value),
}
