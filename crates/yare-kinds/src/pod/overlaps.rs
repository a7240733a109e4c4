//! Files of one volume that take each other's place.

use serde_json::Value;
use yare_schema::goprint::quote;

use crate::view::View;

/// A file, and where it comes from.
#[derive(PartialEq)]
struct File<'a> {
    path: &'a str,
    source: String,
}

impl File<'_> {
    fn shown(&self) -> String {
        let path = quote(self.path);
        if self.source.is_empty() { path } else { format!("{path} ({})", self.source) }
    }
}

/// Each file is compared with so many before it, and so many pairs are reported: the number of pairs grows with the
/// square of a list that a request may make long.
const MAX_FILES: usize = 1000;
const MAX_WARNINGS: usize = 1000;

/// Warnings about volumes whose files overlap, and about projected ones with a source that holds nothing.
pub fn warnings(spec: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for volume in spec.items("volumes") {
        let name = quote(volume.str_at("name"));
        for (kind, field) in [("configMap", "name"), ("secret", "secretName"), ("downwardAPI", "")] {
            let source = volume.at(kind);
            if source.is_null() {
                continue;
            }
            let what = match kind {
                "configMap" => format!("ConfigMap {}", quote(source.str_at(field))),
                "secret" => format!("Secret {}", quote(source.str_at(field))),
                _ => "DownwardAPI".to_owned(),
            };
            let mut before = Vec::new();
            for path in paths(source) {
                add(&mut out, &mut before, File { path, source: String::new() }, &name, &what);
            }
        }
        let mut before = Vec::new();
        for source in volume.items("projected.sources") {
            let files = projected(source);
            if source.entries("").all(|(_, v)| v.is_null()) {
                out.push(format!("volume {name} (Projected) has no sources provided"));
            }
            for file in files {
                add(&mut out, &mut before, file, &name, "Projected");
            }
        }
    }
    out
}

fn paths(source: &Value) -> impl Iterator<Item = &str> {
    source.items("items").iter().map(|item| item.str_at("path"))
}

/// The files of one source of a projected volume.
fn projected(source: &Value) -> Vec<File<'_>> {
    let listed = |of: &'static str, shown: String| -> Vec<File<'_>> {
        paths(source.at(of)).map(|path| File { path, source: shown.clone() }).collect()
    };
    let one = |path, source: &str| File { path, source: source.to_owned() };
    if source.is_set("configMap.items") {
        listed("configMap", format!("ConfigMap {}", quote(source.str_at("configMap.name"))))
    } else if source.is_set("secret.items") {
        listed("secret", format!("Secret {}", quote(source.str_at("secret.name"))))
    } else if source.is_set("downwardAPI.items") {
        listed("downwardAPI", "DownwardAPI".to_owned())
    } else if source.has("serviceAccountToken") {
        vec![one(source.str_at("serviceAccountToken.path"), "ServiceAccountToken")]
    } else if source.has("clusterTrustBundle") {
        let bundle = source.at("clusterTrustBundle");
        let name = bundle.str_opt("name").unwrap_or_else(|| bundle.str_at("signerName"));
        vec![one(bundle.str_at("path"), &format!("ClusterTrustBundle {}", quote(name)))]
    } else {
        let certificate = source.at("podCertificate");
        [
            ("certificateChainPath", "PodCertificate chain"),
            ("keyPath", "PodCertificate key"),
            ("credentialBundlePath", "PodCertificate credential bundle"),
        ]
        .into_iter()
        .filter(|(field, _)| certificate.is_set(field))
        .map(|(field, shown)| one(certificate.str_at(field), shown))
        .collect()
    }
}

/// Adds `file` to those `before` it, and warns of each that it lies in or over.
fn add<'a>(out: &mut Vec<String>, before: &mut Vec<File<'a>>, file: File<'a>, volume: &str, what: &str) {
    let file = File { path: file.path.trim_end_matches('/'), ..file };
    if !file.path.is_empty() {
        for other in before.iter().filter(|other| !other.path.is_empty()) {
            if out.len() >= MAX_WARNINGS {
                break;
            }
            if lies_in(file.path, other.path) || lies_in(other.path, file.path) {
                out.push(format!(
                    "volume {volume} ({what}): overlapping paths: {} with {}",
                    file.shown(),
                    other.shown()
                ));
            }
        }
    }
    if before.len() < MAX_FILES {
        before.push(file);
    }
}

fn lies_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
