//! `/healthz` and its parts: `ping`, `log`, `syncloop`.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::{Body, query, text};
use crate::kubelet::Kubelet;

/// The checks, in the order in which they are told.
const CHECKS: &[&str] = &["ping", "log", "syncloop"];
/// How long the loop of pods may take to answer.
const LOOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers for all checks, or for one.
pub(super) async fn serve(kubelet: &Kubelet, check: Option<&str>, raw: &str) -> Response<Body> {
    let Some(name) = check else { return all(kubelet, raw).await };
    if !CHECKS.contains(&name) {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    match run(kubelet, name).await {
        Ok(()) => text(StatusCode::OK, "ok"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {error}\n")),
    }
}

async fn all(kubelet: &Kubelet, raw: &str) -> Response<Body> {
    let mut excluded: Vec<String> = query(raw, "exclude");
    let (mut told, mut is_bad) = (String::new(), false);
    for name in CHECKS {
        let before = excluded.len();
        excluded.retain(|e| e != name);
        if excluded.len() < before {
            told.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        let outcome = run(kubelet, name).await;
        kubelet.checks.lock().note(name, "healthz", outcome.is_ok());
        match outcome {
            Ok(()) => told.push_str(&format!("[+]{name} ok\n")),
            Err(error) => {
                tracing::warn!(check = name, error, "the node agent is not healthy");
                told.push_str(&format!("[-]{name} failed: reason withheld\n"));
                is_bad = true;
            }
        }
    }
    if !excluded.is_empty() {
        excluded.sort();
        let names: Vec<String> = excluded.iter().map(|e| format!("{e:?}")).collect();
        told.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            names.join(",")
        ));
    }
    if is_bad {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{told}healthz check failed\n"));
    }
    let is_verbose = raw.split('&').any(|pair| pair.split('=').next() == Some("verbose"));
    let body = if is_verbose { format!("{told}healthz check passed\n") } else { "ok".to_owned() };
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn run(kubelet: &Kubelet, name: &str) -> Result<(), String> {
    match name {
        // The loop that takes pods in answers when it is free, so silence means that it hangs.
        "syncloop" => match tokio::time::timeout(LOOP_TIMEOUT, kubelet.pings.answered()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("sync Loop has ended".to_owned()),
            Err(_) => Err("sync Loop took longer than expected".to_owned()),
        },
        // Being here is the answer to a ping, and nothing that logs can block.
        _ => Ok(()),
    }
}
