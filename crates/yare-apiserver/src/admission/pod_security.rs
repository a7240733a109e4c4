//! PodSecurity (KEP-2579): a namespace's labels say what its pods may do. Pods that may not are refused;
//! templates of such pods, and stricter labels over pods that are there, are warned of. The rules themselves are
//! `yare_kinds::podsecurity`.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use serde_json::Value;
use yare_kinds::{
    podsecurity::{self, LABELS, Level, LevelVersion, Pod, Policy, Version, Violations},
    view::View,
};
use yare_schema::field::FieldError;
use yare_store::{Attrs, Snapshot};

use super::{Attributes, Operation, metrics::Evaluation};
use crate::status::{ApiError, ApiResult};

/// Pods, what has a template of one, and namespaces.
pub const RESOURCES: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "namespaces"),
    ("", "podtemplates"),
    ("", "replicationcontrollers"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("apps", "statefulsets"),
    ("batch", "cronjobs"),
    ("batch", "jobs"),
];

/// Pods of a namespace that are looked at when its level changes, and how long that may take.
const MAX_PODS: usize = 3000;
const MAX_TIME: Duration = Duration::from_secs(1);

fn policy_of(attributes: &Attributes<'_>, labels: &Attrs) -> (Policy, Vec<FieldError>) {
    let defaults = &attributes.settings().pod_security;
    // Most namespaces say nothing.
    if !labels.labels.iter().any(|(k, _)| k.starts_with(LABELS)) {
        return (*defaults, Vec::new());
    }
    Policy::of(|name| labels.label(name), defaults)
}

fn policy_of_value(attributes: &Attributes<'_>, namespace: &Value) -> (Policy, Vec<FieldError>) {
    let labels = namespace.at("metadata.labels");
    Policy::of(|name| labels.get(name).and_then(Value::as_str), &attributes.settings().pod_security)
}

/// What metrics call the request.
fn what(attributes: &Attributes<'_>) -> (&'static str, &'static str, &'static str) {
    let operation = if attributes.operation == Operation::Create { "create" } else { "update" };
    let resource = match &*attributes.served.stored.plural {
        "pods" => "pod",
        "namespaces" => "namespace",
        _ => "controller",
    };
    let subresource = match attributes.subresource {
        "ephemeralcontainers" => "ephemeralcontainers",
        "resize" => "resize",
        _ => "",
    };
    (operation, resource, subresource)
}

fn evaluated(attributes: &Attributes<'_>, denied: bool, level: LevelVersion, mode: &'static str) {
    let (operation, resource, subresource) = what(attributes);
    let version = match level.version {
        Version::Minor(minor) if level.level != Level::Privileged => Some(minor),
        _ => None,
    };
    attributes.admission().metrics.evaluation(Evaluation {
        decision: if denied { "deny" } else { "allow" },
        level: level.level.as_str(),
        version,
        mode,
        operation,
        resource,
        subresource,
    });
}

fn annotate(attributes: &Attributes<'_>, key: &str, value: impl Into<String>) {
    attributes.call.annotate(format!("{LABELS}{key}"), value);
}

fn is_exempt(attributes: &Attributes<'_>) -> bool {
    let exemptions = &attributes.settings().exemptions;
    let reason = if exemptions.namespaces.iter().any(|n| n == attributes.namespace) {
        "namespace"
    } else if exemptions.usernames.contains(&attributes.call.user.name) {
        "user"
    } else {
        return false;
    };
    attributes.admission().metrics.exemption(what(attributes));
    annotate(attributes, "exempt", reason);
    true
}

/// Refuses pods, warns of templates.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(object) = object.filter(|_| !attributes.is("", "namespaces")) else { return Ok(()) };
    let is_pod = attributes.is("", "pods");
    if (!is_pod && !attributes.subresource.is_empty()) || is_exempt(attributes) {
        return Ok(());
    }
    let Some(namespace) = attributes.call.core.store().get("namespaces", attributes.namespace) else {
        attributes.admission().metrics.pod_security_error(true, what(attributes));
        let why = format!("failed to lookup namespace {:?}", attributes.namespace);
        annotate(attributes, "error", why.clone());
        return if is_pod { Err(ApiError::internal(why)) } else { Ok(()) };
    };
    let (policy, errors) = policy_of(attributes, &namespace.attrs);
    if !is_pod {
        if errors.is_empty()
            && policy.warn.level == Level::Privileged
            && policy.audit.level == Level::Privileged
        {
            return Ok(());
        }
        let path = match &*attributes.served.stored.plural {
            "podtemplates" => "template",
            "cronjobs" => "spec.jobTemplate.spec.template",
            _ => "spec.template",
        };
        let template = object.at(path);
        if template.is_null() {
            return Ok(());
        }
        return evaluate(attributes, &policy, &errors, template, false);
    }
    if errors.is_empty() && policy.is_privileged() {
        evaluated(attributes, false, policy.enforce, "enforce");
        annotate(attributes, "enforce-policy", "privileged:latest");
        return Ok(());
    }
    if attributes.operation == Operation::Update && old.is_some_and(|old| !is_significant(object, old)) {
        return Ok(());
    }
    evaluate(attributes, &policy, &errors, object, true)
}

