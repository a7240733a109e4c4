//! JSON patch (RFC 6902), with the leniencies and the messages of the library that upstream uses: negative
//! list indices count from the end, `replace` may add a missing member, an absent member equals `null`, and
//! what stands before the first slash of a pointer is ignored.

use serde_json::Value;

use super::MAX_DEPTH;
use crate::goprint::{self, unreadable};

/// Most operations in one patch, as upstream allows.
pub const MAX_OPERATIONS: usize = 10_000;
/// How many bytes `copy` operations may add to a document, as upstream allows.
pub const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;
/// How many values may be visited to measure depths, over all operations.
const MAX_VISITS: usize = 50_000_000;

/// Why a JSON patch does not apply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonPatchError {
    /// The patch is no list of operations (HTTP 400).
    #[error("{0}")]
    Decode(String),
    /// The patch has too many operations (HTTP 413).
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// An operation does not apply (HTTP 422).
    #[error("{0}")]
    Apply(String),
    /// `copy` operations blow the document up (HTTP 422).
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {0}, exceeding the limit {MAX_COPY_BYTES}"
    )]
    CopyTooLarge(usize),
    /// The document nests too deeply (HTTP 422).
    #[error("the patched document nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl JsonPatchError {
    /// Whether a `test` did not hold: then the patch is not meant for the document.
    pub fn is_failed_test(&self) -> bool {
        matches!(self, Self::Apply(message) if message.ends_with(TEST_FAILED))
    }
}

const MISSING: &str = "missing value";
const INVALID_INDEX: &str = "invalid index referenced";
const TEST_FAILED: &str = "test failed";

fn fail<T>(message: String) -> Result<T, JsonPatchError> {
    Err(JsonPatchError::Apply(message))
}

/// Applies the operations in `patch` to `document` in order; all of them, or none.
pub fn apply(document: Value, patch: &Value) -> Result<Value, JsonPatchError> {
    let decode =
        |what: &Value, into: &str| JsonPatchError::Decode(unreadable(what, &format!("jsonpatch.{into}")));
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(decode(other, "Patch")),
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(JsonPatchError::TooManyOperations(operations.len()));
    }
    // `null` is an operation that says nothing.
    if let Some(bad) = operations.iter().find(|o| !o.is_object() && !o.is_null()) {
        return Err(decode(bad, "Operation"));
    }
    let mut visits = 0;
    let mut run = Run { depth_bound: depth(&document, &mut visits), document, copied_bytes: 0, visits };
    for operation in operations {
        run.operation(operation)?;
    }
    Ok(run.document)
}

struct Run {
    document: Value,
    copied_bytes: usize,
    /// No smaller than the document's depth.
    depth_bound: usize,
    /// Values visited to measure depths.
    visits: usize,
}

/// Where an operation points: a list or an object, and the last token of the pointer.
struct Target<'a> {
    container: &'a mut Value,
    key: String,
}

fn decode_token(token: &str) -> String {
    let mut out = String::with_capacity(token.len());
    let mut rest = token;
    while let Some(at) = rest.find('~') {
        out.push_str(&rest[..at]);
        let (replacement, skip) = match rest.as_bytes().get(at + 1) {
            Some(b'0') => ('~', 2),
            Some(b'1') => ('/', 2),
            _ => ('~', 1),
        };
        out.push(replacement);
        rest = &rest[at + skip..];
    }
    out.push_str(rest);
    out
}

fn find<'a>(document: &'a mut Value, pointer: &str) -> Option<Target<'a>> {
    let (_, tokens) = pointer.split_once('/')?;
    let mut container = document;
    let mut tokens = tokens.split('/').peekable();
    while let Some(token) = tokens.next() {
        let token = decode_token(token);
        if !container.is_array() && !container.is_object() {
            return None;
        }
        if tokens.peek().is_none() {
            return Some(Target { container, key: token });
        }
        container = match container {
            Value::Object(map) => map.get_mut(&token)?,
            Value::Array(items) => {
                let at = index(&token, items.len()).ok()?;
                items.get_mut(at)?
            }
            _ => return None,
        };
    }
    None
}

