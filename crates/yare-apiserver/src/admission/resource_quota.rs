//! ResourceQuota: what a namespace's quotas do not leave room for is refused, and what is taken is written to
//! their status in the same transaction as the object.

use serde_json::{Map, Value};
use yare_kinds::{
    quota::{self, Usage},
    view::{View, ViewMut},
};
use yare_schema::quantity::Quantity;
use yare_store::{Expect, Op, Write};

use super::{Attributes, Operation};
use crate::{codec, status::ApiResult};

const QUOTAS: &str = "resourcequotas";

/// Resources whose updates can take more than they had.
const UPDATED: [(&str, &str); 2] = [("", "services"), ("", "persistentvolumeclaims")];

/// Checks the object against the quotas of its namespace. Gives the writes that record what it takes.
pub fn charge(attributes: &Attributes<'_>, new: &Value, old: Option<&Value>) -> ApiResult<Vec<Write>> {
    let stored = &attributes.served.stored;
    let resource = (&*stored.group, &*stored.plural);
    let sees = attributes.operation == Operation::Create
        || (attributes.operation == Operation::Update && UPDATED.contains(&resource));
    let core = &attributes.call.core;
    if !sees
        || !stored.namespaced
        || !attributes.subresource.is_empty()
        || core.config.disabled_admission.iter().any(|d| d == "ResourceQuota")
    {
        return Ok(Vec::new());
    }
    let snapshot = core.store().snapshot(QUOTAS);
    let prefix = format!("{}/", attributes.namespace);
    if snapshot.is_empty() || snapshot.count(&prefix) == 0 {
        return Ok(Vec::new());
    }
    let mut delta = quota::usage(resource.0, resource.1, new);
    if let Some(old) = old {
        for (name, had) in quota::usage(resource.0, resource.1, old) {
            if let Some(now) = delta.get_mut(&name) {
                *now -= had;
            }
        }
        delta.retain(|_, v| v.signum() > 0);
    }
    let mut writes = Vec::new();
    for object in snapshot.range(std::ops::Bound::Unbounded, &prefix) {
        let Ok(mut quota) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        if !quota::matches(&quota, resource.0, resource.1, new) {
            continue;
        }
        if resource == ("", "pods") && old.is_none() {
            check_specified(attributes, &quota, new)?;
        }
        if !take(attributes, &mut quota, &delta)? {
            continue;
        }
        let registry = core.registry.load();
        let Some(served) = registry.stored(QUOTAS) else { continue };
        let draft = codec::draft(&served.stored.ty, &mut quota)?;
        writes.push(Write {
            kind: object.kind.clone(),
            key: object.key.to_string(),
            expect: Expect::Revision(object.revision),
            op: Op::Put(draft),
        });
    }
    Ok(if attributes.dry_run { Vec::new() } else { writes })
}

fn check_specified(attributes: &Attributes<'_>, quota: &Value, pod: &Value) -> ApiResult<()> {
    let missing = quota::unspecified(quota, pod);
    if missing.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> =
        missing.iter().map(|(r, names)| format!("{r} for: {}", names.join(","))).collect();
    Err(attributes.forbidden(format!(
        "failed quota: {}: must specify {}",
        quota.str_at("metadata.name"),
        parts.join("; ")
    )))
}

fn amounts(value: &Value) -> Usage {
    value.entries("").filter_map(|(k, v)| Some((k.to_owned(), Quantity::from_value(v).ok()?))).collect()
}

/// Whether the quota bounds anything of this; it is charged then.
fn take(attributes: &Attributes<'_>, quota: &mut Value, delta: &Usage) -> ApiResult<bool> {
    let name = quota.str_at("metadata.name").to_owned();
    let hard = amounts(quota.at("status.hard"));
    let hard = if hard.is_empty() { amounts(quota.at("spec.hard")) } else { hard };
    let used = amounts(quota.at("status.used"));
    let bounded: Vec<(&String, Quantity)> =
        delta.iter().filter(|(k, _)| hard.contains_key(*k)).map(|(k, v)| (k, *v)).collect();
    if bounded.is_empty() {
        return Ok(false);
    }
    let unknown: Vec<&str> =
        bounded.iter().filter(|(k, _)| !used.contains_key(*k)).map(|(k, _)| k.as_str()).collect();
    if !unknown.is_empty() {
        return Err(attributes
            .forbidden(format!("status unknown for quota: {name}, resources: {}", unknown.join(","))));
    }
    let exceeded: Vec<&(&String, Quantity)> =
        bounded.iter().filter(|(k, v)| v.signum() > 0 && used[*k].plus(*v) > hard[*k]).collect();
    if !exceeded.is_empty() {
        let list = |pick: &dyn Fn(&String, Quantity) -> Quantity| {
            exceeded.iter().map(|(k, v)| format!("{k}={}", pick(k, *v))).collect::<Vec<_>>().join(",")
        };
        return Err(attributes.forbidden(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            list(&|_, v| v),
            list(&|k, _| used[k]),
            list(&|k, _| hard[k]),
        )));
    }
    let mut changed = false;
    if !quota.has("status.used") {
        quota.set("status.used", Map::new());
    }
    if let Some(map) = quota.at_mut("status.used").and_then(Value::as_object_mut) {
        for (k, v) in bounded {
            changed |= !v.is_zero();
            map.insert(k.clone(), used[k].plus(v).to_string().into());
        }
    }
    Ok(changed)
}
