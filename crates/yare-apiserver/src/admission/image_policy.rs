//! `ImagePolicyWebhook`: a webhook (`imagepolicy.k8s.io/v1alpha1`) that says which images may run. It is asked for
//! every new or changed pod, and its answers are kept for a while.

use std::{fmt, path::Path, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value, json};
use yare_auth::cache::{self, Cache};
use yare_kinds::view::View;
use yare_schema::gotime::format_duration as shown;

use super::Attributes;
use crate::{
    outbound::{Backoff, Client, kubeconfig},
    status::ApiResult,
};

/// Of annotations, those that are the webhook's business.
const ANNOTATIONS: &str = ".image-policy.k8s.io/";
/// What annotations in audit begin with.
const AUDIT: &str = "imagepolicywebhook.image-policy.k8s.io";
/// Answers that are kept.
const REMEMBERED: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// The webhook, and what its answers are worth.
pub struct ImagePolicy {
    client: Client,
    allow_ttl: Duration,
    deny_ttl: Duration,
    backoff: Duration,
    /// What cannot be asked about may run.
    default_allow: bool,
    known: Cache<Value>,
}

impl fmt::Debug for ImagePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImagePolicy").field("url", &self.client.url()).finish_non_exhaustive()
    }
}

impl ImagePolicy {
    /// Of the plugin's configuration.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn of(configuration: &Value) -> Result<Self, String> {
        let config = configuration.at("imagePolicy");
        let ttl = |field, usual| time(config, field, SECOND, SECOND..=HALF_AN_HOUR, usual);
        let (millisecond, most) = (Duration::from_millis(1), Duration::from_secs(300));
        let backoff =
            time(config, "retryBackoff", millisecond, Duration::from_nanos(1)..=most, 500 * millisecond)?;
        Ok(Self {
            backoff,
            allow_ttl: ttl("allowTTL", 300 * SECOND)?,
            deny_ttl: ttl("denyTTL", 30 * SECOND)?,
            default_allow: config.bool_at("defaultAllow"),
            client: kubeconfig::client(Path::new(config.str_at("kubeConfigFile")))?.through(None),
            known: Cache::new(REMEMBERED),
        })
    }

    /// The status of the review of `spec`.
    async fn review(&self, attributes: &Attributes<'_>, spec: Value) -> Result<Value, String> {
        let core = &attributes.call.core;
        let key = cache::key(&[spec.to_string().as_bytes()]);
        let now_ms = core.now().as_millisecond();
        if let Some(known) = self.known.get(&key, now_ms) {
            return Ok(known);
        }
        let review = json!({
            "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1",
            "metadata": {}, "spec": spec, "status": { "allowed": false },
        });
        let document = Bytes::from(review.to_string());
        let mut backoff = Backoff { first: self.backoff, attempts: ATTEMPTS };
        let answer = loop {
            match self.client.ask(Some(core), "timeout=30s", document.clone(), TIMEOUT).await {
                Ok(answer) => break answer,
                Err(failure) => {
                    if !failure.is_transient() || !backoff.wait(&*core.config.random).await {
                        return Err(failure.message);
                    }
                }
            }
        };
        let (kind, version) = (answer.str_at("kind"), answer.str_at("apiVersion"));
        if kind != "ImageReview" || version != "imagepolicy.k8s.io/v1alpha1" {
            return Err(format!("no kind {kind:?} is registered for version {version:?}"));
        }
        let status = answer.at("status").clone();
        let ttl = if status.bool_at("allowed") { self.allow_ttl } else { self.deny_ttl };
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        self.known.put(key, status.clone(), now_ms.saturating_add(ttl_ms));
        Ok(status)
    }

    async fn check(&self, attributes: &Attributes<'_>, spec: Value) -> ApiResult<()> {
        let call = attributes.call;
        let status = match self.review(attributes, spec).await {
            Ok(status) => status,
            Err(why) => {
                tracing::debug!(why, "error contacting the image policy webhook");
                if self.default_allow {
                    call.annotate(format!("{AUDIT}/failed-open"), "true");
                    return Ok(());
                }
                return Err(attributes.forbidden(why));
            }
        };
        for (key, value) in status.entries("auditAnnotations") {
            call.annotate(format!("{AUDIT}/{key}"), value.as_str().unwrap_or_default());
        }
        match (status.bool_at("allowed"), status.str_at("reason")) {
            (true, _) => Ok(()),
            (false, "") => Err(attributes.forbidden("one or more images rejected by webhook backend")),
            (false, reason) => Err(attributes
                .forbidden(format!("image policy webhook backend denied one or more images: {reason}"))),
        }
    }
}

/// A time of the configuration, in units of `scale`: 0 is the usual one, -1 none.
fn time(
    config: &Value,
    field: &str,
    scale: Duration,
    range: std::ops::RangeInclusive<Duration>,
    usual: Duration,
) -> Result<Duration, String> {
    let text = |time: Duration| shown(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    match config.int_at(field) {
        -1 => Ok(Duration::ZERO),
        0 => Ok(usual),
        given => {
            let scale_ns = i64::try_from(scale.as_nanos()).unwrap_or(1);
            let given_ns = given.saturating_mul(scale_ns);
            let time = u64::try_from(given_ns).ok().map(Duration::from_nanos);
            time.filter(|time| range.contains(time)).ok_or_else(|| {
                let (low, high) = (text(*range.start()), text(*range.end()));
                format!("valid value is between {low} and {high}, got {}", shown(given_ns))
            })
        }
    }
}

/// Asks about the images of a pod.
pub fn ask<'a>(
    attributes: &'a Attributes<'a>,
    object: Option<&'a Value>,
    _old: Option<&'a Value>,
) -> Option<BoxFuture<'a, ApiResult<()>>> {
    let (policy, pod) = (attributes.settings().image_policy.as_ref()?, object?);
    let lists: &[&str] = match attributes.subresource {
        "" => &["spec.containers", "spec.initContainers"],
        _ => &["spec.ephemeralContainers"],
    };
    let containers = lists.iter().flat_map(|list| pod.items(list));
    let mut spec = json!({ "containers": [], "namespace": attributes.namespace });
    spec["containers"] = containers.map(|c| json!({ "image": c.str_at("image") })).collect();
    let annotations: Map<String, Value> = pod
        .at("metadata.annotations")
        .entries("")
        .filter(|(key, _)| key.contains(ANNOTATIONS))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    if !annotations.is_empty() {
        spec["annotations"] = annotations.into();
    }
    Some(policy.check(attributes, spec).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_bounds() {
        let of = |more: &str| {
            let text = format!("{{\"imagePolicy\": {{\"kubeConfigFile\": \"/no/such\"{more}}}}}");
            ImagePolicy::of(&serde_json::from_str(&text).unwrap()).unwrap_err()
        };
        for (more, error) in [
            (", \"allowTTL\": 1801", "valid value is between 1s and 30m0s, got 30m1s"),
            (", \"denyTTL\": -2", "valid value is between 1s and 30m0s, got -2s"),
            (", \"retryBackoff\": 300001", "valid value is between 1ns and 5m0s, got 5m0.001s"),
            (", \"allowTTL\": -1, \"denyTTL\": 30, \"retryBackoff\": 1", "/no/such: "),
        ] {
            assert!(of(more).starts_with(error), "{more}: {}", of(more));
        }
    }
}
