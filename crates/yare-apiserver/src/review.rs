//! Resources that are questions: a create is answered at once and nothing is stored. [`TABLE`] says who
//! answers what.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use serde_json::{Map, Value, json};
use yare_auth::{Action, Decision, rbac::Rule};
use yare_kinds::view::{View, ViewMut};
use yare_schema::selector::{FieldOperator, FieldRequirement, FieldSelector, LabelSelector, Requirement};

use crate::{
    admission::{self, Attributes, Operation},
    auth::{self, Bearer, User, authorizers},
    body::Reply,
    core::Call,
    encodings::Items,
    negotiate::Asked,
    options::WriteOptions,
    registry::Served,
    render::{self, Renderer},
    status::{ApiError, ApiResult, GroupResource},
    subresource,
    verbs::write,
};

type Answer = for<'a> fn(&'a Call, &'a Served, &'a mut Value) -> BoxFuture<'a, ApiResult<()>>;

/// Group, plural, and what fills in the answer.
const TABLE: &[(&str, &str, Answer)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", |call, _, object| {
        Box::pin(async { self_subject(call, object) })
    }),
    ("authentication.k8s.io", "tokenreviews", |call, _, object| Box::pin(token(call, object))),
    ("authorization.k8s.io", "localsubjectaccessreviews", |call, served, object| {
        Box::pin(local_access(call, served, object))
    }),
    ("authorization.k8s.io", "selfsubjectaccessreviews", |call, served, object| {
        Box::pin(self_access(call, served, object))
    }),
    ("authorization.k8s.io", "selfsubjectrulesreviews", |call, _, object| {
        Box::pin(async { self_rules(call, object) })
    }),
    ("authorization.k8s.io", "subjectaccessreviews", |call, served, object| {
        Box::pin(access(call, served, object))
    }),
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
        return Err(ApiError::method_not_allowed());
    };
    let options = WriteOptions::parse(&call.query, "CreateOptions", None, call.user_agent())?;
    let mut object = write::decode(call, served, &body, options.field_validation)?;
    object.remove("status");
    let attributes = Attributes::new(call, served, Operation::Create, options.dry_run);
    admission::admit(&attributes, &mut object).await?;
    answer(call, served, &mut object).await?;
    render::document(call, StatusCode::CREATED, &object)
}

fn self_subject(call: &Call, object: &mut Value) -> ApiResult<()> {
    object.set("metadata.creationTimestamp", call.core.now_rfc3339());
    object.set("status", json!({ "userInfo": call.user.to_json() }));
    Ok(())
}

async fn token(call: &Call, object: &mut Value) -> ApiResult<()> {
    let text = object.str_at("spec.token").to_owned();
    if text.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let own = call.core.config.auth.audiences();
    let audiences: Vec<String> = match object.strings("spec.audiences").as_slice() {
        [] => own.to_vec(),
        given => given.iter().map(|a| (*a).to_owned()).collect(),
    };
    let bearer = Bearer { token: &text, audiences: Some(&audiences) };
    let status = match auth::review(&call.core, bearer).await {
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

fn self_rules(call: &Call, object: &mut Value) -> ApiResult<()> {
    let namespace = object.str_at("spec.namespace").to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let found = auth::rules(&call.core, &call.user, &namespace);
    // A rule of both kinds stands in both lists, each with its part.
    let resources: Vec<Value> = found
        .rules
        .iter()
        .filter(|r| !r.resources.is_empty())
        .map(|r| Rule { non_resource_urls: Vec::new(), ..r.clone() }.to_json())
        .collect();
    let urls: Vec<Value> = found
        .rules
        .iter()
        .filter(|r| !r.non_resource_urls.is_empty())
        .map(|r| {
            let (verbs, non_resource_urls) = (r.verbs.clone(), r.non_resource_urls.clone());
            Rule { verbs, non_resource_urls, ..Rule::default() }.to_json()
        })
        .collect();
    let mut status =
        json!({ "incomplete": found.incomplete, "resourceRules": resources, "nonResourceRules": urls });
    if !found.error.is_empty() {
        status["evaluationError"] = found.error.into();
    }
    // The question does not come back.
    object.remove("spec");
    object.set("spec", json!({}));
    object.set("status", status);
    Ok(())
}

async fn local_access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    let namespace = call.info.namespace.as_str();
    write::settle_namespace(served, object, namespace)?;
    access(call, served, object).await
}

async fn access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
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
    decide(call, served, object, &user).await
}

async fn self_access(call: &Call, served: &Served, object: &mut Value) -> ApiResult<()> {
    decide(call, served, object, &call.user.clone()).await
}

