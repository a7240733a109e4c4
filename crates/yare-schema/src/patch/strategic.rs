//! Strategic merge patch: a merge patch that knows from the type which lists merge by key, and that can say
//! `$patch: delete`, `$patch: replace`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys`.
//!
//! Objects merge member by member. Lists whose field has the `merge` strategy merge item by item, matched by
//! the field's merge key (objects) or by value (scalars); all others are replaced. Custom resources have no
//! strategies, so upstream refuses this kind of patch for them, and so must the caller.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Map, Value};

use super::MAX_DEPTH;
use crate::{
    goprint::{GoList, GoMap, GoText, type_name},
    model::{Field, Shape, TypeRef},
};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Why a strategic merge patch does not apply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StrategicPatchError {
    /// The document or the patch is no object.
    #[error("invalid JSON document")]
    BadDocument,
    /// A list holds lists.
    #[error("lists of lists are not supported")]
    ListOfLists,
    /// `$deleteFromPrimitiveList` is malformed.
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    /// `$retainKeys` is malformed, or lacks a member of the patch.
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    /// `$setElementOrder` is malformed.
    #[error("invalid patch format of setElementOrder list")]
    SetElementOrder,
    /// Anything else, in upstream's words.
    #[error("{0}")]
    Other(String),
}

use StrategicPatchError::Other;

type Result<T> = std::result::Result<T, StrategicPatchError>;

/// Applies `patch` to `document`, both of the type `ty`.
pub fn apply(ty: TypeRef<'_>, document: Value, patch: Value) -> Result<Value> {
    // `null` is a patch that says nothing.
    if patch.is_null() {
        return Ok(document);
    }
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else {
        return Err(StrategicPatchError::BadDocument);
    };
    merge_map(ty, document, patch, 0).map(Value::Object)
}

fn no_merge_key(map: &Map<String, Value>, key: &str) -> StrategicPatchError {
    Other(format!("map: {} does not contain declared merge key: {key}", GoMap(map)))
}

fn bad_type(expected: &str, actual: &Value) -> StrategicPatchError {
    // Go prints the type of nothing as what it is not.
    let received = if actual.is_null() { "%!s(<nil>)" } else { type_name(actual) };
    Other(format!("expected a {expected}, but received a {received}"))
}

fn bad_directive(directive: &Value, map: &Map<String, Value>) -> StrategicPatchError {
    Other(format!("unknown patch type: {} in map: {}", GoText(directive), GoMap(map)))
}

/// Go's kind of a value's type, as far as merging tells kinds apart.
fn same_kind(a: &Value, b: &Value) -> bool {
    type_name(a) == type_name(b)
}

/// The field `name`, which a patch wants to merge into; upstream names an unknown one this way.
fn look_up<'a>(ty: TypeRef<'a>, name: &str) -> Result<&'a Field> {
    let kind = match ty.shape() {
        Shape::Struct(s) => {
            return s.field(name).ok_or_else(|| {
                let full = &ty.ty().name;
                let short = full.rsplit('.').next().unwrap_or(full);
                Other(format!("unable to find api field in struct {short} for the json field {name:?}"))
            });
        }
        Shape::Any => "interface",
        Shape::Map(_) => "map",
        Shape::List(_) => "slice",
        Shape::Scalar(_) => "string",
    };
    Err(Other(format!("merging an object in json but data type is not struct, instead is: {kind}")))
}

struct ListMeta<'a> {
    item: TypeRef<'a>,
    merge: bool,
    key: &'a str,
}

fn look_up_list<'a>(ty: TypeRef<'a>, name: &str) -> Result<ListMeta<'a>> {
    let field = look_up(ty, name)?;
    let Some(item) = ty.to(&field.slot).item() else {
        return Err(Other("expected slice or array type, but got: struct".to_owned()));
    };
    if item.item().is_some() {
        return Err(Other("unexpected slice of slice".to_owned()));
    }
    Ok(ListMeta { item, merge: field.patch.merge, key: field.merge_key.as_deref().unwrap_or_default() })
}

