//! Sets of field paths, in the very form in which `metadata.managedFields[].fieldsV1` holds them.
//!
//! A set is a tree of JSON objects. A key names a step: `f:name` a field, `k:{"name":"x"}` an item of a list
//! with keys, `v:"x"` an item of a set, `i:0` a position. A node without members, or with the member `.`,
//! belongs to the set itself; the others are only on the way to one that does. Keeping this form means that
//! an update neither parses nor prints the sets of managers it does not touch.
//!
//! Every function keeps trees normal: no node without a member below or at it, no node with `.` alone.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

use crate::{encode, goprint};

/// A set of field paths.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Set(Map<String, Value>);

const SELF: &str = ".";

/// Why JSON is no set of field paths.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetError {
    /// A node is not an object.
    #[error("fieldsV1: expected an object at {0}")]
    NotAnObject(String),
    /// A key does not name a step.
    #[error("fieldsV1: {0:?} is no path element")]
    Element(String),
}

impl Set {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of these paths of fields.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::new();
        for path in paths {
            let mut node = Node { own: true, children: Map::new() };
            for name in path.iter().rev() {
                let mut parent = Node::default();
                parent.put(field_key(name), node);
                node = parent;
            }
            union(&mut set.0, &node.children);
        }
        set
    }

    /// Reads a set that a client wrote: unknown kinds of steps are dropped, keys are brought into the form
    /// in which this crate writes them.
    pub fn parse(fields: &Value) -> Result<Self, SetError> {
        normalize(fields).map(|node| Self(node.children))
    }

    /// Takes JSON that is known to be a normal set, because this crate wrote it.
    pub(crate) fn trusted(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Whether there is no path in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `fieldsV1` object.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The `fieldsV1` object.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Adds all of `other`.
    pub fn union(&mut self, other: &Set) {
        union(&mut self.0, &other.0);
    }

    /// Removes all of `other`. What lies below a removed path stays.
    pub fn difference(&mut self, other: &Set) {
        difference(&mut self.0, &other.0);
    }

    /// Removes all of `other` with all that lies below.
    pub fn recursive_difference(&mut self, other: &Set) {
        recursive_difference(&mut self.0, &other.0);
    }

    /// What both have.
    pub fn intersection(&self, other: &Set) -> Set {
        Set(intersection(&self.0, &other.0))
    }

    /// Whether the path, as steps in their written form, is in the set.
    pub fn has(&self, path: &[&str]) -> bool {
        let Some((last, way)) = path.split_last() else {
            return false;
        };
        let mut map = &self.0;
        for step in way {
            match map.get(*step) {
                Some(Value::Object(next)) => map = next,
                _ => return false,
            }
        }
        map.get(*last).is_some_and(is_member)
    }

    /// Calls `visit` with every path, parents before children, as steps in their written form.
    pub fn for_each(&self, mut visit: impl FnMut(&[&str])) {
        walk(&self.0, &mut Vec::new(), &mut visit);
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        let mut count = 0;
        self.for_each(|_| count += 1);
        count
    }
}

fn walk<'a>(map: &'a Map<String, Value>, way: &mut Vec<&'a str>, visit: &mut impl FnMut(&[&str])) {
    let steps = || map.iter().filter(|(step, _)| *step != SELF);
    for (step, node) in steps() {
        if is_member(node) {
            way.push(step);
            visit(way);
            way.pop();
        }
    }
    for (step, node) in steps() {
        if let Value::Object(children) = node {
            way.push(step);
            walk(children, way, visit);
            way.pop();
        }
    }
}

/// Whether the node itself belongs to the set.
pub(crate) fn is_member(node: &Value) -> bool {
    node.as_object().is_none_or(|map| map.is_empty() || map.contains_key(SELF))
}

/// A tree under construction.
#[derive(Default)]
pub(crate) struct Node {
    /// Whether the node itself belongs to the set.
    pub own: bool,
    pub children: Map<String, Value>,
}

impl Node {
    pub fn is_empty(&self) -> bool {
        !self.own && self.children.is_empty()
    }

    /// Adds a child unless it is empty.
    pub fn put(&mut self, step: String, child: Node) {
        if !child.is_empty() {
            self.children.insert(step, child.into_value());
        }
    }

    fn into_value(mut self) -> Value {
        if self.own && !self.children.is_empty() {
            self.children.insert(SELF.to_owned(), Value::Object(Map::new()));
        }
        Value::Object(self.children)
    }

    pub fn into_set(self) -> Set {
        Set(self.children)
    }
}

/// The step to a field.
pub(crate) fn field_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 2);
    key.push_str("f:");
    key.push_str(name);
    key
}

/// The step to an item of a set.
pub(crate) fn value_key(value: &Value) -> String {
    let mut key = "v:".to_owned();
    write_json(value, &mut key);
    key
}

