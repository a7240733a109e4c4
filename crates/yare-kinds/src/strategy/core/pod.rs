//! `Pod`: pending and with its QoS class when it is created, nearly immutable after.

use serde_json::{Value, json};
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use crate::{
    check::{Check, Errors, annotation},
    meta, names, net,
    pod::{
        annotations::{self, APP_ARMOR},
        defaults, resize, resources,
        security::{self, each_container},
        spec, status, update, warnings,
    },
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub struct Pod;

impl Strategy for Pod {
    fn default(&self, pod: &mut Value) {
        defaults::pod(pod);
    }

    fn prepare_for_create(&self, pod: &mut Value, ctx: &Context<'_>) {
        // Admission may have added containers, volumes or the service account since the first defaults.
        defaults::pod(pod);
        pod.set("metadata.generation", 1);
        let mut status = json!({"phase": "Pending", "qosClass": resources::qos_class(pod.at("spec"))});
        if pod.is_set("spec.schedulingGates") {
            status.set(
                "conditions",
                json!([{
                    "type": "PodScheduled",
                    "status": "False",
                    "lastProbeTime": null,
                    "lastTransitionTime": ctx.now,
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }]),
            );
        }
        pod.set("status", status);
        merge_label_keys(pod, ctx.gates);
        app_armor_from_annotations(pod);
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        new.copy_from(old, "metadata.ownerReferences");
        new.default_zero("status.qosClass", old.at("status.qosClass").clone());
        if new.int_at("status.observedGeneration") == 0 {
            new.copy_from(old, "status.observedGeneration");
        }
        // Of several conditions of one type each has its own.
        let mut before: Vec<&Value> = old.items("status.conditions").iter().collect();
        for condition in new.items_mut("status.conditions") {
            let same = before.iter().position(|b| b.str_at("type") == condition.str_at("type"));
            if let Some(before) = same.map(|i| before.remove(i))
                && condition.int_at("observedGeneration") == 0
            {
                condition.copy_from(before, "observedGeneration");
            }
        }
    }

    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        ctx: &Context<'_>,
    ) {
        match subresource {
            "status" => self.prepare_for_status_update(new, old, ctx),
            "ephemeralcontainers" => update::prepare_ephemeral_containers(new, old),
            "resize" => resize::prepare(new, old, ctx.gates),
            _ => self.prepare_for_update(new, old, ctx),
        }
    }

    fn validate(&self, pod: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        spec::check_pod(&mut errs, pod);
        let path = Path::new("spec");
        if pod.is_set("spec.ephemeralContainers") {
            errs.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
        }
        if pod.is_set("spec.nodeName") && pod.is_set("spec.schedulingGates") {
            errs.forbidden(
                &path.child("nodeName"),
                "cannot be set until all schedulingGates have been cleared",
            );
        }
        annotations::check_agree(&mut errs, &path, pod);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        update::check_update(&mut errs, new, old);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        status::check_update(&mut errs, new, old, ctx.gates);
        errs
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        ctx: &Context<'_>,
    ) -> Vec<FieldError> {
        let mut errs = Errors::new();
        match subresource {
            "status" => status::check_update(&mut errs, new, old, ctx.gates),
            "ephemeralcontainers" => update::check_ephemeral_containers_update(&mut errs, new, old),
            "resize" => resize::check(&mut errs, new, old, ctx.gates),
            _ => update::check_update(&mut errs, new, old),
        }
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        // Upstream has none for updates: people seldom update pods, and programs often.
        if old.is_some() {
            return Vec::new();
        }
        let mut out = Vec::new();
        let messages = names::dns1123_label(new.str_at("metadata.name"));
        if !messages.is_empty() {
            out.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        out.extend(warnings::of(new, &Path::ROOT));
        out
    }

    fn notes_on_create(&self, new: &Value) -> Vec<String> {
        let whole = new.at("spec.securityContext.appArmorProfile");
        let (metadata, profiles) = (Path::new("metadata"), annotated_profiles(new));
        let annotations = metadata.child("annotations");
        let other = profiles.into_iter().filter(|(_, profile)| profile.as_ref() != Some(whole));
        other.map(|(name, _)| warnings::app_armor(&annotations.key(&format!("{APP_ARMOR}{name}")))).collect()
    }

    fn subresource_warnings(&self, subresource: &str, new: &Value) -> Vec<String> {
        if subresource == "status" { address_warnings(new.at("status")) } else { Vec::new() }
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn graceful_deletion_s(&self, pod: &Value) -> Option<i64> {
        let unbound = !pod.is_set("spec.nodeName");
        if unbound || matches!(pod.str_at("status.phase"), "Succeeded" | "Failed") {
            return Some(0);
        }
        match pod.int_at("spec.terminationGracePeriodSeconds") {
            negative if negative < 0 => Some(1),
            seconds => Some(seconds),
        }
    }
}

fn address_warnings(status: &Value) -> Vec<String> {
    let path = Path::new("status");
    let mut out = Vec::new();
    for field in ["podIPs", "hostIPs"] {
        let p = path.child(field);
        for (i, ip) in status.items(field).iter().enumerate() {
            out.extend(net::ip_warnings(&p.index(i).child("ip"), ip.str_at("ip")));
        }
    }
    out
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements of the label selectors beside them, with the
/// values that this pod has (KEP-3633, KEP-3243).
fn merge_label_keys(pod: &mut Value, gates: &Gates) {
    let labels = pod.at("metadata.labels").clone();
    let Some(spec) = pod.at_mut("spec") else { return };
    if gates.is_on("MatchLabelKeysInPodTopologySpreadSelectorMerge") {
        for constraint in spec.items_mut("topologySpreadConstraints") {
            merge_into(constraint, &labels);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.at_mut("affinity").and_then(|a| a.at_mut(kind)) else { continue };
        for term in affinity.items_mut("requiredDuringSchedulingIgnoredDuringExecution") {
            merge_into(term, &labels);
        }
        for weighted in affinity.items_mut("preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = weighted.at_mut("podAffinityTerm") {
                merge_into(term, &labels);
            }
        }
    }
}

fn merge_into(term: &mut Value, labels: &Value) {
    if !term.has("labelSelector") {
        return;
    }
    let mut requirements = term.items("labelSelector.matchExpressions").to_vec();
    let before = requirements.len();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.strings(field) {
            if let Some(value) = labels.get(key) {
                requirements.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if requirements.len() > before {
        term.set("labelSelector.matchExpressions", requirements);
    }
}

/// AppArmor was an annotation before it was a field; containers without the field get it from there, unless the
/// pod as a whole has the same.
fn app_armor_from_annotations(pod: &mut Value) {
    let profiles = annotated_profiles(pod);
    let Some(spec) = pod.at_mut("spec") else { return };
    let whole = spec.at("securityContext.appArmorProfile").clone();
    for list in defaults::CONTAINER_LISTS {
        for container in spec.items_mut(list) {
            let found = profiles.iter().find(|(name, _)| name == container.str_at("name"));
            if let Some((_, Some(profile))) = found
                && *profile != whole
            {
                container.set("securityContext.appArmorProfile", profile.clone());
            }
        }
    }
}

/// Containers whose profile stands in an annotation alone, and the profile where it is a good one.
fn annotated_profiles(pod: &Value) -> Vec<(String, Option<Value>)> {
    let mut out = Vec::new();
    if pod.str_at("spec.os.name") == "windows" {
        return out;
    }
    each_container(pod.at("spec"), &Path::ROOT, |container, _| {
        let name = container.str_at("name");
        if let Some(text) = annotation(pod, &format!("{APP_ARMOR}{name}"))
            && !container.has("securityContext.appArmorProfile")
        {
            let profile = security::app_armor_of(text);
            out.push((name.to_owned(), profile));
        }
    });
    out
}