fn parse_index(key: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    key.parse::<i64>().map_err(|error| {
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.Atoi: parsing {}: {why}", goprint::quote(key))
    })
}

/// The position that `key` names in a list, where positions up to `length` exclusive exist.
fn index(key: &str, length: usize) -> Result<usize, String> {
    let i = parse_index(key)?;
    let wrong = || format!("Unable to access invalid index: {i}: {INVALID_INDEX}");
    let length = length as i64;
    let at = if i < 0 { i.saturating_add(length) } else { i };
    if at < 0 || at >= length { Err(wrong()) } else { Ok(at as usize) }
}

impl Target<'_> {
    /// The value there; an absent member of an object is `None`.
    fn get(&self) -> Result<Option<&Value>, String> {
        match &*self.container {
            Value::Object(map) => Ok(map.get(&self.key)),
            Value::Array(items) => index(&self.key, items.len()).map(|i| items.get(i)),
            _ => Ok(None),
        }
    }

    fn add(self, value: Value) -> Result<(), String> {
        match self.container {
            Value::Object(map) => {
                map.insert(self.key, value);
            }
            Value::Array(items) if self.key == "-" => items.push(value),
            Value::Array(items) => {
                let i = parse_index(&self.key)
                    .map_err(|e| format!("value was not a proper array index: '{}': {e}", self.key))?;
                // Inserting may also happen just behind the last item.
                let at = index(&self.key, items.len() + 1)
                    .map_err(|_| format!("Unable to access invalid index: {i}: {INVALID_INDEX}"))?;
                items.insert(at, value);
            }
            _ => {}
        }
        Ok(())
    }

    fn set(self, value: Value) -> Result<(), String> {
        match self.container {
            Value::Object(map) => {
                map.insert(self.key, value);
            }
            Value::Array(items) => {
                let at = index(&self.key, items.len())?;
                items[at] = value;
            }
            _ => {}
        }
        Ok(())
    }

    fn remove(self) -> Result<Value, String> {
        match self.container {
            Value::Object(map) => map
                .remove(&self.key)
                .ok_or_else(|| format!("Unable to remove nonexistent key: {}: {MISSING}", self.key)),
            Value::Array(items) => index(&self.key, items.len()).map(|at| items.remove(at)),
            _ => Ok(Value::Null),
        }
    }
}

impl Run {
    fn operation(&mut self, operation: &Value) -> Result<(), JsonPatchError> {
        let kind = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
        let pointer = |name: &str, comma: &str| match operation.get(name) {
            Some(Value::String(pointer)) => Ok(pointer.as_str()),
            None | Some(Value::Null) => Err(format!("operation{comma} missing {name} field: {MISSING}")),
            Some(other) => Err(unreadable(other, "string")),
        };
        let path = || {
            pointer("path", "").map_err(|e| {
                // Three operations do not say why.
                let why = if matches!(kind, "add" | "remove" | "copy") { MISSING } else { &e };
                JsonPatchError::Apply(format!("{kind} operation failed to decode path: {why}"))
            })
        };
        let from = || {
            pointer("from", ",")
                .map_err(|e| JsonPatchError::Apply(format!("{kind} operation failed to decode from: {e}")))
        };
        let value = operation.get("value").unwrap_or(&Value::Null);
        match kind {
            "add" => self.add(path()?, value.clone()),
            "remove" => {
                let path = path()?;
                let Some(target) = find(&mut self.document, path) else {
                    return fail(format!(
                        "remove operation does not apply: doc is missing path: \"{path}\": {MISSING}"
                    ));
                };
                target
                    .remove()
                    .map(drop)
                    .or_else(|e| fail(format!("error in remove for path: '{path}': {e}")))
            }
            "replace" => self.replace(path()?, value.clone()),
            "move" => self.relocate(from()?, path),
            "copy" => self.copy(from()?, path),
            "test" => self.test(path()?, value),
            other => fail(format!("Unexpected kind: {other}")),
        }
    }

