//! `/flagz` and `/statusz`: the node agent's flags, and how it is. For people by default; for programs as kinds of
//! `config.k8s.io` when they ask for one.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use yare_metrics::process::Process;

use super::{Body, respond, text};
use crate::clock;
use crate::config::table::ROWS;
use crate::kubelet::Kubelet;

const COMPONENT: &str = "kubelet";
const GROUP: &str = "config.k8s.io";

/// How a page is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Text,
    /// As a kind of this version.
    Kind(&'static str),
}

/// Reads `Accept`: media types in order of preference, of which the first that can be served is taken. A kind is
/// named by the parameters `g`, `v` and `as`.
fn wanted(accept: &str, kind: &str) -> Option<Wanted> {
    if accept.trim().is_empty() {
        return Some(Wanted::Text);
    }
    let mut types: Vec<(f32, Wanted)> = Vec::new();
    for one in accept.split(',') {
        let mut words = one.split(';').map(str::trim);
        let media = words.next().unwrap_or_default();
        let parameters: BTreeMap<&str, &str> = words.filter_map(|w| w.split_once('=')).collect();
        let quality = parameters.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
        let is_kind = parameters.get("g") == Some(&GROUP) && parameters.get("as") == Some(&kind);
        let version = match parameters.get("v") {
            Some(&"v1beta1") => Some("v1beta1"),
            Some(&"v1alpha1") => Some("v1alpha1"),
            _ => None,
        };
        match (media, version.filter(|_| is_kind)) {
            // JSON is YAML, too.
            ("application/json" | "application/yaml" | "*/*" | "application/*", Some(version)) => {
                types.push((quality, Wanted::Kind(version)));
            }
            ("text/plain" | "text/*" | "*/*", None) if !parameters.contains_key("as") => {
                types.push((quality, Wanted::Text));
            }
            _ => {}
        }
    }
    // The first of those liked best.
    types.into_iter().filter(|(q, _)| *q > 0.0).reduce(|a, b| if b.0 > a.0 { b } else { a }).map(|(_, w)| w)
}

fn answer(headers: &HeaderMap, kind: &str, text_page: impl Fn() -> String, fields: Value) -> Response<Body> {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let accept = accept.join(",");
    match wanted(&accept, kind) {
        None => text(
            StatusCode::NOT_ACCEPTABLE,
            "only the following media types are accepted: text/plain, application/json, application/yaml\n",
        ),
        Some(Wanted::Text) => text(StatusCode::OK, text_page()),
        Some(Wanted::Kind(version)) => {
            let mut value = json!({
                "kind": kind,
                "apiVersion": format!("{GROUP}/{version}"),
                "metadata": { "name": COMPONENT },
            });
            if let (Value::Object(all), Value::Object(fields)) = (&mut value, fields) {
                all.extend(fields);
            }
            let mut response = respond(StatusCode::OK, "application/json", value.to_string().into());
            if version == "v1alpha1" {
                let page = kind.to_lowercase();
                let warning = format!(
                    "299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\""
                );
                if let Ok(warning) = HeaderValue::from_str(&warning) {
                    response.headers_mut().insert(header::WARNING, warning);
                }
            }
            response
        }
    }
}

fn heading(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
    )
}

/// The value of each flag, as the configuration has it.
fn flags(document: &Value) -> BTreeMap<&'static str, String> {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(all) => {
            let words: Vec<String> =
                all.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            format!("[{}]", words.join(","))
        }
        Value::Object(all) => {
            let pairs: Vec<String> = all
                .iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
                .collect();
            pairs.join(",")
        }
        other => other.to_string(),
    };
    let value = |field: &str| field.split('.').try_fold(document, |at, word| at.get(word));
    let rows = ROWS.iter().filter(|row| !row.flag.is_empty());
    rows.map(|row| (row.flag, value(row.field).map(shown).unwrap_or_default())).collect()
}

pub(super) fn flagz(kubelet: &Kubelet, headers: &HeaderMap) -> Response<Body> {
    let flags = flags(kubelet.config.document());
    let page = || {
        let lines: String = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        format!("{}{lines}", heading("flagz"))
    };
    answer(headers, "Flagz", page, json!({ "flags": flags }))
}

pub(super) fn statusz(kubelet: &Kubelet, headers: &HeaderMap, paths: &[String]) -> Response<Body> {
    let now = kubelet.seams.now();
    let started = jiff::Timestamp::from_second(Process::read().start_s() as i64).unwrap_or(now);
    let uptime_s = now.duration_since(started).as_secs().max(0);
    let version = crate::KUBERNETES_VERSION.trim_start_matches('v');
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let build = concat!("yare ", env!("CARGO_PKG_VERSION"));
    let page = || {
        format!(
            "{}\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: {build}\nBinary version: {minor}\nEmulation version: {minor}\nPaths: {}\n",
            heading("statusz"),
            started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            uptime_s / 3600,
            uptime_s / 60 % 60,
            uptime_s % 60,
            paths.join(" ")
        )
    };
    let fields = json!({
        "startTime": clock::rfc3339(started),
        "uptimeSeconds": uptime_s,
        // There is no Go here; clients want the field.
        "goVersion": build,
        "binaryVersion": minor,
        "emulationVersion": minor,
        "paths": paths,
    });
    answer(headers, "Statusz", page, fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_as_they_are_wanted() {
        for (accept, want) in [
            ("", Some(Wanted::Text)),
            ("*/*", Some(Wanted::Text)),
            ("text/plain", Some(Wanted::Text)),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", Some(Wanted::Kind("v1beta1"))),
            ("application/yaml; as=Flagz; v=v1alpha1; g=config.k8s.io", Some(Wanted::Kind("v1alpha1"))),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io;q=0.5, text/plain", Some(Wanted::Text)),
            (
                "text/plain;q=0.1, application/json;as=Flagz;v=v1beta1;g=config.k8s.io",
                Some(Wanted::Kind("v1beta1")),
            ),
            ("application/json", None),
            ("application/json;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("application/json;as=Flagz;v=v2;g=config.k8s.io", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(wanted(accept, "Flagz"), want, "{accept}");
        }
    }

    #[test]
    fn flags_show_their_fields() {
        let document = json!({
            "address": "0.0.0.0",
            "enableServer": true,
            "clusterDNS": ["10.0.0.10"],
            "authentication": { "anonymous": { "enabled": false } },
            "featureGates": { "A": true },
        });
        let flags = flags(&document);
        for (flag, value) in [
            ("address", "0.0.0.0"),
            ("enable-server", "true"),
            ("cluster-dns", "[10.0.0.10]"),
            ("anonymous-auth", "false"),
            ("feature-gates", "A=true"),
            ("max-pods", ""),
        ] {
            assert_eq!(flags[flag], value, "{flag}");
        }
    }
}
