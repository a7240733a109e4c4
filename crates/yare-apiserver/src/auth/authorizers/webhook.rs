//! A webhook that decides: it is asked with SubjectAccessReviews, and its answers are kept for a while.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use yare_auth::{
    Action, Decision, User,
    cache::{self, Cache},
    conditions::{self, Conditions},
    config::authorization as config,
};
use yare_kinds::view::View;

use super::{Rules, Said, metrics::LinkMetrics};
use crate::{
    auth::Auth,
    core::Core,
    outbound::{Backoff, Client, kubeconfig},
};

/// Answers that are kept (upstream's figure).
const REMEMBERED: usize = 8192;
/// Questions whose parts are longer than this together are not kept: the caller chooses them.
const MAX_KEPT_BYTES: usize = 10_000;

/// The webhook.
pub struct Webhook {
    name: String,
    client: Client,
    version: String,
    timeout: Duration,
    keep_allowed: Duration,
    keep_refused: Duration,
    /// What follows where it cannot be asked: it denies, or it is passed over.
    denies_on_error: bool,
    /// It is asked only where these hold.
    conditions: Conditions,
    known: Cache<Value>,
}

impl Webhook {
    /// The webhook of a configuration that was checked.
    pub fn open(name: &str, config: &config::Webhook) -> Result<Self, String> {
        let Some(file) = &config.connection_info.kube_config_file else {
            return Err(format!(
                "authorizer {name}: connectionInfo.type InClusterConfig is for servers that ask this one: use KubeConfigFile"
            ));
        };
        Ok(Self {
            name: name.to_owned(),
            client: kubeconfig::client(Path::new(file))?,
            version: config.subject_access_review_version.clone(),
            timeout: config.timeout.unwrap_or(Duration::from_secs(30)),
            keep_allowed: config.keep_allowed(),
            keep_refused: config.keep_refused(),
            denies_on_error: config.failure_policy == "Deny",
            conditions: config.conditions().map_err(|e| format!("authorizer {name}: {e}"))?,
            known: Cache::new(REMEMBERED),
        })
    }

    /// What it is told of the time it has.
    fn query(&self) -> String {
        format!("timeout={}s", self.timeout.as_secs().max(1))
    }

    fn failed(&self, why: String) -> Said {
        tracing::warn!(webhook = self.name, why, "the authorization webhook failed");
        let decision = if self.denies_on_error { Decision::Deny } else { Decision::NoOpinion };
        (decision(String::new()), why)
    }
}

/// `spec` of the review that asks.
fn spec(user: &User, action: &Action<'_>) -> Value {
    let mut spec = Map::new();
    let put = |map: &mut Map<String, Value>, key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.into(), value.into());
        }
    };
    if action.resource.is_empty() {
        let mut path = Map::new();
        put(&mut path, "path", action.path);
        put(&mut path, "verb", action.verb);
        spec.insert("nonResourceAttributes".into(), path.into());
    } else {
        let mut resource = Map::new();
        for (key, value) in [
            ("namespace", action.namespace),
            ("verb", action.verb),
            ("group", action.group),
            ("version", action.version),
            ("resource", action.resource),
            ("subresource", action.subresource),
            ("name", action.name),
        ] {
            put(&mut resource, key, value);
        }
        let fields = conditions::fields(action.fields);
        if !fields.is_empty() {
            resource.insert("fieldSelector".into(), json!({ "requirements": fields }));
        }
        let mut labels = conditions::labels(action.labels);
        if !labels.is_empty() {
            labels.iter_mut().filter_map(Value::as_object_mut).for_each(|requirement| {
                requirement.retain(|_, value| value.as_array().is_none_or(|values| !values.is_empty()));
            });
            resource.insert("labelSelector".into(), json!({ "requirements": labels }));
        }
        spec.insert("resourceAttributes".into(), resource.into());
    }
    put(&mut spec, "user", &user.name);
    put(&mut spec, "uid", &user.uid);
    if !user.groups.is_empty() {
        spec.insert("groups".into(), user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> =
            user.extra.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        spec.insert("extra".into(), extra.into());
    }
    Value::Object(spec)
}

fn read(status: &Value) -> Said {
    let reason = status.str_at("reason").to_owned();
    match (status.bool_at("denied"), status.bool_at("allowed")) {
        (true, true) => (
            Decision::Deny(reason),
            "webhook subject access review returned both allow and deny response".into(),
        ),
        (true, false) => (Decision::Deny(reason), String::new()),
        (false, true) => (Decision::Allow(reason), String::new()),
        (false, false) => (Decision::NoOpinion(reason), String::new()),
    }
}