    /// Notes that a value `levels` deep goes to where `pointer` points, before it does.
    fn deepen(&mut self, pointer: &str, levels: usize) -> Result<(), JsonPatchError> {
        let bound = pointer.matches('/').count() + levels;
        if bound > MAX_DEPTH || self.visits > MAX_VISITS {
            return Err(JsonPatchError::TooDeep);
        }
        self.depth_bound = self.depth_bound.max(bound);
        Ok(())
    }

    fn add(&mut self, path: &str, value: Value) -> Result<(), JsonPatchError> {
        let levels = depth(&value, &mut self.visits);
        self.deepen(path, levels)?;
        let Some(target) = find(&mut self.document, path) else {
            return fail(format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}"));
        };
        target.add(value).or_else(|e| fail(format!("error in add for path: '{path}': {e}")))
    }

    fn replace(&mut self, path: &str, value: Value) -> Result<(), JsonPatchError> {
        let levels = depth(&value, &mut self.visits);
        self.deepen(path, levels)?;
        if path.is_empty() {
            if !value.is_object() && !value.is_array() {
                // Upstream wraps an error that is not there.
                return fail("replace operation value must be object or array: %!w(<nil>)".to_owned());
            }
            self.document = value;
            return Ok(());
        }
        let Some(target) = find(&mut self.document, path) else {
            return fail(format!("replace operation does not apply: doc is missing path: {path}: {MISSING}"));
        };
        if target.get().is_err() {
            return fail(format!("replace operation does not apply: doc is missing key: {path}: {MISSING}"));
        }
        target.set(value).or_else(|e| fail(format!("error in remove for path: '{path}': {e}")))
    }

    fn relocate<'p>(
        &mut self,
        from: &str,
        path: impl Fn() -> Result<&'p str, JsonPatchError>,
    ) -> Result<(), JsonPatchError> {
        let Some(target) = find(&mut self.document, from) else {
            return fail(format!(
                "move operation does not apply: doc is missing from path: {from}: {MISSING}"
            ));
        };
        let key = target.key.clone();
        let value = target.remove().or_else(|e| fail(format!("error in move for path: '{key}': {e}")))?;
        let path = path()?;
        if value.is_object() || value.is_array() {
            // A move nests without the document growing. The exact depth costs a walk, so it is only taken
            // once the cheap bound is used up.
            let levels = if pointer_depth(path) + self.depth_bound > MAX_DEPTH {
                self.depth_bound = depth(&self.document, &mut self.visits);
                depth(&value, &mut self.visits)
            } else {
                self.depth_bound
            };
            self.deepen(path, levels)?;
        }
        let Some(target) = find(&mut self.document, path) else {
            return fail(format!(
                "move operation does not apply: doc is missing destination path: {path}: {MISSING}"
            ));
        };
        target.add(value).or_else(|e| fail(format!("error in move for path: '{path}': {e}")))
    }

    fn copy<'p>(
        &mut self,
        from: &str,
        path: impl Fn() -> Result<&'p str, JsonPatchError>,
    ) -> Result<(), JsonPatchError> {
        let Some(target) = find(&mut self.document, from) else {
            return fail(format!(
                "copy operation does not apply: doc is missing from path: {from}: {MISSING}"
            ));
        };
        let source = target.get().or_else(|e| fail(format!("error in copy for from: '{from}': {e}")))?;
        if let Some(source) = source {
            self.copied_bytes += json_len(source);
            if self.copied_bytes > MAX_COPY_BYTES {
                return Err(JsonPatchError::CopyTooLarge(self.copied_bytes));
            }
        }
        let value = source.cloned().unwrap_or(Value::Null);
        let path = path()?;
        let levels = depth(&value, &mut self.visits);
        self.deepen(path, levels)?;
        let Some(target) = find(&mut self.document, path) else {
            return fail(format!(
                "copy operation does not apply: doc is missing destination path: {path}: {MISSING}"
            ));
        };
        target.add(value).or_else(|e| fail(format!("error while adding value during copy: {e}")))
    }

    fn test(&mut self, path: &str, value: &Value) -> Result<(), JsonPatchError> {
        if path.is_empty() {
            if self.document == *value {
                return Ok(());
            }
            return fail(format!("testing value {path} failed: {TEST_FAILED}"));
        }
        let Some(target) = find(&mut self.document, path) else {
            return fail(format!("test operation does not apply: is missing path: {path}: {MISSING}"));
        };
        let have = target.get().or_else(|e| fail(format!("error in test for path: '{path}': {e}")))?;
        if have.unwrap_or(&Value::Null) == value {
            return Ok(());
        }
        fail(format!("testing value {path} failed: {TEST_FAILED}"))
    }
}

