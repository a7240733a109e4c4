//! Empties namespaces that are being deleted, then lets them go.
//!
//! What there is to delete comes from discovery, so custom resources go too. Pods go first; the rest waits
//! for them. Conditions say what is still in the way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use yare_client::{Cached, Change, Informer, NAMESPACES, ObjectKey, PODS, Resource};

use crate::{
    api::{ApiError, Deletion, Propagation},
    context::{Context, Error},
    discovery::{Served, discover},
    harness::{Next, Reconcile},
    views::{Condition, Meta, PodView, nullable, since},
};

/// The finalizer in `spec.finalizers` that this controller serves.
const FINALIZER: &str = "kubernetes";
/// How long finalizers are assumed to take.
const FINALIZERS_ESTIMATE: Duration = Duration::from_secs(15);
/// Resources that are emptied at the same time.
const PARALLEL: usize = 8;

/// The conditions, in the order they are written, with their reason and message when all is well.
const CONDITIONS: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

struct Namespaces {
    context: Context,
    namespaces: Informer,
    pods: Informer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "nullable")]
    finalizers: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    phase: String,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

/// Whether things may be created in a namespace.
pub fn is_active(namespace: &Cached) -> bool {
    namespace.deletion_timestamp().is_none()
        && namespace.view::<View>().is_ok_and(|v| v.status.phase != "Terminating")
}

/// The controller; keys are namespaces.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    Arc::new(Namespaces {
        namespaces: context.informer(NAMESPACES),
        pods: context.informer(PODS),
        context: context.clone(),
    })
}

/// Only namespaces on their way out are of interest.
pub fn deleted_namespace(_: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    if let Some(namespace) = change.new.as_ref().filter(|n| n.deletion_timestamp().is_some()) {
        add(namespace.key().clone());
    }
}

/// The last pod of a namespace on its way out has gone: no need to wait for the estimate.
pub fn deleted_pod(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let (None, Some(pod)) = (&change.new, &change.old) else { return };
    let key = ObjectKey::cluster(pod.namespace());
    let terminating =
        context.informer(NAMESPACES).get(&key).is_some_and(|n| n.deletion_timestamp().is_some());
    if terminating && context.informer(PODS).in_namespace(pod.namespace()).is_empty() {
        add(key);
    }
}

/// What is left of one resource after everything was told to go.
#[derive(Default)]
struct Left {
    estimate: Duration,
    objects: usize,
    finalizers: BTreeMap<String, usize>,
}

/// What is left of all resources.
#[derive(Default)]
struct Report {
    estimate: Duration,
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    discovery: Option<String>,
    errors: Vec<String>,
}

impl Report {
    fn add(&mut self, resource: &Resource, outcome: Result<Left, Error>) {
        match outcome {
            Ok(left) => {
                self.estimate = self.estimate.max(left.estimate);
                if left.objects > 0 {
                    // The dot stays for core resources, as upstream prints them.
                    self.objects.insert(format!("{}.{}", resource.plural, resource.group), left.objects);
                }
                for (finalizer, count) in left.finalizers {
                    *self.finalizers.entry(finalizer).or_default() += count;
                }
            }
            Err(error) => self.errors.push(error.to_string()),
        }
    }

    /// The conditions that are true now: type, reason, message.
    fn problems(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut problems = Vec::new();
        if let Some(message) = &self.discovery {
            problems.push(("NamespaceDeletionDiscoveryFailure", "DiscoveryFailed", message.clone()));
        }
        if !self.errors.is_empty() {
            let mut errors = self.errors.clone();
            errors.sort();
            let count = errors.len();
            let message =
                format!("Failed to delete all resource types, {count} remaining: {}", errors.join(", "));
            problems.push(("NamespaceDeletionContentFailure", "ContentDeletionFailed", message));
        }
        if !self.objects.is_empty() {
            let list: Vec<_> =
                self.objects.iter().map(|(r, n)| format!("{r} has {n} resource instances")).collect();
            let message = format!("Some resources are remaining: {}", list.join(", "));
            problems.push(("NamespaceContentRemaining", "SomeResourcesRemain", message));
        }
        if !self.finalizers.is_empty() {
            let list: Vec<_> =
                self.finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
            let message =
                format!("Some content in the namespace has finalizers remaining: {}", list.join(", "));
            problems.push(("NamespaceFinalizersRemaining", "SomeFinalizersRemain", message));
        }
        problems
    }

