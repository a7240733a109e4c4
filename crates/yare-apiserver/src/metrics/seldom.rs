//! What happens a few times a second at most: a row per family, the numbers of all of them in one place.

use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
    timing::DOUBLING_S,
};

/// Requests for certificates of a certain duration that were granted.
pub static CSR_DURATIONS: Family = Family::labelled(
    "apiserver_certificates_registry_csr_requested_duration_total",
    Kind::Counter,
    &["signerName"],
    "[ALPHA] Total number of issued CSRs with a requested duration, sliced by signer (only kubernetes.io signer names are specifically identified)",
);
/// Of those, the ones whose certificate has it.
pub static CSR_HONORED: Family = Family::labelled(
    "apiserver_certificates_registry_csr_honored_duration_total",
    Kind::Counter,
    &["signerName"],
    "[ALPHA] Total number of issued CSRs with a requested duration that was honored, sliced by signer (only kubernetes.io signer names are specifically identified)",
);
/// Questions to conversion webhooks.
pub static CONVERSIONS: Family = Family::labelled(
    "apiserver_conversion_webhook_request_total",
    Kind::Counter,
    &["failure_type", "result"],
    "[ALPHA] Counter for conversion webhook requests with success/failure and failure error type",
);
/// How long they took.
pub static CONVERSIONS_TOOK: Family = Family::labelled(
    "apiserver_conversion_webhook_duration_seconds",
    Kind::Histogram(&[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0]),
    &["failure_type", "result"],
    "[ALPHA] Conversion webhook request latency",
);
/// The same, by definition and versions.
pub static DEFINITION_CONVERSIONS: Family = Family::labelled(
    "apiserver_crd_conversion_webhook_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    &["crd_name", "from_version", "succeeded", "to_version"],
    "[ALPHA] CRD webhook conversion duration in seconds",
);
/// Requests that were to be made in another's name.
pub static IMPERSONATIONS: Family = Family::labelled(
    "apiserver_impersonation_attempts_total",
    Kind::Counter,
    DECISION_MODE,
    "[ALPHA] Total number of impersonation attempts split by mode and decision.",
);
/// How long it took to see whether they may.
pub static IMPERSONATIONS_TOOK: Family = Family::labelled(
    "apiserver_impersonation_attempts_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    DECISION_MODE,
    "[ALPHA] Latency of impersonation attempts in seconds split by mode and decision.",
);
/// What the authorizers were asked on that.
pub static IMPERSONATION_CHECKS: Family = Family::labelled(
    "apiserver_impersonation_authorization_attempts_total",
    Kind::Counter,
    DECISION_MODE,
    "[ALPHA] Total number of authorization checks made by the impersonation handler split by mode and decision.",
);
/// How long they took to answer.
pub static IMPERSONATION_CHECKS_TOOK: Family = Family::labelled(
    "apiserver_impersonation_authorization_attempts_duration_seconds",
    Kind::Histogram(&DOUBLING_S),
    DECISION_MODE,
    "[ALPHA] Latency of authorization checks made by the impersonation handler in seconds split by mode and decision.",
);
/// Requests for logs, by whether the kubelet has to prove itself.
pub static LOGS: Family = Family::labelled(
    "kube_apiserver_pod_logs_insecure_backend_total",
    Kind::Counter,
    &["usage"],
    "[ALPHA] Total number of requests for pods/logs sliced by usage type: enforce_tls, skip_tls_allowed, skip_tls_denied",
);
/// Those that failed because it could not.
pub static LOGS_UNTRUSTED: Family = Family::plain(
    "kube_apiserver_pod_logs_backend_tls_failure_total",
    Kind::Counter,
    "[ALPHA] Total number of requests for pods/logs that failed due to kubelet server TLS verification",
);
/// Streams to and from containers over WebSocket.
pub static STREAMS: Family = Family::labelled(
    "apiserver_websocket_streaming_requests_total",
    Kind::Counter,
    &["proxy_type", "subresource"],
    "[ALPHA] Total number of WebSocket streaming requests (exec/attach/portforward) routed by the API server, labeled by subresource and proxy_type. proxy_type is proxied_to_kubelet when the kubelet handles the request directly; otherwise translated_at_apiserver.",
);
/// What came of writes that nobody waited for any more.
pub static POST_TIMEOUT: Family = Family::labelled(
    "apiserver_request_post_timeout_total",
    Kind::Counter,
    &["source", "status"],
    "[ALPHA] Tracks the activity of the request handlers after the associated requests have been timed out by the apiserver",
);
/// Documents of aggregated discovery that were made.
pub static DISCOVERY: Family = Family::plain(
    "aggregator_discovery_aggregation_count_total",
    Kind::Counter,
    "[ALPHA] Counter of number of times discovery was aggregated",
);
/// There is one validation of an object here: it differs from no other one.
static MISMATCHES: Family = Family::plain(
    "apiserver_validation_declarative_validation_mismatch_total",
    Kind::Counter,
    "[BETA] Number of times declarative validation results differed from handwritten validation results for core types.",
);
/// As above.
static PANICS: Family = Family::plain(
    "apiserver_validation_declarative_validation_panic_total",
    Kind::Counter,
    "[BETA] Number of times declarative validation has panicked during validation.",
);

const DECISION_MODE: &[&str] = &["decision", "mode"];

static TABLE: [&Family; 16] = [
    &CSR_DURATIONS,
    &CSR_HONORED,
    &CONVERSIONS,
    &CONVERSIONS_TOOK,
    &DEFINITION_CONVERSIONS,
    &IMPERSONATIONS,
    &IMPERSONATIONS_TOOK,
    &IMPERSONATION_CHECKS,
    &IMPERSONATION_CHECKS_TOOK,
    &LOGS,
    &LOGS_UNTRUSTED,
    &STREAMS,
    &POST_TIMEOUT,
    &DISCOVERY,
    &MISMATCHES,
    &PANICS,
];

/// Adds all of it to a page.
pub(super) fn expose(counts: &Counts, page: &mut Page) {
    counts.expose(&TABLE, page);
}
