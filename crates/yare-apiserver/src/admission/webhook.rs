//! Admission webhooks: programs outside that may change or refuse writes, as MutatingWebhookConfigurations
//! and ValidatingWebhookConfigurations say (`admission.k8s.io/v1`).

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use yare_kinds::view::View;
use yare_schema::{patch, selector::LabelSelector};

use super::{Attributes, Operation};
use crate::{
    outbound,
    registry::Served,
    status::{ApiError, ApiResult},
};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Lets mutating webhooks change the object (of the storage version).
pub async fn mutate(attributes: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    for hook in hooks(attributes, MUTATING) {
        let Some(version) = matching(attributes, &hook, Some(object), old) else { continue };
        let Some(response) = call(attributes, &hook, &version, Some(object), old).await? else { continue };
        let Some(encoded) = response.str_opt("patch").filter(|p| !p.is_empty()) else { continue };
        if attributes.operation == Operation::Delete || attributes.operation == Operation::Connect {
            continue;
        }
        let name = hook.str_at("name");
        let bad = |e: &dyn std::fmt::Display| {
            ApiError::internal(format!("admission webhook {name:?} sent a patch that cannot be applied: {e}"))
        };
        let bytes = STANDARD.decode(encoded).map_err(|e| bad(&e))?;
        let document: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        let patched =
            patch::json::apply(in_version(attributes, &version, object)?, &document).map_err(|e| bad(&e))?;
        let conformed = crate::codec::conform(&version.ty, patched).map_err(|e| bad(&e))?;
        let mut patched = conformed.value;
        version.to_storage(&mut patched)?;
        attributes.served.stored.strategy.default(&mut patched);
        *object = patched;
    }
    Ok(())
}

/// Lets validating webhooks refuse the object.
pub async fn validate(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    for hook in hooks(attributes, VALIDATING) {
        if let Some(version) = matching(attributes, &hook, object, old) {
            call(attributes, &hook, &version, object, old).await?;
        }
    }
    Ok(())
}

/// Lets mutating webhooks see (but not change) a deletion or a connection.
pub async fn observe(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    for hook in hooks(attributes, MUTATING) {
        if let Some(version) = matching(attributes, &hook, object, old) {
            call(attributes, &hook, &version, object, old).await?;
        }
    }
    Ok(())
}

/// All webhooks of the kind of configuration, in order of their configurations' names.
fn hooks(attributes: &Attributes<'_>, kind: &str) -> Vec<Value> {
    // Nobody locks himself out: what configures admission is not subject to webhooks, nor are reviews.
    if &*attributes.served.stored.group == GROUP {
        return Vec::new();
    }
    let snapshot = attributes.call.core.store().snapshot(kind);
    if snapshot.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for object in snapshot.range(std::ops::Bound::Unbounded, "") {
        let Ok(mut configuration) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        if let Some(Value::Array(list)) = configuration.get_mut("webhooks").map(Value::take) {
            out.extend(list);
        }
    }
    out
}

