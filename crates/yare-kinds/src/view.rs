//! Reading and defaulting JSON objects so that validations read like prose.
//!
//! Paths are field names joined by dots (`spec.nodeName`); keys that contain dots are reached with
//! [`View::at`] on their parent and `get`. Absent and `null` are the same everywhere, as in Go.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Read access by path. Every method gives Go's zero value where the path leads nowhere.
pub trait View {
    /// The value at `path`, or `null`.
    fn at(&self, path: &str) -> &Value;
    /// The string at `path`, or the empty string.
    fn str_at(&self, path: &str) -> &str;
    /// The integer at `path`, or 0.
    fn int_at(&self, path: &str) -> i64;
    /// The integer at `path`, where there is one.
    fn int_opt(&self, path: &str) -> Option<i64>;
    /// The boolean at `path`, or `false`.
    fn bool_at(&self, path: &str) -> bool;
    /// The boolean at `path`, where there is one.
    fn bool_opt(&self, path: &str) -> Option<bool>;
    /// The string at `path`, where there is one.
    fn str_opt(&self, path: &str) -> Option<&str>;
    /// The items of the array at `path`.
    fn items(&self, path: &str) -> &[Value];
    /// The strings of the array at `path`.
    fn strings(&self, path: &str) -> Vec<&str>;
    /// The entries of the object at `path`.
    fn entries<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + 'a;
    /// Whether `path` leads to something that is not `null`.
    fn has(&self, path: &str) -> bool;
    /// Whether `path` leads to something that is not Go's zero value: not `null`, `""`, `0`, `false`,
    /// nor empty.
    fn is_set(&self, path: &str) -> bool;
}

/// The field names of a path. A create looks up hundreds of paths, all of them short: byte for byte is the quickest
/// way through one.
fn keys(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let path = rest?;
        let (key, after) = match path.bytes().position(|byte| byte == b'.') {
            Some(dot) => (&path[..dot], Some(&path[dot + 1..])),
            None => (path, None),
        };
        rest = after;
        Some(key)
    })
}

impl View for Value {
    fn at(&self, path: &str) -> &Value {
        if path.is_empty() {
            return self;
        }
        keys(path).try_fold(self, |v, key| v.get(key)).unwrap_or(&NULL)
    }

    fn str_at(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn int_at(&self, path: &str) -> i64 {
        self.int_opt(path).unwrap_or_default()
    }

    fn int_opt(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn bool_at(&self, path: &str) -> bool {
        self.at(path) == &Value::Bool(true)
    }

    fn bool_opt(&self, path: &str) -> Option<bool> {
        self.at(path).as_bool()
    }

    fn str_opt(&self, path: &str) -> Option<&str> {
        self.at(path).as_str()
    }

    fn items(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    fn strings(&self, path: &str) -> Vec<&str> {
        self.items(path).iter().filter_map(Value::as_str).collect()
    }

    fn entries<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + 'a {
        self.at(path).as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v))
    }

    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }

    fn is_set(&self, path: &str) -> bool {
        !is_zero(self.at(path))
    }
}

/// Write access by path.
pub trait ViewMut {
    /// The value at `path`, where there is one that is not `null`.
    fn at_mut(&mut self, path: &str) -> Option<&mut Value>;
    /// The items of the array at `path`.
    fn items_mut(&mut self, path: &str) -> &mut [Value];
    /// Sets `path`, making the objects on the way. Does nothing where the way leads through a non-object.
    fn set(&mut self, path: &str, value: impl Into<Value>);
    /// Removes what `path` leads to.
    fn remove(&mut self, path: &str) -> Option<Value>;
    /// Sets `path` where it is absent or `null`: the default of a Go pointer field.
    fn default_absent(&mut self, path: &str, value: impl Into<Value>);
    /// Sets `path` where it is Go's zero value (absent, `""`, `0`, empty): the default of a plain field.
    fn default_zero(&mut self, path: &str, value: impl Into<Value>);
    /// Makes `path` the same as in `from`, including absent.
    fn copy_from(&mut self, from: &Value, path: &str);
}

impl ViewMut for Value {
    fn at_mut(&mut self, path: &str) -> Option<&mut Value> {
        keys(path).try_fold(self, |v, key| v.get_mut(key)).filter(|v| !v.is_null())
    }

    fn items_mut(&mut self, path: &str) -> &mut [Value] {
        self.at_mut(path).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
    }

    fn set(&mut self, path: &str, value: impl Into<Value>) {
        let (way, last) = path.rsplit_once('.').map_or((None, path), |(way, last)| (Some(way), last));
        let mut here = self;
        for key in way.into_iter().flat_map(keys) {
            let Some(map) = object(here) else { return };
            here = map.entry(key).or_insert(Value::Null);
        }
        if let Some(map) = object(here) {
            map.insert(last.to_owned(), value.into());
        }
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        match path.rsplit_once('.') {
            Some((way, last)) => self.at_mut(way)?.as_object_mut()?.remove(last),
            None => self.as_object_mut()?.remove(path),
        }
    }

    fn default_absent(&mut self, path: &str, value: impl Into<Value>) {
        if !self.has(path) {
            self.set(path, value);
        }
    }

    fn default_zero(&mut self, path: &str, value: impl Into<Value>) {
        if !self.is_set(path) {
            self.set(path, value);
        }
    }

    fn copy_from(&mut self, from: &Value, path: &str) {
        if from.has(path) {
            self.set(path, from.at(path).clone());
        } else {
            self.remove(path);
        }
    }
}

/// `value` as an object, making one of `null`.
fn object(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// Whether a value is Go's zero value.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Equality as Kubernetes understands it: absent, `null`, `""`, `[]` and `{}` are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || is_empty(v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads() {
        let pod = json!({"spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"name": "a"}], "x": null}});
        assert_eq!(pod.str_at("spec.nodeName"), "n1");
        assert!(pod.bool_at("spec.hostNetwork") && !pod.bool_at("spec.hostPID"));
        assert_eq!(pod.items("spec.containers").len(), 1);
        assert!(!pod.has("spec.x") && !pod.has("status.phase"));
        assert_eq!(pod.entries("metadata.labels").count(), 0);
    }

    #[test]
    fn writes() {
        let mut v = json!({"spec": {"a": ""}});
        v.default_zero("spec.a", "A");
        v.default_absent("spec.b", 0);
        v.default_absent("spec.b", 1);
        v.set("metadata.labels", json!({"x": "y"}));
        v.remove("metadata.labels.x");
        assert_eq!(v, json!({"metadata": {"labels": {}}, "spec": {"a": "A", "b": 0}}));
    }

    #[test]
    fn compares() {
        assert!(same(&json!({"a": [], "b": 1}), &json!({"b": 1, "c": {}, "d": ""})));
        assert!(!same(&json!({"a": false}), &json!({})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [1, 2]})));
    }
}
