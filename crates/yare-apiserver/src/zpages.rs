//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): what this server is and how it was started, as a page for people
//! or as an object of `config.k8s.io`.

use std::collections::BTreeSet;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;
use yare_metrics::process::Process;
use yare_schema::features::Gates;

use crate::{
    body::{self, Reply},
    core::Call,
    encodings::{Encoding, Form, Named, TABLE},
    health,
    negotiate::clauses,
    status::{ApiError, ApiResult},
};

/// One of the pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    name: &'static str,
    kind: &'static str,
    gate: &'static str,
}

/// What this server is.
pub const STATUSZ: Page = Page { name: "statusz", kind: "Statusz", gate: "ComponentStatusz" };
/// Its flags.
pub const FLAGZ: Page = Page { name: "flagz", kind: "Flagz", gate: "ComponentFlagz" };

/// What stands for values that nobody should see.
pub const CLASSIFIED: &str = "CLASSIFIED";

const COMPONENT: &str = "apiserver";
const GROUP: &str = "config.k8s.io";
const TEXT: &str = "text/plain";
/// What stands between a name and its value: another one each time, so that nobody parses the page.
const DELIMITERS: [&str; 4] = [":", ": ", "=", " "];
/// Folders that are not for debugging.
const NOT_LISTED: [&str; 5] = ["/.well-known", "/api", "/apis", "/openapi", "/openid"];

/// What a client takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Text,
    /// The object in this version and encoding.
    Object(&'static str, Encoding),
}

/// Picks what the client likes best: an object must be asked for by group, version and kind.
fn negotiate(page: Page, headers: &HeaderMap, gates: &Gates) -> Option<Wanted> {
    if headers.get(header::ACCEPT).is_none_or(|value| value.as_bytes().trim_ascii().is_empty()) {
        return Some(Wanted::Text);
    }
    let objects = || TABLE.iter().filter(|f| f.encoding != Encoding::Protobuf && f.is_on(Some(gates)));
    for clause in &clauses(headers) {
        // Neither can be streamed, and the server's version is not asked for.
        if ["stream", "sv"].iter().any(|name| clause.param(name).is_some_and(|value| !value.is_empty())) {
            continue;
        }
        let named = ["as", "g", "v"].map(|name| clause.param(name));
        if named == [None; 3] {
            if clause.covers(TEXT) {
                return Some(Wanted::Text);
            }
            continue;
        }
        let version = match named.map(Option::unwrap_or_default) {
            [kind, GROUP, "v1beta1"] if kind == page.kind => "v1beta1",
            [kind, GROUP, "v1alpha1"] if kind == page.kind => "v1alpha1",
            _ => continue,
        };
        if let Some(format) = objects().find(|f| clause.covers(f.media_type)) {
            return Some(Wanted::Object(version, format.encoding));
        }
    }
    None
}

/// Answers a request for a page; `None` where its feature is off. `listed`: the paths that `/` lists.
pub fn handle(call: &Call, page: Page, listed: &[String]) -> Option<ApiResult<Reply>> {
    let gates = &call.core.config.gates;
    gates.is_on(page.gate).then(|| {
        let wanted = negotiate(page, &call.headers, gates).ok_or_else(|| {
            let mut known: Vec<&str> = vec!["application/json", "application/yaml", TEXT];
            known.extend(gates.is_on("CBORServingAndStorage").then_some("application/cbor"));
            ApiError::not_acceptable(&known)
        })?;
        match wanted {
            Wanted::Text => Ok(body::text_reply(StatusCode::OK, text(call, page, listed))),
            Wanted::Object(version, encoding) => object(call, page, listed, version, encoding),
        }
    })
}

fn object(call: &Call, page: Page, listed: &[String], version: &str, encoding: Encoding) -> ApiResult<Reply> {
    if version == "v1alpha1" {
        call.warn(format!(
            "This version of the {} endpoint is deprecated. Please use a newer version.",
            page.name
        ));
    }
    let api_version = format!("{GROUP}/{version}");
    let mut object = json!({
        "kind": page.kind,
        "apiVersion": api_version,
        "metadata": {"name": COMPONENT},
    });
    if page == FLAGZ {
        object["flags"] = json!(call.core.config.flags);
    } else {
        let status = Status::now(call, listed);
        object["startTime"] = status.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        object["uptimeSeconds"] = status.up_s.into();
        object["goVersion"] = status.go_version.into();
        object["binaryVersion"] = status.version.clone().into();
        object["emulationVersion"] = status.version.into();
        object["paths"] = json!(status.folders);
    }
    let format = encoding.format();
    let named = Named { ty: None, api_version: &api_version, kind: page.kind };
    let bytes = (format.document)(&named, Form::Made(&object), false)?;
    Ok(body::reply(StatusCode::OK, format.media_type, bytes))
}

