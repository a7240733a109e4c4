//! Resources that are questions: a create is answered at once and nothing is stored. [`TABLE`] says who
//! answers what.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};
use yare_auth::Action;
use yare_kinds::view::{View, ViewMut};
use yare_schema::field::{FieldError, Path};

use crate::{
    admission::{self, Attributes, Operation},
    auth::{
        self, User,
        authenticators::{self, Bearer},
    },
    body::{self, Reply},
    core::Call,
    negotiate::Shape,
    options::WriteOptions,
    registry::Served,
    render::{self, Renderer},
    status::{ApiError, ApiResult},
    subresource,
    verbs::write,
};

type Answer = fn(&Call, &Served, &mut Value) -> ApiResult<()>;

/// Group, plural, and what fills in the answer.
const TABLE: &[(&str, &str, Answer)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", self_subject),
    ("authentication.k8s.io", "tokenreviews", token),
    ("authorization.k8s.io", "localsubjectaccessreviews", local_access),
    ("authorization.k8s.io", "selfsubjectaccessreviews", self_access),
    ("authorization.k8s.io", "selfsubjectrulesreviews", self_rules),
    ("authorization.k8s.io", "subjectaccessreviews", access),
];

/// Answers a question.
pub async fn handle(call: &Call, served: &Arc<Served>, body: Bytes) -> ApiResult<Reply> {
    match (&*served.group, &*served.plural) {
        ("", "bindings") => return subresource::binding::create(call, served, &body).await,
        ("", "componentstatuses") => return components(call, served),
        _ => {}
    }
    let Some((_, _, answer)) = TABLE.iter().find(|(g, p, _)| *g == &*served.group && *p == &*served.plural)
    else {
        return Err(ApiError::method_not_supported(served.group_resource(), call.info.verb));
    };
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let mut object = write::decode(call, served, &body, options.field_validation)?;
    object.remove("status");
    let attributes = Attributes::new(call, served, Operation::Create, options.dry_run);
    admission::admit(&attributes, &mut object).await?;
    answer(call, served, &mut object)?;
    render::document(call, StatusCode::CREATED, &object)
}

fn self_subject(call: &Call, _served: &Served, object: &mut Value) -> ApiResult<()> {
    object.set("metadata.creationTimestamp", call.core.now_rfc3339());
    object.set("status", json!({ "userInfo": call.user.to_json() }));
    Ok(())
}

fn token(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    let text = object.str_at("spec.token").to_owned();
    if text.is_empty() {
        let spec = Path::new("spec");
        let error = FieldError::required(&spec.child("token"), "must not be empty");
        return Err(ApiError::invalid(served.group_kind(), "", &[error]));
    }
    let audiences: Vec<String> = object.strings("spec.audiences").iter().map(|a| (*a).to_owned()).collect();
    let bearer = Bearer { token: &text, audiences: (!audiences.is_empty()).then_some(&audiences) };
    let status = match authenticators::review(&call.core, bearer) {
        Ok(known) => {
            let mut status = json!({ "authenticated": true, "user": known.user.to_json() });
            if !known.audiences.is_empty() {
                status["audiences"] = known.audiences.into();
            }
            status
        }
        Err(why) => json!({ "user": {}, "error": why }),
    };
    object.set("status", status);
    Ok(())
}

fn self_rules(call: &Call, _served: &Served, object: &mut Value) -> ApiResult<()> {
    let namespace = object.str_at("spec.namespace").to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    object.set("status", auth::rules(&call.core, &call.user, &namespace));
    Ok(())
}

fn local_access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    let namespace = call.info.namespace.as_str();
    write::settle_namespace(served, object, namespace)?;
    let given = object.str_at("spec.resourceAttributes.namespace");
    if given != namespace {
        let spec = Path::new("spec");
        let attributes = spec.child("resourceAttributes");
        let error =
            FieldError::invalid(&attributes.child("namespace"), given, "must match metadata.namespace");
        return Err(ApiError::invalid(served.group_kind(), "", &[error]));
    }
    access(call, served, object)
}