/// The version of the resource in which the webhook wants to see this request, if it wants to.
fn matching(
    attributes: &Attributes<'_>,
    hook: &Value,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Option<Arc<Served>> {
    let by_rules =
        |served: &Served| hook.items("rules").iter().any(|rule| rule_matches(rule, attributes, served));
    let version = if by_rules(attributes.served) {
        attributes.served.clone()
    } else if hook.str_at("matchPolicy") == "Exact" {
        return None;
    } else {
        let registry = attributes.call.core.registry.load();
        registry.versions_of(&attributes.served.stored.kind_key).iter().find(|s| by_rules(s))?.clone()
    };
    if !namespace_matches(attributes, hook, object, old) {
        return None;
    }
    let selector = hook.at("objectSelector");
    let labels = |o: Option<&Value>| o.map(|o| o.at("metadata.labels").clone());
    let selected = selector.is_null()
        || LabelSelector::from_object(selector)
            .is_ok_and(|s| [labels(object), labels(old)].into_iter().flatten().any(|l| s.matches_value(&l)));
    selected.then_some(version)
}

fn rule_matches(rule: &Value, attributes: &Attributes<'_>, served: &Served) -> bool {
    let any = |field: &str, want: &str| rule.strings(field).iter().any(|v| *v == "*" || *v == want);
    let scope = match rule.str_at("scope") {
        "Namespaced" => served.namespaced,
        "Cluster" => !served.namespaced,
        _ => true,
    };
    let resources = rule.strings("resources");
    let resource = resources.iter().any(|r| {
        let (plural, sub) = r.split_once('/').unwrap_or((r, ""));
        let plural = plural == "*" || plural == &*served.plural;
        plural
            && (*r == "*/*"
                || sub == attributes.subresource
                || (sub == "*" && !attributes.subresource.is_empty()))
    });
    scope
        && resource
        && any("operations", attributes.operation.name())
        && any("apiGroups", &served.group)
        && any("apiVersions", &served.version)
}

fn namespace_matches(
    attributes: &Attributes<'_>,
    hook: &Value,
    object: Option<&Value>,
    old: Option<&Value>,
) -> bool {
    let selector = hook.at("namespaceSelector");
    if selector.is_null() {
        return true;
    }
    let Ok(selector) = LabelSelector::from_object(selector) else { return false };
    if selector.is_empty() {
        return true;
    }
    if attributes.is("", "namespaces") {
        return object.or(old).is_some_and(|o| selector.matches_value(o.at("metadata.labels")));
    }
    if !attributes.served.namespaced {
        return true;
    }
    attributes
        .call
        .core
        .store()
        .get("namespaces", attributes.namespace)
        .is_some_and(|namespace| selector.matches(&namespace.attrs.labels))
}

fn in_version(attributes: &Attributes<'_>, version: &Served, object: &Value) -> ApiResult<Value> {
    let mut object = object.clone();
    if attributes.operation != Operation::Connect {
        version.from_storage(&mut object)?;
    }
    Ok(object)
}

/// Asks the webhook. `None`: it failed and its failures are to be ignored.
async fn call(
    attributes: &Attributes<'_>,
    hook: &Value,
    version: &Served,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<Option<Value>> {
    let name = hook.str_at("name");
    if attributes.dry_run && !matches!(hook.str_at("sideEffects"), "None" | "NoneOnDryRun") {
        return Err(ApiError::bad_request(format!("admission webhook {name:?} does not support dry run")));
    }
    let core = &attributes.call.core;
    let uid = core.new_uid();
    let review = json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": request(attributes, version, object, old, &uid)?,
    });
    let timeout = Duration::from_secs(
        u64::try_from(hook.int_opt("timeoutSeconds").unwrap_or(10)).unwrap_or(10).clamp(1, 30),
    );
    let query = format!("?timeout={}s", timeout.as_secs());
    let answer =
        outbound::post(core, hook.at("clientConfig"), &query, &review, timeout).await.and_then(|answer| {
            let response = answer.at("response");
            if response.str_at("uid") != uid {
                return Err(format!("expected response.uid={uid:?}, got {:?}", response.str_at("uid")));
            }
            Ok(response.clone())
        });
    let response = match answer {
        Ok(response) => response,
        Err(why) if hook.str_at("failurePolicy") == "Ignore" => {
            tracing::warn!(webhook = name, why, "an admission webhook failed and is ignored");
            return Ok(None);
        }
        Err(why) => {
            return Err(ApiError::internal(format!(
                "failed calling webhook {name:?}: failed to call webhook: {why}"
            )));
        }
    };
    for warning in response.strings("warnings") {
        attributes.call.warn(warning);
    }
    if response.bool_at("allowed") {
        return Ok(Some(response));
    }
    let status = response.at("status");
    let message = match (status.str_at("message"), status.str_at("reason")) {
        ("", "") => format!("admission webhook {name:?} denied the request without explanation"),
        ("", reason) => format!("admission webhook {name:?} denied the request: {reason}"),
        (message, _) => format!("admission webhook {name:?} denied the request: {message}"),
    };
    let code = u16::try_from(status.int_at("code")).ok().filter(|c| (400..600).contains(c)).unwrap_or(403);
    let reason = if code == 403 { "Forbidden" } else { "" };
    Err(ApiError::new(code, reason, message))
}

fn request(
    attributes: &Attributes<'_>,
    version: &Served,
    object: Option<&Value>,
    old: Option<&Value>,
    uid: &str,
) -> ApiResult<Value> {
    let kind_of = |served: &Served| json!({ "group": &*served.group, "version": &*served.version, "kind": &*served.kind });
    let resource_of = |served: &Served| json!({ "group": &*served.group, "version": &*served.version, "resource": &*served.plural });
    let name = match attributes.name {
        "" => object.map_or("", |o| o.str_at("metadata.name")),
        name => name,
    };
    let mut out = Map::new();
    out.insert("uid".into(), uid.into());
    out.insert("kind".into(), kind_of(version));
    out.insert("resource".into(), resource_of(version));
    out.insert("requestKind".into(), kind_of(attributes.served));
    out.insert("requestResource".into(), resource_of(attributes.served));
    if attributes.operation == Operation::Connect
        && let Some(object) = object
    {
        let kind = json!({ "group": "", "version": "v1", "kind": object.str_at("kind") });
        out.insert("kind".into(), kind.clone());
        out.insert("requestKind".into(), kind);
    }
    if !attributes.subresource.is_empty() {
        out.insert("subResource".into(), attributes.subresource.into());
        out.insert("requestSubResource".into(), attributes.subresource.into());
    }
    if !name.is_empty() {
        out.insert("name".into(), name.into());
    }
    if !attributes.namespace.is_empty() {
        out.insert("namespace".into(), attributes.namespace.into());
    }
    out.insert("operation".into(), attributes.operation.name().into());
    out.insert("userInfo".into(), attributes.call.user.to_json());
    for (field, object) in [("object", object), ("oldObject", old)] {
        let shown = object.map(|o| in_version(attributes, version, o)).transpose()?;
        out.insert(field.into(), shown.unwrap_or_default());
    }
    out.insert("dryRun".into(), attributes.dry_run.into());
    let options = match attributes.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => "",
    };
    let options = if options.is_empty() {
        Value::Null
    } else {
        json!({ "kind": options, "apiVersion": "meta.k8s.io/v1" })
    };
    out.insert("options".into(), options);
    Ok(Value::Object(out))
}
