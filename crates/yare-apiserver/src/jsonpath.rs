//! The part of JSONPath that printer columns and selectable fields of custom resources use
//! (`k8s.io/client-go/util/jsonpath`): members, quoted members, indices, `[*]`, and filters with `==`.

use serde_json::Value;

/// The values that `path` (`.spec.x`, with or without the leading dot) leads to.
pub fn find<'v>(value: &'v Value, path: &str) -> Vec<&'v Value> {
    let mut found = vec![value];
    let mut rest = path.trim();
    rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(rest);
    rest = rest.strip_prefix('$').unwrap_or(rest);
    while !rest.is_empty() && !found.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = bracket_end(inner) else { return Vec::new() };
            let step = inner[..end].trim();
            found = found.into_iter().flat_map(|v| index(v, step)).collect();
            rest = &inner[end + 1..];
            continue;
        }
        let name = rest.strip_prefix('.').unwrap_or(rest);
        let (step, more) = member_end(name);
        rest = more;
        if step.is_empty() {
            // `.` alone is the value itself; `..` (recursive descent) is not used by columns.
            if more == name {
                return found;
            }
            continue;
        }
        if step == "*" {
            found = found.into_iter().flat_map(children).collect();
            continue;
        }
        let step = step.replace("\\.", ".");
        found = found.into_iter().filter_map(|v| v.get(&step)).collect();
    }
    found
}

/// The one scalar that `path` leads to, as selectors compare it; empty where there is none.
pub fn scalar(value: &Value, path: &str) -> String {
    match find(value, path).first() {
        Some(Value::String(s)) => s.clone(),
        Some(v @ (Value::Bool(_) | Value::Number(_))) => v.to_string(),
        _ => String::new(),
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn member_end(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'.' | b'[' => break,
            _ => i += 1,
        }
    }
    text.split_at(i.min(text.len()))
}

fn bracket_end(text: &str) -> Option<usize> {
    let mut quote: Option<char> = None;
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn index<'v>(value: &'v Value, step: &str) -> Vec<&'v Value> {
    if step == "*" {
        return children(value);
    }
    if let Some(name) = unquote(step) {
        return value.get(name).into_iter().collect();
    }
    if let Some(filter) = step.strip_prefix("?(").and_then(|s| s.strip_suffix(')')) {
        let (left, right) = match filter.split_once("==") {
            Some((l, r)) => (l, Some(r.trim())),
            None => (filter, None),
        };
        let path = left.trim().trim_start_matches('@');
        return children(value)
            .into_iter()
            .filter(|item| match (find(item, path).first(), right) {
                (Some(_), None) => true,
                (Some(Value::String(s)), Some(want)) => unquote(want).is_some_and(|w| w == s),
                (Some(found), Some(want)) => serde_json::from_str::<Value>(want).is_ok_and(|w| w == **found),
                (None, _) => false,
            })
            .collect();
    }
    let Some(items) = value.as_array() else { return Vec::new() };
    if let Some((from, to)) = step.split_once(':') {
        // Below zero, they count from the end.
        let place = |text: &str, otherwise: usize| match text.trim().parse::<i64>() {
            Ok(at) if at < 0 => items.len().saturating_sub(usize::try_from(-at).unwrap_or(usize::MAX)),
            Ok(at) => usize::try_from(at).unwrap_or(usize::MAX).min(items.len()),
            Err(_) => otherwise,
        };
        let from = place(from, 0);
        let to = place(to, items.len()).max(from);
        return items[from..to].iter().collect();
    }
    match step.parse::<i64>() {
        Ok(i) if i < 0 => usize::try_from(-i)
            .ok()
            .and_then(|back| items.len().checked_sub(back))
            .map_or_else(Vec::new, |at| vec![&items[at]]),
        Ok(i) => usize::try_from(i).ok().and_then(|at| items.get(at)).into_iter().collect(),
        Err(_) => Vec::new(),
    }
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let value = json!({"spec": {"a.b": 1, "n": 2, "list": [{"t": "x", "v": "1"}, {"t": "y", "v": "2"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        for (path, want) in [
            (".spec.n", "2"),
            ("spec.n", "2"),
            ("{.spec.n}", "2"),
            (".spec.a\\.b", "1"),
            (".spec['a.b']", "1"),
            (".spec.list[0].v", "1"),
            (".spec.list[-1].v", "2"),
            (".spec.list[-1:].v", "2"),
            (".spec.list[0:-1].v", "1"),
            (".spec.list[?(@.t==\"y\")].v", "2"),
            (".status.conditions[?(@.type=='Ready')].status", "True"),
            (".spec.none.x", ""),
            (".spec.list[9].v", ""),
            ("[", ""),
        ] {
            assert_eq!(scalar(&value, path), want, "{path}");
        }
        assert_eq!(find(&value, ".spec.list[*].v").len(), 2);
    }
}
