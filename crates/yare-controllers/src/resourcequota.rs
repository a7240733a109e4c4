//! Keeps `status.used` of ResourceQuotas true.
//!
//! Admission counts what is created; this controller counts again when something changes or goes, so that
//! errors heal and what was freed can be used again.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use yare_client::{Cached, Change, Informer, ObjectKey, Queue, RESOURCE_QUOTAS, Resource};
use yare_kinds::quota::{self, DeviceClasses, Usage as Amounts};
use yare_schema::quantity::Quantity;

use crate::{
    context::{Context, Error},
    discovery::discover,
    harness::{Next, Reconcile},
};

/// Quotas that name kinds which are not served are looked at again after this time.
const RECOUNT: Duration = Duration::from_secs(300);

struct ResourceQuotas {
    context: Context,
    quotas: Informer,
    /// Resources beyond the table's that some quota counts, on their way to [`Reconcile::background`], which
    /// watches them.
    counts: mpsc::UnboundedSender<Resource>,
    counted: tokio::sync::Mutex<mpsc::UnboundedReceiver<Resource>>,
    watched: parking_lot::Mutex<HashSet<(String, String)>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct View {
    spec: Value,
    status: Value,
}

/// The controller; keys are quotas.
pub fn new(context: &Context) -> Arc<dyn Reconcile> {
    let (counts, counted) = mpsc::unbounded_channel();
    Arc::new(ResourceQuotas {
        quotas: context.informer(RESOURCE_QUOTAS),
        context: context.clone(),
        counts,
        counted: counted.into(),
        watched: parking_lot::Mutex::default(),
    })
}

/// Something that may be counted has come, gone or changed its size.
pub fn counted(context: &Context, change: &Change, add: &mut dyn FnMut(ObjectKey)) {
    let Some(object) = change.object() else { return };
    let quotas = context.informer(RESOURCE_QUOTAS);
    // A device class is everybody's.
    let quotas = match object.namespace() {
        "" => quotas.list(),
        namespace => quotas.in_namespace(namespace),
    };
    for quota in quotas {
        add(quota.key().clone());
    }
}

/// The resources whose objects a quota counts: group, plural. `of_classes`: names by which claims for devices are
/// counted, because they stand for classes.
fn counted_resources(hard: &Amounts, of_classes: &BTreeSet<&str>) -> Vec<(String, String)> {
    let mut resources: Vec<(String, String)> = hard
        .keys()
        .map(|name| match name.strip_prefix("count/") {
            Some(counted) => counted
                .split_once('.')
                .map_or((String::new(), counted.to_owned()), |(p, g)| (g.into(), p.into())),
            None if name.starts_with("services") => (String::new(), "services".into()),
            None if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") => {
                (String::new(), "persistentvolumeclaims".into())
            }
            None if name.ends_with(".deviceclass.resource.k8s.io/devices") => {
                ("resource.k8s.io".into(), "resourceclaims".into())
            }
            None if [
                "configmaps",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "resourcequotas",
                "secrets",
            ]
            .contains(&&**name) =>
            {
                (String::new(), name.clone())
            }
            None => (String::new(), "pods".into()),
        })
        .collect();
    if !of_classes.is_empty() {
        resources.push(("resource.k8s.io".into(), "resourceclaims".into()));
    }
    resources.sort();
    resources.dedup();
    resources
}

#[async_trait]
impl Reconcile for ResourceQuotas {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cached) = self.quotas.get(key).filter(|q| q.deletion_timestamp().is_none()) else {
            return Ok(Next::Done);
        };
        let counted = self.used(&cached, Source::Caches).await?;
        let next = if counted.unserved { Next::After(RECOUNT) } else { Next::Done };
        if counted.is_shown {
            return Ok(next);
        }
        // The caches are not of one moment: a pod that the quota was charged for may not have arrived. What is
        // written comes from the server, the quota first: whoever is admitted after that changes the quota, so
        // that this write fails and the count starts again.
        let quotas = self.context.api.list(&RESOURCE_QUOTAS, &key.namespace).await?;
        let Some(fresh) = quotas.into_iter().find(|quota| quota.key() == key) else { return Ok(Next::Done) };
        let counted = self.used(&fresh, Source::Server).await?;
        if !counted.is_shown {
            self.context.api.update_status(&RESOURCE_QUOTAS, &fresh, &counted.status).await?;
        }
        Ok(next)
    }

    /// Watches what quotas count beside the table's resources, from the first time one does.
    async fn background(&self, queue: Queue<ObjectKey>, stop: CancellationToken) {
        let mut resources = self.counted.lock().await;
        let mut watches = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(resource) = resources.recv() => watches.push(self.watch(resource, &queue)),
                // The resource is not served any more; who counts it again has it watched again.
                Some(ended) = watches.next() => { self.watched.lock().remove(&ended); }
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Where objects to be counted are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Caches,
    Server,
}

