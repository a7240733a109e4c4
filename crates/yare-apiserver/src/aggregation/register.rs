//! An APIService for each version that this server serves itself: made at the first start for the built-in ones,
//! kept up all the time for those of CustomResourceDefinitions
//! (`kube-aggregator/pkg/controllers/autoregister`).

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use http::StatusCode;
use serde_json::{Value, json};
use yare_kinds::view::{View, ViewMut};

use super::{
    priorities::{self, Priority},
    table::KIND,
};
use crate::{
    bootstrap::{ensure, internal_call},
    core::Core,
    options::DeleteOptions,
    registry::Registry,
    verbs::{delete, write},
};

/// Label of APIServices that the server made.
pub const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Whether the server keeps an APIService up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Managed {
    /// It is somebody else's.
    #[default]
    No,
    /// When the server starts: the built-in versions.
    OnStart,
    /// All the time: versions of custom resources.
    Always,
}

impl Managed {
    /// As the label of an APIService has it.
    pub fn of(service: &Value) -> Self {
        match service.at("metadata.labels").get(LABEL).and_then(Value::as_str) {
            Some("onstart") => Self::OnStart,
            Some("true") => Self::Always,
            _ => Self::No,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::OnStart => "onstart",
            _ => "true",
        }
    }
}

fn name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

fn object(group: &str, version: &str, managed: Managed, priority: Priority) -> Value {
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": priority.group, "versionPriority": priority.version,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": { "name": name(group, version), "labels": { LABEL: managed.label() } },
        "spec": spec,
    })
}

type Desired = BTreeMap<(String, String), (Managed, Priority)>;

/// The versions that are served here; that of APIServices itself has none.
fn desired(registry: &Registry) -> Desired {
    let mut out = BTreeMap::new();
    for (group, versions) in registry.groups().iter().filter(|(g, _)| *g != priorities::GROUP) {
        for (version, resources) in versions {
            let custom = resources.iter().all(|s| s.stored.custom.is_some());
            let what = if custom {
                (Managed::Always, priorities::CUSTOM)
            } else {
                (Managed::OnStart, priorities::builtin(group, version))
            };
            out.insert((group.clone(), version.clone()), what);
        }
    }
    out
}

/// The APIServices that a new server starts with.
pub fn objects(registry: &Registry) -> Vec<Value> {
    desired(registry)
        .into_iter()
        .map(|((group, version), (managed, priority))| object(&group, &version, managed, priority))
        .collect()
}

/// Brings APIServices and what is served into step, now and whenever one of them changes.
pub fn start(core: &Arc<Core>) {
    let core = core.clone();
    tokio::spawn(async move {
        settle(&core, true).await;
        core.aggregation.registered.store(true, Ordering::Release);
        loop {
            tokio::select! {
                () = core.aggregation.registration.notified() => {}
                () = core.stop.cancelled() => return,
            }
            settle(&core, false).await;
        }
    });
}

/// What is made at start only is looked at when `starting`.
async fn settle(core: &Arc<Core>, starting: bool) {
    let desired = desired(&core.registry.load());
    let table = core.aggregation.table.load_full();
    for (group, version, entry) in table.all() {
        let ours = match entry.managed {
            Managed::No => false,
            Managed::OnStart => starting,
            Managed::Always => true,
        };
        if !ours {
            continue;
        }
        match desired.get(&(group.to_owned(), version.to_owned())) {
            None => remove(core, &name(group, version)).await,
            Some((_, priority)) if entry.priority != *priority || entry.backend.is_some() => {
                restore(core, group, version, *priority).await;
            }
            Some(_) => {}
        }
    }
    for ((group, version), (managed, priority)) in &desired {
        if (*managed == Managed::Always || starting) && table.entry(group, version).is_none() {
            let object = object(group, version, *managed, *priority);
            if let Err(error) = ensure(core, object).await {
                tracing::warn!(%error, "cannot make an APIService");
            }
        }
    }
}

async fn remove(core: &Arc<Core>, name: &str) {
    let Some(served) = core.builtin.stored(KIND) else { return };
    let Some(current) = core.read(KIND, name).filter(|s| Managed::of(s) != Managed::No) else { return };
    let call = internal_call(core, "delete", "apiservices", "", name);
    let options =
        DeleteOptions { uid: Some(current.str_at("metadata.uid").to_owned()), ..DeleteOptions::default() };
    if let Err(error) = delete::object(&call, served, "", name, &options).await
        && !matches!(error.code, 404 | 409)
    {
        tracing::warn!(%error, apiservice = name, "cannot delete an APIService");
    }
}

async fn restore(core: &Arc<Core>, group: &str, version: &str, priority: Priority) {
    let Some(served) = core.builtin.stored(KIND) else { return };
    let name = name(group, version);
    let call = internal_call(core, "update", "apiservices", "", &name);
    let spec = object(group, version, Managed::Always, priority)["spec"].take();
    let change = |service: &mut Value| {
        if Managed::of(service) != Managed::No {
            service.set("spec", spec.clone());
        }
        Ok(())
    };
    if let Err(error) = write::modify(&call, served, "", &name, Some(""), false, change).await
        && error.code != StatusCode::NOT_FOUND.as_u16()
    {
        tracing::warn!(%error, apiservice = name, "cannot restore an APIService");
    }
}
