//! What an applied configuration does to a live object: it is merged in by type, and what its manager no
//! longer mentions is taken out.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    set::{Set, field_key, is_member},
    typed::{Ty, Walk, item_step, walk},
};
use crate::model::Shape;

/// Merges `config` into `live`. Nothing is removed; where both have a leaf, the configuration's stays. Items
/// of a list stand in the configuration's order, with the live ones that it does not mention between.
pub(crate) fn merge(ty: Ty<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let (live, config) = match (live, config) {
        (None, None) => return None,
        (Some(only), None) | (None, Some(only)) => return Some(only.clone()),
        (Some(live), Some(config)) => (live, config),
    };
    let sample = if config.is_null() { live } else { config };
    match walk(ty, sample) {
        Walk::Leaf => Some(config.clone()),
        Walk::Members(members) => match (live.as_object(), config.as_object()) {
            (Some(live), Some(config)) if !live.is_empty() || !config.is_empty() => {
                let mut out = live.clone();
                for (name, change) in config {
                    let (_, ty) = members.member(name);
                    if let Some(merged) = merge(ty, live.get(name), Some(change)) {
                        out.insert(name.clone(), merged);
                    }
                }
                Some(Value::Object(out))
            }
            // `null` takes nothing away from members that are there.
            (Some(members), None) if config.is_null() && !members.is_empty() => Some(live.clone()),
            _ => Some(config.clone()),
        },
        Walk::Items(list, item_ty) => match (live.as_array(), config.as_array()) {
            (Some(live), Some(config)) if !live.is_empty() && !config.is_empty() => {
                let step = |item: &Value| item_step(list, item_ty, item).unwrap_or_default();
                let live_steps: Vec<String> = live.iter().map(step).collect();
                let config_steps: Vec<String> = config.iter().map(step).collect();
                Some(Value::Array(merge_items(item_ty, live, &live_steps, config, &config_steps)))
            }
            (Some(items), None | Some(_)) if !items.is_empty() => Some(live.clone()),
            _ => Some(config.clone()),
        },
    }
}

fn merge_items(
    item_ty: crate::model::TypeRef<'_>,
    live: &[Value],
    live_steps: &[String],
    config: &[Value],
    config_steps: &[String],
) -> Vec<Value> {
    // Live items with the same step cannot be told apart, so none of them is merged into.
    let mut live_by_step: HashMap<&str, Option<&Value>> = HashMap::with_capacity(live.len());
    for (item, step) in live.iter().zip(live_steps) {
        live_by_step.entry(step).and_modify(|found| *found = None).or_insert(Some(item));
    }
    let in_config: HashSet<&str> = config_steps.iter().map(String::as_str).collect();
    // The items that both have, in the configuration's order: the live ones between two of them stay there.
    let mut shared =
        config_steps.iter().map(String::as_str).filter(|s| live_by_step.contains_key(s)).peekable();
    let mut merged: HashSet<&str> = HashSet::with_capacity(config.len());
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let put = |at: usize| -> Option<Value> {
        let step = config_steps[at].as_str();
        let live = live_by_step.get(step).copied().flatten();
        merge(Some(item_ty), live, Some(&config[at]))
    };
    let (mut l, mut c) = (0, 0);
    while l < live.len() || c < config.len() {
        if let (Some(live_step), Some(config_step)) = (live_steps.get(l), config_steps.get(c)) {
            if live_step == config_step {
                merged.insert(config_step);
                out.extend(put(c));
                (l, c) = (l + 1, c + 1);
                shared.next();
                continue;
            }
            // Shared, but its turn comes where the configuration has it.
            if in_config.contains(live_step.as_str()) && shared.peek().is_some_and(|next| next != live_step) {
                l += 1;
                continue;
            }
        }
        if let Some(live_step) = live_steps.get(l) {
            if !in_config.contains(live_step.as_str()) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(live_step.as_str()) {
                l += 1;
            }
        }
        if let Some(config_step) = config_steps.get(c) {
            merged.insert(config_step);
            out.extend(put(c));
            c += 1;
            if shared.peek().is_some_and(|next| next == config_step) {
                shared.next();
            }
        }
    }
    out
}