/// The step to an item of a list with keys; `fields` must be sorted by name.
pub(crate) fn item_key<'v>(fields: impl Iterator<Item = (&'v str, &'v Value)>) -> String {
    let mut key = "k:{".to_owned();
    for (i, (name, value)) in fields.enumerate() {
        if i > 0 {
            key.push(',');
        }
        write_string(name, &mut key);
        key.push(':');
        write_json(value, &mut key);
    }
    key.push('}');
    key
}

/// JSON with the characters escaped that Go's encoder escapes for HTML, so that upstream reads the same key.
fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => write_string(text, out),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        // Whole numbers are one, however they were written.
        Value::Number(n) if n.is_f64() => out.push_str(&String::from_utf8_lossy(&encode::any(value))),
        other => out.push_str(&escape_html(&other.to_string())),
    }
}

fn write_string(text: &str, out: &mut String) {
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./: ".contains(&b)) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&escape_html(&Value::from(text).to_string()));
    }
}

fn escape_html(json: &str) -> Cow<'_, str> {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn normalize(fields: &Value) -> Result<Node, SetError> {
    let map = fields.as_object().ok_or_else(|| SetError::NotAnObject(fields.to_string()))?;
    let mut node = Node { own: map.is_empty() || map.contains_key(SELF), children: Map::new() };
    for (step, child) in map {
        if step == SELF {
            continue;
        }
        let wrong = || SetError::Element(step.clone());
        let (kind, rest) = step.split_at_checked(2).ok_or_else(wrong)?;
        let step = match kind {
            "f:" => step.clone(),
            "i:" => format!("i:{}", rest.parse::<i64>().map_err(|_| wrong())?),
            "v:" => value_key(&serde_json::from_str(rest).map_err(|_| wrong())?),
            "k:" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| wrong())?;
                item_key(keys.iter().map(|(name, value)| (name.as_str(), value)))
            }
            other if other.ends_with(':') => continue,
            _ => return Err(wrong()),
        };
        let child = normalize(child)?;
        let mut one = Node::default();
        one.put(step, child);
        union(&mut node.children, &one.children);
    }
    Ok(node)
}

fn union(a: &mut Map<String, Value>, b: &Map<String, Value>) {
    for (step, other) in b {
        match a.get_mut(step) {
            None => {
                a.insert(step.clone(), other.clone());
            }
            Some(Value::Object(mine)) => {
                let Value::Object(other) = other else { continue };
                if mine.is_empty() != other.is_empty() {
                    mine.insert(SELF.to_owned(), Value::Object(Map::new()));
                }
                union(mine, other);
            }
            Some(_) => {}
        }
    }
}

/// What to do with a node after subtracting from it.
fn settle(node: &mut Map<String, Value>) -> bool {
    if node.len() == 1 && node.contains_key(SELF) {
        node.remove(SELF);
        return true;
    }
    !node.is_empty()
}

fn difference(a: &mut Map<String, Value>, b: &Map<String, Value>) {
    for (step, other) in b {
        if step == SELF {
            continue;
        }
        let (Some(Value::Object(mine)), Value::Object(theirs)) = (a.get_mut(step), other) else { continue };
        let kept = if mine.is_empty() {
            !is_member(other)
        } else {
            difference(mine, theirs);
            if is_member(other) {
                mine.remove(SELF);
            }
            settle(mine)
        };
        if !kept {
            a.remove(step);
        }
    }
}

fn recursive_difference(a: &mut Map<String, Value>, b: &Map<String, Value>) {
    for (step, other) in b {
        if step == SELF {
            continue;
        }
        let (Some(Value::Object(mine)), Value::Object(theirs)) = (a.get_mut(step), other) else { continue };
        let kept = if is_member(other) {
            false
        } else if mine.is_empty() {
            true
        } else {
            recursive_difference(mine, theirs);
            settle(mine)
        };
        if !kept {
            a.remove(step);
        }
    }
}

fn intersection(a: &Map<String, Value>, b: &Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (step, mine) in a {
        if step == SELF {
            continue;
        }
        let Some(other) = b.get(step) else { continue };
        let (Value::Object(left), Value::Object(right)) = (mine, other) else { continue };
        let node = Node { own: is_member(mine) && is_member(other), children: intersection(left, right) };
        if !node.is_empty() {
            out.insert(step.clone(), node.into_value());
        }
    }
    out
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub(crate) struct Shown<'a>(pub &'a [&'a str]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.0 {
            let (kind, rest) = step.split_at_checked(2).unwrap_or((step, ""));
            match kind {
                "f:" => write!(f, ".{rest}")?,
                "v:" => match serde_json::from_str(rest) {
                    Ok(value) => write!(f, "[={}]", ShownValue(&value))?,
                    Err(_) => write!(f, "[={rest}]")?,
                },
                "k:" => {
                    let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
                    let keys: Vec<String> =
                        keys.iter().map(|(name, value)| format!("{name}={}", ShownValue(value))).collect();
                    write!(f, "[{}]", keys.join(","))?;
                }
                _ => write!(f, "[{rest}]")?,
            }
        }
        Ok(())
    }
}

