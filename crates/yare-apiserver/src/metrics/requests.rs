//! What is counted of every request: one lookup by the labels' hash, and no allocation for labels that were
//! seen before.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;

use super::text::Page;
use crate::{
    flow::stats::Histogram,
    path::{Query, RequestInfo},
};

/// Upper bounds of `apiserver_request_duration_seconds`.
const DURATION_BOUNDS_S: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of `apiserver_request_sli_duration_seconds`.
const SLI_BOUNDS_S: [f64; 21] = [
    0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Upper bounds of `apiserver_response_sizes`.
const SIZE_BOUNDS_BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Distinct label sets that are kept; what comes beyond them is counted without names.
const MAX_SERIES: usize = 4096;

/// The labels of a request, borrowed from it.
#[derive(Clone, Copy, Hash, Default)]
pub struct Labels<'a> {
    verb: &'static str,
    dry_run: &'static str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    scope: &'static str,
}

impl<'a> Labels<'a> {
    /// The verb, in capitals.
    pub fn verb(&self) -> &'static str {
        self.verb
    }

    /// `resource`, `namespace` or `cluster`; empty where it is none of them.
    pub fn scope(&self) -> &'static str {
        self.scope
    }

    /// Of this request. `known`: it is for something that is served; other names must not fill the memory.
    pub fn new(method: &Method, info: &'a RequestInfo, query: &Query, apply: bool, known: bool) -> Self {
        let scope = if !info.name.is_empty() || info.verb == "create" {
            "resource"
        } else if !info.namespace.is_empty() {
            "namespace"
        } else if info.is_resource {
            "cluster"
        } else {
            ""
        };
        let labels = Self {
            verb: verb(method, info, scope, apply),
            dry_run: dry_run(query),
            scope,
            ..Self::default()
        };
        if info.is_resource && known {
            return Self {
                group: &info.group,
                version: &info.version,
                resource: &info.resource,
                subresource: &info.subresource,
                ..labels
            };
        }
        let endpoint = ["/healthz", "/livez", "/readyz"].into_iter().find(|path| *path == info.path);
        Self { subresource: endpoint.unwrap_or_default(), ..labels }
    }

    fn nameless(self) -> Self {
        Self { group: "", version: "", resource: "", subresource: "", ..self }
    }
}

fn verb(method: &Method, info: &RequestInfo, scope: &str, apply: bool) -> &'static str {
    if info.verb == "watch" {
        return "WATCH";
    }
    if matches!(info.subresource.as_str(), "log" | "exec" | "portforward" | "attach" | "proxy") {
        return "CONNECT";
    }
    match *method {
        Method::GET | Method::HEAD if matches!(scope, "namespace" | "cluster") => "LIST",
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH if apply => "APPLY",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn dry_run(query: &Query) -> &'static str {
    let mut values = query.all("dryRun").peekable();
    if values.peek().is_none() {
        return "";
    }
    if values.all(|value| value == "All") { "All" } else { "invalid" }
}

/// Labels that are kept, and what is counted under them.
#[derive(Default)]
struct Series {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    codes: Vec<(u16, u64)>,
    terminations: Vec<(u16, u64)>,
    duration_s: Histogram<23>,
    sli_s: Histogram<21>,
    size_bytes: Histogram<7>,
    running: i64,
    aborts: u64,
    /// Of those that ended, the server's own.
    own: u64,
}

