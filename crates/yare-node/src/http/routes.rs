//! The table of paths: which methods each takes, behind which door it stands, and who answers.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    Body, cadvisor, checkpoint, exec, files, health, log_query, logs, pods, port_forward, stats, summary,
    text, zpages,
};
use crate::config::{Configuration, Settings};
use crate::kubelet::Kubelet;

/// A port, by how much of the table it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// All of it, with TLS.
    Full,
    /// What shows and changes nothing (`readOnlyPort`).
    ReadOnly,
    /// Health alone (`healthzPort`).
    Health,
}

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Health,
    Pods,
    RunningPods,
    Summary,
    Metrics,
    ResourceMetrics,
    SliMetrics,
    CadvisorMetrics,
    ProbeMetrics,
    ContainerLogs,
    Logs,
    Exec,
    Run,
    PortForward,
    Configz,
    Checkpoint,
    Flagz,
    Statusz,
}

/// Behind which doors a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// All three.
    Everywhere,
    /// Those of TLS and of reading.
    Open,
    /// That of TLS; elsewhere, and where debugging handlers are off, it says that it is disabled.
    Debugging,
    /// The same, but elsewhere it is not there.
    Guarded,
}

use Stands::{Debugging, Everywhere, Guarded, Open};

/// A path: words, `*` for any one word, `**` at the end for any rest; its methods (none: all); who answers.
struct Route {
    path: &'static str,
    methods: &'static [Method],
    stands: Stands,
    page: Page,
}

const fn route(path: &'static str, methods: &'static [Method], stands: Stands, page: Page) -> Route {
    Route { path, methods, stands, page }
}

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const BOTH: &[Method] = &[Method::GET, Method::POST];
const ANY: &[Method] = &[];

#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route("healthz", ANY, Everywhere, Page::Health),
    route("healthz/*", ANY, Everywhere, Page::Health),
    route("pods", GET, Open, Page::Pods),
    route("stats/summary", BOTH, Open, Page::Summary),
    route("metrics", ANY, Open, Page::Metrics),
    route("metrics/cadvisor", ANY, Open, Page::CadvisorMetrics),
    route("metrics/probes", ANY, Open, Page::ProbeMetrics),
    route("metrics/resource", ANY, Open, Page::ResourceMetrics),
    route("metrics/slis", ANY, Open, Page::SliMetrics),
    route("run/*/*/*", POST, Debugging, Page::Run),
    route("run/*/*/*/*", POST, Debugging, Page::Run),
    route("exec/*/*/*", BOTH, Debugging, Page::Exec),
    route("exec/*/*/*/*", BOTH, Debugging, Page::Exec),
    route("attach/*/*/*", BOTH, Debugging, Page::Exec),
    route("attach/*/*/*/*", BOTH, Debugging, Page::Exec),
    route("portForward/*/*", BOTH, Debugging, Page::PortForward),
    route("portForward/*/*/*", BOTH, Debugging, Page::PortForward),
    route("containerLogs/*/*/*", GET, Debugging, Page::ContainerLogs),
    route("runningpods", GET, Debugging, Page::RunningPods),
    route("logs/**", GET, Debugging, Page::Logs),
    route("configz", ANY, Guarded, Page::Configz),
    route("checkpoint/*/*/*", POST, Guarded, Page::Checkpoint),
    route("flagz", ANY, Guarded, Page::Flagz),
    route("statusz", ANY, Guarded, Page::Statusz),
];

/// First words that a door without debugging answers itself.
const DISABLED: &[&str] = &["run", "exec", "attach", "portForward", "containerLogs", "runningpods", "logs"];

/// Where a request leads.
pub(super) enum Match {
    Page(Page),
    Answer(Box<Response<Body>>),
}

fn answer(status: StatusCode, body: &'static str) -> Match {
    Match::Answer(Box::new(text(status, body)))
}

