//! What a pod that is being resized holds: the larger of what it asks for, what its node has allocated, and what is in
//! force (KEP-1287). A resize that its node will never do does not count.
//!
//! Only pods whose spec was ever changed are looked at: the others' cost nothing.

use std::collections::BTreeMap;

use serde::Deserialize;
use yare_client::{Cached, ViewError};
use yare_schema::quantity::Quantity;

use crate::view::{Container, PodSpec, Resources};

type Amounts = BTreeMap<String, String>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    spec: Names,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Names {
    containers: Vec<Name>,
    init_containers: Vec<Name>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Name {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    conditions: Vec<Condition>,
    container_statuses: Vec<Size>,
    init_container_statuses: Vec<Size>,
    resources: Option<Resources>,
    allocated_resources: Amounts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
}

/// Of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Size {
    name: String,
    /// In force.
    resources: Option<Resources>,
    allocated_resources: Amounts,
}

/// Puts into a pod's spec what it holds.
pub(crate) fn hold(object: &Cached, spec: &mut PodSpec) -> Result<(), ViewError> {
    let pod: Pod = object.view()?;
    let infeasible =
        pod.status.conditions.iter().any(|c| c.kind == "PodResizePending" && c.reason == "Infeasible");
    let effective = |wanted: &Amounts, in_force: &Resources, allocated: &Amounts| -> Amounts {
        let mut held = in_force.requests.clone();
        raise(&mut held, allocated);
        if !infeasible {
            raise(&mut held, wanted);
        }
        held
    };
    let hold = |container: &mut Container, name: &Name, sizes: &[Size]| {
        let size = sizes.iter().find(|s| s.name == name.name);
        if let Some((size, in_force)) = size.and_then(|s| Some((s, s.resources.as_ref()?))) {
            container.resources.requests =
                effective(&container.resources.requests, in_force, &size.allocated_resources);
        }
    };
    for (container, name) in spec.containers.iter_mut().zip(&pod.spec.containers) {
        hold(container, name, &pod.status.container_statuses);
    }
    for (container, name) in spec.init_containers.iter_mut().zip(&pod.spec.init_containers) {
        // The others have run, or hold what they ask for.
        if container.restart_policy == "Always" {
            hold(container, name, &pod.status.init_container_statuses);
        }
    }
    if let (Some(whole), Some(in_force)) = (&mut spec.resources, &pod.status.resources) {
        let mut held = effective(&whole.requests, in_force, &pod.status.allocated_resources);
        // The status has sums of what the pod itself does not ask for.
        held.retain(|name, _| whole.requests.contains_key(name));
        whole.requests = held;
    }
    Ok(())
}

fn raise(amounts: &mut Amounts, others: &Amounts) {
    let value = |text: &String| Quantity::parse(text).unwrap_or_default();
    for (name, more) in others {
        match amounts.get_mut(name) {
            Some(amount) if value(amount) >= value(more) => {}
            Some(amount) => amount.clone_from(more),
            None => drop(amounts.insert(name.clone(), more.clone())),
        }
    }
}