fn count(codes: &mut Vec<(u16, u64)>, code: u16) {
    match codes.iter_mut().find(|(known, _)| *known == code) {
        Some((_, count)) => *count += 1,
        None => codes.push((code, 1)),
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// HTTP status.
    pub code: u16,
    /// All the time it took.
    pub took: Duration,
    /// Of that, in queues and with webhooks.
    pub excluded: Duration,
    /// Bytes of the answer.
    pub bytes: u64,
    /// The server sent it itself.
    pub own: bool,
}

/// Counts of all requests.
#[derive(Default)]
pub struct Requests {
    hasher: RandomState,
    series: Mutex<HashMap<u64, Box<Series>>>,
}

impl Requests {
    fn with<R>(&self, labels: Labels<'_>, change: impl FnOnce(&mut Series) -> R) -> R {
        let mut labels = labels;
        let mut all = self.series.lock();
        let mut hash = self.hasher.hash_one(labels);
        if all.len() >= MAX_SERIES && !all.contains_key(&hash) {
            labels = labels.nameless();
            hash = self.hasher.hash_one(labels);
        }
        let series = all.entry(hash).or_insert_with(|| {
            Box::new(Series {
                verb: labels.verb,
                dry_run: labels.dry_run,
                group: labels.group.to_owned(),
                version: labels.version.to_owned(),
                resource: labels.resource.to_owned(),
                subresource: labels.subresource.to_owned(),
                scope: labels.scope,
                ..Series::default()
            })
        });
        change(series)
    }

    /// Counts a request that is answered.
    pub fn ended(&self, labels: Labels<'_>, ended: Ended) {
        let took_s = ended.took.as_secs_f64();
        self.with(labels, |series| {
            count(&mut series.codes, ended.code);
            series.own += u64::from(ended.own);
            series.duration_s.observe(&DURATION_BOUNDS_S, took_s);
            if labels.dry_run.is_empty() {
                let own_s = ended.took.saturating_sub(ended.excluded).as_secs_f64();
                series.sli_s.observe(&SLI_BOUNDS_S, own_s);
            }
            if matches!(labels.verb, "GET" | "LIST") {
                series.size_bytes.observe(&SIZE_BOUNDS_BYTES, ended.bytes as f64);
            }
        });
    }

    /// Counts a request that was refused to protect the server, or that took too long.
    pub fn terminated(&self, labels: Labels<'_>, code: u16) {
        self.with(labels, |series| count(&mut series.terminations, code));
    }

    /// Counts a request whose answer broke off.
    pub fn aborted(&self, labels: Labels<'_>) {
        self.with(labels, |series| series.aborts += 1);
    }

    /// A long-running request begins or ends.
    pub fn long_running(&self, labels: Labels<'_>, begins: bool) {
        self.with(labels, |series| series.running += if begins { 1 } else { -1 });
    }

    /// Adds all metrics.
    pub fn expose(&self, page: &mut Page) {
        let all = self.series.lock();
        let mut sorted: Vec<&Series> = all.values().map(|series| &**series).collect();
        sorted.sort_by(|a, b| {
            let key = |s: &Series| (s.verb, s.scope, s.dry_run);
            (&a.group, &a.version, &a.resource, &a.subresource, key(a)).cmp(&(
                &b.group,
                &b.version,
                &b.resource,
                &b.subresource,
                key(b),
            ))
        });
        let name = "apiserver_request_total";
        page.family(name, "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.");
        for series in &sorted {
            for (code, count) in &series.codes {
                page.sample(name, &series.labels(Some(&code.to_string()), true), count);
            }
        }
        let name = "apiserver_request_duration_seconds";
        page.family(name, "histogram", "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.");
        for series in sorted.iter().filter(|s| s.duration_s.count > 0) {
            let h = &series.duration_s;
            let labels = series.labels(None, true);
            page.histogram(name, &labels, &DURATION_BOUNDS_S, &h.buckets, h.count, h.sum);
        }
        let name = "apiserver_request_sli_duration_seconds";
        page.family(name, "histogram", "[ALPHA] Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.");
        for series in sorted.iter().filter(|s| s.sli_s.count > 0) {
            let h = &series.sli_s;
            let labels = series.labels(None, false);
            page.histogram(name, &labels, &SLI_BOUNDS_S, &h.buckets, h.count, h.sum);
        }
        let name = "apiserver_response_sizes";
        page.family(name, "histogram", "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.");
        for series in sorted.iter().filter(|s| s.size_bytes.count > 0 && s.dry_run.is_empty()) {
            let h = &series.size_bytes;
            let labels = series.labels(None, false);
            page.histogram(name, &labels, &SIZE_BOUNDS_BYTES, &h.buckets, h.count, h.sum);
        }
        let name = "apiserver_longrunning_requests";
        page.family(name, "gauge", "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.");
        for series in sorted.iter().filter(|s| matches!(s.verb, "WATCH" | "CONNECT")) {
            page.sample(name, &series.labels(None, false), series.running);
        }
        let name = "apiserver_request_terminations_total";
        page.family(
            name,
            "counter",
            "[ALPHA] Number of requests which apiserver terminated in self-defense.",
        );
        for series in &sorted {
            for (code, count) in &series.terminations {
                page.sample(name, &series.labels(Some(&code.to_string()), false), count);
            }
        }
        let name = "apiserver_request_aborts_total";
        page.family(name, "counter", "[ALPHA] Number of requests which apiserver aborted possibly due to a timeout, for each group, version, verb, resource, subresource and scope");
        for series in sorted.iter().filter(|s| s.aborts > 0) {
            let mut labels = series.labels(None, false);
            labels.retain(|(label, _)| *label != "component");
            page.sample(name, &labels, series.aborts);
        }
        let name = "apiserver_selfrequest_total";
        page.family(name, "counter", "[ALPHA] Counter of apiserver self-requests broken out for each verb, API resource and subresource.");
        // Of all versions and scopes together.
        let mut own: BTreeMap<[&str; 4], u64> = BTreeMap::new();
        for series in sorted.iter().filter(|s| s.own > 0) {
            let labels = [&*series.group, &*series.resource, &*series.subresource, series.verb];
            *own.entry(labels).or_default() += series.own;
        }
        for ([group, resource, subresource, verb], count) in own {
            let labels =
                [("group", group), ("resource", resource), ("subresource", subresource), ("verb", verb)];
            page.sample(name, &labels, count);
        }
    }
}

impl Series {
    fn labels<'a>(&'a self, code: Option<&'a str>, dry_run: bool) -> Vec<(&'a str, &'a str)> {
        let mut labels = Vec::with_capacity(9);
        labels.extend(code.map(|code| ("code", code)));
        labels.push(("component", "apiserver"));
        if dry_run {
            labels.push(("dry_run", self.dry_run));
        }
        labels.extend([
            ("group", self.group.as_str()),
            ("resource", &self.resource),
            ("scope", self.scope),
            ("subresource", &self.subresource),
            ("verb", self.verb),
            ("version", &self.version),
        ]);
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for (method, uri, apply, want) in [
            ("GET", "/api/v1/namespaces/a/pods", false, ["LIST", "", "", "pods", "", "namespace"]),
            ("GET", "/api/v1/pods", false, ["LIST", "", "", "pods", "", "cluster"]),
            ("GET", "/api/v1/pods?watch=1", false, ["WATCH", "", "", "pods", "", "cluster"]),
            ("HEAD", "/api/v1/namespaces/a/pods/b", false, ["GET", "", "", "pods", "", "resource"]),
            (
                "POST",
                "/api/v1/namespaces/a/pods?dryRun=All",
                false,
                ["POST", "All", "", "pods", "", "resource"],
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b",
                true,
                ["APPLY", "", "apps", "deployments", "", "resource"],
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                false,
                ["PATCH", "", "apps", "deployments", "scale", "resource"],
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods?dryRun=x",
                false,
                ["DELETE", "invalid", "", "pods", "", "namespace"],
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/b/exec",
                false,
                ["CONNECT", "", "", "pods", "exec", "resource"],
            ),
            ("GET", "/livez", false, ["GET", "", "", "", "/livez", ""]),
            ("GET", "/livez/made/up", false, ["GET", "", "", "", "", ""]),
            ("FROB", "/x", false, ["other", "", "", "", "", ""]),
        ] {
            let uri: http::Uri = uri.parse().unwrap();
            let query = Query::parse(uri.query());
            let method: Method = method.parse().unwrap();
            let info = RequestInfo::parse(&method, &uri, &query);
            let l = Labels::new(&method, &info, &query, apply, true);
            assert_eq!([l.verb, l.dry_run, l.group, l.resource, l.subresource, l.scope], want, "{uri}");
        }
    }

    #[test]
    fn label_sets_are_bounded() {
        let requests = Requests::default();
        let (took, excluded) = (Duration::from_millis(1), Duration::ZERO);
        let ended = Ended { code: 200, took, excluded, bytes: 10, own: false };
        for n in 0..MAX_SERIES + 100 {
            let resource = n.to_string();
            requests.ended(Labels { verb: "GET", resource: &resource, ..Labels::default() }, ended);
        }
        assert_eq!(requests.series.lock().len(), MAX_SERIES + 1);
        let mut page = Page::new();
        requests.expose(&mut page);
        let want = "apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",verb=\"GET\",version=\"\"} 100";
        assert!(page.finish().contains(want));
    }

    #[test]
    fn own_requests_are_counted_over_scopes() {
        let requests = Requests::default();
        let ended = Ended { code: 200, took: Duration::ZERO, excluded: Duration::ZERO, bytes: 0, own: true };
        let pods = Labels { verb: "LIST", version: "v1", resource: "pods", ..Labels::default() };
        requests.ended(Labels { scope: "cluster", ..pods }, ended);
        requests.ended(Labels { scope: "namespace", ..pods }, ended);
        requests.ended(Labels { scope: "namespace", ..pods }, Ended { own: false, ..ended });
        let mut page = Page::new();
        requests.expose(&mut page);
        let own = page.finish();
        let own: Vec<&str> = own.lines().filter(|l| l.starts_with("apiserver_selfrequest_total")).collect();
        let want = r#"apiserver_selfrequest_total{group="",resource="pods",subresource="",verb="LIST"} 2"#;
        assert_eq!(own, [want]);
    }
}
