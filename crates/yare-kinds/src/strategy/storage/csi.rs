//! `CSIDriver`, `CSINode` and `CSIStorageCapacity`.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors, quantity},
    meta::{self, JudgeSelector, judge_selectors_after, validate_label_selector},
    names,
    pod::{resources::non_negative, volumes::check_driver_name, warnings::deprecated_label},
    shown::CSI_DRIVER,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub(super) struct CsiDriver;

/// A field with a default, which comes with a feature.
const PREVENT: &str = "spec.preventPodSchedulingIfMissing";
const PREVENT_GATE: &str = "VolumeLimitScaling";
const MIN_TOKEN_S: i64 = 600;
const MAX_TOKEN_S: i64 = 1 << 32;
const MIN_UPDATE_PERIOD_S: i64 = 10;
const MAX_NODE_ID: usize = 256;

impl Strategy for CsiDriver {
    fn default(&self, driver: &mut Value) {
        driver.default_absent("spec.attachRequired", true);
        for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            driver.default_absent(&format!("spec.{field}"), false);
        }
        driver.default_absent("spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        driver.default_zero("spec.volumeLifecycleModes", json!(["Persistent"]));
    }

    fn default_in(&self, driver: &mut Value, ctx: &Context<'_>) {
        if ctx.gates.is_on(PREVENT_GATE) {
            driver.default_absent(PREVENT, false);
        }
    }

    fn prepare_for_create(&self, _driver: &mut Value, _ctx: &Context<'_>) {}

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, false, true);
    }

    fn validate(&self, driver: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), driver.at("spec"));
        let required = [
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
            ("seLinuxMount", "seLinuxMount"),
        ];
        for (field, shown) in required {
            if !spec.has(field) {
                errs.required(&path.child(shown), "");
            }
        }
        if let Some(policy) = spec.str_opt("fsGroupPolicy") {
            errs.one_of(&path.child("fsGroupPolicy"), policy, &["ReadWriteOnceWithFSType", "File", "None"]);
        }
        check_token_requests(&mut errs, &path.child("tokenRequests"), spec.items("tokenRequests"));
        for mode in spec.strings("volumeLifecycleModes") {
            errs.one_listed(&path.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
        }
        if let Some(seconds) = spec.int_opt("nodeAllocatableUpdatePeriodSeconds")
            && seconds < MIN_UPDATE_PERIOD_S
        {
            errs.invalid(
                &path.child("nodeAllocatableUpdatePeriodSeconds"),
                seconds,
                "must be greater than or equal to 10 seconds",
            );
        }
        if spec.has("serviceAccountTokenInSecrets") && !spec.is_set("tokenRequests") {
            errs.invalid(
                &path.child("serviceAccountTokenInSecrets"),
                spec.at("serviceAccountTokenInSecrets").clone(),
                "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
            );
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        for (field, shown) in
            [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            let path = Path::new("spec");
            errs.immutable(&path.child(shown), new.at("spec").at(field), old.at("spec").at(field));
        }
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let requests = new.at("spec.tokenRequests");
        let changed = old.is_none_or(|old| !same(old.at("spec.tokenRequests"), requests));
        if changed && new.is_set("spec.tokenRequests") && !new.has("spec.serviceAccountTokenInSecrets") {
            return vec![
                "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"
                    .to_owned(),
            ];
        }
        Vec::new()
    }

    fn has_generation(&self) -> bool {
        // Counted from the first update on, as upstream does.
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn check_token_requests(errs: &mut Errors, path: &Path<'_>, requests: &[Value]) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, request) in requests.iter().enumerate() {
        let path = path.index(i);
        let audience = request.str_at("audience");
        if seen.contains(&audience) {
            errs.duplicate(&path.child("audience"), audience);
            continue;
        }
        seen.insert(audience);
        let p = path.child("expirationSeconds");
        match request.int_opt("expirationSeconds") {
            Some(s) if s < MIN_TOKEN_S => {
                errs.invalid(&p, s, "may not specify a duration less than 10 minutes")
            }
            Some(s) if s > MAX_TOKEN_S => {
                errs.invalid(&p, s, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
}

pub(super) struct CsiNode;

impl Strategy for CsiNode {
    fn validate(&self, node: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let list = Path::new("spec.drivers");
        let mut seen: HashSet<&str> = HashSet::new();
        for (i, driver) in node.items("spec.drivers").iter().enumerate() {
            let path = list.index(i);
            let name = driver.str_at("name");
            check_driver_name(&mut errs, &path.child("name"), name);
            let (p, id) = (path.child("nodeID"), driver.str_at("nodeID"));
            errs.non_empty(&p, id);
            if id.len() > MAX_NODE_ID {
                errs.invalid(&p, id, format!("must be {MAX_NODE_ID} characters or less"));
            }
            errs.non_negative(&path.child("allocatable.count"), driver.int_at("allocatable.count"));
            if seen.contains(&name) {
                errs.duplicate(&path.child("name"), name);
            }
            seen.insert(name);
            let mut keys = HashSet::new();
            for key in driver.strings("topologyKeys") {
                errs.non_empty(&path, key);
                if !keys.insert(key) {
                    errs.duplicate(&path, key);
                }
                errs.each(&path, key, names::qualified_name(key));
            }
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            driver.remove("allocatable");
            driver
        };
        for before in old.items("spec.drivers") {
            for now in new.items("spec.drivers").iter().filter(|d| d.at("name") == before.at("name")) {
                let path = Path::new("spec.drivers");
                errs.immutable_shown(&path, &fixed(now), &fixed(before), CSI_DRIVER);
            }
        }
        errs
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

pub(super) struct CsiStorageCapacity;

impl Strategy for CsiStorageCapacity {
    fn validate(&self, capacity: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_capacity(capacity, validate_label_selector)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = check_capacity(new, judge_selectors_after([old.at("nodeTopology")]));
        for field in ["nodeTopology", "storageClassName"] {
            errs.immutable(&Path::new(field), new.at(field), old.at(field));
        }
        errs
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, requirement) in new.items("nodeTopology.matchExpressions").iter().enumerate() {
            if let Some(text) = deprecated_label(requirement.str_at("key")) {
                let key = requirement.str_at("key");
                out.push(format!("nodeTopology.matchExpressions[{i}].key: {key} is {text}"));
            }
        }
        for (key, _) in new.entries("nodeTopology.matchLabels") {
            if let Some(text) = deprecated_label(key) {
                out.push(format!("nodeTopology.matchLabels.{key}: {text}"));
            }
        }
        out
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn check_capacity(capacity: &Value, judge: JudgeSelector) -> Errors {
    let mut errs = judge(capacity.at("nodeTopology"), &Path::new("nodeTopology"));
    let class = capacity.str_at("storageClassName");
    errs.each(&Path::new("storageClassName"), class, names::dns1123_subdomain(class));
    if capacity.has("capacity") {
        non_negative(&mut errs, &Path::new("capacity"), quantity(capacity.at("capacity")));
    }
    errs
}