fn merge_map(
    ty: TypeRef<'_>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    depth: usize,
) -> Result<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return Err(Other(format!("the patch nests deeper than {MAX_DEPTH} levels")));
    }
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(bad_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(ty, &mut original, &mut patch, depth)?;

    for (key, change) in patch {
        let (key, deletes_items) = if key.starts_with(DELETE_FROM_LIST) {
            (
                strip_directive(&key, DELETE_FROM_LIST).ok_or(StrategicPatchError::PrimitiveList)?.to_owned(),
                true,
            )
        } else {
            (key, false)
        };
        if change.is_null() {
            original.remove(&key);
            continue;
        }
        match (original.get_mut(&key), change) {
            (Some(Value::Object(current)), Value::Object(change)) => {
                let field = look_up(ty, &key)?;
                let merged = if field.patch.replace {
                    change
                } else {
                    merge_map(ty.to(&field.slot), std::mem::take(current), change, depth + 1)?
                };
                original.insert(key, Value::Object(merged));
            }
            (Some(Value::Array(current)), Value::Array(change)) => {
                let meta = look_up_list(ty, &key)?;
                *current = if meta.merge || deletes_items {
                    merge_list(&meta, std::mem::take(current), change, deletes_items, depth + 1)?
                } else {
                    change
                };
            }
            _ if deletes_items => {}
            (current, mut change) => {
                let kept_as_is = current.as_ref().is_some_and(|c| same_kind(c, &change));
                if !kept_as_is {
                    discard_nulls(&mut change);
                }
                match without_directives(change) {
                    Some(change) => {
                        original.insert(key, change);
                    }
                    None => {
                        original.remove(&key);
                    }
                }
            }
        }
    }
    Ok(original)
}

/// The field a directive such as `$setElementOrder/containers` speaks of.
fn strip_directive<'a>(key: &'a str, directive: &str) -> Option<&'a str> {
    key.strip_prefix(directive)?.strip_prefix('/')
}

fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
    let Some(retain) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let retain: HashSet<&str> =
        retain.as_array().ok_or(StrategicPatchError::RetainKeys)?.iter().filter_map(Value::as_str).collect();
    let listed =
        |key: &str| key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ORDER) || retain.contains(key);
    if patch.iter().any(|(key, value)| !value.is_null() && !listed(key)) {
        return Err(StrategicPatchError::RetainKeys);
    }
    original.retain(|key, _| retain.contains(key.as_str()));
    Ok(())
}

/// Carries out the patch's `$setElementOrder` directives together with the lists they order.
fn set_element_orders(
    ty: TypeRef<'_>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(other) => return Err(bad_type("[]interface {}", &other)),
            None => continue,
        };
        let key = strip_directive(&directive, SET_ORDER).ok_or(StrategicPatchError::SetElementOrder)?;
        for list in [original.get(key), patch.get(key)].into_iter().flatten() {
            if !list.is_array() {
                return Err(bad_type("[]interface {}", list));
            }
        }
        let meta = look_up_list(ty, key)?;
        let change = match patch.remove(key) {
            Some(Value::Array(change)) => Some(change),
            _ => None,
        };
        check_order(change.as_deref().unwrap_or_default(), &order, meta.key)?;
        let live = match original.get(key) {
            Some(Value::Array(live)) => Some(live.clone()),
            _ => None,
        };
        let kind = item_kind(&[live.as_deref().unwrap_or_default(), change.as_deref().unwrap_or_default()]);
        let mut places = live.clone().unwrap_or_default();
        let merged = match (live, change) {
            (None, None) => continue,
            (Some(live), None) => live,
            (None, Some(change)) => change.into_iter().filter_map(without_directives).collect(),
            (Some(live), Some(change)) if meta.merge => {
                if !meta.key.is_empty() {
                    reuse_places(&mut places, &change, meta.key);
                }
                merge_list(&meta, live, change, false, depth + 1)?
            }
            (Some(_), Some(change)) => change,
        };
        check_items(&merged, &order, meta.key)?;
        // Objects in a list of plain values have nothing by which to order them.
        if kind?
            && meta.key.is_empty()
            && let Some(item) = order.first().or_else(|| merged.first()).or_else(|| places.first())
        {
            return Err(no_merge_key(object(item)?, meta.key));
        }
        let merged = arrange(merged, &order, &places, meta.key)?;
        original.insert(key.to_owned(), Value::Array(merged));
    }
    Ok(())
}

