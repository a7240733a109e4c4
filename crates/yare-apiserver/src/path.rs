//! What a request asks for, read from its method, path and query by upstream's rules
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`).

use std::borrow::Cow;

use http::{Method, Uri};
use yare_kinds::names;
use yare_schema::selector::FieldSelector;

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether this is about an API object (as against `/version` and the like).
    pub is_resource: bool,
    /// The path as sent.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the lower-case
    /// method for paths that are not resources.
    pub verb: &'static str,
    /// API group, empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty at cluster scope.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Object name, empty for collections.
    pub name: String,
    /// Subresource, empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (`proxy` paths), without the leading slash.
    pub rest: String,
}

/// Subresources of `namespaces` itself: every other third part is a resource inside the namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &Method, uri: &Uri, query: &Query) -> Self {
        let mut info = Self { path: uri.path().to_owned(), verb: plain_verb(method), ..Self::default() };
        // What is encoded in the path separates as what is not.
        let path = percent_decode(uri.path(), false);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let mut rest: &[&str] = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = resource_verb(method);
        if let [special @ ("watch" | "proxy"), more @ ..] = rest
            && !more.is_empty()
        {
            // The deprecated prefix form: /api/v1/watch/namespaces/x/pods.
            info.verb = if *special == "watch" { "watch" } else { "proxy" };
            rest = more;
        }
        if let ["namespaces", namespace, more @ ..] = rest {
            info.namespace = (*namespace).to_owned();
            if let [third, ..] = more
                && !NAMESPACE_SUBRESOURCES.contains(third)
            {
                rest = more;
            }
        }
        info.resource = rest.first().copied().unwrap_or_default().to_owned();
        info.name = rest.get(1).copied().unwrap_or_default().to_owned();
        info.subresource = rest.get(2).copied().unwrap_or_default().to_owned();
        if rest.len() > 3 {
            info.rest = raw_rest(uri.path(), parts.len() - (rest.len() - 3));
        }
        if info.name.is_empty() {
            match info.verb {
                "get" => {
                    info.verb = if query.flag("watch") { "watch" } else { "list" };
                }
                "delete" => info.verb = "deletecollection",
                _ => {}
            }
        }
        // Of a collection restricted to one name that object is read, and no other.
        if matches!(info.verb, "list" | "watch")
            && info.name.is_empty()
            && let Some(selector) = query.get("fieldSelector").and_then(|s| FieldSelector::parse(s).ok())
            && let Some(name) = selector.exact_match("metadata.name")
            && names::path_segment(name).is_empty()
        {
            info.name = name.to_owned();
        }
        info
    }
}

/// What follows the first `count` segments of a path, as it was sent.
fn raw_rest(path: &str, count: usize) -> String {
    let path = path.trim_start_matches('/');
    let start = path.match_indices('/').nth(count - 1).map_or(path.len(), |(i, _)| i + 1);
    path[start..].to_owned()
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "",
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Percent-decoding; invalid escapes stay as they are, `plus`: `+` is a space.
pub fn percent_decode(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.contains('%') && (!plus || !text.contains('+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let byte = bytes[i];
        if byte == b'%'
            && let Some(hex) = bytes.get(i + 1..i + 3)
            && let Some(value) = std::str::from_utf8(hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok())
        {
            out.push(value);
            i += 3;
            continue;
        }
        out.push(if plus && byte == b'+' { b' ' } else { byte });
        i += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Query parameters in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// No parameters.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Parses what stands after the `?`.
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key, true).into_owned(), percent_decode(value, true).into_owned())
        });
        Self(pairs.collect())
    }

    /// The first value of `key`; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether `key` is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k == key)
    }

    /// A boolean as upstream reads it: present without a value, or anything but `false` and `0`.
    pub fn flag(&self, key: &str) -> bool {
        match self.0.iter().find(|(k, _)| k == key) {
            None => false,
            Some((_, v)) => v != "0" && !v.eq_ignore_ascii_case("false"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        let uri: Uri = uri.parse().unwrap();
        RequestInfo::parse(&method.parse().unwrap(), &uri, &Query::parse(uri.query()))
    }

    #[test]
    fn paths() {
        // method, path → verb, group, version, namespace, resource, name, subresource, rest
        for (method, uri, want) in [
            ("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", "", ""]),
            ("GET", "/api/v1/namespaces/x", ["get", "", "v1", "x", "namespaces", "x", "", ""]),
            (
                "PUT",
                "/api/v1/namespaces/x/finalize",
                ["update", "", "v1", "x", "namespaces", "x", "finalize", ""],
            ),
            ("GET", "/api/v1/namespaces/x/pods?watch=true", ["watch", "", "v1", "x", "pods", "", "", ""]),
            ("GET", "/api/v1/watch/namespaces/x/pods", ["watch", "", "v1", "x", "pods", "", "", ""]),
            ("GET", "/api/v1/namespaces/x/pods/p/log", ["get", "", "v1", "x", "pods", "p", "log", ""]),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/x/deployments",
                ["deletecollection", "apps", "v1", "x", "deployments", "", "", ""],
            ),
            (
                "GET",
                "/api/v1/nodes?fieldSelector=metadata.name%3Dn1",
                ["list", "", "v1", "", "nodes", "n1", "", ""],
            ),
            (
                "GET",
                "/api/v1/nodes?fieldSelector=metadata.name%3D%3Dn1,metadata.name%3Dn2",
                ["list", "", "v1", "", "nodes", "n1", "", ""],
            ),
            (
                "GET",
                "/api/v1/nodes?fieldSelector=metadata.name%3Da%5C,b",
                ["list", "", "v1", "", "nodes", "a,b", "", ""],
            ),
            (
                "GET",
                "/api/v1/nodes?fieldSelector=metadata.name%3Da/b",
                ["list", "", "v1", "", "nodes", "", "", ""],
            ),
            (
                "DELETE",
                "/api/v1/namespaces/x/pods?fieldSelector=metadata.name%3Dn1",
                ["deletecollection", "", "v1", "x", "pods", "", "", ""],
            ),
            (
                "POST",
                "/api/v1/namespaces/x/services/s:80/proxy/a/b%20c/",
                ["create", "", "v1", "x", "services", "s:80", "proxy", "a/b%20c/"],
            ),
            (
                "GET",
                "/api/v1/namespaces/x/pods/p/proxy//a%2Fb/c//",
                ["get", "", "v1", "x", "pods", "p", "proxy", "/a%2Fb/c//"],
            ),
            ("GET", "/api/v1/namespaces/x/pods/p%2Flog", ["get", "", "v1", "x", "pods", "p", "log", ""]),
            ("GET", "/api/v1//namespaces", ["get", "", "v1", "", "", "namespaces", "", ""]),
            ("GET", "/api/v1/namespaces/x/pods/", ["list", "", "v1", "x", "pods", "", "", ""]),
        ] {
            let got = parse(method, uri);
            assert!(got.is_resource, "{uri}");
            let got = [
                got.verb,
                &got.group,
                &got.version,
                &got.namespace,
                &got.resource,
                &got.name,
                &got.subresource,
                &got.rest,
            ];
            assert_eq!(got, want, "{method} {uri}");
        }
        for uri in
            ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/healthz/ping"]
        {
            assert!(!parse("GET", uri).is_resource, "{uri}");
        }
    }
}