/// Looks a path up.
pub(super) fn find(path: &str, method: &Method, door: Door, config: &Configuration) -> Match {
    let settings = config.settings();
    let words = words(path);
    let full = door == Door::Full && settings.enable_debugging_handlers;
    let serves = |stands: Stands| match stands {
        Everywhere => true,
        Open => door != Door::Health,
        Debugging | Guarded => full,
    };
    if door != Door::Health && !full && DISABLED.contains(&words[0]) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
    }
    let is_on = |page: Page| gate(page).is_none_or(|gate| config.gates().is_on(gate));
    let fits = || {
        ROUTES.iter().filter(|route| serves(route.stands) && is_on(route.page) && fits(route.path, &words))
    };
    let Some(first) = fits().next() else { return answer(StatusCode::NOT_FOUND, "404 page not found\n") };
    if let Some(disabled) = disabled(first.page, settings) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, disabled);
    }
    match fits().find(|route| route.methods.is_empty() || route.methods.contains(method)) {
        Some(route) => Match::Page(route.page),
        None => {
            let allow: Vec<&str> = fits().flat_map(|route| route.methods).map(Method::as_str).collect();
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
            if let Ok(allow) = HeaderValue::from_str(&allow.join(", ")) {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            Match::Answer(Box::new(response))
        }
    }
}

/// First words of paths whose requests last as long as a client wants.
const LONG_RUNNING: &[&str] = &["exec", "attach", "portForward", "debug"];

/// How a request is counted: whether it is a long one, its method, its path and its door. What there is no path
/// or method for is `other`, so that nobody makes up series.
pub(super) fn labels(path: &str, method: &Method, door: Door) -> [String; 4] {
    let words = words(path);
    // `metrics/cadvisor` and its like count for themselves, others by their first word.
    let known = ROUTES.iter().find(|route| fits(route.path, &words));
    let bucket = match known.map(|route| route.path) {
        Some("metrics/slis") | None => "other",
        Some(path) if path.starts_with("metrics") => path,
        Some(path) => path.split('/').next().unwrap_or_default(),
    };
    let usual = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD];
    let method = if usual.contains(method) { method.as_str() } else { "other" };
    let server = if door == Door::Full { "readwrite" } else { "readonly" };
    let long = LONG_RUNNING.contains(&words[0]);
    [long.to_string(), method.to_owned(), bucket.to_owned(), server.to_owned()]
}

/// The form of a path as upstream writes it: `/exec/{podNamespace}/{podID}/{uid}/{containerName}`.
pub(super) fn template(path: &str) -> String {
    let words = words(path);
    let Some(route) = ROUTES.iter().find(|route| fits(route.path, &words)) else { return String::new() };
    let forms: &[&str] = match route.path.matches("/*").count() {
        // What is left of a path, or which check of health.
        1 => &["{subpath:*}"],
        2 => &["{podNamespace}", "{podID}"],
        3 if words[0] == "portForward" => &["{podNamespace}", "{podID}", "{uid}"],
        3 => &["{podNamespace}", "{podID}", "{containerName}"],
        _ => &["{podNamespace}", "{podID}", "{uid}", "{containerName}"],
    };
    let mut forms = forms.iter();
    route.path.split('/').fold(String::new(), |mut template, word| {
        template.push('/');
        template.push_str(match word.starts_with('*') {
            true => forms.next().copied().unwrap_or_default(),
            false => word,
        });
        template
    })
}

/// The gate without which a page is not there.
fn gate(page: Page) -> Option<&'static str> {
    match page {
        Page::Checkpoint => Some("ContainerCheckpoint"),
        Page::Flagz => Some("ComponentFlagz"),
        Page::Statusz => Some("ComponentStatusz"),
        _ => None,
    }
}

/// What a page that the configuration switches off says.
fn disabled(page: Page, settings: &Settings) -> Option<&'static str> {
    match page {
        Page::Logs if !settings.enable_system_log_handler => Some("logs endpoint is disabled.\n"),
        _ => None,
    }
}