    /// The conditions after this report; `None` if nothing changes.
    fn conditions(&self, old: &[Condition], now: jiff::Timestamp) -> Option<Vec<Condition>> {
        let problems = self.problems();
        let mut conditions = old.to_vec();
        for (kind, reason, message) in CONDITIONS {
            let problem = problems.iter().find(|p| p.0 == kind);
            let mut new = match problem {
                Some((_, reason, message)) => Condition::new(kind, "True", reason, message.clone(), now),
                None => Condition::new(kind, "False", reason, message, now),
            };
            match conditions.iter_mut().find(|c| c.kind == kind) {
                Some(c) => {
                    if c.status == new.status {
                        new.last_transition_time = c.last_transition_time;
                    }
                    *c = new;
                }
                None => conditions.push(new),
            }
        }
        (conditions != old).then_some(conditions)
    }
}

#[async_trait]
impl Reconcile for Namespaces {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let cached = self.namespaces.get(key);
        if cached.is_none_or(|n| n.deletion_timestamp().is_none()) {
            return Ok(Next::Done);
        }
        let api = &self.context.api;
        // From the server: a namespace of the same name may have been made meanwhile.
        let Some(mut namespace) = api.get(&NAMESPACES, key).await? else { return Ok(Next::Done) };
        if namespace.deletion_timestamp().is_none() {
            return Ok(Next::Done);
        }
        let mut view: View = namespace.view()?;
        if view.status.phase != "Terminating" {
            namespace = api
                .put(&NAMESPACES, &namespace, "/status", |b| b["status"]["phase"] = "Terminating".into())
                .await?;
            view = namespace.view()?;
        }
        if view.spec.finalizers.is_empty() {
            return Ok(Next::Done);
        }
        let report = self.empty(&key.name, &view).await?;
        if let Some(conditions) = report.conditions(&view.status.conditions, self.context.now()) {
            let write = |b: &mut Value| b["status"]["conditions"] = json!(conditions);
            namespace = api.put(&NAMESPACES, &namespace, "/status", write).await?;
        }
        if !report.errors.is_empty() || report.discovery.is_some() {
            let mut errors = report.errors;
            errors.extend(report.discovery);
            return Err(Error::Other(format!("namespace {}: {}", key.name, errors.join("; "))));
        }
        if !report.estimate.is_zero() {
            return Ok(Next::After(report.estimate / 2 + Duration::from_secs(1)));
        }
        let finalizers: Vec<_> = view.spec.finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect();
        match api
            .put(&NAMESPACES, &namespace, "/finalize", |b| b["spec"]["finalizers"] = json!(finalizers))
            .await
        {
            Ok(_) => Ok(Next::Done),
            Err(error) if error.is_not_found() => Ok(Next::Done),
            Err(error) => Err(error.into()),
        }
    }
}

