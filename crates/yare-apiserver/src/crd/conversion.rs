//! Conversion webhooks: programs outside that turn custom resources of one version into another
//! (`apiextensions.k8s.io/v1` `ConversionReview`).
//!
//! In: objects in whatever version they are. Out: the same objects in the version asked for. What the webhook
//! made of an object is remembered by its content, since every reader and watcher of a revision needs it.

use std::{
    collections::HashMap,
    future::Future,
    sync::Weak,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use yare_kinds::view::{View, ViewMut};
use yare_schema::goprint;
use yare_trace::{Kind, Span};

use crate::{
    core::Core,
    metrics::seldom,
    outbound::{self, Client},
    status::{ApiError, ApiResult},
};

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
const MAX_BATCH: usize = 500;
/// Converted objects that are remembered; over this, all are forgotten.
const MAX_KNOWN: usize = 4096;

/// Why a webhook's answer came to nothing; upstream's words for metrics. `why` begins behind what it is a webhook for.
struct Failure {
    kind: &'static str,
    why: String,
}

const NO_ANSWER: &str = "conversion_webhook_call_failure";
const MALFORMED: &str = "conversion_webhook_malformed_response_failure";
const PARTIAL: &str = "conversion_webhook_partial_response_failure";
const INVALID: &str = "conversion_webhook_invalid_converted_object_failure";
const NO_OBJECTS: &str = "conversion_webhook_no_objects_returned_failure";

/// Digest of an object and the wanted version.
type Key = [u8; 32];

/// The conversion webhook of one definition.
pub struct Conversion {
    core: Weak<Core>,
    /// The definition's name.
    definition: String,
    /// `apiextensions.k8s.io/v1`, or an older version that the webhook speaks.
    review_version: String,
    client: Client,
    known: Mutex<HashMap<Key, Value>>,
}

impl Conversion {
    /// The webhook of a definition, if it has one.
    pub fn of(definition: &Value, core: Weak<Core>) -> Option<Self> {
        let conversion = definition.at("spec.conversion");
        if conversion.str_at("strategy") != "Webhook" {
            return None;
        }
        let versions = conversion.strings("webhook.conversionReviewVersions");
        let version = versions.into_iter().find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
        Some(Self {
            core,
            definition: definition.str_at("metadata.name").to_owned(),
            review_version: format!("apiextensions.k8s.io/{version}"),
            client: Client::of_webhook(conversion.at("webhook.clientConfig"), None),
            known: Mutex::default(),
        })
    }

    /// Turns an object into the version, in place.
    pub fn convert(&self, object: &mut Value, api_version: &str) -> ApiResult<()> {
        if object.str_at("apiVersion") == api_version {
            return Ok(());
        }
        let key = key(object, api_version);
        let found = self.known.lock().get(&key).cloned();
        *object = match found {
            Some(found) => found,
            None => {
                let answer = self.ask(std::slice::from_ref(object), api_version)?;
                let converted = answer.into_iter().next().unwrap_or_default();
                self.remember(key, converted.clone());
                converted
            }
        };
        Ok(())
    }

    /// Converts many objects in few questions, so that [`Conversion::convert`] knows them.
    pub fn warm(&self, objects: impl Iterator<Item = Value>, api_version: &str) -> ApiResult<()> {
        let mut missing: Vec<(Key, Value)> = Vec::new();
        for object in objects.take(MAX_KNOWN / 2).filter(|o| o.str_at("apiVersion") != api_version) {
            let key = key(&object, api_version);
            if !self.known.lock().contains_key(&key) {
                missing.push((key, object));
            }
        }
        for batch in missing.chunks(MAX_BATCH) {
            let objects: Vec<Value> = batch.iter().map(|(_, object)| object.clone()).collect();
            for ((key, _), converted) in batch.iter().zip(self.ask(&objects, api_version)?) {
                self.remember(*key, converted);
            }
        }
        Ok(())
    }

    fn remember(&self, key: Key, converted: Value) {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, converted);
    }

    fn failed(&self, object: &Value, why: impl std::fmt::Display) -> ApiError {
        let (api_version, kind) = (object.str_at("apiVersion"), object.str_at("kind"));
        ApiError::new(500, "", format!("conversion webhook for {api_version}, Kind={kind} {why}"))
    }

    fn ask(&self, objects: &[Value], api_version: &str) -> ApiResult<Vec<Value>> {
        let Some(first) = objects.first() else { return Ok(Vec::new()) };
        let core = self.core.upgrade().ok_or_else(|| self.failed(first, "failed: the server is stopping"))?;
        let began = Instant::now();
        let asked = self.exchange(&core, objects, api_version);
        let took_s = began.elapsed().as_secs_f64();
        let (result, failure) = match &asked {
            Ok(_) => ("success", ""),
            Err(failure) => ("failure", failure.kind),
        };
        let counts = &core.metrics.seldom;
        counts.count(&seldom::CONVERSIONS, &[failure, result]);
        counts.observe(&seldom::CONVERSIONS_TOOK, &[failure, result], took_s);
        let [from, to] = [first.str_at("apiVersion"), api_version]
            .map(|api_version| api_version.rsplit('/').next().unwrap_or_default());
        let succeeded = if asked.is_ok() { "true" } else { "false" };
        let labels = [&*self.definition, from, succeeded, to];
        counts.observe(&seldom::DEFINITION_CONVERSIONS, &labels, took_s);
        asked.map_err(|failure| self.failed(first, failure.why))
    }

    fn exchange(&self, core: &Core, objects: &[Value], api_version: &str) -> Result<Vec<Value>, Failure> {
        let uid = core.new_uid();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": self.review_version,
            "request": { "uid": uid, "desiredAPIVersion": api_version, "objects": objects },
            // As Go writes one that is empty.
            "response": { "uid": "", "convertedObjects": null, "result": { "metadata": {} } },
        });
        let document = review.to_string().into();
        let span = yare_trace::described("Call conversion webhook", Kind::Internal, |span| {
            span.set("custom-resource-definition", self.definition.as_str());
            span.set("desired-api-version", api_version);
            span.set("object-count", i64::try_from(objects.len()).unwrap_or(i64::MAX));
            span.set("UID", uid.as_str());
        });
        // Also where another thread waits for the answer.
        let active = span.as_ref().map(Span::active).or_else(yare_trace::current);
        let wanted = outbound::Kind {
            group: "apiextensions.k8s.io",
            version: self.review_version.rsplit('/').next().unwrap_or_default(),
            kind: "ConversionReview",
            scheme: "pkg/util/webhook/client.go:71",
        };
        let asked = self.client.ask_for(Some(core), "timeout=30s", document, TIMEOUT, wanted);
        let answer = wait(yare_trace::scoped(active, asked));
        if let (Some(span), Ok(Ok(_))) = (&span, &answer) {
            span.event("Request completed", &[]);
        }
        let answer = answer.and_then(|answer| answer.map_err(|f| f.message));
        let answer = answer.map_err(|why| Failure { kind: NO_ANSWER, why: format!("failed: {why}") })?;
        let malformed = |why: String| Failure { kind: MALFORMED, why: format!("failed: {why}") };
        let response = answer.at("response");
        // Of the first version of the review, upstream looks at less.
        if wanted.version == "v1" {
            let (group, version) =
                answer.str_at("apiVersion").rsplit_once('/').unwrap_or(("", answer.str_at("apiVersion")));
            let kind = answer.str_at("kind");
            if (group, version, kind) != (wanted.group, wanted.version, wanted.kind) {
                return Err(malformed(format!(
                    "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {group}/{version}, Kind={kind}"
                )));
            }
        }
        if !response.is_object() {
            return Err(malformed("no response provided".into()));
        }
        if wanted.version == "v1" && response.str_at("uid") != uid {
            return Err(malformed(format!(
                "expected response.uid={uid:?}, got {:?}",
                response.str_at("uid")
            )));
        }
        let (status, message) = (response.str_at("result.status"), response.str_at("result.message"));
        if status != "Success" {
            return Err(malformed(match message {
                "" => format!("response.result.status was '{status}', not 'Success'"),
                message => message.to_owned(),
            }));
        }
        let converted = response.items("convertedObjects");
        if converted.len() != objects.len() {
            let why = format!("returned {} objects, expected {}", converted.len(), objects.len());
            return Err(Failure { kind: if objects.len() == 1 { NO_OBJECTS } else { PARTIAL }, why });
        }
        objects
            .iter()
            .zip(converted)
            .map(|(before, after)| {
                checked(before, after, api_version).map_err(|why| Failure { kind: INVALID, why })
            })
            .collect()
    }
}

