//! Paths: what can be asked of each resource.

use serde_json::{Map, Value, json};

use super::{Dialect, Resource, Source, Subresource, schema::Definitions};

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "'true' indents the answer for people.");
const DRY_RUN: Parameter = ("dryRun", "string", "'All' goes through every step and stores nothing.");
const FIELD_MANAGER: Parameter =
    ("fieldManager", "string", "Name of who makes the change; at most 128 characters.");
const FIELD_VALIDATION: Parameter =
    ("fieldValidation", "string", "What becomes of unknown and duplicate fields: Strict, Warn or Ignore.");
const FORCE: Parameter = ("force", "boolean", "Apply takes over fields that others manage.");

const LIST: &[Parameter] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "The watch may send BOOKMARK events that only carry a resourceVersion.",
    ),
    ("continue", "string", "Where the next part of a list begins, as the answer before said."),
    ("fieldSelector", "string", "Only objects with these fields."),
    ("labelSelector", "string", "Only objects with these labels."),
    ("limit", "integer", "The most objects to answer with."),
    ("resourceVersion", "string", "How new the answer must be, or from where on to watch."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "The watch begins with what exists already."),
    ("timeoutSeconds", "integer", "When the call ends, whatever happens."),
    ("watch", "boolean", "Stream changes instead of a list."),
];
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object has to end by itself; 0: at once."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete although the object cannot be read from the store. Nothing it owns is cleaned up.",
    ),
    ("orphanDependents", "boolean", "Deprecated: say propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH_BODY: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// One way to call a path.
struct Call<'a> {
    /// HTTP method, in lower case.
    method: &'static str,
    /// What the operation's name begins with.
    verb: &'static str,
    /// `x-kubernetes-action`
    action: &'static str,
    parameters: &'a [Parameter],
    /// Definition of the body.
    body: Option<&'a str>,
    /// Definition of the answer; `None`: text.
    answer: Option<&'a str>,
    codes: &'a [(u16, &'a str)],
}

const OK: &[(u16, &str)] = &[(200, "OK")];
const OK_CREATED: &[(u16, &str)] = &[(200, "OK"), (201, "Created")];
const OK_ACCEPTED: &[(u16, &str)] = &[(200, "OK"), (202, "Accepted")];
const ALL: &[(u16, &str)] = &[(200, "OK"), (201, "Created"), (202, "Accepted")];

