//! Admission: what may change or refuse a write after it is authorized and before it is validated.
//!
//! [`TABLE`] is the order. A row names the resources, subresources and operations it sees; each row's behaviour
//! is one file beside this one. Objects pass through as JSON of the storage version. Which rows run is settled
//! once, at start ([`Admission`]), so that a request looks only at the rows of its own resource.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use yare_kinds::view::View;
use yare_store::Object;

use crate::{
    changes::Changes,
    core::Call,
    options::DeleteOptions,
    registry::Served,
    status::{ApiError, ApiResult},
};

mod always;
mod always_pull_images;
pub mod certificates;
mod claim_resize;
pub mod claims;
mod default_classes;
mod default_toleration_seconds;
mod deny_external_ips;
pub mod event_rate_limit;
mod expressions;
mod extended_resource_toleration;
mod hard_anti_affinity;
mod image_policy;
mod job_validation;
mod limit_ranger;
pub mod manifests;
mod matching;
pub mod metrics;
mod namespace_exists;
mod namespace_lifecycle;
mod node_declared_features;
mod node_restriction;
mod owner_references;
mod pod_groups;
mod pod_node_selector;
mod pod_resize;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
pub mod policy;
mod priority;
mod references;
mod request;
pub mod resource_quota;
mod runtime_class;
mod service_account;
pub mod settings;
mod storage_in_use;
mod table;
mod taint_nodes;
mod tolerations;
pub mod webhook;

pub use settings::Settings;
pub use table::{Row, TABLE};

use Operation::{Connect, Delete};
use table::{
    MUTATING_POLICIES, MUTATING_WEBHOOKS, PROVISION, RESOURCE_QUOTA, VALIDATING_POLICIES, VALIDATING_WEBHOOKS,
};

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed one.
    Update,
    /// A deletion.
    Delete,
    /// `exec`, `proxy` and the like.
    Connect,
}

impl Operation {
    /// As reviews and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What admission knows of a request.
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    /// The request.
    pub call: &'a Call,
    /// The resource.
    pub served: &'a Arc<Served>,
    /// What is being done.
    pub operation: Operation,
    /// Object's name; empty where it is still to be generated.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Options of a deletion.
    pub deletion: Option<&'a DeleteOptions>,
}

impl<'a> Attributes<'a> {
    /// What `call` does to what it names.
    pub fn new(call: &'a Call, served: &'a Arc<Served>, operation: Operation, dry_run: bool) -> Self {
        Self {
            call,
            served,
            operation,
            name: &call.info.name,
            namespace: &call.info.namespace,
            subresource: &call.info.subresource,
            dry_run,
            deletion: None,
        }
    }

    /// Whether this is about the resource itself.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        &*self.served.stored.group == group && &*self.served.stored.plural == plural
    }

    /// A refusal in the usual words.
    pub fn forbidden(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::forbidden(self.served.group_resource(), self.name, why)
    }

    /// [`Attributes::forbidden`] of an object that may have told its name only in its body.
    pub fn forbidden_object(&self, object: &Value, why: impl std::fmt::Display) -> ApiError {
        let of = |field: &str| Some(object.at("metadata").str_at(field)).filter(|n| !n.is_empty());
        let name = Some(self.name).filter(|n| !n.is_empty());
        let name = name.or_else(|| of("name")).or_else(|| of("generateName")).unwrap_or("Unknown");
        ApiError::forbidden(self.served.group_resource(), name, why)
    }

    fn admission(&self) -> &Admission {
        &self.call.core.admission
    }

    fn settings(&self) -> &Settings {
        &self.call.core.config.admission
    }
}