/// What is known without asking it: it is not concerned, or it said so before.
pub(super) fn remembered(
    webhook: &Webhook,
    metrics: &LinkMetrics,
    core: &Core,
    user: &User,
    action: &Action<'_>,
) -> Option<Said> {
    if !webhook.conditions.is_empty() {
        let began = Instant::now();
        let hold = webhook.conditions.hold(user, action);
        metrics.conditions(&hold, began.elapsed());
        match hold {
            Ok(true) => {}
            Ok(false) => return Some((Decision::NoOpinion(String::new()), String::new())),
            Err(why) => return Some(webhook.failed(why)),
        }
    }
    let key = cache::key(&[spec(user, action).to_string().as_bytes()]);
    webhook.known.get(&key, core.now().as_millisecond()).map(|status| read(&status))
}

/// Asks it.
pub(super) fn ask<'a>(
    webhook: &'a Webhook,
    metrics: &'a LinkMetrics,
    core: &'a Core,
    user: &'a User,
    action: &'a Action<'a>,
) -> BoxFuture<'a, Said> {
    Box::pin(async move {
        let spec = spec(user, action);
        let key = cache::key(&[spec.to_string().as_bytes()]);
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": format!("authorization.k8s.io/{}", webhook.version),
            "metadata": {}, "spec": in_version(spec, &webhook.version),
        });
        let (query, document) = (webhook.query(), Bytes::from(review.to_string()));
        let mut backoff = Backoff::WEBHOOK;
        let answer = loop {
            let began = Instant::now();
            let answer = webhook.client.ask(Some(core), &query, document.clone(), webhook.timeout).await;
            metrics.called(answer.as_ref().err(), began.elapsed());
            match answer {
                Ok(answer) => break answer,
                Err(failure) => {
                    if failure.is_transient() && backoff.wait(&*core.config.random).await {
                        continue;
                    }
                    if !webhook.denies_on_error {
                        metrics.failed_open(&failure);
                    }
                    return webhook.failed(failure.message);
                }
            }
        };
        let status = answer.at("status").clone();
        let keep = if status.bool_at("allowed") { webhook.keep_allowed } else { webhook.keep_refused };
        let parts = [
            action.namespace,
            action.verb,
            action.group,
            action.version,
            action.resource,
            action.subresource,
            action.name,
            action.path,
        ];
        if !keep.is_zero() && parts.iter().map(|p| p.len()).sum::<usize>() < MAX_KEPT_BYTES {
            let until = core
                .now()
                .as_millisecond()
                .saturating_add(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
            webhook.known.put(key, status.clone(), until);
        }
        read(&status)
    })
}

/// v1beta1 has another name for groups.
fn in_version(mut spec: Value, version: &str) -> Value {
    if version == "v1beta1"
        && let Some(map) = spec.as_object_mut()
        && let Some(groups) = map.remove("groups")
    {
        map.insert("group".into(), groups);
    }
    spec
}

pub(super) fn rules(_: &Auth, _: &User, _: &str) -> Rules {
    let error = "webhook authorizer does not support user rule resolution".into();
    Rules { incomplete: true, error, ..Rules::default() }
}

#[cfg(test)]
mod tests {
    use yare_schema::selector::{FieldSelector, LabelSelector};

    use super::*;

    #[test]
    fn a_question_says_all_there_is() {
        let fields = FieldSelector::parse("spec.nodeName=n1,metadata.name!=a").unwrap();
        let labels = LabelSelector::parse("a in (b,c),!d,e>1").unwrap();
        let action = Action {
            verb: "list",
            version: "v1",
            resource: "pods",
            namespace: "ns",
            fields: fields.requirements(),
            labels: labels.requirements(),
            ..Action::default()
        };
        let user = User::new("jane", &["dev"]);
        assert_eq!(
            spec(&user, &action),
            json!({
                "user": "jane", "groups": ["dev", "system:authenticated"],
                "resourceAttributes": {
                    "namespace": "ns", "verb": "list", "version": "v1", "resource": "pods",
                    "fieldSelector": {"requirements": [
                        {"key": "metadata.name", "operator": "NotIn", "values": ["a"]},
                        {"key": "spec.nodeName", "operator": "In", "values": ["n1"]},
                    ]},
                    "labelSelector": {"requirements": [
                        {"key": "a", "operator": "In", "values": ["b", "c"]},
                        {"key": "d", "operator": "DoesNotExist"},
                    ]},
                },
            })
        );
        let path = Action { verb: "get", path: "/metrics", ..Action::default() };
        let user = User { name: "u".into(), groups: vec!["g".into()], ..User::default() };
        let asked = in_version(spec(&user, &path), "v1beta1");
        assert_eq!(
            asked,
            json!({"user": "u", "group": ["g"], "nonResourceAttributes": {"path": "/metrics", "verb": "get"}})
        );
    }

    #[test]
    fn answers() {
        for (status, decision) in [
            (json!({"allowed": true, "reason": "a"}), Decision::Allow("a".into())),
            (json!({"denied": true}), Decision::Deny(String::new())),
            (json!({}), Decision::NoOpinion(String::new())),
            (json!({"allowed": true, "denied": true}), Decision::Deny(String::new())),
        ] {
            assert_eq!(read(&status).0, decision);
        }
    }
}