/// What a quota should show.
struct Counted {
    status: Value,
    /// The quota shows it already.
    is_shown: bool,
    /// Some of it is of kinds that are not served.
    unserved: bool,
}

/// What the table has this controller watch.
const WATCHED: [(&str, &str); 6] = [
    ("", "configmaps"),
    ("", "persistentvolumeclaims"),
    ("", "pods"),
    ("", "replicationcontrollers"),
    ("", "secrets"),
    ("", "services"),
];

impl ResourceQuotas {
    /// Counts again whenever an object of the resource changes; ends when the resource goes.
    async fn watch(&self, resource: Resource, queue: &Queue<ObjectKey>) -> (String, String) {
        let mut changes = self.context.informer(resource.clone()).subscribe();
        while let Some(change) = changes.recv().await {
            counted(&self.context, &change, &mut |key| queue.add(key));
        }
        (resource.group.into(), resource.plural.into())
    }

    async fn used(&self, quota: &Cached, source: Source) -> Result<Counted, Error> {
        let whole: Value = quota.view()?;
        let view: View = quota.view()?;
        let hard = amounts(&view.spec["hard"]);
        let mut total = Amounts::new();
        let mut unserved = false;
        let devices = self.devices(&hard, source).await?;
        let of_classes = devices.as_ref().map(|devices| devices.matching(hard.keys().map(String::as_str)));
        for (group, plural) in counted_resources(&hard, &of_classes.unwrap_or_default()) {
            let Some(resource) = self.resource(&group, &plural).await?.filter(|r| r.namespaced) else {
                unserved = true;
                continue;
            };
            self.follow(&resource);
            self.count(&whole, quota.namespace(), resource, source, devices.as_ref(), &mut total).await?;
        }
        // What nothing takes shows as zero, in the unit of its limit.
        let used: BTreeMap<String, Quantity> = hard
            .iter()
            .map(|(name, limit)| {
                let zero = Quantity::from_scaled(0, 0, limit.format());
                (name.clone(), total.get(name).copied().unwrap_or(zero))
            })
            .collect();
        let is_shown = !view.status["hard"].is_null()
            && amounts(&view.status["hard"]) == hard
            && amounts(&view.status["used"]) == used;
        let shown: serde_json::Map<String, Value> = used.into_iter().map(|(k, v)| (k, v.into())).collect();
        Ok(Counted { status: json!({"hard": view.spec["hard"], "used": shown}), is_shown, unserved })
    }

    /// Has a resource watched that is not yet.
    fn follow(&self, resource: &Resource) {
        let name = (&*resource.group, &*resource.plural);
        if !WATCHED.contains(&name) && self.watched.lock().insert((name.0.into(), name.1.into())) {
            // It ends only with this controller.
            let _ = self.counts.send(resource.clone());
        }
    }

    /// The device classes, where names of a quota's resources may stand for them.
    async fn devices(&self, hard: &Amounts, source: Source) -> Result<Option<DeviceClasses>, Error> {
        let may_stand = |name: &String| name.strip_prefix("requests.").is_some_and(|of| of.contains('/'));
        if !self.context.config.gates.is_on("DRAExtendedResource") || !hard.keys().any(may_stand) {
            return Ok(None);
        }
        let Some(resource) = self.resource("resource.k8s.io", "deviceclasses").await? else {
            return Ok(None);
        };
        self.follow(&resource);
        let classes = self.objects(resource, "", source).await?;
        let classes: Result<Vec<Value>, _> = classes.iter().map(Cached::view).collect();
        Ok(Some(DeviceClasses::new(classes?)))
    }

    async fn objects(
        &self,
        resource: Resource,
        namespace: &str,
        source: Source,
    ) -> Result<Vec<Cached>, Error> {
        match source {
            Source::Server => Ok(self.context.api.list(&resource, namespace).await?),
            Source::Caches => {
                let is_namespaced = resource.namespaced;
                let informer = self.context.informer(resource);
                informer.synced().await;
                Ok(if is_namespaced { informer.in_namespace(namespace) } else { informer.list() })
            }
        }
    }

