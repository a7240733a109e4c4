//! `meta.k8s.io` tables: what `kubectl get` shows. Columns come from the resource table, or from a
//! CustomResourceDefinition's `additionalPrinterColumns`.

use serde_json::{Value, json};
use yare_kinds::{printers::Printer, table::Column};

use crate::{jsonpath, registry::Served};

/// A table in JSON up to the opening bracket of its rows. `metadata`: JSON of its ListMeta. `columns`:
/// definitions are left out of all but a watch's first table.
pub fn head(served: &Served, version: &str, metadata: &str, columns: bool) -> String {
    let definitions = if columns { definitions(served) } else { Value::Null };
    opening(version, metadata, &definitions)
}

/// A table of one row in JSON, for an object that is none of a resource but a view of one. `object`: what the row
/// carries of it, as JSON.
pub fn single(printer: &Printer, version: &str, value: &Value, object: &str, now_s: i64) -> String {
    let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
    let definitions = printed(printer.columns);
    let cells = Value::Array((printer.row)(value, now_s));
    let opening = opening(version, &metadata.to_string(), &definitions);
    format!("{opening}{{\"cells\":{cells},\"object\":{object}}}]}}")
}

fn opening(version: &str, metadata: &str, definitions: &Value) -> String {
    format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"columnDefinitions\":{definitions},\"rows\":["
    )
}

fn column(name: &str, kind: &str, format: &str, description: &str, priority: i32) -> Value {
    json!({ "name": name, "type": kind, "format": format, "description": description, "priority": priority })
}

fn printed(columns: &[Column]) -> Value {
    columns.iter().map(|c| column(c.name, c.kind, c.format, c.description, c.priority)).collect()
}

fn definitions(served: &Served) -> Value {
    if let Some(custom) = &served.stored.custom {
        let mut out = vec![column(
            "Name",
            "string",
            "name",
            "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
            0,
        )];
        out.extend(
            custom
                .columns(&served.version)
                .iter()
                .map(|c| column(&c.name, &c.kind, &c.format, &c.description, c.priority)),
        );
        return Value::Array(out);
    }
    printed(served.stored.builtin.map_or(&[][..], |row| row.columns))
}

/// The cells of an object: a built-in one in the storage version, a custom one in the served version.
pub fn cells(served: &Served, object: &Value, now_s: i64) -> Vec<Value> {
    if let Some(row) = served.stored.builtin {
        return (row.row)(object, now_s);
    }
    let Some(custom) = &served.stored.custom else { return Vec::new() };
    let mut out = vec![object["metadata"]["name"].clone()];
    out.extend(custom.columns(&served.version).iter().map(|c| {
        let found = jsonpath::find(object, &c.json_path);
        // Of several, a cell has the first.
        let Some(first) = found.first() else { return Value::Null };
        match c.kind.as_str() {
            "date" => age(first, now_s),
            "integer" => whole(first).map_or(Value::Null, Value::from),
            // Go writes a float that is whole as one that has no fraction.
            "number" => match first.as_f64() {
                Some(number) if number.fract() == 0.0 && number.abs() < 1e18 => (number as i64).into(),
                number => number.map_or(Value::Null, Value::from),
            },
            "boolean" => first.as_bool().map_or(Value::Null, Value::from),
            _ => text(first).into(),
        }
    }));
    out
}

/// What a row says of its object beside the cells: a pod that is through is marked, so that clients may leave it out.
pub fn conditions(served: &Served, object: &Value) -> Option<Value> {
    served.stored.builtin.filter(|row| (row.group, row.plural) == ("", "pods"))?;
    let (reason, message) = match object["status"]["phase"].as_str()? {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{ "type": "Completed", "status": "True", "reason": reason, "message": message }]))
}

/// What of a number is whole.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|number| number as i64))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<no value>".into(),
        other => other.to_string(),
    }
}

fn age(value: &Value, now_s: i64) -> Value {
    let Some(text) = value.as_str() else { return Value::Null };
    match text.parse::<jiff::Timestamp>() {
        Ok(then) => human_duration(now_s - then.as_second()).into(),
        Err(_) => "<invalid>".into(),
    }
}

/// A duration as `kubectl` shows ages: two units where they matter, one where not.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    if s < 120 {
        format!("{s}s")
    } else if minutes < 10 {
        two(minutes, "m", s % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        two(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        two(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", days / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_custom_resources() {
        for (value, expect) in
            [(json!(7), Some(7)), (json!(2.75), Some(2)), (json!("7"), None), (json!(null), None)]
        {
            assert_eq!(whole(&value), expect, "{value}");
        }
        for (value, expect) in
            [(json!(null), "<no value>"), (json!("x"), "x"), (json!({"a": 1}), "{\"a\":1}")]
        {
            assert_eq!(text(&value), expect);
        }
    }

    #[test]
    fn durations() {
        for (seconds, want) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (864_000, "10d"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
    }
}