/// Whether an update of a pod can change what is thought of it: images, and containers that come.
fn is_significant(new: &Value, old: &Value) -> bool {
    let lists = ["spec.containers", "spec.initContainers"];
    let changed = lists.iter().any(|list| {
        let (new, old) = (new.items(list), old.items(list));
        new.len() != old.len() || new.iter().zip(old).any(|(n, o)| n.str_at("image") != o.str_at("image"))
    });
    let before = old.items("spec.ephemeralContainers");
    changed
        || new.items("spec.ephemeralContainers").iter().any(|c| {
            let known = before.iter().find(|o| o.str_at("name") == c.str_at("name"));
            known.is_none_or(|o| o.str_at("image") != c.str_at("image"))
        })
}

fn evaluate(
    attributes: &Attributes<'_>,
    policy: &Policy,
    errors: &[FieldError],
    pod: &Value,
    enforce: bool,
) -> ApiResult<()> {
    let class = pod.str_at("spec.runtimeClassName");
    if !class.is_empty() && attributes.settings().exemptions.runtime_classes.iter().any(|c| c == class) {
        attributes.admission().metrics.exemption(what(attributes));
        annotate(attributes, "exempt", "runtimeClass");
        return Ok(());
    }
    if !errors.is_empty() {
        attributes.admission().metrics.pod_security_error(false, what(attributes));
        let all = errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join(", ");
        let all = if errors.len() > 1 { format!("[{all}]") } else { all };
        annotate(attributes, "error", format!("Failed to parse policy: {all}"));
    }
    // Modes often have one level: it is looked at once.
    let mut known: Vec<(LevelVersion, Violations)> = Vec::new();
    let mut look = |level: LevelVersion| -> Violations {
        if let Some((_, found)) = known.iter().find(|(l, _)| *l == level) {
            return found.clone();
        }
        let pod = Pod { metadata: pod.at("metadata"), spec: pod.at("spec") };
        let found = podsecurity::evaluate(level, pod);
        known.push((level, found.clone()));
        found
    };
    let mut refused = None;
    if enforce {
        annotate(attributes, "enforce-policy", policy.enforce.to_string());
        let found = look(policy.enforce);
        evaluated(attributes, !found.is_empty(), policy.enforce, "enforce");
        if !found.is_empty() {
            let why = format!("violates PodSecurity {:?}: {}", policy.enforce.to_string(), found.details());
            refused = Some(attributes.forbidden(why));
        }
    }
    let would = |level: LevelVersion, found: &Violations| {
        format!("would violate PodSecurity {:?}: {}", level.to_string(), found.details())
    };
    let found = look(policy.audit);
    if !found.is_empty() {
        annotate(attributes, "audit-violations", would(policy.audit, &found));
        evaluated(attributes, true, policy.audit, "audit");
    }
    if let Some(error) = refused {
        return Err(error);
    }
    let found = look(policy.warn);
    if !found.is_empty() {
        attributes.call.warn(would(policy.warn, &found));
        evaluated(attributes, true, policy.warn, "warn");
    }
    Ok(())
}

/// Checks a namespace's labels, and the pods that are there against stricter ones.
pub fn ask<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>> {
    let namespace =
        object.filter(|_| attributes.is("", "namespaces") && attributes.subresource.is_empty())?;
    let labelled = |object: &Value| object.entries("metadata.labels").any(|(k, _)| k.starts_with(LABELS));
    if !labelled(namespace) && !old.is_some_and(labelled) {
        return None;
    }
    Some(check_namespace(attributes, namespace, old).boxed())
}