/// The value without what `gone` names; `None` where nothing is left. What loses all of its members, but is not
/// itself taken away, stays as an empty object or list.
pub(crate) fn remove(ty: Ty<'_>, value: &Value, gone: &Map<String, Value>) -> Option<Value> {
    match (walk(ty, value), value) {
        (Walk::Members(members), Value::Object(map)) => {
            let (mut out, mut entered) = (Map::new(), false);
            for (name, member) in map {
                match gone.get(&field_key(name)) {
                    Some(node) if is_member(node) => {}
                    Some(Value::Object(below)) => {
                        entered = true;
                        out.insert(name.clone(), remove_below(members.member(name).1, member, below));
                    }
                    _ => {
                        out.insert(name.clone(), member.clone());
                    }
                }
            }
            (entered || !out.is_empty()).then_some(Value::Object(out))
        }
        (Walk::Items(list, item_ty), Value::Array(items)) => {
            let (mut out, mut entered) = (Vec::new(), false);
            for item in items {
                let step = item_step(list, item_ty, item).unwrap_or_default();
                match gone.get(&step) {
                    Some(node) if is_member(node) => {}
                    Some(Value::Object(below)) => {
                        entered = true;
                        out.push(remove_below(Some(item_ty), item, below));
                    }
                    _ => out.push(item.clone()),
                }
            }
            (entered || !out.is_empty()).then_some(Value::Array(out))
        }
        (Walk::Leaf, scalar) if !scalar.is_object() && !scalar.is_array() => Some(scalar.clone()),
        _ => None,
    }
}

fn remove_below(ty: Ty<'_>, value: &Value, gone: &Map<String, Value>) -> Value {
    remove(ty, value, gone).unwrap_or_else(|| match value {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    })
}

/// Adds to the set the declared fields on the way to its paths: a manager that owns something inside of a
/// field keeps the field.
pub(crate) fn with_named_fields(ty: Ty<'_>, set: &Set) -> Set {
    let mut out = set.as_map().clone();
    add_named_fields(ty, &mut out);
    Set::trusted(out)
}

fn add_named_fields(ty: Ty<'_>, node: &mut Map<String, Value>) {
    for (step, child) in node.iter_mut() {
        let Value::Object(child) = child else { continue };
        if child.is_empty() {
            continue;
        }
        let shape = ty.map(|t| (t, t.shape()));
        let below = match (step.strip_prefix("f:"), shape) {
            (Some(name), Some((ty, Shape::Struct(s)))) => s.field(name).map(|f| {
                child.entry(".").or_insert_with(|| Value::Object(Map::new()));
                ty.to(&f.slot)
            }),
            (Some(_), Some((ty, Shape::Map(m)))) => Some(ty.to(&m.value)),
            (None, Some((ty, Shape::List(l)))) if step.starts_with("k:") => Some(ty.to(&l.item)),
            _ => None,
        };
        add_named_fields(below, child);
    }
}

/// Rewrites a set after the schema changed: what has become atomic is owned as a whole. Says whether
/// anything changed.
pub(crate) fn reconcile(ty: Ty<'_>, node: &mut Map<String, Value>) -> bool {
    let Some(ty) = ty else { return false };
    let mut changed = false;
    for (step, child) in node.iter_mut() {
        let Value::Object(child) = child else { continue };
        if child.is_empty() {
            continue;
        }
        let below = match (step.strip_prefix("f:"), ty.shape()) {
            (Some(name), _) => ty.member(name),
            (None, Shape::List(l)) => Some(ty.to(&l.item)),
            _ => None,
        };
        let Some(below) = below else { continue };
        let atomic = match below.shape() {
            Shape::Struct(s) => s.atomic,
            Shape::Map(m) => m.atomic,
            Shape::List(l) => l.kind == crate::model::ListKind::Atomic,
            _ => false,
        };
        if atomic {
            child.clear();
            changed = true;
        } else {
            changed |= reconcile(Some(below), child);
        }
    }
    changed
}