    async fn count(
        &self,
        quota: &Value,
        namespace: &str,
        resource: Resource,
        source: Source,
        devices: Option<&DeviceClasses>,
        total: &mut Amounts,
    ) -> Result<(), Error> {
        let (group, plural) = (resource.group.clone(), resource.plural.clone());
        let devices = devices.filter(|_| (&*group, &*plural) == ("resource.k8s.io", "resourceclaims"));
        let objects = self.objects(resource, namespace, source).await?;
        let claims = match devices {
            Some(classes) => Some(self.claims(classes, &objects, namespace, source).await?),
            None => None,
        };
        let now = self.context.now();
        for object in &objects {
            let body: Value = object.view()?;
            if !quota::matches(quota, &group, &plural, &body) {
                continue;
            }
            let mut usage = quota::usage(&group, &plural, &body, now);
            if let Some(claims) = &claims {
                claims.extend(&mut usage, &body, now)?;
            }
            for (name, amount) in usage {
                *total.entry(name).or_default() += amount;
            }
        }
        Ok(())
    }

    async fn claims<'a>(
        &self,
        classes: &'a DeviceClasses,
        objects: &[Cached],
        namespace: &str,
        source: Source,
    ) -> Result<Claims<'a>, Error> {
        let all: Vec<Value> = objects.iter().map(Cached::view).collect::<Result<_, _>>()?;
        let is_made = |claim: &Value| quota::pod_with_extended_resources(claim).is_some();
        let made: Vec<Value> = all.into_iter().filter(is_made).collect();
        let pods = match made.is_empty() {
            true => Vec::new(),
            false => self.objects(yare_client::PODS, namespace, source).await?,
        };
        Ok(Claims { classes, made, pods })
    }

    async fn resource(&self, group: &str, plural: &str) -> Result<Option<Resource>, Error> {
        let known = [
            yare_client::CONFIG_MAPS,
            yare_client::PERSISTENT_VOLUME_CLAIMS,
            yare_client::PODS,
            yare_client::REPLICATION_CONTROLLERS,
            yare_client::RESOURCE_QUOTAS,
            yare_client::SECRETS,
            yare_client::SERVICES,
        ];
        let is = |r: &Resource| r.group == group && r.plural == plural;
        if let Some(resource) = known.into_iter().find(is) {
            return Ok(Some(resource));
        }
        let found = discover(&self.context.api).await?;
        let served = found.resources.into_iter().find(|s| is(&s.resource) && s.supports(&["list", "watch"]));
        Ok(served.map(|s| s.resource))
    }
}

/// What claims for devices are counted by besides themselves.
struct Claims<'a> {
    classes: &'a DeviceClasses,
    /// Those that the scheduler made for pods' extended resources.
    made: Vec<Value>,
    /// All of the namespace, where there is such a claim.
    pods: Vec<Cached>,
}

impl Claims<'_> {
    /// Adds the extended resources that a claim stands for, less what its pod is charged for already.
    fn extend(&self, usage: &mut Amounts, claim: &Value, now: Timestamp) -> Result<(), Error> {
        let owner = quota::pod_with_extended_resources(claim);
        let pod = owner.and_then(|(name, _)| self.pods.iter().find(|pod| pod.name() == name));
        let charged = match pod {
            Some(pod) => quota::of_pod(claim, &pod.view()?, self.made.iter(), now),
            None => Amounts::new(),
        };
        self.classes.extend(usage, &charged);
        Ok(())
    }
}

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_resources() {
        let names = [
            "pods",
            "requests.cpu",
            "services.nodeports",
            "gold.storageclass.storage.k8s.io/requests.storage",
            "gpu.deviceclass.resource.k8s.io/devices",
            "count/jobs.batch",
            "count/configmaps",
            "secrets",
        ];
        let hard = names.map(|n| (n.to_owned(), Quantity::default())).into();
        let found = counted_resources(&hard, &BTreeSet::new());
        let shown: Vec<_> = found.iter().map(|(g, p)| format!("{g}/{p}")).collect();
        assert_eq!(
            shown,
            [
                "/configmaps",
                "/persistentvolumeclaims",
                "/pods",
                "/secrets",
                "/services",
                "batch/jobs",
                "resource.k8s.io/resourceclaims"
            ]
        );
    }
}