/// Makes `live` the list by whose order upstream goes after merging `change` into it. Upstream takes deleted items
/// out in place and appends new ones to what is left: those that fit into the freed places stand there, and where
/// none does, stands what was last at that moment.
fn reuse_places(live: &mut [Value], change: &[Value], merge_key: &str) {
    let key = |item: &Value| item.get(merge_key).map(Value::to_string);
    let mut at: HashMap<String, VecDeque<usize>> = HashMap::new();
    for (i, item) in live.iter().enumerate() {
        key(item).into_iter().for_each(|id| at.entry(id).or_default().push_back(i));
    }
    let directive = |item: &Value| item.get(DIRECTIVE).cloned();
    let mut gone = vec![false; live.len()];
    let mut last = live.len();
    // What stands in the freed places, from the end.
    let mut freed = Vec::new();
    for id in change.iter().filter(|i| directive(i).is_some_and(|d| d == "delete")).filter_map(key) {
        for i in at.remove(&id).unwrap_or_default() {
            while last > 0 && gone[last - 1] {
                last -= 1;
            }
            freed.extend(live.get(last.wrapping_sub(1)).cloned());
            gone[i] = true;
        }
    }
    let mut added: Vec<&Value> = Vec::new();
    if !change.iter().any(|i| directive(i).is_some_and(|d| d == "replace")) {
        let mut seen = HashSet::new();
        added.extend(
            change
                .iter()
                .filter(|i| directive(i).is_none())
                .filter(|i| key(i).is_some_and(|id| !at.contains_key(&id) && seen.insert(id))),
        );
    }
    let mut order: Vec<Value> =
        live.iter().zip(gone).filter(|(_, gone)| !gone).map(|(i, _)| i.clone()).collect();
    let mut added = added.into_iter().cloned();
    order.extend(freed.into_iter().rev().map(|left| added.next().unwrap_or(left)));
    live.clone_from_slice(&order);
}

fn object(item: &Value) -> Result<&Map<String, Value>> {
    item.as_object().ok_or_else(|| bad_type("map[string]interface {}", item))
}

/// Checks that the items of `change` stand in the order that `order` gives. Deletions stand anywhere; other
/// directives do as long as items of `order` are left.
fn check_order(change: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if order.is_empty() || change.is_empty() {
        return Ok(());
    }
    if !merge_key.is_empty() {
        change.iter().try_for_each(|item| object(item).map(drop))?;
    }
    let is_deletion =
        |item: &&Value| !merge_key.is_empty() && item.get(DIRECTIVE).is_some_and(|d| d == "delete");
    let mut items = change.iter().filter(|i| !is_deletion(i)).peekable();
    for candidate in order {
        while items.next_if(|item| item.get(DIRECTIVE).is_some()).is_some() {}
        let Some(item) = items.peek() else { break };
        if same_item(item, candidate, merge_key)? {
            items.next();
        }
    }
    if items.peek().is_some() {
        return Err(Other(format!(
            "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
            GoList(change),
            GoList(order)
        )));
    }
    Ok(())
}

fn same_item(a: &Value, b: &Value, merge_key: &str) -> Result<bool> {
    if merge_key.is_empty() {
        return Ok(a == b);
    }
    let (a, b) = (object(a)?, object(b)?);
    let key = |map| Map::get(map, merge_key).ok_or_else(|| no_merge_key(map, merge_key));
    Ok(key(a)? == key(b)?)
}

/// Checks that each of `items` can be looked for in `order`.
fn check_items(items: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if merge_key.is_empty() {
        return Ok(());
    }
    let searchable = order.iter().position(|o| !o.is_object()).unwrap_or(order.len());
    let known: HashSet<String> =
        order[..searchable].iter().filter_map(|o| o.get(merge_key)).map(Value::to_string).collect();
    for item in items {
        if !known.contains(&identity(item, merge_key)?) && searchable < order.len() {
            return Err(Other(format!("value for key {searchable} is not a map")));
        }
    }
    Ok(())
}

/// What makes two items of a merging list the same one: the merge key's value, or the item itself. As text,
/// so that it can index.
fn identity(item: &Value, merge_key: &str) -> Result<String> {
    if merge_key.is_empty() {
        return Ok(item.to_string());
    }
    let map = object(item)?;
    map.get(merge_key).map(Value::to_string).ok_or_else(|| no_merge_key(map, merge_key))
}

fn identities(items: &[Value], merge_key: &str) -> Result<Vec<String>> {
    items.iter().map(|item| identity(item, merge_key)).collect()
}

/// Whether the items of the lists, which must all be of one type, are objects.
fn item_kind(lists: &[&[Value]]) -> Result<bool> {
    let mut items = lists.iter().copied().flatten();
    let Some(first) = items.next() else {
        return Err(Other("no elements in any of the given slices".to_owned()));
    };
    if first.is_array() {
        return Err(StrategicPatchError::ListOfLists);
    }
    if !items.all(|item| same_kind(item, first)) {
        let shown: Vec<Value> = lists.iter().map(|l| Value::from(l.to_vec())).collect();
        return Err(Other(format!("list element types are not identical: {}", GoList(&shown))));
    }
    Ok(first.is_object())
}