/// The plugins that run, by what they see; webhooks as they were compiled last; what is counted.
pub struct Admission {
    /// Rows (and their place in [`TABLE`]) that name the resource or see every one, by kind in the store.
    rows: HashMap<String, Box<[(usize, &'static Row)]>>,
    /// Rows that see every resource.
    everywhere: Box<[(usize, &'static Row)]>,
    /// NamespaceAutoProvision runs.
    provision: bool,
    /// MutatingAdmissionPolicy runs, at this place of [`TABLE`].
    mutating_policies: Option<usize>,
    /// MutatingAdmissionWebhook runs.
    mutating: bool,
    /// ValidatingAdmissionPolicy runs, at this place of [`TABLE`].
    validating_policies: Option<usize>,
    /// ValidatingAdmissionWebhook runs.
    validating: bool,
    /// ResourceQuota runs.
    quota: bool,
    /// Webhooks, compiled once per change.
    pub webhooks: webhook::Webhooks,
    /// Policies, likewise.
    pub policies: policy::Policies,
    /// What of both is in files.
    pub manifests: manifests::Manifests,
    /// What has been counted and measured.
    pub metrics: metrics::Metrics,
    /// Whose turn it is to write to a namespace's quotas.
    turns: resource_quota::Turns,
    events: event_rate_limit::Buckets,
}

impl Admission {
    /// The plugins that `settings` switch on.
    pub fn new(settings: &Settings) -> Self {
        let on: Vec<(usize, &'static Row)> =
            TABLE.iter().enumerate().filter(|(_, row)| settings.is_on(row)).collect();
        let place = |name: &str| on.iter().find(|(_, row)| row.name == name).map(|(place, _)| *place);
        let runs = |name: &str| place(name).is_some();
        let named = on.iter().flat_map(|(_, row)| row.resources);
        let rows = named.map(|(group, plural)| {
            let sees = |row: &Row| row.resources.is_empty() || row.resources.contains(&(*group, *plural));
            let key = crate::registry::store_kind(group, plural).to_string();
            (key, on.iter().copied().filter(|(_, row)| sees(row)).collect())
        });
        Self {
            rows: rows.collect(),
            everywhere: on.iter().copied().filter(|(_, row)| row.resources.is_empty()).collect(),
            provision: runs(PROVISION),
            mutating_policies: place(MUTATING_POLICIES),
            mutating: runs(MUTATING_WEBHOOKS),
            validating_policies: place(VALIDATING_POLICIES),
            validating: runs(VALIDATING_WEBHOOKS),
            quota: runs(RESOURCE_QUOTA),
            webhooks: webhook::Webhooks::default(),
            policies: policy::Policies::default(),
            manifests: manifests::Manifests::new(&settings.manifests, runs),
            metrics: metrics::Metrics::new(TABLE.len()),
            turns: resource_quota::Turns::default(),
            events: event_rate_limit::Buckets::new(&settings.event_limits),
        }
    }

    /// Adds what is counted.
    pub fn expose(&self, page: &mut yare_metrics::text::Page) {
        self.metrics.expose(page);
        manifests::expose(&self.manifests, page);
    }

    fn rows(&self, attributes: &Attributes<'_>) -> &[(usize, &'static Row)] {
        self.rows.get(&*attributes.served.stored.kind_key).unwrap_or(&self.everywhere)
    }
}

/// What came of [`mutate`].
#[derive(Default)]
pub struct Admitted {
    /// The namespace of a new object as it was seen: the transaction checks that it is still so.
    pub namespace: Option<Arc<Object>>,
    /// A policy or webhook changed the object.
    pub from_outside: bool,
}

/// Runs what may change the object.
pub async fn mutate(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
) -> ApiResult<Admitted> {
    let started = Instant::now();
    let done = change(attributes, object, old).await;
    let metrics = &attributes.admission().metrics;
    metrics.step(metrics::Step::Admit, attributes.operation, done.is_err(), started.elapsed());
    done
}

async fn change(attributes: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> ApiResult<Admitted> {
    let admission = attributes.admission();
    if admission.provision {
        namespace_exists::provision(attributes).await?;
    }
    let namespace = namespace_lifecycle::namespace(attributes, object)?;
    let mut rounds = webhook::Rounds::default();
    let mut policy_rounds = policy::Rounds::default();
    // What policies and webhooks change is shown once more to the plugins, and to those of them that ask for it.
    loop {
        for (place, row) in admission.rows(attributes) {
            if let Some(mutate) = row.mutate
                && row.sees(attributes)
            {
                let started = Instant::now();
                let done = mutate(attributes, object, old);
                measured(attributes, *place, metrics::Step::Admit, started.elapsed(), done)?;
            }
        }
        let mut again = false;
        if let Some(place) = admission.mutating_policies
            && admission.policies.may_change(attributes)
        {
            let started = Instant::now();
            let done = policy::mutate(attributes, object, old, &mut policy_rounds);
            again = measured(attributes, place, metrics::Step::Admit, started.elapsed(), done)?;
        }
        if admission.mutating {
            again |= webhook::mutate(attributes, object, old, &mut rounds).await?;
        }
        if !again {
            let from_outside = rounds.has_changes() || policy_rounds.has_changes();
            return Ok(Admitted { namespace, from_outside });
        }
    }
}

fn measured<T>(
    attributes: &Attributes<'_>,
    place: usize,
    step: metrics::Step,
    took: Duration,
    done: ApiResult<T>,
) -> ApiResult<T> {
    let metrics = &attributes.admission().metrics;
    metrics.plugin(place, step, attributes.operation, done.is_err(), took);
    done
}

/// Runs what may refuse the object. `object` is absent for deletions.
pub async fn validate(
    attributes: &Attributes<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<()> {
    let started = Instant::now();
    let done = check(attributes, object, old).await;
    let metrics = &attributes.admission().metrics;
    metrics.step(metrics::Step::Validate, attributes.operation, done.is_err(), started.elapsed());
    done
}

async fn check(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let admission = attributes.admission();
    for (place, row) in admission.rows(attributes) {
        if (row.validate.is_none() && row.ask.is_none()) || !row.sees(attributes) {
            continue;
        }
        let started = Instant::now();
        let mut done = row.validate.map_or(Ok(()), |validate| validate(attributes, object, old));
        if done.is_ok()
            && let Some(answer) = row.ask.and_then(|ask| ask(attributes, object, old))
        {
            done = answer.await;
        }
        measured(attributes, *place, metrics::Step::Validate, started.elapsed(), done)?;
    }
    if admission.mutating_policies.is_some() && attributes.operation == Connect {
        policy::observe(attributes, object, old)?;
    }
    if admission.mutating && matches!(attributes.operation, Delete | Connect) {
        webhook::observe(attributes, object, old).await?;
    }
    if let Some(place) = admission.validating_policies
        && admission.policies.may_refuse(attributes)
    {
        let started = Instant::now();
        let done = policy::validate(attributes, object, old);
        measured(attributes, place, metrics::Step::Validate, started.elapsed(), done)?;
    }
    if admission.validating {
        webhook::validate(attributes, object, old).await?;
    }
    Ok(())
}

/// Both steps, for what is not stored as an object of its own (a binding, an eviction, a review).
pub async fn admit(attributes: &Attributes<'_>, object: &mut Value) -> ApiResult<()> {
    mutate(attributes, object, None).await?;
    validate(attributes, Some(object), None).await
}

/// After an object of `served` was written: what is compiled from it is compiled anew, so that its writer sees
/// it in force.
pub fn written(core: &crate::core::Core, served: &Served) {
    if &*served.stored.group == webhook::GROUP {
        compile(core);
    }
}

fn compile(core: &crate::core::Core) {
    core.admission.webhooks.compile(core);
    core.admission.policies.compile(core);
}

/// Compiles webhooks and policies now, and whenever one of them changes until the server stops.
pub fn start(core: &Arc<crate::core::Core>) {
    manifests::Manifests::follow(core);
    for kind in webhook::KINDS.into_iter().chain(policy::KINDS) {
        let mut changes = Changes::from_now(core, [kind]);
        let core = core.clone();
        compile(&core);
        tokio::spawn(async move {
            while changes.next().await.is_some() {
                compile(&core);
            }
        });
    }
}
