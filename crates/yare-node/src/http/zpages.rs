//! `/flagz` and `/statusz`: the node agent's flags, and how it is. For people by default; for programs as kinds of
//! `config.k8s.io` when they ask for one.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use yare_metrics::zpages::{FLAGZ, Page, STATUSZ, Shown, Status};
use yare_schema::release::KUBERNETES_VERSION;

use super::{Body, respond, text};
use crate::config::table::ROWS;
use crate::kubelet::Kubelet;

const COMPONENT: &str = "kubelet";

/// How a page is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Text,
    /// As a kind of this version.
    Kind(&'static str),
}

/// Reads `Accept`: media types in order of preference, of which the first that can be served is taken. A kind is
/// named by the parameters `g`, `v` and `as`.
fn wanted(accept: &str, page: Page) -> Option<Wanted> {
    if accept.trim().is_empty() {
        return Some(Wanted::Text);
    }
    let mut types: Vec<(f32, Wanted)> = Vec::new();
    for one in accept.split(',') {
        let mut words = one.split(';').map(str::trim);
        let media = words.next().unwrap_or_default();
        let parameters: BTreeMap<&str, &str> = words.filter_map(|w| w.split_once('=')).collect();
        let quality = parameters.get("q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
        let named = ["as", "g", "v"].map(|name| parameters.get(name).copied().unwrap_or_default());
        let version = page.version(named[0], named[1], named[2]);
        match (media, version) {
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

fn answer(kubelet: &Kubelet, headers: &HeaderMap, page: Page, shown: &Shown<'_>) -> Response<Body> {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    match wanted(&accept.join(","), page) {
        None => text(
            StatusCode::NOT_ACCEPTABLE,
            "only the following media types are accepted: text/plain, application/json, application/yaml\n",
        ),
        Some(Wanted::Text) => {
            let draw = ((kubelet.seams.random)() * 256.0) as u8;
            text(StatusCode::OK, page.text(COMPONENT, shown, draw))
        }
        Some(Wanted::Kind(version)) => {
            let object = page.object(COMPONENT, version, shown);
            let mut response = respond(StatusCode::OK, "application/json", object.to_string().into());
            let warning = page.warning(version).map(|text| HeaderValue::from_str(&format!("299 - {text:?}")));
            if let Some(Ok(warning)) = warning {
                response.headers_mut().insert(header::WARNING, warning);
            }
            response
        }
    }
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
    let shown = Shown::Flags(flags.iter().map(|(name, value)| (*name, value.as_str())).collect());
    answer(kubelet, headers, FLAGZ, &shown)
}

pub(super) fn statusz(kubelet: &Kubelet, headers: &HeaderMap, paths: Vec<String>) -> Response<Body> {
    let version = KUBERNETES_VERSION.trim_start_matches('v');
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let build = concat!("yare ", env!("CARGO_PKG_VERSION"));
    let shown = Shown::Status(Status::now(kubelet.seams.now(), build, [minor, minor], paths));
    answer(kubelet, headers, STATUSZ, &shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            assert_eq!(wanted(accept, FLAGZ), want, "{accept}");
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