async fn decide(call: &Call, served: &Served, object: &mut Value, user: &User) -> ApiResult<()> {
    let now = call.core.now_rfc3339();
    let errors = served.stored.strategy.validate(object, &write::context(&now, call));
    if !errors.is_empty() {
        // Upstream names the group alone.
        let what = GroupResource { group: &served.group, resource: "" };
        return Err(ApiError::invalid(what, "", &errors));
    }
    let resource = object.at("spec.resourceAttributes").clone();
    let path = object.at("spec.nonResourceAttributes").clone();
    let fields = fields(resource.at("fieldSelector"));
    let labels = labels(resource.at("labelSelector"));
    let wanted = if resource.is_null() {
        Action { verb: path.str_at("verb"), path: path.str_at("path"), ..Action::default() }
    } else {
        Action {
            verb: resource.str_at("verb"),
            group: resource.str_at("group"),
            version: resource.str_opt("version").filter(|v| !v.is_empty()).unwrap_or("*"),
            resource: resource.str_at("resource"),
            subresource: resource.str_at("subresource"),
            namespace: resource.str_at("namespace"),
            name: resource.str_at("name"),
            fields: &fields.0,
            labels: &labels.0,
            ..Action::default()
        }
    };
    let outcome = authorizers::decide(&call.core, user, &wanted).await;
    let mut status = Map::new();
    status.insert("allowed".into(), outcome.is_allowed().into());
    if matches!(outcome.decision, Decision::Deny(_)) {
        status.insert("denied".into(), true.into());
    }
    if !outcome.reason().is_empty() {
        status.insert("reason".into(), outcome.reason().into());
    }
    let mut errors = vec![outcome.error];
    errors.push(ignored("fieldSelector", fields.0.len(), fields.1));
    errors.push(ignored("labelSelector", labels.0.len(), labels.1));
    errors.retain(|e| !e.is_empty());
    if !errors.is_empty() {
        status.insert("evaluationError".into(), errors.join("; ").into());
    }
    object.set("status", status);
    Ok(())
}

/// What is said of a selector that could not be read: without a part of it the question is a wider one.
fn ignored(field: &str, kept: usize, failed: bool) -> String {
    match (failed, kept) {
        (false, _) => String::new(),
        (true, 0) => format!("spec.resourceAttributes.{field} ignored due to parse error"),
        (true, _) => format!("spec.resourceAttributes.{field} partially ignored due to parse error"),
    }
}

/// The requirements of a `fieldSelector`, and whether some could not be read.
fn fields(selector: &Value) -> (Vec<FieldRequirement>, bool) {
    let raw = selector.str_at("rawSelector");
    if !raw.is_empty() {
        return match FieldSelector::parse(raw) {
            Ok(selector) => (selector.requirements().to_vec(), false),
            Err(_) => (Vec::new(), true),
        };
    }
    let (mut out, mut failed) = (Vec::new(), false);
    for requirement in selector.items("requirements") {
        let operator = match requirement.str_at("operator") {
            "In" => FieldOperator::Equals,
            "NotIn" => FieldOperator::NotEquals,
            _ => {
                failed = true;
                continue;
            }
        };
        match requirement.strings("values").as_slice() {
            [value] => out.push(FieldRequirement {
                field: requirement.str_at("key").into(),
                operator,
                value: (*value).into(),
            }),
            _ => failed = true,
        }
    }
    (out, failed)
}

/// The requirements of a `labelSelector`, and whether some could not be read.
fn labels(selector: &Value) -> (Vec<Requirement>, bool) {
    let raw = selector.str_at("rawSelector");
    if !raw.is_empty() {
        return match LabelSelector::parse(raw) {
            Ok(selector) => (selector.requirements().to_vec(), false),
            Err(_) => (Vec::new(), true),
        };
    }
    let (mut out, mut failed) = (Vec::new(), false);
    for requirement in selector.items("requirements") {
        let one = json!({ "matchExpressions": [requirement] });
        match LabelSelector::from_object(&one) {
            Ok(selector) => out.extend_from_slice(selector.requirements()),
            Err(_) => failed = true,
        }
    }
    (out, failed)
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
    if call.info.verb == "get" {
        let renderer = Renderer::new(call, served, Asked::One)?;
        let name = call.info.name.as_str();
        if !names.contains(&name) {
            return Err(ApiError::not_found(served.group_resource(), name));
        }
        return renderer.reply(StatusCode::OK, &one(name).to_string().into());
    }
    let renderer = Renderer::new(call, served, Asked::List)?;
    let items = names.iter().map(|n| one(n).to_string().into()).collect();
    renderer.list(Map::new(), Items::Loose(items), call.in_process)
}