/// The converted object, if the webhook changed nothing that is not its own: of metadata, it may change
/// labels and annotations.
fn checked(before: &Value, after: &Value, api_version: &str) -> Result<Value, String> {
    if after.str_at("kind").is_empty() {
        return Err(format!("returned invalid object at index 0: Object 'Kind' is missing in '{after}'"));
    }
    let differs = |what: &str, expected: &str, found: &str| {
        format!("returned invalid object at index 0: invalid {what} (expected {expected}, received {found})")
    };
    if after.str_at("apiVersion") != api_version {
        return Err(differs("groupVersion", api_version, after.str_at("apiVersion")));
    }
    if after.str_at("kind") != before.str_at("kind") {
        return Err(differs("kind", before.str_at("kind"), after.str_at("kind")));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let [had, has] = [before, after].map(|object| object.at("metadata").str_at(field));
        if had != has {
            return Err(format!("returned invalid object: must have the same {name}: {had} != {has}"));
        }
    }
    let given = after.at("metadata");
    if !given.is_object() {
        return Err("returned invalid metadata: missing metadata in converted object".into());
    }
    let mut metadata = before.at("metadata").clone();
    for field in ["labels", "annotations"] {
        for (key, value) in given.entries(field) {
            if !value.is_string() {
                return Err(format!(
                    "returned invalid metadata: metadata.{field}[{key}] must be a string, but is {} in converted object",
                    goprint::type_name(value)
                ));
            }
        }
        metadata.copy_from(given, field);
    }
    let mut after = after.clone();
    after.set("metadata", metadata);
    Ok(after)
}

