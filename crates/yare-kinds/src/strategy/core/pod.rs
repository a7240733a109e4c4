//! `Pod`: pending and with its QoS class when it is created, nearly immutable after.

use serde_json::{Value, json};
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use crate::{
    check::{Check, Errors, annotation},
    meta, names, net,
    pod::{defaults, resources, security::each_container, spec, update, warnings},
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
        for condition in new.items_mut("status.conditions") {
            let kind = condition.str_at("type").to_owned();
            let before = old.items("status.conditions").iter().find(|c| c.str_at("type") == kind);
            if let Some(before) = before
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
            "resize" => update::prepare_resize(new, old),
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
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        update::check_update(&mut errs, new, old);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        update::check_status_update(&mut errs, new, old, ctx.gates);
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
            "status" => update::check_status_update(&mut errs, new, old, ctx.gates),
            "ephemeralcontainers" => update::check_ephemeral_containers_update(&mut errs, new, old),
            "resize" => update::check_resize(&mut errs, new, old, ctx.gates),
            _ => update::check_update(&mut errs, new, old),
        }
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if let Some(old) = old {
            return address_warnings(new, old);
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

fn address_warnings(new: &Value, old: &Value) -> Vec<String> {
    let path = Path::new("status");
    let mut out = Vec::new();
    for field in ["podIPs", "hostIPs"] {
        let p = path.child(field);
        if new.at("status").at(field) == old.at("status").at(field) {
            continue;
        }
        for (i, ip) in new.at("status").items(field).iter().enumerate() {
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

/// AppArmor was an annotation before it was a field; containers without the field get it from there.
fn app_armor_from_annotations(pod: &mut Value) {
    if pod.str_at("spec.os.name") == "windows" {
        return;
    }
    let mut profiles: Vec<(String, Value)> = Vec::new();
    each_container(pod.at("spec"), &Path::ROOT, |container, _| {
        let name = container.str_at("name");
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        if container.has("securityContext.appArmorProfile") {
            return;
        }
        let profile = match annotation(pod, &key) {
            Some("runtime/default") => json!({"type": "RuntimeDefault"}),
            Some("unconfined") => json!({"type": "Unconfined"}),
            Some(other) => match other.strip_prefix("localhost/") {
                Some(file) if !file.is_empty() => json!({"type": "Localhost", "localhostProfile": file}),
                _ => return,
            },
            None => return,
        };
        profiles.push((name.to_owned(), profile));
    });
    let Some(spec) = pod.at_mut("spec") else { return };
    for list in defaults::CONTAINER_LISTS {
        for container in spec.items_mut(list) {
            if let Some((_, profile)) = profiles.iter().find(|(name, _)| name == container.str_at("name")) {
                container.set("securityContext.appArmorProfile", profile.clone());
            }
        }
    }
}
