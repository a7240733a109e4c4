//! Conversion webhooks: programs outside that turn custom resources of one version into another
//! (`apiextensions.k8s.io/v1` `ConversionReview`).
//!
//! In: objects in whatever version they are. Out: the same objects in the version asked for. What the webhook
//! made of an object is remembered by its content, since every reader and watcher of a revision needs it.

use std::{collections::HashMap, future::Future, sync::Weak, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use yare_kinds::view::{View, ViewMut};
use yare_trace::{Kind, Span};

use crate::{
    core::Core,
    outbound::Client,
    status::{ApiError, ApiResult},
};

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
const MAX_BATCH: usize = 500;
/// Converted objects that are remembered; over this, all are forgotten.
const MAX_KNOWN: usize = 4096;

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
        ApiError::internal(format!(
            "conversion webhook for {}, Kind={} failed: {why}",
            object.str_at("apiVersion"),
            object.str_at("kind")
        ))
    }

    fn ask(&self, objects: &[Value], api_version: &str) -> ApiResult<Vec<Value>> {
        let Some(first) = objects.first() else { return Ok(Vec::new()) };
        let failed = |why: String| self.failed(first, why);
        let core = self.core.upgrade().ok_or_else(|| failed("the server is stopping".into()))?;
        let uid = core.new_uid();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": self.review_version,
            "request": { "uid": uid, "desiredAPIVersion": api_version, "objects": objects },
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
        let asked = self.client.ask(Some(&core), "timeout=30s", document, TIMEOUT);
        let answer = wait(yare_trace::scoped(active, asked));
        if let (Some(span), Ok(Ok(_))) = (&span, &answer) {
            span.event("Request completed", &[]);
        }
        let answer = answer.and_then(|answer| answer.map_err(|f| f.message)).map_err(&failed)?;
        let response = answer.at("response");
        if response.str_at("uid") != uid {
            return Err(failed(format!("expected response.uid={uid:?}, got {:?}", response.str_at("uid"))));
        }
        let result = response.at("result");
        if result.str_at("status") != "Success" {
            let message = match result.str_at("message") {
                "" => "it gives no reason",
                message => message,
            };
            return Err(failed(message.to_owned()));
        }
        let converted = response.items("convertedObjects");
        if converted.len() != objects.len() {
            return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
        }
        objects
            .iter()
            .zip(converted)
            .map(|(before, after)| checked(before, after, api_version).map_err(&failed))
            .collect()
    }
}

/// The converted object, if the webhook changed nothing that is not its own: of metadata, it may change
/// labels and annotations.
fn checked(before: &Value, after: &Value, api_version: &str) -> Result<Value, String> {
    let mut after = after.clone();
    let given = after.str_at("apiVersion");
    if given != api_version {
        return Err(format!("returned an object of version {given}, expected {api_version}"));
    }
    if after.str_at("kind") != before.str_at("kind") {
        return Err(format!("returned a {}, expected a {}", after.str_at("kind"), before.str_at("kind")));
    }
    for field in ["name", "namespace", "uid"] {
        let path = format!("metadata.{field}");
        if after.str_at(&path) != before.str_at(&path) {
            return Err(format!("returned an object with another {path}"));
        }
    }
    let mut metadata = before.at("metadata").clone();
    metadata.copy_from(after.at("metadata"), "labels");
    metadata.copy_from(after.at("metadata"), "annotations");
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
