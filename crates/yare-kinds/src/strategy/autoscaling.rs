//! Strategies of the kinds of `autoscaling`, whose objects are stored as `v2`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors, quantity},
    names,
    pod::resources::{check_container_name, non_negative},
    view::{View, ViewMut},
};

/// `HorizontalPodAutoscaler`
pub const HORIZONTAL_POD_AUTOSCALER: &dyn Strategy = &HorizontalPodAutoscaler;

struct HorizontalPodAutoscaler;

const DEFAULT_CPU_PERCENT: i64 = 80;
const MAX_STABILIZATION_S: i64 = 3600;
const MAX_PERIOD_S: i64 = 1800;
/// The type of a metric and the field that then describes it, in the order in which upstream looks at them.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// Which `apiVersion`s a reference may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Any,
    MayBeCore,
    Named,
}

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, hpa: &mut Value) {
        hpa.default_absent("spec.minReplicas", 1);
        hpa.default_zero(
            "spec.metrics",
            json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": DEFAULT_CPU_PERCENT}}}]),
        );
        if let Some(behavior) = hpa.at_mut("spec.behavior") {
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            for rules in ["scaleUp", "scaleDown"] {
                behavior.default_absent(&format!("{rules}.selectPolicy"), "Max");
            }
            behavior.default_absent("scaleUp.stabilizationWindowSeconds", 0);
            behavior.default_absent("scaleUp.policies", json!([pods, percent]));
            behavior.default_absent("scaleDown.policies", json!([percent]));
        }
    }

    fn validate(&self, hpa: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), hpa.at("spec"), &Value::Null, ctx);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), new.at("spec"), old.at("spec"), ctx);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        for field in ["status.currentReplicas", "status.desiredReplicas"] {
            errs.non_negative(&Path::new(field), new.int_at(field));
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: &Value, ctx: &Context<'_>) {
    let min = spec.int_opt("minReplicas");
    let to_zero = ctx.gates.is_on("HPAScaleToZero") || old.int_opt("minReplicas") == Some(0);
    let lowest = i64::from(!to_zero);
    if let Some(min) = min.filter(|min| *min < lowest) {
        let detail = format!("must be greater than or equal to {lowest}");
        errs.invalid(&path.child("minReplicas"), min, detail);
    }
    let (p, max) = (path.child("maxReplicas"), spec.int_at("maxReplicas"));
    if max == 0 {
        errs.required(&p, "must be set and greater than 0");
    } else if max < 0 {
        errs.invalid(&p, max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|min| max < min) {
        errs.invalid(&p, max, "must be greater than or equal to `minReplicas`");
    }
    let (target, before) = (spec.at("scaleTargetRef"), old.at("scaleTargetRef"));
    let unchanged = ["apiVersion", "kind"].iter().all(|f| target.str_at(f) == before.str_at(f));
    let group = match target.str_at("kind") {
        _ if !old.is_null() && unchanged => Group::Any,
        "ReplicationController" => Group::MayBeCore,
        _ => Group::Named,
    };
    check_reference(errs, &path.child("scaleTargetRef"), target, group);
    let bad = |metric: &Value| {
        metric.str_at("type") == "Object"
            && metric.has("object")
            && check_api_version(metric.str_at("object.describedObject.apiVersion"), Group::MayBeCore)
                .is_err()
    };
    let group = if old.items("metrics").iter().any(bad) { Group::Any } else { Group::MayBeCore };
    let list = path.child("metrics");
    let metrics = spec.items("metrics");
    for (i, metric) in metrics.iter().enumerate() {
        check_metric(errs, &list.index(i), metric, group);
    }
    if min == Some(0) && !metrics.iter().any(|m| matches!(m.str_at("type"), "Object" | "External")) {
        errs.forbidden(
            &list,
            "must specify at least one Object or External metric to support scaling to zero replicas",
        );
    }
    let p = path.child("behavior");
    for field in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(field);
        if !rules.is_null() {
            check_rules(errs, &p.child(field), rules);
        }
    }
}