fn access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    let list = |path: &str| object.strings(path).iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
    let extra: BTreeMap<String, Vec<String>> = object
        .entries("spec.extra")
        .map(|(k, v)| (k.to_owned(), v.strings("").iter().map(|s| (*s).to_owned()).collect()))
        .collect();
    let user = User {
        name: object.str_at("spec.user").to_owned(),
        uid: object.str_at("spec.uid").to_owned(),
        groups: list("spec.groups"),
        extra,
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let spec = Path::new("spec");
        let error =
            FieldError::invalid(&spec.child("user"), "", "at least one of user or group must be specified");
        return Err(ApiError::invalid(served.group_kind(), "", &[error]));
    }
    decide(call, served, object, &user)
}

fn self_access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    decide(call, served, object, &call.user.clone())
}

fn decide(call: &Call, served: &Served, object: &mut Value, user: &User) -> ApiResult<()> {
    let resource = object.at("spec.resourceAttributes").clone();
    let path = object.at("spec.nonResourceAttributes").clone();
    if resource.is_null() == path.is_null() {
        let spec = Path::new("spec");
        let error = if resource.is_null() {
            FieldError::invalid(
                &spec.child("resourceAttributes"),
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            )
        } else {
            FieldError::invalid(
                &spec.child("nonResourceAttributes"),
                path,
                "cannot be specified in combination with resourceAttributes",
            )
        };
        return Err(ApiError::invalid(served.group_kind(), "", &[error]));
    }
    let wanted = if resource.is_null() {
        Action { verb: path.str_at("verb"), path: path.str_at("path"), ..Action::default() }
    } else {
        Action {
            verb: resource.str_at("verb"),
            group: resource.str_at("group"),
            resource: resource.str_at("resource"),
            subresource: resource.str_at("subresource"),
            namespace: resource.str_at("namespace"),
            name: resource.str_at("name"),
            ..Action::default()
        }
    };
    let (allowed, reason) = match auth::decide(&call.core, user, &wanted) {
        Ok(reason) => (true, reason),
        Err(reason) => (false, reason),
    };
    let mut status = Map::new();
    status.insert("allowed".into(), allowed.into());
    if !reason.is_empty() {
        status.insert("reason".into(), reason.into());
    }
    object.set("status", status);
    Ok(())
}

/// The deprecated list of components: the store and what runs beside it in this process.
fn components(call: &Call, served: &Arc<Served>) -> ApiResult<Reply> {
    let one = |name: &str| {
        json!({
            "kind": "ComponentStatus", "apiVersion": "v1", "metadata": { "name": name },
            "conditions": [{ "type": "Healthy", "status": "True", "message": "ok" }],
        })
    };
    let names = ["controller-manager", "etcd-0", "scheduler"];
    let is_list = call.info.verb != "get";
    let renderer = Renderer::new(call, served, is_list)?;
    if !is_list {
        let name = call.info.name.as_str();
        if !names.contains(&name) {
            return Err(ApiError::not_found(served.group_resource(), name));
        }
        return renderer.reply(StatusCode::OK, &one(name).to_string().into());
    }
    let metadata = json!({});
    if matches!(renderer.accepted.shape, Shape::Full) {
        let items: Vec<Value> = names.iter().map(|n| one(n)).collect();
        let list = json!({ "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": metadata, "items": items });
        return render::document(call, StatusCode::OK, &list);
    }
    let items = names.iter().map(|n| renderer.item(&one(n).to_string().into()));
    let items = items.collect::<ApiResult<Vec<Bytes>>>()?;
    let json = [renderer.list_head(&metadata).as_bytes(), &items.join(&b","[..]), b"]}"].concat();
    let bytes = render::finish(json.into(), renderer.accepted.encoding, renderer.accepted.pretty)?;
    Ok(body::reply(StatusCode::OK, renderer.media_type(), bytes))
}
