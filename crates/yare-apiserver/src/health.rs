//! `/version`, `/healthz`, `/livez`, `/readyz`.

use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::{Value, json};
use yare_schema::release::{Emulation, KUBERNETES_VERSION, MINOR, architecture};

use crate::{
    body::{self, Reply},
    core::{Call, Core},
    status::quote,
};

/// `/version`
pub fn version(core: &Core) -> Value {
    let Emulation { minor, compatible_minor } = core.config.gates.emulation();
    json!({
        "major": "1", "minor": MINOR.to_string(), "emulationMajor": "1", "emulationMinor": minor.to_string(),
        "minCompatibilityMajor": "1", "minCompatibilityMinor": compatible_minor.to_string(),
        "gitVersion": format!("{KUBERNETES_VERSION}+yare"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// One check: its name and whether it holds.
struct Check {
    name: &'static str,
    /// The endpoints that ask it.
    of: &'static [&'static str],
    ok: fn(&Core) -> bool,
    /// Whether this server has it.
    is_there: fn(&Core) -> bool,
}

const ALL: &[&str] = &["healthz", "livez", "readyz"];
const READY: &[&str] = &["readyz"];
/// What a restart would mend.
const NOT_READY: &[&str] = &["healthz", "livez"];
/// What a restart would not mend.
const NOT_LIVE: &[&str] = &["healthz", "readyz"];

const fn check_of(name: &'static str, of: &'static [&'static str], ok: fn(&Core) -> bool) -> Check {
    Check { name, of, ok, is_there: |_| true }
}

const fn hook(name: &'static str) -> Check {
    check_of(name, ALL, |core| core.ready.load(Ordering::Acquire))
}

fn has_identity(core: &Core) -> bool {
    core.config.gates.is_on("APIServerIdentity")
}

fn is_fair(core: &Core) -> bool {
    core.flow.settings().fair
}

/// The plugins of key management services, all in one; asked before the checks are.
const KMS: &str = "kms-providers";

/// The checks of upstream, in its order; what upstream starts in hooks of those names is there when this
/// server is.
const CHECKS: &[Check] = &[
    check_of("ping", ALL, |_| true),
    check_of("log", ALL, |_| true),
    // Upstream's server speaks to itself under a certificate that is made at its start, and ends.
    check_of("loopback-serving-certificate", NOT_READY, |_| true),
    check_of("etcd", ALL, |core| core.store().revision() > 0),
    check_of("etcd-readiness", READY, |core| core.store().revision() > 0),
    Check {
        name: KMS,
        of: NOT_LIVE,
        ok: |core| core.config.encryption.as_ref().is_none_or(|e| e.is_well()),
        is_there: |core| core.config.encryption.as_ref().is_some_and(|e| e.has_check()),
    },
    check_of("informer-sync", READY, |core| core.ready.load(Ordering::Acquire)),
    hook("poststarthook/start-apiserver-admission-initializer"),
    Check {
        is_there: |core| core.config.encryption.as_ref().is_some_and(|e| e.reloads()),
        ..hook("poststarthook/start-encryption-provider-config-automatic-reload")
    },
    hook("poststarthook/generic-apiserver-start-informers"),
    Check { is_there: is_fair, ..hook("poststarthook/priority-and-fairness-config-consumer") },
    Check { is_there: is_fair, ..hook("poststarthook/priority-and-fairness-filter") },
    Check { is_there: |core| !is_fair(core), ..hook("poststarthook/max-in-flight-filter") },
    hook("poststarthook/storage-object-count-tracker-hook"),
    hook("poststarthook/start-apiextensions-informers"),
    hook("poststarthook/start-apiextensions-controllers"),
    hook("poststarthook/crd-informer-synced"),
    hook("poststarthook/start-system-namespaces-controller"),
    hook("poststarthook/start-cluster-authentication-info-controller"),
    Check { is_there: has_identity, ..hook("poststarthook/start-kube-apiserver-identity-lease-controller") },
    Check {
        is_there: has_identity,
        ..hook("poststarthook/start-kube-apiserver-identity-lease-garbage-collector")
    },
    Check {
        is_there: |core| core.config.gates.is_on(crate::leaders::GATE),
        ..hook("poststarthook/start-kube-apiserver-coordinated-leader-election-controller")
    },
    Check {
        is_there: |core| core.config.gates.is_on("WatchCacheInitializationPostStartHook"),
        ..hook("poststarthook/storage-readiness")
    },
    hook("poststarthook/start-legacy-token-tracking-controller"),
    hook("poststarthook/start-service-ip-repair-controllers"),
    hook("poststarthook/rbac/bootstrap-roles"),
    hook("poststarthook/scheduling/bootstrap-system-priority-classes"),
    hook("poststarthook/priority-and-fairness-config-producer"),
    hook("poststarthook/bootstrap-controller"),
    hook("poststarthook/start-kubernetes-service-cidr-controller"),
    Check {
        is_there: |core| core.config.front_proxy.is_some(),
        ..hook("poststarthook/aggregator-reload-proxy-client-cert")
    },
    hook("poststarthook/start-kube-aggregator-informers"),
    hook("poststarthook/apiservice-status-local-available-controller"),
    hook("poststarthook/apiservice-status-remote-available-controller"),
    hook("poststarthook/apiservice-registration-controller"),
    hook("poststarthook/apiservice-discovery-controller"),
    Check {
        ok: |core| core.storage_versions.as_ref().is_none_or(|versions| versions.is_complete()),
        is_there: |core| core.storage_versions.is_some(),
        ..hook("poststarthook/built-in-resources-storage-version-updater")
    },
    hook("poststarthook/kube-apiserver-autoregistration"),
    check_of("autoregister-completion", ALL, |core| core.aggregation.registered.load(Ordering::Acquire)),
    hook("poststarthook/apiservice-openapi-controller"),
    hook("poststarthook/apiservice-openapiv3-controller"),
    check_of("shutdown", READY, |core| !core.closing.load(Ordering::Acquire) && !core.stop.is_cancelled()),
];

/// What comes to its end by itself a while after the server begins.
fn is_of_start(name: &str) -> bool {
    name.starts_with("poststarthook/") || name == "autoregister-completion"
}

/// Asks what has to be asked before [`check`] can tell.
pub async fn ask(call: &Call, endpoint: &str, single: &str) {
    if let Some(encryption) = &call.core.config.encryption
        && NOT_LIVE.contains(&endpoint)
        && matches!(single, "" | KMS)
        && let Err(error) = encryption.check().await
    {
        tracing::warn!(error, "{KMS} check failed");
    }
}

/// Answers `/healthz`, `/livez`, `/readyz` and their checks one by one (`/readyz/ping`).
pub fn check(call: &Call, endpoint: &str, single: &str) -> Option<Reply> {
    let endpoint = *["healthz", "livez", "readyz"].iter().find(|known| **known == endpoint)?;
    let mut unknown: Vec<&str> = call.query.all("exclude").collect();
    let excluded = unknown.clone();
    let mut asked = CHECKS
        .iter()
        .filter(|c| c.of.contains(&endpoint) && (c.is_there)(&call.core))
        .filter(|c| single.is_empty() || c.name == single)
        .peekable();
    asked.peek()?;
    let mut text = String::new();
    let mut failed = false;
    let mut results = call.core.metrics.checks.lock();
    for check in asked {
        unknown.retain(|name| *name != check.name);
        if excluded.contains(&check.name) {
            text.push_str(&format!("[+]{} excluded: ok\n", check.name));
            continue;
        }
        let begins = endpoint == "livez" && is_of_start(check.name);
        let ok =
            (check.ok)(&call.core) || (begins && call.core.began.elapsed() < call.core.config.livez_grace);
        results.note(check.name, endpoint, ok);
        if ok {
            text.push_str(&format!("[+]{} ok\n", check.name));
        } else {
            failed = true;
            text.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
        }
    }
    drop(results);
    if !single.is_empty() {
        return Some(match failed {
            true => plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: reason withheld\n".to_owned(),
            ),
            false => body::text_reply(StatusCode::OK, "ok"),
        });
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let names: Vec<String> = unknown.iter().map(|name| quote(name)).collect();
        text.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            names.join(",")
        ));
    }
    if failed {
        text.push_str(&format!("{endpoint} check failed\n"));
        return Some(plain(StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    if call.query.has("verbose") {
        text.push_str(&format!("{endpoint} check passed\n"));
        return Some(plain(StatusCode::OK, text));
    }
    Some(plain(StatusCode::OK, "ok".to_owned()))
}

fn plain(code: StatusCode, text: String) -> Reply {
    body::unsniffed(body::text_reply(code, text))
}

/// The paths of all checks.
pub fn paths(core: &Core) -> impl Iterator<Item = String> {
    let of = |check: &'static Check| check.of.iter().map(|endpoint| format!("/{endpoint}/{}", check.name));
    CHECKS.iter().filter(|check| (check.is_there)(core)).flat_map(of)
}