fn merge_list(
    meta: &ListMeta<'_>,
    mut original: Vec<Value>,
    mut patch: Vec<Value>,
    deletes_items: bool,
    depth: usize,
) -> Result<Vec<Value>> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let objects = item_kind(&[&original, &patch])?;
    if !objects {
        if deletes_items {
            let gone: HashSet<String> = patch.iter().map(Value::to_string).collect();
            original.retain(|item| !gone.contains(&item.to_string()));
            return Ok(original);
        }
        let mut seen = HashSet::new();
        let both = original.iter().chain(&patch).filter(|item| seen.insert(item.to_string()));
        let merged = both.cloned().collect();
        return arrange(merged, &patch, &original, meta.key);
    }
    if meta.key.is_empty() {
        let kind = if matches!(meta.item.shape(), Shape::Scalar(_)) { "string" } else { "struct" };
        return Err(Other(format!("cannot merge lists without merge key for {kind}")));
    }
    special_items(&mut original, &mut patch, meta.key)?;

    // Upstream looks for the first item with the key, in the list as it grows.
    let server_order = original.clone();
    let mut merged = original;
    let mut at: HashMap<String, usize> = HashMap::new();
    for (i, item) in merged.iter().enumerate() {
        if let Some(value) = object(item)?.get(meta.key) {
            at.entry(value.to_string()).or_insert(i);
        }
    }
    for item in &patch {
        let id = identity(item, meta.key)?;
        match at.get(&id) {
            Some(&i) => {
                if let (Value::Object(current), Value::Object(change)) = (&mut merged[i], item.clone()) {
                    *current = merge_map(meta.item, std::mem::take(current), change, depth + 1)?;
                }
            }
            None => {
                at.insert(id, merged.len());
                merged.push(item.clone());
            }
        }
    }
    arrange(merged, &patch, &server_order, meta.key)
}

/// Carries out `$patch` items: deletes the items they name, or replaces the list. Leaves the other items of
/// the patch.
fn special_items(original: &mut Vec<Value>, patch: &mut Vec<Value>, merge_key: &str) -> Result<()> {
    let mut replace = false;
    let mut gone = HashSet::new();
    for item in patch.iter() {
        let Some(map) = item.as_object() else { continue };
        let Some(directive) = map.get(DIRECTIVE) else { continue };
        match directive.as_str() {
            Some("delete") => {
                gone.insert(identity(item, merge_key)?);
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Other("merging lists cannot yet be specified in the patch".to_owned()));
            }
            _ => return Err(bad_directive(directive, map)),
        }
    }
    patch.retain(|item| item.get(DIRECTIVE).is_none());
    if !gone.is_empty() {
        original.retain(|item| item.get(merge_key).is_none_or(|v| !gone.contains(&v.to_string())));
    }
    if replace {
        *original = std::mem::take(patch);
    }
    Ok(())
}

/// Orders a merged list: items named in `order` as they stand there, the others as in `live`, interleaved so
/// that an item only the server has stays before those it preceded in `live`.
fn arrange(merged: Vec<Value>, order: &[Value], live: &[Value], merge_key: &str) -> Result<Vec<Value>> {
    let index = |ids: Vec<String>| {
        let mut index = HashMap::new();
        for (i, id) in ids.into_iter().enumerate() {
            index.entry(id).or_insert(i);
        }
        index
    };
    let order = index(identities(order, merge_key)?);
    let live = index(identities(live, merge_key)?);
    // With each item: its place in `order` or `live`, and its place in `live`.
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let id = identity(&item, merge_key)?;
        let was = live.get(&id).copied();
        match order.get(&id) {
            Some(&place) => named.push((place, was, item)),
            None => others.push((was.unwrap_or(usize::MAX), was, item)),
        }
    }
    named.sort_by_key(|(place, ..)| *place);
    others.sort_by_key(|(place, ..)| *place);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (Some((_, Some(other), _)), Some((_, Some(named), _))) => other < named,
            (Some(_), None) => true,
            (None, None) => break,
            _ => false,
        };
        let next = if other_first { others.next() } else { named.next() };
        out.extend(next.map(|(.., item)| item));
    }
    Ok(out)
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// The value without the objects that are directives; `None` if it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect(),
        )),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests;