/// Writes the paths of one resource through `emit`.
pub(super) fn paths(
    dialect: Dialect,
    resource: &Resource<'_>,
    definitions: &mut Definitions<'_>,
    emit: &mut dyn FnMut(String, Value),
) {
    let root = match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    let plural = resource.plural;
    let space = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let scope = if resource.namespaced { "Namespaced" } else { "" };
    let object = resource.definition();
    let list = format!("{object}List");
    let verbs = |verb: &str| resource.verbs.contains(&verb);
    let gvk = (resource.group, resource.version, resource.kind);
    let mut item =
        |path: String, calls: &[Call<'_>], gvk: (&str, &str, &str), name: &str, with_name: bool| {
            if calls.is_empty() {
                return;
            }
            let mut map = Map::new();
            for call in calls {
                let operation = operation(dialect, resource, call, gvk, name, definitions);
                map.insert(call.method.to_owned(), operation);
            }
            let mut parameters = Vec::new();
            if with_name {
                parameters.push(path_parameter(dialect, "name", &format!("Name of the {}.", resource.kind)));
            }
            if path.contains("{namespace}") {
                parameters.push(path_parameter(dialect, "namespace", "Namespace of the object."));
            }
            if path.contains("{path}") {
                parameters.push(path_parameter(dialect, "path", "Path of the request that is passed on."));
            }
            parameters.push(query_parameter(dialect, &PRETTY));
            map.insert("parameters".into(), parameters.into());
            emit(path, Value::Object(map));
        };

    let read_list = Call {
        method: "get",
        verb: "list",
        action: "list",
        parameters: LIST,
        body: None,
        answer: Some(&list),
        codes: OK,
    };
    if resource.namespaced && verbs("list") {
        let name = format!("{}ForAllNamespaces", resource.kind);
        item(format!("{root}/{plural}"), std::slice::from_ref(&read_list), gvk, &name, false);
    }
    let mut calls = Vec::new();
    if verbs("list") {
        calls.push(read_list);
    }
    if verbs("create") {
        calls.push(Call {
            method: "post",
            verb: "create",
            action: "post",
            parameters: WRITE,
            body: Some(&object),
            answer: Some(&object),
            codes: ALL,
        });
    }
    let all_of_list;
    if verbs("deletecollection") {
        all_of_list = [DELETE, LIST].concat();
        calls.push(Call {
            method: "delete",
            verb: "deleteCollection",
            action: "deletecollection",
            parameters: &all_of_list,
            body: Some(DELETE_OPTIONS),
            answer: Some(STATUS),
            codes: OK,
        });
    }
    item(format!("{root}{space}/{plural}"), &calls, gvk, &format!("{scope}{}", resource.kind), false);

    let one = format!("{root}{space}/{plural}/{{name}}");
    let mut calls = object_calls(&object, &verbs);
    if verbs("delete") {
        calls.push(Call {
            method: "delete",
            verb: "delete",
            action: "delete",
            parameters: DELETE,
            body: Some(DELETE_OPTIONS),
            answer: Some(STATUS),
            codes: OK_ACCEPTED,
        });
    }
    item(one.clone(), &calls, gvk, &format!("{scope}{}", resource.kind), true);

    for sub in &resource.subresources {
        let verbs = |verb: &str| sub.verbs.contains(&verb);
        let gvk = (sub.group, sub.version, sub.kind);
        let name = format!("{scope}{}{}", resource.kind, capital(sub.name));
        let path = format!("{one}/{}", sub.name);
        if sub.connects() {
            let calls = connect_calls(sub);
            item(path.clone(), &calls, gvk, &name, true);
            if sub.name == "proxy" {
                item(format!("{path}/{{path}}"), &calls, gvk, &format!("{name}WithPath"), true);
            }
            continue;
        }
        if sub.name == "log" {
            let call = Call {
                method: "get",
                verb: "read",
                action: "get",
                parameters: &[],
                body: None,
                answer: None,
                codes: OK,
            };
            item(path, &[call], gvk, &name, true);
            continue;
        }
        let body = match &resource.source {
            Source::Builtin => super::definition_of(sub.group, sub.version, sub.kind),
            Source::Custom(_) if gvk == (resource.group, resource.version, resource.kind) => {
                Some(object.clone())
            }
            Source::Custom(_) => super::definition_of(sub.group, sub.version, sub.kind),
        };
        let body = body.unwrap_or_else(|| object.clone());
        let mut calls = object_calls(&body, &verbs);
        if verbs("create") {
            calls.push(Call {
                method: "post",
                verb: "create",
                action: "post",
                parameters: WRITE,
                body: Some(&body),
                answer: Some(&body),
                codes: ALL,
            });
        }
        item(path, &calls, gvk, &name, true);
    }
}

fn object_calls<'a>(object: &'a str, verbs: &dyn Fn(&str) -> bool) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    if verbs("get") {
        calls.push(Call {
            method: "get",
            verb: "read",
            action: "get",
            parameters: &[],
            body: None,
            answer: Some(object),
            codes: OK,
        });
    }
    if verbs("update") {
        calls.push(Call {
            method: "put",
            verb: "replace",
            action: "put",
            parameters: WRITE,
            body: Some(object),
            answer: Some(object),
            codes: OK_CREATED,
        });
    }
    if verbs("patch") {
        calls.push(Call {
            method: "patch",
            verb: "patch",
            action: "patch",
            parameters: PATCH,
            body: Some(PATCH_BODY),
            answer: Some(object),
            codes: OK_CREATED,
        });
    }
    calls
}

fn connect_calls<'a>(sub: &Subresource<'_>) -> Vec<Call<'a>> {
    let methods: &[(&'static str, &'static str)] = if sub.name == "proxy" {
        &[
            ("get", "connectGet"),
            ("post", "connectPost"),
            ("put", "connectPut"),
            ("patch", "connectPatch"),
            ("delete", "connectDelete"),
            ("head", "connectHead"),
            ("options", "connectOptions"),
        ]
    } else {
        &[("get", "connectGet"), ("post", "connectPost")]
    };
    methods
        .iter()
        .map(|(method, verb)| Call {
            method,
            verb,
            action: "connect",
            parameters: &[],
            body: None,
            answer: None,
            codes: OK,
        })
        .collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `rbac.authorization.k8s.io` as `RbacAuthorization`, core as `Core`.
fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    group.strip_suffix(".k8s.io").unwrap_or(group).split(['.', '-']).map(capital).collect()
}

