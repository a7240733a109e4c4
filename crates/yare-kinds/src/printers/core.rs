//! Rows of the core group's kinds other than pods.

use serde_json::Value;

use super::{
    AGE, CONTAINERS, IMAGES, NAME, Printer, SELECTOR, cells,
    format::{self, age},
    integer, name, text,
};
use crate::{conditions, view::View};

/// `ComponentStatus`
pub const COMPONENT_STATUS: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Status of the component conditions"),
        text("Message", "Message of the component conditions"),
        text("Error", "Error of the component conditions"),
    ],
    row: |o, _| {
        let healthy = conditions::find(o.items("conditions"), "Healthy");
        let status = match healthy.map(|c| c.str_at("status")) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        let field = |f: &str| healthy.map_or("", |c| c.str_at(f));
        cells![name(o), status, field("message"), field("error")]
    },
};

/// `ConfigMap`
pub const CONFIG_MAP: Printer = Printer {
    columns: &[NAME, text("Data", "Number of entries."), AGE],
    row: |o, now_s| {
        cells![name(o), o.entries("data").count() + o.entries("binaryData").count(), age(o, now_s)]
    },
};

/// `Secret`
pub const SECRET: Printer = Printer {
    columns: &[NAME, text("Type", "What the secret is for."), text("Data", "Number of entries."), AGE],
    row: |o, now_s| cells![name(o), o.str_at("type"), o.entries("data").count(), age(o, now_s)],
};

/// `Event`, in the shape of the core group
pub const EVENT: Printer = Printer {
    columns: &[
        text("Last Seen", "Time since this was last seen."),
        text("Type", "Normal or Warning."),
        text("Reason", "One machine-readable word."),
        text("Object", "What the event is about."),
        text("Subobject", "Which part of the object.").wide(),
        text("Source", "Who reports it.").wide(),
        text("Message", "What happened."),
        text("First Seen", "Time since this was first seen.").wide(),
        text("Count", "How often this was seen.").wide(),
        NAME.wide(),
    ],
    row: event,
};

fn event(o: &Value, now_s: i64) -> Vec<Value> {
    let first = if o.has("firstTimestamp") { o.str_at("firstTimestamp") } else { o.str_at("eventTime") };
    let (last, count) = if o.has("series") {
        (o.str_at("series.lastObservedTime"), o.int_at("series.count"))
    } else {
        (format::or(o, "lastTimestamp", first), o.int_at("count").max(1))
    };
    let kind = o.str_at("involvedObject.kind").to_lowercase();
    let target = match o.str_at("involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = format::or(o, "source.component", o.str_at("reportingComponent"));
    let source = match format::or(o, "source.host", o.str_at("reportingInstance")) {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    cells![
        format::since(last, now_s),
        o.str_at("type"),
        o.str_at("reason"),
        target,
        o.str_at("involvedObject.fieldPath"),
        source,
        o.str_at("message").trim(),
        format::since(first, now_s),
        count,
        name(o),
    ]
}

/// `Namespace`
pub const NAMESPACE: Printer = Printer {
    columns: &[NAME, text("Status", "The status of the namespace"), AGE],
    row: |o, now_s| cells![name(o), o.str_at("status.phase"), age(o, now_s)],
};

/// `Node`
pub const NODE: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "The status of the node"),
        text("Roles", "The roles of the node"),
        AGE,
        text("Version", "Version of the node agent."),
        text("Internal-IP", "Address within the cluster.").wide(),
        text("External-IP", "Address from outside.").wide(),
        text("OS-Image", "Operating system of the node.").wide(),
        text("Kernel-Version", "Kernel of the node.").wide(),
        text("Container-Runtime", "Runtime of the node.").wide(),
    ],
    row: node,
};

fn node(o: &Value, now_s: i64) -> Vec<Value> {
    let ready = o.items("status.conditions").iter().rfind(|c| c.str_at("type") == "Ready");
    let mut status = match ready.map(|c| c.str_at("status")) {
        None => "Unknown".to_owned(),
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
    };
    if o.bool_at("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = o
        .entries("metadata.labels")
        .filter_map(|(k, v)| match k {
            "kubernetes.io/role" => v.as_str(),
            _ => k.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        o.items("status.addresses")
            .iter()
            .find(|a| a.str_at("type") == kind)
            .map_or("<none>", |a| a.str_at("address"))
    };
    let info = o.at("status.nodeInfo");
    let mut kernel = format::or(info, "kernelVersion", "<unknown>").to_owned();
    let architecture = info.str_at("architecture");
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    cells![
        name(o),
        status,
        roles,
        age(o, now_s),
        info.str_at("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        format::or(info, "osImage", "<unknown>"),
        kernel,
        format::or(info, "containerRuntimeVersion", "<unknown>"),
    ]
}

/// `PodTemplate`
pub const POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        text("Containers", "Names of each container in the template."),
        text("Images", "Images referenced by each container in the template."),
        text("Pod Labels", "The labels for the pod template."),
    ],
    row: |o, _| {
        let (names, images) = format::containers(o.at("template.spec"));
        cells![name(o), names, images, format::labels(o.at("template.metadata.labels"))]
    },
};

/// `ReplicationController`
pub const REPLICATION_CONTROLLER: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Number of pods there should be."),
        integer("Current", "Number of pods there are."),
        integer("Ready", "Number of pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |o, now_s| {
        let (names, images) = format::containers(o.at("spec.template.spec"));
        cells![
            name(o),
            o.int_at("spec.replicas"),
            o.int_at("status.replicas"),
            o.int_at("status.readyReplicas"),
            age(o, now_s),
            names,
            images,
            format::labels(o.at("spec.selector")),
        ]
    },
};

/// `ResourceQuota`
pub const RESOURCE_QUOTA: Printer = Printer {
    columns: &[
        NAME,
        text("Request", "Used and hard amounts of what is requested or counted."),
        text("Limit", "Used and hard amounts of limits."),
        AGE,
    ],
    row: |o, now_s| {
        let used = o.at("status.used");
        let mut hard: Vec<(&str, &Value)> = o.entries("status.hard").collect();
        hard.sort_unstable_by_key(|(k, _)| *k);
        let (limits, requests): (Vec<_>, Vec<_>) = hard
            .into_iter()
            .map(|(k, v)| {
                let used = format::quantity(used.get(k).unwrap_or(&Value::Null));
                (k.starts_with("limits."), format!("{k}: {used}/{}", format::quantity(v)))
            })
            .partition(|(limit, _)| *limit);
        let join = |v: Vec<(bool, String)>| v.into_iter().map(|(_, s)| s).collect::<Vec<_>>().join(", ");
        cells![name(o), join(requests), join(limits), age(o, now_s)]
    },
};
