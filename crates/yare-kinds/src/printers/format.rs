//! How cells word durations, selectors, ports and long lists.

use serde_json::Value;

use crate::view::View;

/// A duration in two or three significant figures: `5m30s`, `3d`, `2y4d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, big_unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match seconds {
        s if s < -1 => "<invalid>".to_owned(),
        s if s < 0 => "0s".to_owned(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => pair(minutes, 'm', s % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Unix seconds of an RFC 3339 time.
pub(super) fn unix_s(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// Time since `time`, or `<unknown>`.
pub(super) fn since(time: &str, now_s: i64) -> String {
    unix_s(time).map_or_else(|| "<unknown>".to_owned(), |t| human_duration(now_s - t))
}

/// Time since the object was created.
pub(super) fn age(object: &Value, now_s: i64) -> String {
    since(object.str_at("metadata.creationTimestamp"), now_s)
}

/// The string at `path`, or `otherwise` where there is none.
pub(super) fn or<'a>(object: &'a Value, path: &str, otherwise: &'a str) -> &'a str {
    match object.str_at(path) {
        "" => otherwise,
        s => s,
    }
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> =
        map.entries("").map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A label selector in the notation of `kubectl -l`; `None` where an operator is unknown.
pub fn selector(selector: &Value) -> Option<String> {
    let mut parts: Vec<(&str, String)> = selector
        .entries("matchLabels")
        .map(|(k, v)| (k, format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for requirement in selector.items("matchExpressions") {
        let key = requirement.str_at("key");
        let mut values = requirement.strings("values");
        values.sort_unstable();
        let values = values.join(",");
        parts.push((
            key,
            match requirement.str_at("operator") {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                "DoesNotExist" => format!("!{key}"),
                _ => return None,
            },
        ));
    }
    parts.sort_by(|a, b| a.0.cmp(b.0));
    Some(parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(","))
}

/// A label selector for people: `<none>` where it selects everything, `<error>` where it is wrong.
pub fn format_label_selector(label_selector: &Value) -> String {
    match selector(label_selector) {
        None => "<error>".to_owned(),
        Some(text) if text.is_empty() => "<none>".to_owned(),
        Some(text) => text,
    }
}

/// The first `max` of `all`, and how many more there are.
pub(super) fn first(all: &[String], max: usize) -> String {
    let shown = all[..all.len().min(max)].join(",");
    if all.len() > max { format!("{shown} + {} more...", all.len() - max) } else { shown }
}

/// [`first`] three, or `<unset>`.
pub(super) fn first_or_unset(all: &[String]) -> String {
    if all.is_empty() { "<unset>".to_owned() } else { first(all, 3) }
}

/// Names and images of a pod template's containers.
pub(super) fn containers(pod_spec: &Value) -> (String, String) {
    let join = |field: &str| {
        pod_spec.items("containers").iter().map(|c| c.str_at(field)).collect::<Vec<_>>().join(",")
    };
    (join("name"), join("image"))
}

/// A quantity as it is written, `0` where there is none.
pub(super) fn quantity(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        _ => "0".to_owned(),
    }
}

/// A string or number as text.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations() {
        let day = 86_400;
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (3600, "60m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 120, "3h2m"),
            (47 * 3600, "47h"),
            (2 * day, "2d"),
            (2 * day + 3600, "2d1h"),
            (8 * day, "8d"),
            (729 * day, "729d"),
            (731 * day, "2y1d"),
            (9 * 365 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn selectors() {
        assert_eq!(format_label_selector(&json!({})), "<none>");
        assert_eq!(
            format_label_selector(&json!({"matchLabels": {"b": "1"}, "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]})),
            "a in (x,y),b=1,!c"
        );
        assert_eq!(
            format_label_selector(&json!({"matchExpressions": [{"key": "a", "operator": "?"}]})),
            "<error>"
        );
    }
}