fn text(call: &Call, page: Page, listed: &[String]) -> String {
    let mut draw = [0];
    call.core.config.random.fill(&mut draw);
    let between = DELIMITERS[usize::from(draw[0]) % DELIMITERS.len()];
    let mut out = format!(
        "\n{COMPONENT} {}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n",
        page.name
    );
    if page == FLAGZ {
        for (name, value) in &call.core.config.flags {
            out.push_str(&format!("{name}{between}{value}\n"));
        }
        return out;
    }
    let status = Status::now(call, listed);
    let up =
        format!("{} hr {:02} min {:02} sec", status.up_s / 3600, status.up_s / 60 % 60, status.up_s % 60);
    out.push('\n');
    for (name, value) in [
        ("Started", status.started.strftime("%a %b %e %H:%M:%S UTC %Y").to_string()),
        ("Up", up),
        ("Go version", status.go_version),
        ("Binary version", status.version.clone()),
        ("Emulation version", status.version),
        ("Paths", status.folders.join(" ")),
    ] {
        out.push_str(&format!("{name}{between} {value}\n"));
    }
    out
}

struct Status {
    started: Timestamp,
    up_s: i64,
    go_version: String,
    /// `1.36`
    version: String,
    /// First parts of paths that help to debug.
    folders: Vec<String>,
}

impl Status {
    fn now(call: &Call, listed: &[String]) -> Self {
        let version = health::version();
        let part = |name: &str| version[name].as_str().unwrap_or_default().to_owned();
        let started = Timestamp::from_second(Process::read().start_s() as i64).unwrap_or_default();
        let up_s = (call.core.now().as_second() - started.as_second()).max(0);
        Self {
            started,
            up_s,
            go_version: part("goVersion"),
            version: format!("{}.{}", part("major"), part("minor")),
            folders: folders(listed),
        }
    }
}

fn folders(listed: &[String]) -> Vec<String> {
    let all: BTreeSet<String> = listed
        .iter()
        .filter_map(|path| path.split('/').nth(1).filter(|first| !first.is_empty()))
        .map(|first| format!("/{first}"))
        .filter(|folder| !NOT_LISTED.contains(&folder.as_str()) && folder != "/statusz")
        .collect();
    all.into_iter().collect()
}

/// The pages' paths, as far as they are there.
pub fn paths(gates: &Gates) -> impl Iterator<Item = String> {
    [FLAGZ, STATUSZ].into_iter().filter(|page| gates.is_on(page.gate)).map(|page| format!("/{}", page.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_asked_for_by_name() {
        let (off, on) = (Gates::default(), Gates::parse("CBORServingAndStorage=true").unwrap());
        let object = |version, encoding| Some(Wanted::Object(version, encoding));
        for (accept, expected) in [
            ("", Some(Wanted::Text)),
            ("text/plain", Some(Wanted::Text)),
            ("text/*", Some(Wanted::Text)),
            ("*/*", Some(Wanted::Text)),
            ("application/json", None),
            ("application/xml", None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", object("v1beta1", Encoding::Json)),
            ("application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz", object("v1alpha1", Encoding::Yaml)),
            ("application/json;v=foo;g=config.k8s.io;as=Statusz,*/*", Some(Wanted::Text)),
            ("application/vnd.kubernetes.protobuf;v=v1beta1;g=config.k8s.io;as=Statusz", None),
            ("application/cbor;v=v1beta1;g=config.k8s.io;as=Statusz", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(negotiate(STATUSZ, &headers, &off), expected, "{accept}");
        }
        let mut headers = HeaderMap::new();
        headers
            .insert(header::ACCEPT, "application/cbor;v=v1beta1;g=config.k8s.io;as=Statusz".parse().unwrap());
        assert_eq!(negotiate(STATUSZ, &headers, &on), object("v1beta1", Encoding::Cbor));
        assert_eq!(negotiate(STATUSZ, &HeaderMap::new(), &on), Some(Wanted::Text));
    }

    #[test]
    fn folders_of_paths() {
        let paths =
            ["/", "/api", "/apis/apps", "/livez", "/metrics", "/metrics/slis", "/statusz", "/version"];
        assert_eq!(folders(&paths.map(str::to_owned)), ["/livez", "/metrics", "/version"]);
    }
}