fn check_api_version(version: &str, group: Group) -> Result<(), String> {
    if group == Group::Any {
        return Ok(());
    }
    let has_group = match version.matches('/').count() {
        0 => false,
        1 => !version.starts_with('/'),
        _ => return Err(format!("unexpected GroupVersion string: {version}")),
    };
    if group == Group::Named && !has_group {
        return Err("apiVersion must specify API group".to_owned());
    }
    Ok(())
}

fn check_reference(errs: &mut Errors, path: &Path<'_>, reference: &Value, group: Group) {
    for field in ["kind", "name"] {
        errs.name(&path.child(field), reference.str_at(field), names::path_segment);
    }
    let version = reference.str_at("apiVersion");
    if let Err(e) = check_api_version(version, group) {
        errs.invalid(&path.child("apiVersion"), version, e);
    }
}

fn check_rules(errs: &mut Errors, path: &Path<'_>, rules: &Value) {
    if let Some(seconds) = rules.int_opt("stabilizationWindowSeconds") {
        let p = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errs.invalid(&p, seconds, "must be greater than or equal to zero");
        }
        if seconds > MAX_STABILIZATION_S {
            errs.invalid(&p, seconds, format!("must be less than or equal to {MAX_STABILIZATION_S}"));
        }
    }
    if let Some(policy) = rules.str_opt("selectPolicy") {
        errs.one_of(&path.child("selectPolicy"), policy, &["Max", "Min", "Disabled"]);
    }
    let list = path.child("policies");
    if !rules.is_set("policies") {
        errs.required(&list, "must specify at least one Policy");
    }
    for (i, policy) in rules.items("policies").iter().enumerate() {
        let path = list.index(i);
        errs.one_of(&path.child("type"), policy.str_at("type"), &["Pods", "Percent"]);
        errs.positive(&path.child("value"), policy.int_at("value"));
        let (p, period_s) = (path.child("periodSeconds"), policy.int_at("periodSeconds"));
        errs.positive(&p, period_s);
        if period_s > MAX_PERIOD_S {
            errs.invalid(&p, period_s, format!("must be less than or equal to {MAX_PERIOD_S}"));
        }
    }
    if rules.has("tolerance") {
        non_negative(errs, &path.child("tolerance"), quantity(rules.at("tolerance")));
    }
}

fn check_metric(errs: &mut Errors, path: &Path<'_>, metric: &Value, group: Group) {
    let kind = metric.str_at("type");
    let types = SOURCES.map(|(kind, _)| kind);
    if kind.is_empty() {
        errs.required(&path.child("type"), "must specify a metric source type");
    }
    errs.one_of(&path.child("type"), kind, &types);
    let present: Vec<&str> = SOURCES.iter().map(|(_, field)| *field).filter(|f| metric.has(f)).collect();
    if let Some(first) = present.first() {
        check_source(errs, &path.child(first), first, metric.at(first), group);
    }
    let expected = SOURCES.iter().find(|(k, _)| *k == kind).map_or("", |(_, field)| *field);
    if expected.is_empty() {
        // Said twice by upstream, too.
        errs.one_of(&path.child("type"), kind, &types);
    } else if !present.contains(&expected) {
        errs.required(&path.child(expected), "must populate information for the given metric source");
    }
    if present.len() != 1 {
        for field in present.iter().filter(|f| **f != expected) {
            errs.forbidden(&path.child(field), "must populate the given metric source only");
        }
    }
}