fn operation(
    dialect: Dialect,
    resource: &Resource<'_>,
    call: &Call<'_>,
    (group, version, kind): (&str, &str, &str),
    name: &str,
    definitions: &mut Definitions<'_>,
) -> Value {
    let group_version = format!("{}{}", group_name(resource.group), capital(resource.version));
    // deleteCollection goes around: deleteAppsV1CollectionNamespacedDeployment.
    let id = match (call.verb, call.verb.strip_prefix("connect")) {
        ("deleteCollection", _) => format!("delete{group_version}Collection{name}"),
        (_, Some(method)) => format!("connect{group_version}{method}{name}"),
        (verb, None) => format!("{verb}{group_version}{name}"),
    };
    let mut tag = group_name(resource.group);
    tag[..1].make_ascii_lowercase();
    let mut out = Map::new();
    out.insert("description".into(), format!("{} {}", call.verb, resource.kind).into());
    out.insert("operationId".into(), id.into());
    out.insert("tags".into(), json!([format!("{tag}_{}", resource.version)]));
    out.insert("x-kubernetes-action".into(), call.action.into());
    out.insert(
        "x-kubernetes-group-version-kind".into(),
        json!({"group": group, "kind": kind, "version": version}),
    );
    let mut parameters: Vec<Value> =
        call.parameters.iter().map(|parameter| query_parameter(dialect, parameter)).collect();
    parameters.dedup();
    let types = answer_types(resource, call);
    match dialect {
        Dialect::V3 => {
            if let Some(body) = call.body {
                let reference = definitions.reference(body);
                let content: Map<String, Value> = body_types(resource, call)
                    .into_iter()
                    .map(|t| (t.to_owned(), json!({ "schema": reference.clone() })))
                    .collect();
                out.insert("requestBody".into(), json!({ "content": content }));
            }
        }
        Dialect::V2 => {
            if let Some(body) = call.body {
                let reference = definitions.reference(body);
                let required = call.method != "delete";
                let mut parameter = json!({"in": "body", "name": "body", "schema": reference});
                if required {
                    parameter["required"] = Value::Bool(true);
                }
                parameters.insert(0, parameter);
            }
            out.insert("consumes".into(), body_types(resource, call).into());
            out.insert("produces".into(), types.clone().into());
            out.insert("schemes".into(), json!(["https"]));
        }
    }
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    let schema = match call.answer {
        Some(answer) => definitions.reference(answer),
        None => json!({"type": "string"}),
    };
    let mut responses = Map::new();
    for (code, text) in call.codes {
        let response = match dialect {
            Dialect::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema.clone() }))).collect();
                json!({"description": text, "content": content})
            }
            Dialect::V2 => json!({"description": text, "schema": schema}),
        };
        responses.insert(code.to_string(), response);
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    out.insert("responses".into(), responses.into());
    Value::Object(out)
}

fn custom(resource: &Resource<'_>) -> bool {
    matches!(resource.source, Source::Custom(_))
}

fn body_types(resource: &Resource<'_>, call: &Call<'_>) -> Vec<&'static str> {
    match call.action {
        "patch" if custom(resource) => {
            vec![
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ]
        }
        "patch" => {
            let mut types = vec![
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
                "application/apply-patch+yaml",
            ];
            if resource.cbor {
                types.push("application/apply-patch+cbor");
            }
            types
        }
        _ if custom(resource) => vec!["application/json", "application/yaml"],
        _ => vec!["*/*"],
    }
}

fn answer_types(resource: &Resource<'_>, call: &Call<'_>) -> Vec<&'static str> {
    match (call.answer, call.action, custom(resource)) {
        (None, "connect", _) => vec!["*/*"],
        (None, ..) => vec!["text/plain", "application/json", "application/yaml"],
        (_, _, true) => vec!["application/json", "application/yaml"],
        (_, action, false) => {
            let mut types =
                vec!["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
            if resource.cbor {
                types.push("application/cbor");
            }
            if action == "list" {
                types.extend([
                    "application/json;stream=watch",
                    "application/vnd.kubernetes.protobuf;stream=watch",
                ]);
                if resource.cbor {
                    types.push("application/cbor-seq");
                }
            }
            types
        }
    }
}

fn query_parameter(dialect: Dialect, (name, kind, doc): &Parameter) -> Value {
    match dialect {
        Dialect::V3 => json!({"name": name, "in": "query", "description": doc,
            "schema": {"type": kind, "uniqueItems": true}}),
        Dialect::V2 => {
            json!({"name": name, "in": "query", "description": doc, "type": kind, "uniqueItems": true})
        }
    }
}

fn path_parameter(dialect: Dialect, name: &str, doc: &str) -> Value {
    match dialect {
        Dialect::V3 => json!({"name": name, "in": "path", "required": true, "description": doc,
            "schema": {"type": "string", "uniqueItems": true}}),
        Dialect::V2 => json!({"name": name, "in": "path", "required": true, "description": doc,
            "type": "string", "uniqueItems": true}),
    }
}
