//! Strategies of the kinds of `coordination.k8s.io`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    names,
    view::View,
};

/// `Lease`
pub const LEASE: &dyn Strategy = &Lease;

/// `LeaseCandidate`
pub const LEASE_CANDIDATE: &dyn Strategy = &LeaseCandidate;

/// The strategy that the API server itself knows.
pub const OLDEST: &str = "OldestEmulationVersion";

struct Lease;

impl Strategy for Lease {
    fn validate(&self, lease: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), lease.at("spec"));
        if let Some(seconds) = spec.int_opt("leaseDurationSeconds").filter(|s| *s <= 0) {
            errs.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        errs.non_negative(&path.child("leaseTransitions"), spec.int_at("leaseTransitions"));
        if let Some(strategy) = spec.str_opt("strategy") {
            check_strategy(&mut errs, &path.child("strategy"), strategy);
        }
        if spec.is_set("preferredHolder") && !spec.is_set("strategy") {
            errs.forbidden(&path.child("preferredHolder"), "may only be specified if `strategy` is defined");
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

struct LeaseCandidate;

impl Strategy for LeaseCandidate {
    fn validate(&self, candidate: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), candidate.at("spec"));
        errs.non_empty(&path.child("leaseName"), spec.str_at("leaseName"));
        let mut version = |field: &str, required: bool| {
            let (p, text) = (path.child(field), spec.str_at(field));
            let parsed = parse_version(text);
            if text.is_empty() {
                if required {
                    errs.required(&p, "");
                }
            } else if parsed.is_none() {
                errs.invalid(&p, text, "must be a valid semantic version");
            }
            parsed
        };
        let (emulation, binary) = (version("emulationVersion", false), version("binaryVersion", true));
        let zero = (0, 0, 0);
        if spec.is_set("binaryVersion")
            && spec.is_set("emulationVersion")
            && binary.unwrap_or(zero) < emulation.unwrap_or(zero)
        {
            errs.invalid(
                &path.child("binaryVersion"),
                spec.str_at("binaryVersion"),
                "must be greater than or equal to `emulationVersion`",
            );
        }
        let strategy = spec.str_at("strategy");
        if strategy.is_empty() {
            errs.required(&path.child("strategy"), "");
            return errs;
        }
        if strategy == OLDEST && emulation.unwrap_or(zero) == zero {
            errs.required(
                &path.child("emulationVersion"),
                "must be specified when `strategy` is 'OldestEmulationVersion'",
            );
        }
        check_strategy(&mut errs, &path.child("strategy"), strategy);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable(&Path::new("spec.leaseName"), new.at("spec.leaseName"), old.at("spec.leaseName"));
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::config_map_key(name)
    }
}

/// Upstream names the field twice in the path.
fn check_strategy(errs: &mut Errors, path: &Path<'_>, strategy: &str) {
    let path = path.child("strategy");
    if strategy.contains('/') {
        errs.each(&path, strategy, names::qualified_name(strategy));
    } else {
        errs.one_of(&path, strategy, &[OLDEST]);
    }
}

/// The numbers of a semantic version; what follows them is checked for its characters only.
pub fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let at = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(at);
    if !rest.is_empty()
        && (rest.len() == 1 || !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+.".contains(&b)))
    {
        return None;
    }
    let number = |part: &str| -> Option<u64> {
        let padded = part.len() > 1 && part.starts_with('0');
        (part.bytes().all(|b| b.is_ascii_digit()) && !padded).then(|| part.parse().ok())?
    };
    let parts: Vec<&str> = core.split('.').collect();
    let [major, minor, patch] = parts[..] else { return None };
    Some((number(major)?, number(minor)?, number(patch)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update, named};

    const GROUP: &str = "coordination.k8s.io";

    #[test]
    fn leases() {
        let base = named(json!({"spec": {"leaseDurationSeconds": 15, "holderIdentity": "h"}}));
        check_create(
            GROUP,
            "Lease",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
                    &[
                        "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                        "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                    ],
                ),
            ],
        );
        let base =
            named(json!({"spec": {"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.35.0",
            "strategy": "OldestEmulationVersion"}}));
        check_create(
            GROUP,
            "LeaseCandidate",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"binaryVersion": "1.2"}}),
                    &[
                        "spec.binaryVersion: Invalid value: \"1.2\": must be a valid semantic version",
                        "spec.binaryVersion: Invalid value: \"1.2\": must be greater than or equal to `emulationVersion`",
                    ],
                ),
                (
                    json!({"spec": {"strategy": "X"}}),
                    &[
                        "spec.strategy.strategy: Unsupported value: \"X\": supported values: \"OldestEmulationVersion\"",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            "LeaseCandidate",
            &base,
            &[(
                json!({"spec": {"leaseName": "m"}}),
                &["spec.leaseName: Invalid value: \"m\": field is immutable"],
            )],
        );
    }
}