fn check_source(errs: &mut Errors, path: &Path<'_>, kind: &str, source: &Value, group: Group) {
    let target = source.at("target");
    let [value, average, percent] = ["value", "averageValue", "averageUtilization"].map(|f| target.has(f));
    match kind {
        "object" => {
            check_reference(errs, &path.child("describedObject"), source.at("describedObject"), group)
        }
        "resource" | "containerResource" => check_resource(errs, path, kind, source),
        _ => {}
    }
    if matches!(kind, "object" | "external" | "pods") {
        let (p, name) = (path.child("metric.name"), source.str_at("metric.name"));
        if name.is_empty() {
            errs.required(&p, "must specify a metric name");
        } else {
            errs.each(&p, name, names::path_segment(name));
        }
    }
    let p = path.child("target");
    check_target(errs, &p, target);
    let average_path = p.child("averageValue");
    match kind {
        "object" if !value && !average => {
            errs.required(&average_path, "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            errs.required(&average_path, "must set either a target value for metric or a per-pod target");
        }
        "external" if value && average => {
            errs.forbidden(
                &p.child("value"),
                "may not set both a target value for metric and a per-pod target",
            );
        }
        "pods" if !average => errs.required(&average_path, "must specify a positive target averageValue"),
        "resource" | "containerResource" if !percent && !average => {
            let detail = "must set either a target raw value or a target utilization";
            errs.required(&p.child("averageUtilization"), detail);
        }
        "resource" | "containerResource" if percent && average => {
            errs.forbidden(&average_path, "may not set both a target raw value and a target utilization");
        }
        _ => {}
    }
}

fn check_resource(errs: &mut Errors, path: &Path<'_>, kind: &str, source: &Value) {
    let name = source.str_at("name");
    let of_container = kind == "containerResource";
    if name.is_empty() {
        errs.required(&path.child("name"), "must specify a resource name");
    } else if of_container {
        check_container_name(errs, &path.child("name"), name);
    }
    if of_container {
        let (p, container) = (path.child("container"), source.str_at("container"));
        if container.is_empty() {
            errs.required(&p, "must specify a container");
        } else {
            errs.each(&p, container, names::dns1123_label(container));
        }
    }
}

fn check_target(errs: &mut Errors, path: &Path<'_>, target: &Value) {
    let kind = target.str_at("type");
    if kind.is_empty() {
        errs.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errs.invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"].into_iter().filter(|f| target.has(f)) {
        if quantity(target.at(field)).signum() <= 0 {
            errs.invalid(&path.child(field), target.at(field).clone(), "must be positive");
        }
    }
    if let Some(percent) = target.int_opt("averageUtilization").filter(|p| *p < 1) {
        errs.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        strategy::testing::{check_create, check_update, defaulted, named},
        view::View,
    };

    const KIND: &str = "HorizontalPodAutoscaler";

    fn hpa() -> Value {
        named(json!({"spec": {"maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}))
    }

    #[test]
    fn defaults() {
        let hpa = defaulted("autoscaling", KIND, hpa());
        assert_eq!(hpa.int_at("spec.minReplicas"), 1);
        assert_eq!(
            hpa.at("spec.metrics"),
            &json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}])
        );
        assert!(!hpa.has("spec.behavior"));
        let behavior = json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        let hpa = defaulted("autoscaling", KIND, behavior);
        assert_eq!(
            hpa.at("spec.behavior"),
            &json!({"scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 0, "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}})
        );
    }

    #[test]
    fn validation() {
        let metric = |metric: Value| json!({"spec": {"metrics": [metric]}});
        check_create(
            "autoscaling",
            KIND,
            &hpa(),
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"maxReplicas": 0}}),
                    &[
                        "spec.maxReplicas: Required value: must be set and greater than 0",
                        "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                    ],
                ),
                (
                    json!({"spec": {"scaleTargetRef": {"apiVersion": "v1", "name": ""}}}),
                    &[
                        "spec.scaleTargetRef.name: Required value",
                        "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group",
                    ],
                ),
                (
                    metric(json!({"type": "Pods"})),
                    &[
                        "spec.metrics[0].pods: Required value: must populate information for the given metric source",
                    ],
                ),
                (
                    metric(
                        json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "0"}}}),
                    ),
                    &["spec.metrics[0].pods.target.averageValue: Invalid value: \"0\": must be positive"],
                ),
                (
                    json!({"spec": {"behavior": {"scaleDown": {"policies": []}}}}),
                    &["spec.behavior.scaleDown.policies: Required value: must specify at least one Policy"],
                ),
                (
                    json!({"spec": {"behavior": {"scaleUp": {"policies": [{"type": "X", "value": 0, "periodSeconds": 1801}]}}}}),
                    &[
                        "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"X\": supported values: \"Percent\", \"Pods\"",
                        "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                        "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                    ],
                ),
            ],
        );
        check_update(
            "autoscaling",
            KIND,
            &hpa(),
            &[(
                json!({"spec": {"minReplicas": 0}}),
                &[
                    "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                    "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
                ],
            )],
        );
    }
}