fn pointer_depth(pointer: &str) -> usize {
    pointer.matches('/').count()
}

/// Levels of nesting; a scalar has none. Counts the values it visits.
fn depth(value: &Value, visits: &mut usize) -> usize {
    *visits += 1;
    match value {
        Value::Object(map) => 1 + map.values().map(|v| depth(v, visits)).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(|v| depth(v, visits)).max().unwrap_or(0),
        _ => 0,
    }
}

/// Bytes of the value as compact JSON, near enough for a limit.
fn json_len(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(s) => s.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|v| json_len(v) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(k, v)| k.len() + 4 + json_len(v)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn applies() {
        #[rustfmt::skip]
        let cases = [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
            (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), json!({"a": [1, 2, 3]})),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), json!({"a": [1, 2]})),
            (json!({"a": [1, 2]}), json!([{"op": "add", "path": "/a/-1", "value": 3}]), json!({"a": [1, 2, 3]})),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/-1"}]), json!({"a": [1]})),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/a"}]), json!({})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": 2}]), json!({"a": 2})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/new", "value": 2}]), json!({"a": 1, "new": 2})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": {"b": 1}}]), json!({"b": 1})),
            (json!({"a": {"b": 1}}), json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": 1})),
            (json!({"a": {"b": 1}}), json!([{"op": "copy", "from": "/a", "path": "/a/c"}]), json!({"a": {"b": 1, "c": {"b": 1}}})),
            (json!({"a/b": 1, "c~d": 2}), json!([{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0d"}]), json!({})),
            (json!({"~1": 1}), json!([{"op": "remove", "path": "/~01"}]), json!({})),
            (json!({}), json!([{"op": "test", "path": "/x", "value": null}]), json!({})),
            (json!({"a": [1]}), json!([{"op": "test", "path": "/a", "value": [1]}, {"op": "add", "path": "/a", "value": 1}]), json!({"a": 1})),
            (json!({"": 1}), json!([{"op": "add", "path": "/", "value": 2}]), json!({"": 2})),
            (json!({"a": 1}), json!(null), json!({"a": 1})),
        ];
        for (document, patch, expect) in cases {
            assert_eq!(apply(document.clone(), &patch).unwrap(), expect, "{document} {patch}");
        }
    }

    #[test]
    fn errors_are_worded_as_upstream() {
        let document = json!({"a": {"b": [1]}, "n": null});
        #[rustfmt::skip]
        let cases = [
            (json!([{"op": "add", "path": "/x/y", "value": 1}]), "add operation does not apply: doc is missing path: \"/x/y\": missing value"),
            (json!([{"op": "add", "path": "/n/y", "value": 1}]), "add operation does not apply: doc is missing path: \"/n/y\": missing value"),
            (json!([{"op": "add", "path": "/a/b/5", "value": 1}]), "error in add for path: '/a/b/5': Unable to access invalid index: 5: invalid index referenced"),
            (json!([{"op": "add", "path": "/a/b/x", "value": 1}]), "error in add for path: '/a/b/x': value was not a proper array index: 'x': strconv.Atoi: parsing \"x\": invalid syntax"),
            (json!([{"op": "remove", "path": "/a/b/\u{2028}"}]), "error in remove for path: '/a/b/\u{2028}': strconv.Atoi: parsing \"\\u2028\": invalid syntax"),
            (json!([{"op": "remove", "path": "/a/b/9223372036854775808"}]), "error in remove for path: '/a/b/9223372036854775808': strconv.Atoi: parsing \"9223372036854775808\": value out of range"),
            (json!([{"op": "remove", "path": "/zzz"}]), "error in remove for path: '/zzz': Unable to remove nonexistent key: zzz: missing value"),
            (json!([{"op": "remove", "path": "/z/z"}]), "remove operation does not apply: doc is missing path: \"/z/z\": missing value"),
            (json!([{"op": "replace", "path": "/a/b/1", "value": 1}]), "replace operation does not apply: doc is missing key: /a/b/1: missing value"),
            (json!([{"op": "test", "path": "/a/b/0", "value": 2}]), "testing value /a/b/0 failed: test failed"),
            (json!([{"op": "move", "from": "/q", "path": "/r"}]), "error in move for path: 'q': Unable to remove nonexistent key: q: missing value"),
            (json!([{"op": "copy", "from": "/q/q", "path": "/r"}]), "copy operation does not apply: doc is missing from path: /q/q: missing value"),
            (json!([{"op": "jump", "path": "/r"}]), "Unexpected kind: jump"),
            (json!([{"path": "/r"}]), "Unexpected kind: unknown"),
            (json!([{"op": "test", "value": 1}]), "test operation failed to decode path: operation missing path field: missing value"),
            (json!([{"op": "add", "value": 1}]), "add operation failed to decode path: missing value"),
            (json!([{"op": "copy", "from": "/a"}]), "copy operation failed to decode path: missing value"),
            (json!([{"op": "move", "from": "/a"}]), "move operation failed to decode path: operation missing path field: missing value"),
            (json!([{"op": "replace", "path": "", "value": 1}]), "replace operation value must be object or array: %!w(<nil>)"),
            (json!([null]), "Unexpected kind: unknown"),
            (json!([{"op": "move", "from": {}}]), "move operation failed to decode from: json: cannot unmarshal object into Go value of type string"),
            (json!([5]), "json: cannot unmarshal number into Go value of type jsonpatch.Operation"),
            (json!({}), "json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
        ];
        for (patch, message) in cases {
            assert_eq!(apply(document.clone(), &patch).unwrap_err().to_string(), message, "{patch}");
        }
    }

    #[test]
    fn hostile_patches_stay_bounded() {
        let many = Value::from(vec![json!({"op": "test", "path": "/x", "value": null}); MAX_OPERATIONS + 1]);
        assert_eq!(apply(json!({}), &many), Err(JsonPatchError::TooManyOperations(10_001)));

        let doubling = Value::from(vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 64]);
        let error = apply(json!({"a": ["0123456789"]}), &doubling).unwrap_err();
        assert!(matches!(error, JsonPatchError::CopyTooLarge(_) | JsonPatchError::TooDeep), "{error}");

        // Nests by moving alone: /a into a new /b, back to /a, and so on.
        let step = [
            json!({"op": "add", "path": "/b", "value": {}}),
            json!({"op": "move", "from": "/a", "path": "/b/a"}),
            json!({"op": "move", "from": "/b", "path": "/a"}),
        ];
        let nesting: Vec<Value> = step.iter().cycle().take(3 * 3_000).cloned().collect();
        assert_eq!(apply(json!({"a": {}}), &Value::from(nesting)), Err(JsonPatchError::TooDeep));

        let long = "/a".repeat(1000);
        assert!(apply(json!({}), &json!([{"op": "add", "path": long, "value": 1}])).is_err());
    }
}