/// The words of a path; a slash at its end counts for nothing.
fn words(path: &str) -> Vec<&str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.strip_suffix('/').unwrap_or(path).split('/').collect()
}

fn fits(pattern: &str, words: &[&str]) -> bool {
    let mut rest = words.iter();
    for wanted in pattern.split('/') {
        if wanted == "**" {
            return true;
        }
        match rest.next() {
            Some(word) if wanted == "*" && !word.is_empty() => {}
            Some(word) if *word == wanted => {}
            _ => return false,
        }
    }
    rest.next().is_none()
}

/// Answers a request.
pub(super) async fn serve(kubelet: &Arc<Kubelet>, page: Page, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let words = words(&path);
    let raw = request.uri().query().unwrap_or_default();
    match page {
        Page::Health => health::serve(kubelet, words.get(1).copied(), raw).await,
        Page::Pods => pods::list(kubelet),
        Page::RunningPods => pods::running(kubelet).await,
        Page::ContainerLogs => logs::serve(kubelet, words[1], words[2], words[3], raw).await,
        Page::Logs => {
            let rest = path.trim_start_matches('/').strip_prefix("logs").unwrap_or_default();
            let root = kubelet.log_dir.clone();
            let is_query = kubelet.config.settings().enable_system_log_query;
            let asked = match is_query {
                true => log_query::serve(&root, raw).await,
                false => log_query::Outcome::NotAQuery,
            };
            match asked {
                log_query::Outcome::Answered(response) => response,
                log_query::Outcome::File(file) => {
                    let file = format!("/{}", file.trim_start_matches('/'));
                    files::serve(root, &file, None, request.headers()).await
                }
                log_query::Outcome::NotAQuery => {
                    files::serve(root, rest, request.uri().query(), request.headers()).await
                }
            }
        }
        Page::Exec => exec::serve(kubelet, &words, request).await,
        Page::Run => exec::run(kubelet, &words, raw).await,
        Page::PortForward => port_forward::serve(kubelet, &words, request).await,
        Page::Metrics => stats::metrics(kubelet).await,
        Page::ResourceMetrics => stats::resource_metrics(kubelet).await,
        Page::CadvisorMetrics => cadvisor::serve(kubelet).await,
        Page::ProbeMetrics => stats::probes(kubelet),
        Page::SliMetrics => stats::slis(kubelet, request.method()),
        Page::Summary => summary::serve(kubelet, raw).await,
        Page::Configz => stats::configz(kubelet),
        Page::Checkpoint => checkpoint::serve(kubelet, words[1], words[2], words[3], raw).await,
        Page::Flagz => zpages::flagz(kubelet, request.headers()),
        Page::Statusz => {
            let firsts = ROUTES.iter().filter_map(|route| route.path.split('/').next());
            let mut paths: Vec<String> = firsts.map(|first| format!("/{first}")).collect();
            paths.sort();
            paths.dedup();
            zpages::statusz(kubelet, request.headers(), paths)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Configuration, Sources};

    fn look(path: &str, method: &Method, door: Door, config: &Configuration) -> String {
        match find(path, method, door, config) {
            Match::Page(page) => format!("{page:?}"),
            Match::Answer(response) => response.status().as_u16().to_string(),
        }
    }

    #[test]
    fn requests_are_counted_by_what_there_is() {
        for (path, method, want) in [
            ("/metrics/cadvisor", Method::GET, ["false", "GET", "metrics/cadvisor", "readwrite"]),
            ("/metrics/slis", Method::GET, ["false", "GET", "other", "readwrite"]),
            ("/stats/summary", Method::POST, ["false", "POST", "stats", "readwrite"]),
            ("/exec/a/b/c", Method::GET, ["true", "GET", "exec", "readwrite"]),
            ("/made/up", Method::OPTIONS, ["false", "other", "other", "readwrite"]),
        ] {
            assert_eq!(labels(path, &method, Door::Full), want, "{path}");
        }
    }

    #[test]
    fn forms_of_paths() {
        for (path, want) in [
            ("/pods/", "/pods"),
            ("/exec/a/b/c", "/exec/{podNamespace}/{podID}/{containerName}"),
            ("/attach/a/b/c/d", "/attach/{podNamespace}/{podID}/{uid}/{containerName}"),
            ("/portForward/a/b/c", "/portForward/{podNamespace}/{podID}/{uid}"),
            ("/logs/a/b", "/logs/{subpath:*}"),
            ("/metrics/cadvisor", "/metrics/cadvisor"),
            ("/made/up", ""),
        ] {
            assert_eq!(template(path), want, "{path}");
        }
    }

    #[test]
    fn every_door_has_its_paths() {
        let config = Configuration::default();
        let off = Sources { inline: vec!["enableDebuggingHandlers: false".into()], ..Sources::default() };
        let off = off.load().unwrap();
        let quiet = Sources { inline: vec!["enableSystemLogHandler: false".into()], ..Sources::default() };
        let quiet = quiet.load().unwrap();
        let gates =
            "featureGates: {ContainerCheckpoint: false, ComponentFlagz: false, ComponentStatusz: false}";
        let gated = Sources { inline: vec![gates.into()], ..Sources::default() }.load().unwrap();
        let get = Method::GET;
        for (path, method, door, config, want) in [
            ("/exec/a/b/c", &get, Door::Full, &config, "Exec"),
            ("/exec/a/b/c/d", &Method::POST, Door::Full, &config, "Exec"),
            ("/exec/a/b", &get, Door::Full, &config, "404"),
            ("/exec/a//c", &get, Door::Full, &config, "404"),
            ("/exec/a/b/c", &Method::DELETE, Door::Full, &config, "405"),
            ("/exec/a/b/c", &get, Door::ReadOnly, &config, "405"),
            ("/exec/a/b/c", &get, Door::Full, &off, "405"),
            ("/exec/a/b/c", &get, Door::Health, &config, "404"),
            ("/run/a/b/c", &get, Door::Full, &config, "405"),
            ("/pods/", &get, Door::ReadOnly, &config, "Pods"),
            ("/pods", &Method::POST, Door::Full, &config, "405"),
            ("//pods", &get, Door::Full, &config, "404"),
            ("/metrics", &Method::POST, Door::Full, &config, "Metrics"),
            ("/metrics", &get, Door::Health, &config, "404"),
            ("/metrics/slis", &get, Door::ReadOnly, &config, "SliMetrics"),
            ("/metrics/slis", &Method::DELETE, Door::Full, &config, "SliMetrics"),
            ("/healthz/ping", &get, Door::Health, &config, "Health"),
            ("/healthz", &get, Door::Full, &off, "Health"),
            ("/configz", &get, Door::Full, &config, "Configz"),
            ("/configz", &get, Door::ReadOnly, &config, "404"),
            ("/configz", &get, Door::Full, &off, "404"),
            ("/checkpoint/a/b/c", &Method::POST, Door::Full, &config, "Checkpoint"),
            ("/checkpoint/a/b/c", &get, Door::Full, &config, "405"),
            ("/checkpoint/a/b/c", &Method::POST, Door::ReadOnly, &config, "404"),
            ("/checkpoint/a/b/c", &Method::POST, Door::Full, &gated, "404"),
            ("/flagz", &get, Door::Full, &config, "Flagz"),
            ("/flagz", &get, Door::Full, &gated, "404"),
            ("/statusz", &get, Door::ReadOnly, &config, "404"),
            ("/statusz", &get, Door::Full, &gated, "404"),
            ("/logs/", &get, Door::Full, &config, "Logs"),
            ("/logs/pods/a", &get, Door::Full, &config, "Logs"),
            ("/logs/pods/a", &get, Door::Full, &quiet, "405"),
            ("/", &get, Door::Full, &config, "404"),
        ] {
            assert_eq!(look(path, method, door, config), want, "{method} {path} {door:?}");
        }
    }
}
