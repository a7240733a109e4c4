//! `StatefulSet`.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta::{validate_annotations, validate_labels},
    names,
    pod::{defaults, spec as pod_spec, warnings},
    shown,
    strategy::{
        Context, Strategy,
        core::claim,
        workload::{
            check_at_most, check_at_most_all, check_collision_count, check_count_or_percent, check_counts,
            check_endless, check_match, check_selector, count_or_percent, default_template,
            template_warnings,
        },
    },
    view::{View, ViewMut, same},
};

pub(super) struct StatefulSet;

const DEFAULT_HISTORY: i64 = 10;
/// With this feature, updates may take down several pods at a time.
const MAX_UNAVAILABLE_GATE: &str = "MaxUnavailableStatefulSet";
/// What of the specification an update may change.
const MUTABLE: &[&str] = &[
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

/// What of the rules an update is spared, because it cannot change what breaks them.
#[derive(Clone, Copy, Default)]
struct Spared {
    service_name: bool,
    claims: bool,
    template: bool,
}

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        object.default_zero("spec.podManagementPolicy", "OrderedReady");
        if !object.is_set("spec.updateStrategy.type") {
            object.set("spec.updateStrategy.type", "RollingUpdate");
            object.default_absent("spec.updateStrategy.rollingUpdate", json!({}));
        }
        if object.str_at("spec.updateStrategy.type") == "RollingUpdate"
            && let Some(rolling) = object.at_mut("spec.updateStrategy.rollingUpdate")
        {
            rolling.default_absent("partition", 0);
        }
        for when in ["whenDeleted", "whenScaled"] {
            object.default_zero(&format!("spec.persistentVolumeClaimRetentionPolicy.{when}"), "Retain");
        }
        object.default_absent("spec.replicas", 1);
        object.default_absent("spec.revisionHistoryLimit", DEFAULT_HISTORY);
        default_template(object, "spec.template");
        for claim in object.items_mut("spec.volumeClaimTemplates") {
            claim.set("apiVersion", "v1");
            claim.set("kind", "PersistentVolumeClaim");
            claim.default_zero("status.phase", "Pending");
            claim.default_absent("spec", json!({}));
            if let Some(spec) = claim.at_mut("spec") {
                defaults::claim_spec(spec);
            }
        }
    }

    fn default_in(&self, object: &mut Value, ctx: &Context<'_>) {
        if ctx.gates.is_on(MAX_UNAVAILABLE_GATE)
            && object.str_at("spec.updateStrategy.type") == "RollingUpdate"
            && let Some(rolling) = object.at_mut("spec.updateStrategy.rollingUpdate")
        {
            rolling.default_absent("maxUnavailable", 1);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), object.at("spec"), Spared::default());
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        let mut spared = Spared { service_name: true, claims: true, template: false };
        let mut before = Errors::new();
        check_spec(&mut before, &path, old.at("spec"), spared);
        spared.template = !before.is_empty();
        check_spec(&mut errs, &path, new.at("spec"), spared);
        let mut kept = new.at("spec").clone();
        for field in MUTABLE {
            kept.copy_from(old.at("spec"), field);
        }
        if !same(&kept, old.at("spec")) {
            errs.forbidden(
                &path,
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, status) = (Path::new("status"), new.at("status"));
        check_counts(
            &mut errs,
            &path,
            status,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
        );
        let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        check_at_most(&mut errs, &path, status, &parts, "replicas", "status.replicas");
        check_at_most(
            &mut errs,
            &path,
            status,
            &["availableReplicas"],
            "readyReplicas",
            "status.readyReplicas",
        );
        check_collision_count(&mut errs, new, old);
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = template_warnings(new, old);
        for (i, template) in new.items("spec.volumeClaimTemplates").iter().enumerate() {
            // Upstream's path differs in updates, and names no field of the API in either.
            let list = Path::new("spec.volumeClaimTemplates");
            let at = list.index(i);
            let at = if old.is_some() { at.child("Spec") } else { at };
            warnings::claim(&mut out, &at, template.at("spec"));
        }
        if new.int_at("spec.revisionHistoryLimit") < 0 {
            out.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, spared: Spared) {
    let policy = spec.str_at("podManagementPolicy");
    match policy {
        "" => errs.required(&path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        _ => errs.invalid(&path.child("podManagementPolicy"), policy, "must be 'OrderedReady' or 'Parallel'"),
    }
    check_strategy(errs, &path.child("updateStrategy"), spec.at("updateStrategy"));
    let retention = path.child("persistentVolumeClaimRetentionPolicy");
    if spec.has("persistentVolumeClaimRetentionPolicy") {
        for when in ["whenDeleted", "whenScaled"] {
            let policy = spec.at("persistentVolumeClaimRetentionPolicy").str_at(when);
            errs.one_listed(&retention.child(when), policy, &["Retain", "Delete"]);
        }
    }
    if !spared.claims {
        let list = path.child("volumeClaimTemplates");
        for (i, template) in spec.items("volumeClaimTemplates").iter().enumerate() {
            claim::check_spec(errs, &list.index(i).child("spec"), template.at("spec"));
        }
    }
    check_counts(errs, path, spec, &["replicas", "minReadySeconds", "ordinals.start"]);
    let service = spec.str_at("serviceName");
    if !spared.service_name && !service.is_empty() {
        errs.each(&path.child("serviceName"), service, names::dns1123_label(service));
    }
    let (p, template) = (path.child("template"), spec.at("template"));
    if let Some(selector) =
        check_selector(errs, &path.child("selector"), spec.at("selector"), "statefulset", "")
    {
        if !selector.is_empty() {
            check_match(errs, &p, &selector, template);
        }
        let seen = as_the_controller_makes_it(spec);
        if !spared.template {
            pod_spec::check_template(errs, &p, &seen);
        }
        // Said again, as upstream does.
        let annotations = p.child("annotations");
        errs.extend(validate_labels(seen.at("metadata.labels"), &p.child("labels")));
        errs.extend(validate_annotations(seen.at("metadata.annotations"), &annotations));
        pod_spec::check_annotations(errs, &annotations, &seen);
    }
    check_endless(errs, &p, template, "StatefulSet");
}

/// The template without what the controller overwrites in each pod, and with the volumes of its claims.
fn as_the_controller_makes_it(spec: &Value) -> Value {
    let mut template = spec.at("template").clone();
    template.remove("spec.hostname");
    template.remove("spec.subdomain");
    let claims: Vec<&str> =
        spec.items("volumeClaimTemplates").iter().map(|c| c.str_at("metadata.name")).collect();
    if !claims.is_empty() {
        let mut volumes: Vec<Value> = Vec::new();
        let mut seen = HashSet::new();
        for name in &claims {
            if seen.insert(*name) {
                volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
            }
        }
        let own = template.items("spec.volumes").iter();
        volumes.extend(own.filter(|v| !claims.contains(&v.str_at("name"))).cloned());
        template.set("spec.volumes", volumes);
    }
    template
}

fn check_strategy(errs: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let p = path.child("rollingUpdate");
    let rolling = strategy.at("rollingUpdate");
    match strategy.str_at("type") {
        "" => errs.required(path, ""),
        "OnDelete" => {
            if !rolling.is_null() {
                errs.invalid(&p, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            errs.non_negative(&p.child("partition"), rolling.int_at("partition"));
            let (p, unavailable) = (p.child("maxUnavailable"), rolling.at("maxUnavailable"));
            if !unavailable.is_null() {
                check_count_or_percent(errs, &p, unavailable);
                if count_or_percent(unavailable) == 0 {
                    errs.invalid(&p, unavailable.clone(), "cannot be 0");
                }
                check_at_most_all(errs, &p, unavailable);
            }
        }
        _ => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errs.invalid_shown(path, strategy, shown::ORDERED_ROLLOUT, detail);
        }
    }
}