async fn check_namespace(
    attributes: &Attributes<'_>,
    namespace: &Value,
    old: Option<&Value>,
) -> ApiResult<()> {
    let name = namespace.str_at("metadata.name");
    let (policy, errors) = policy_of_value(attributes, namespace);
    let (before, old_errors) = match old {
        Some(old) => {
            let (policy, errors) = policy_of_value(attributes, old);
            (Some(policy), errors)
        }
        None => (None, Vec::new()),
    };
    if !errors.is_empty() && errors != old_errors {
        return Err(ApiError::invalid(attributes.served.stored.group_kind(), attributes.name, &errors));
    }
    let exempt = attributes.settings().exemptions.namespaces.iter().any(|n| n == name);
    let warn_exempt = || {
        if let Some(text) = exempt_warning(attributes, namespace, &policy) {
            attributes.call.warn(text);
        }
    };
    let Some(before) = before else {
        if exempt {
            warn_exempt();
        }
        return Ok(());
    };
    let (new, was) = (policy.enforce, before.enforce);
    if new == was || new.level == Level::Privileged || (new.version == was.version && new.level <= was.level)
    {
        return Ok(());
    }
    if exempt {
        warn_exempt();
        return Ok(());
    }
    let pods = attributes.call.core.store().snapshot("pods");
    let classes = attributes.settings().exemptions.runtime_classes.clone();
    let owned = name.to_owned();
    let warnings = tokio::task::spawn_blocking(move || check_pods(&pods, &owned, new, &classes))
        .await
        .map_err(ApiError::internal)?;
    warnings.into_iter().for_each(|text| attributes.call.warn(text));
    Ok(())
}

/// What becomes of levels that an exempt namespace asks for.
fn exempt_warning(attributes: &Attributes<'_>, namespace: &Value, policy: &Policy) -> Option<String> {
    if policy.is_privileged() || policy.is_equivalent(&attributes.settings().pod_security) {
        return None;
    }
    let labels = namespace.at("metadata.labels");
    let said: Vec<String> = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)]
        .into_iter()
        .filter(|(mode, level)| {
            let has = |suffix: &str| labels.get(format!("{LABELS}{mode}{suffix}")).is_some();
            level.level != Level::Privileged && (has("") || has("-version"))
        })
        .map(|(mode, level)| format!("{mode}={level}"))
        .collect();
    Some(format!(
        "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
        namespace.str_at("metadata.name"),
        said.join(", ")
    ))
}

/// What the pods of a namespace have against a level: of each kind of violation a pod and how many more. Pods of
/// one controller look alike, so each controller's first comes before all second ones.
fn check_pods(
    pods: &Snapshot,
    namespace: &str,
    level: LevelVersion,
    exempt_classes: &[String],
) -> Vec<String> {
    let started = Instant::now();
    let prefix = format!("{namespace}/");
    let (mut first, mut further) = (Vec::new(), Vec::new());
    let mut controllers: HashSet<String> = HashSet::new();
    for object in pods.range(std::ops::Bound::Unbounded, &prefix) {
        // Only so much is parsed as will be looked at.
        if first.len() + further.len() >= MAX_PODS {
            break;
        }
        let Ok(pod) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let class = pod.str_at("spec.runtimeClassName");
        if !class.is_empty() && exempt_classes.iter().any(|c| c == class) {
            continue;
        }
        let controller = pod.items("metadata.ownerReferences").iter().find(|o| o.bool_at("controller"));
        match controller {
            Some(c) if !controllers.insert(c.str_at("uid").to_owned()) => further.push(pod),
            _ => first.push(pod),
        }
    }
    let total = pods.count(&prefix);
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut checked = 0;
    for pod in first.into_iter().chain(further) {
        checked += 1;
        let violations =
            podsecurity::evaluate(level, Pod { metadata: pod.at("metadata"), spec: pod.at("spec") });
        if !violations.is_empty() {
            let name = pod.str_at("metadata.name");
            let entry = found.entry(violations.reasons()).or_insert_with(|| (name.to_owned(), 0));
            entry.1 += 1;
            if *name < *entry.0 {
                entry.0 = name.to_owned();
            }
        }
        if started.elapsed() > MAX_TIME {
            break;
        }
    }
    let mut warnings = Vec::new();
    if checked < total && (checked >= MAX_PODS || started.elapsed() > MAX_TIME) {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
            level.to_string()
        ));
    }
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            more => format!("{name} (and {} other pods): {reasons}", more - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}