impl Namespaces {
    /// Tells everything in the namespace to go, and reports what has not gone yet.
    async fn empty(&self, namespace: &str, view: &View) -> Result<Report, Error> {
        let mut report = Report::default();
        let found = discover(&self.context.api).await?;
        if !found.failed.is_empty() {
            let (count, list) = (found.failed.len(), found.failed.join(", "));
            report.discovery = Some(format!(
                "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {list}"
            ));
        }
        let mut rest: Vec<Served> = found.resources;
        rest.retain(|s| s.resource.namespaced && s.supports(&["delete"]));
        // Pods first: while they end they may need their ConfigMaps, network policies and so on.
        if let Some(i) = rest.iter().position(|s| s.resource == PODS) {
            let pods = rest.swap_remove(i);
            let outcome = self.empty_resource(&pods, namespace, view).await;
            report.add(&PODS, outcome);
            if !report.objects.is_empty() || !report.errors.is_empty() {
                return Ok(report);
            }
        }
        let outcomes: Vec<(Resource, Result<Left, Error>)> = stream::iter(rest)
            .map(|served| async move {
                let outcome = self.empty_resource(&served, namespace, view).await;
                (served.resource, outcome)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        for (resource, outcome) in outcomes {
            report.add(&resource, outcome);
        }
        Ok(report)
    }

    async fn empty_resource(&self, served: &Served, namespace: &str, view: &View) -> Result<Left, Error> {
        let resource = &served.resource;
        let estimate = if *resource == PODS { self.pods_estimate(namespace, view)? } else { Duration::ZERO };
        let api = &self.context.api;
        let path = resource.path(Some(namespace));
        let can_list = served.supports(&["list"]);
        if served.supports(&["deletecollection"]) {
            let body =
                json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
            tolerate(api.call(Method::DELETE, &path, "", Some(&body)).await.map(drop))?;
        } else if can_list {
            for item in self.items(&path).await? {
                let key = ObjectKey::new(namespace, &item.metadata.name);
                let how = Deletion { propagation: Some(Propagation::Background), ..Deletion::default() };
                tolerate(api.delete(resource, &key, how).await.map(drop))?;
            }
        }
        if !can_list {
            return Ok(Left { estimate, ..Left::default() });
        }
        let items = self.items(&path).await?;
        if items.is_empty() {
            return Ok(Left::default());
        }
        let mut left = Left { estimate, objects: items.len(), finalizers: BTreeMap::new() };
        for finalizer in items.into_iter().flat_map(|i| i.metadata.finalizers) {
            *left.finalizers.entry(finalizer).or_default() += 1;
        }
        if left.estimate.is_zero() && !left.finalizers.is_empty() {
            left.estimate = FINALIZERS_ESTIMATE;
        }
        if left.estimate.is_zero() {
            return Err(Error::Other(format!(
                "unexpected items still remain in namespace: {namespace} for gvr: {}/{}, Resource={}",
                resource.group, resource.version, resource.plural
            )));
        }
        Ok(left)
    }

    async fn items(&self, path: &str) -> Result<Vec<Item>, Error> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default, deserialize_with = "nullable")]
            items: Vec<Item>,
        }
        let bytes = match self.context.api.read(path, "application/json").await {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.code(), 404 | 405) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let list: List = serde_json::from_slice(&bytes)
            .map_err(|source| ApiError::Json { what: format!("list of {path}"), source })?;
        Ok(list.items)
    }

    /// The longest grace period of a running pod, while that may still be running out.
    fn pods_estimate(&self, namespace: &str, view: &View) -> Result<Duration, Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Grace {
            spec: GraceSpec,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct GraceSpec {
            termination_grace_period_seconds: Option<u64>,
        }
        let mut longest = Duration::ZERO;
        for pod in self.pods.in_namespace(namespace) {
            if !pod.view::<PodView>()?.is_finished() {
                let grace: Grace = pod.view()?;
                let grace = grace.spec.termination_grace_period_seconds.unwrap_or(0);
                longest = longest.max(Duration::from_secs(grace));
            }
        }
        let running =
            view.metadata.deletion_timestamp.map_or(Duration::ZERO, |t| since(self.context.now(), t));
        Ok(if running >= longest { Duration::ZERO } else { longest })
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ItemMeta {
    name: String,
    #[serde(deserialize_with = "nullable")]
    finalizers: Vec<String>,
}

/// What is not there or cannot be deleted needs no deletion.
fn tolerate(result: Result<(), ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if matches!(error.code(), 404 | 405) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::condition;

    #[test]
    fn conditions_say_what_remains() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut report = Report::default();
        report.add(
            &PODS,
            Ok(Left { estimate: Duration::from_secs(30), objects: 2, finalizers: BTreeMap::new() }),
        );
        let finalizers = BTreeMap::from([("example.com/x".to_owned(), 1)]);
        report.add(
            &yare_client::DEPLOYMENTS,
            Ok(Left { estimate: Duration::from_secs(15), objects: 1, finalizers }),
        );
        assert_eq!(report.estimate, Duration::from_secs(30));
        let conditions = report.conditions(&[], now).unwrap();
        let message = |kind: &str| condition(&conditions, kind).map(|c| (&*c.status, &*c.message)).unwrap();
        assert_eq!(
            message("NamespaceContentRemaining"),
            (
                "True",
                "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
            )
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            (
                "True",
                "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
            )
        );
        assert_eq!(
            message("NamespaceDeletionDiscoveryFailure"),
            ("False", "All resources successfully discovered")
        );
        assert!(report.conditions(&conditions, now).is_none(), "nothing changes twice");
    }
}