/// A value in a step.
struct ShownValue<'a>(&'a Value);

impl fmt::Display for ShownValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::String(text) => f.write_str(&goprint::quote(text)),
            Value::Bool(_) | Value::Number(_) => goprint::GoValue(self.0).fmt(f),
            Value::Array(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{}", ShownValue(item))?;
                }
                f.write_str("]")
            }
            // Upstream puts nothing between members.
            Value::Object(members) => {
                members.iter().try_for_each(|(name, value)| write!(f, "{name}={}", ShownValue(value)))
            }
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        self.for_each(|path| lines.push(Shown(path).to_string()));
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Set {
        Set::parse(&value).unwrap()
    }

    #[test]
    fn parsing_normalizes() {
        let parsed = set(json!({
            "f:a": {".": {}},
            "k:{ \"b\": 1, \"a\":\"x\" }": {},
            "v: \"<\"": {},
            "z:future": {},
            "i:01": {},
        }));
        assert_eq!(
            parsed.into_value(),
            json!({"f:a": {}, "k:{\"a\":\"x\",\"b\":1}": {}, "v:\"\\u003c\"": {}, "i:1": {}})
        );
        assert!(Set::parse(&json!({"x": {}})).is_err());
        assert!(Set::parse(&json!({"f:a": 1})).is_err());
        assert!(Set::parse(&json!({"k:{": {}})).is_err());
    }

    #[test]
    fn algebra_by_example() {
        let a = set(json!({"f:m": {".": {}, "f:x": {}, "f:y": {}}, "f:z": {}}));
        let mut d = a.clone();
        d.difference(&set(json!({"f:m": {}, "f:z": {"f:deeper": {}}})));
        assert_eq!(d, set(json!({"f:m": {"f:x": {}, "f:y": {}}, "f:z": {}})));
        let mut d = a.clone();
        d.recursive_difference(&set(json!({"f:m": {}})));
        assert_eq!(d, set(json!({"f:z": {}})));
        let mut d = a.clone();
        d.difference(&set(json!({"f:m": {"f:x": {}, "f:y": {}}})));
        assert_eq!(d, set(json!({"f:m": {}, "f:z": {}})));
        assert_eq!(a.intersection(&set(json!({"f:m": {}}))), set(json!({"f:m": {}})));
        assert!(a.has(&["f:m", "f:x"]) && a.has(&["f:m"]) && !a.has(&["f:q"]));
        assert_eq!(a.to_string(), ".m\n.z\n.m.x\n.m.y");
        assert_eq!(
            Set::of_fields(&[&["status"], &["metadata", "name"], &["metadata"]]),
            set(json!({"f:status": {}, "f:metadata": {".": {}, "f:name": {}}}))
        );
    }

    pub(crate) fn any_set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![
            "f:[abc]",
            "[ab]".prop_map(|s| format!("v:\"{s}\"")),
            "[ab]".prop_map(|s| format!("k:{{\"name\":\"{s}\"}}"))
        ];
        let path = prop::collection::vec(step, 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut out = Set::new();
            for path in paths {
                let mut node = Node { own: true, children: Map::new() };
                for step in path.into_iter().rev() {
                    let mut parent = Node::default();
                    parent.put(step, node);
                    node = parent;
                }
                out.union(&node.into_set());
            }
            out
        })
    }

    proptest! {
        #[test]
        fn laws(a in any_set(), b in any_set(), c in any_set()) {
            let or = |x: &Set, y: &Set| { let mut out = x.clone(); out.union(y); out };
            let minus = |x: &Set, y: &Set| { let mut out = x.clone(); out.difference(y); out };
            prop_assert_eq!(or(&a, &b), or(&b, &a));
            prop_assert_eq!(or(&or(&a, &b), &c), or(&a, &or(&b, &c)));
            prop_assert_eq!(or(&a, &a), a.clone());
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(minus(&a, &a), Set::new());
            prop_assert_eq!(or(&minus(&a, &b), &a.intersection(&b)), a.clone());
            prop_assert_eq!(minus(&or(&a, &b), &b), minus(&a, &b));
            prop_assert_eq!(a.intersection(&or(&b, &c)), or(&a.intersection(&b), &a.intersection(&c)));
            let mut recursive = a.clone();
            recursive.recursive_difference(&b);
            prop_assert!(minus(&recursive, &a).is_empty());
        }

        #[test]
        fn written_sets_are_normal(a in any_set()) {
            prop_assert_eq!(Set::parse(&a.clone().into_value()).unwrap(), a);
        }
    }
}