fn key(object: &Value, api_version: &str) -> Key {
    let text = format!("{api_version} {object}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(digest.as_ref());
    key
}

/// Waits for a future where no `await` is possible: objects are converted deep inside of encoders.
fn wait<F>(future: F) -> Result<F::Output, String>
where
    F: Future<Output: Send> + Send,
{
    match Handle::try_current() {
        // Other tasks of this worker move on to another one meanwhile.
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            Ok(tokio::task::block_in_place(|| handle.block_on(future)))
        }
        _ => std::thread::scope(|scope| {
            let run = || {
                let runtime =
                    Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
                Ok(runtime.block_on(future))
            };
            scope.spawn(run).join().unwrap_or_else(|_| Err("the call panicked".into()))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_webhook_may_change() {
        let before = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}}});
        let made = |change: Value| {
            let after = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "n", "uid": "u"}});
            let after = yare_schema::patch::merge::apply(after, change).expect("an object stays one");
            checked(&before, &after, "g/v2")
        };
        for (change, expect) in [
            (
                json!({"apiVersion": "g/v3"}),
                "invalid object at index 0: invalid groupVersion (expected g/v2, received g/v3)",
            ),
            (json!({"kind": "L"}), "invalid object at index 0: invalid kind (expected K, received L)"),
            (json!({"metadata": {"name": "m"}}), "invalid object: must have the same name: n != m"),
            (json!({"metadata": {"uid": "v"}}), "invalid object: must have the same UID: u != v"),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "invalid metadata: metadata.labels[a] must be a string, but is int64 in converted object",
            ),
        ] {
            assert_eq!(made(change), Err(format!("returned {expect}")));
        }
        let after = made(json!({"metadata": {"labels": {"c": "d"}, "finalizers": ["f"]}}));
        assert_eq!(
            after.map(|after| after["metadata"].clone()),
            Ok(json!({"name": "n", "uid": "u", "labels": {"c": "d"}})),
            "of metadata, labels and annotations are the webhook's"
        );
    }
}
