//! `/version`, `/healthz`, `/livez`, `/readyz`.

use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    body::{self, Reply},
    core::{Call, Core},
};

/// The Kubernetes version this server speaks.
pub const GIT_VERSION: &str = "v1.36.0";

/// `/version`
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": format!("{GIT_VERSION}+yare"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
    })
}

/// One check: its name and whether it holds.
struct Check {
    name: &'static str,
    /// The endpoints that ask it.
    live: bool,
    ok: fn(&Core) -> bool,
}

const CHECKS: &[Check] = &[
    Check { name: "ping", live: true, ok: |_| true },
    Check { name: "log", live: true, ok: |_| true },
    Check { name: "etcd", live: true, ok: |core| core.store().revision() > 0 },
    Check { name: "informer-sync", live: false, ok: |core| core.ready.load(Ordering::Acquire) },
    Check { name: "poststarthook/bootstrap", live: false, ok: |core| core.ready.load(Ordering::Acquire) },
    Check { name: "shutdown", live: false, ok: |core| !core.stop.is_cancelled() },
];

/// Answers `/healthz`, `/livez`, `/readyz` and their checks one by one (`/readyz/ping`).
pub fn check(call: &Call, endpoint: &str, single: &str) -> Option<Reply> {
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let checks = CHECKS
        .iter()
        .filter(|c| endpoint != "livez" || c.live)
        .filter(|c| single.is_empty() || c.name == single)
        .collect::<Vec<_>>();
    if checks.is_empty() {
        return None;
    }
    let mut text = String::new();
    let mut failed = false;
    for check in checks {
        if excluded.contains(&check.name) {
            text.push_str(&format!("[+]{} excluded: ok\n", check.name));
        } else if (check.ok)(&call.core) {
            text.push_str(&format!("[+]{} ok\n", check.name));
        } else {
            failed = true;
            text.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
        }
    }
    if failed {
        text.push_str(&format!("{endpoint} check failed\n"));
        return Some(body::text_reply(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    if call.query.has("verbose") && single.is_empty() {
        text.push_str(&format!("{endpoint} check passed\n"));
        return Some(body::text_reply(StatusCode::OK, text));
    }
    Some(body::text_reply(StatusCode::OK, "ok"))
}
