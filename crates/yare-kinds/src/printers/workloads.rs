//! Rows of `apps`, `batch`, `autoscaling`, `policy`, `scheduling.k8s.io` and `resource.k8s.io`.

use serde_json::Value;

use super::{
    AGE, CONTAINERS, IMAGES, NAME, Printer, SELECTOR, boolean, cells,
    format::{self, age, format_label_selector},
    integer, name, text,
};
use crate::{
    conditions::{self, is_true},
    view::View,
};

/// `ControllerRevision`
pub const CONTROLLER_REVISION: Printer = Printer {
    columns: &[
        NAME,
        text("Controller", "Controller of the object"),
        text("Revision", "Number of the revision."),
        AGE,
    ],
    row: |o, now_s| {
        let controller = o.items("metadata.ownerReferences").iter().find(|r| r.bool_at("controller"));
        let controller = controller.map_or_else(
            || "<none>".to_owned(),
            |r| {
                let group =
                    r.str_at("apiVersion").split_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
                format!("{}{group}/{}", r.str_at("kind"), r.str_at("name")).to_lowercase()
            },
        );
        cells![name(o), controller, o.int_at("revision"), age(o, now_s)]
    },
};

/// `DaemonSet`
pub const DAEMON_SET: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Number of nodes that should run the pod."),
        integer("Current", "Number of nodes that run the pod."),
        integer("Ready", "Number of nodes whose pod is ready."),
        integer("Up-to-date", "Number of nodes that run the newest pod."),
        integer("Available", "Number of nodes whose pod has been ready for long enough."),
        text("Node Selector", "Labels of the nodes that should run the pod."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |o, now_s| {
        let (names, images) = format::containers(o.at("spec.template.spec"));
        cells![
            name(o),
            o.int_at("status.desiredNumberScheduled"),
            o.int_at("status.currentNumberScheduled"),
            o.int_at("status.numberReady"),
            o.int_at("status.updatedNumberScheduled"),
            o.int_at("status.numberAvailable"),
            format::labels(o.at("spec.template.spec.nodeSelector")),
            age(o, now_s),
            names,
            images,
            format_label_selector(o.at("spec.selector")),
        ]
    },
};

/// `Deployment`
pub const DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        text("Ready", "Number of the pod with ready state"),
        text("Up-to-date", "Number of pods of the newest template."),
        text("Available", "Number of pods that have been ready for long enough."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |o, now_s| {
        let (names, images) = format::containers(o.at("spec.template.spec"));
        cells![
            name(o),
            format!("{}/{}", o.int_at("status.readyReplicas"), o.int_at("spec.replicas")),
            o.int_at("status.updatedReplicas"),
            o.int_at("status.availableReplicas"),
            age(o, now_s),
            names,
            images,
            format::selector(o.at("spec.selector")).unwrap_or_else(|| "<invalid>".to_owned()),
        ]
    },
};

/// `ReplicaSet`
pub const REPLICA_SET: Printer = Printer {
    columns: super::core::REPLICATION_CONTROLLER.columns,
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
            format_label_selector(o.at("spec.selector")),
        ]
    },
};

/// `StatefulSet`
pub const STATEFUL_SET: Printer = Printer {
    columns: &[NAME, text("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES],
    row: |o, now_s| {
        let (names, images) = format::containers(o.at("spec.template.spec"));
        cells![
            name(o),
            format!("{}/{}", o.int_at("status.readyReplicas"), o.int_at("spec.replicas")),
            age(o, now_s),
            names,
            images,
        ]
    },
};

/// `CronJob`
pub const CRON_JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Schedule", "When jobs start, in cron's notation."),
        text("Timezone", "Time zone of the schedule."),
        boolean("Suspend", "Whether no further jobs start."),
        integer("Active", "Number of jobs that run."),
        text("Last Schedule", "Time since a job was last started."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |o, now_s| {
        let (names, images) = format::containers(o.at("spec.jobTemplate.spec.template.spec"));
        let last = o.str_at("status.lastScheduleTime");
        let suspend = match o.bool_opt("spec.suspend") {
            None => "<unset>",
            Some(true) => "True",
            Some(false) => "False",
        };
        cells![
            name(o),
            o.str_at("spec.schedule"),
            o.str_opt("spec.timeZone").unwrap_or("<none>"),
            suspend,
            o.items("status.active").len(),
            if last.is_empty() { "<none>".to_owned() } else { format::since(last, now_s) },
            age(o, now_s),
            names,
            images,
            format_label_selector(o.at("spec.jobTemplate.spec.selector")),
        ]
    },
};

/// `Job`
pub const JOB: Printer = Printer {
    columns: &[
        NAME,
        text("Status", "Status of the job."),
        text("Completions", "Number of pods that succeeded, of those that have to."),
        text("Duration", "Time required to complete the job."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: job,
};

fn job(o: &Value, now_s: i64) -> Vec<Value> {
    let succeeded = o.int_at("status.succeeded");
    let completions = match (o.int_opt("spec.completions"), o.int_at("spec.parallelism")) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, n) if n > 1 => format!("{succeeded}/1 of {n}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let end_s = format::unix_s(o.str_at("status.completionTime")).unwrap_or(now_s);
    let duration = format::unix_s(o.str_at("status.startTime"))
        .map_or_else(String::new, |start_s| format::human_duration(end_s - start_s));
    let conditions = o.items("status.conditions");
    let status = if is_true(conditions, "Complete") {
        "Complete"
    } else if is_true(conditions, "Failed") {
        "Failed"
    } else if o.has("metadata.deletionTimestamp") {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
            .into_iter()
            .find(|c| is_true(conditions, c))
            .unwrap_or("Running")
    };
    let (names, images) = format::containers(o.at("spec.template.spec"));
    cells![
        name(o),
        status,
        completions,
        duration,
        age(o, now_s),
        names,
        images,
        format_label_selector(o.at("spec.selector")),
    ]
}

/// `HorizontalPodAutoscaler`, in the shape of `v2`
pub const HORIZONTAL_POD_AUTOSCALER: Printer = Printer {
    columns: &[
        NAME,
        text("Reference", "What is scaled."),
        text("Targets", "Current and wanted values of the metrics."),
        text("MinPods", "Least number of pods."),
        text("MaxPods", "Greatest number of pods."),
        text("Replicas", "Number of pods there are."),
        AGE,
    ],
    row: |o, now_s| {
        let min = o.int_opt("spec.minReplicas").map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
        cells![
            name(o),
            format!("{}/{}", o.str_at("spec.scaleTargetRef.kind"), o.str_at("spec.scaleTargetRef.name")),
            metrics(o.items("spec.metrics"), o.items("status.currentMetrics")),
            min,
            o.int_at("spec.maxReplicas"),
            o.int_at("status.currentReplicas"),
            age(o, now_s),
        ]
    },
};

fn metrics(specs: &[Value], statuses: &[Value]) -> String {
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let all: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| metric(spec, statuses.get(i).unwrap_or(&Value::Null)))
        .collect();
    let shown = all[..all.len().min(2)].join(", ");
    if all.len() > 2 { format!("{shown} + {} more...", all.len() - 2) } else { shown }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (source, named) = match spec.str_at("type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (spec.at(source).at("target"), status.at(source).at("current"));
    let unknown = || "<unknown>".to_owned();
    if named {
        let resource = spec.at(source).str_at("name");
        return match format::plain(target.at("averageValue")) {
            Some(wanted) => {
                format!(
                    "{resource}: {}/{wanted}",
                    format::plain(current.at("averageValue")).unwrap_or_else(unknown)
                )
            }
            None => {
                let percent = |v: &Value, otherwise: &str| {
                    v.int_opt("averageUtilization").map_or_else(|| otherwise.to_owned(), |n| format!("{n}%"))
                };
                format!("{resource}: {}/{}", percent(current, "<unknown>"), percent(target, "<auto>"))
            }
        };
    }
    match format::plain(target.at("averageValue")) {
        Some(wanted) => {
            let now = format::plain(current.at("averageValue")).unwrap_or_else(unknown);
            let average = if source == "pods" { "" } else { " (avg)" };
            format!("{now}/{wanted}{average}")
        }
        None => {
            let now = format::plain(current.at("value")).unwrap_or_else(unknown);
            format!("{now}/{}", format::quantity(target.at("value")))
        }
    }
}

/// `PodDisruptionBudget`
pub const POD_DISRUPTION_BUDGET: Printer = Printer {
    columns: &[
        NAME,
        text("Min Available", "The minimum number of pods that must be available."),
        text("Max Unavailable", "The maximum number of pods that may be unavailable."),
        integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
        AGE,
    ],
    row: |o, now_s| {
        let or_na = |path: &str| format::plain(o.at(path)).unwrap_or_else(|| "N/A".to_owned());
        cells![
            name(o),
            or_na("spec.minAvailable"),
            or_na("spec.maxUnavailable"),
            o.int_at("status.disruptionsAllowed"),
            age(o, now_s),
        ]
    },
};

/// `PriorityClass`
pub const PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        integer("Value", "The priority."),
        boolean("Global-Default", "Whether pods without a class get this one."),
        AGE,
        text("PreemptionPolicy", "Whether pods of the class may preempt others."),
    ],
    row: |o, now_s| {
        cells![
            name(o),
            o.int_at("value"),
            o.bool_at("globalDefault"),
            age(o, now_s),
            o.str_at("preemptionPolicy"),
        ]
    },
};

/// `PodGroup`
pub const POD_GROUP: Printer = Printer {
    columns: &[
        NAME,
        text("Policy", "How the pods are scheduled together."),
        text("Workload", "Name of the referenced Workload object"),
        text("Status", "Status of the PodGroup"),
        AGE,
    ],
    row: |o, now_s| {
        let condition = |kind: &str| conditions::find(o.items("status.conditions"), kind);
        let status = match (condition("DisruptionTarget"), condition("PodGroupScheduled")) {
            (Some(c), _) => c.str_at("reason"),
            (None, Some(c)) if c.str_at("status") == "True" => "Scheduled",
            (None, Some(_)) => "Unschedulable",
            (None, None) => "Pending",
        };
        cells![
            name(o),
            if o.has("spec.schedulingPolicy.gang") { "Gang" } else { "Basic" },
            o.str_opt("spec.podGroupTemplateRef.workload.workloadName").unwrap_or("<none>"),
            status,
            age(o, now_s),
        ]
    },
};

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: Printer = Printer {
    columns: &[
        NAME,
        text("Key", "Key of the taint."),
        text("Value", "Value of the taint."),
        text("Effect", "Effect of the taint."),
        text("TimeAdded", "Time since the taint was added."),
        AGE,
    ],
    row: |o, now_s| {
        let taint = o.at("spec.taint");
        let added = taint.str_at("timeAdded");
        cells![
            name(o),
            taint.str_at("key"),
            taint.str_at("value"),
            taint.str_at("effect"),
            if added.is_empty() { String::new() } else { format::since(added, now_s) },
            age(o, now_s),
        ]
    },
};

/// `ResourceClaim`
pub const RESOURCE_CLAIM: Printer = Printer {
    columns: &[
        NAME,
        text("State", "A summary of the current state (allocated, pending, reserved, etc.)."),
        AGE,
    ],
    row: |o, now_s| {
        let deleted = o.has("metadata.deletionTimestamp");
        let allocated = o.has("status.allocation");
        let states: Vec<&str> = [
            (deleted, "deleted"),
            (!allocated && !deleted, "pending"),
            (allocated, "allocated"),
            (allocated && o.is_set("status.reservedFor"), "reserved"),
        ]
        .into_iter()
        .filter_map(|(holds, state)| holds.then_some(state))
        .collect();
        cells![name(o), states.join(","), age(o, now_s)]
    },
};

/// `ResourceSlice`
pub const RESOURCE_SLICE: Printer = Printer {
    columns: &[
        NAME,
        text("Node", "Node that has the devices."),
        text("Driver", "Driver of the devices."),
        text("Pool", "Pool the devices belong to."),
        AGE,
    ],
    row: |o, now_s| {
        cells![
            name(o),
            o.str_at("spec.nodeName"),
            o.str_at("spec.driver"),
            o.str_at("spec.pool.name"),
            age(o, now_s),
        ]
    },
};

/// `ResourcePoolStatusRequest`
pub const RESOURCE_POOL_STATUS_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        text("Driver", "The driver to query pools for."),
        text("Total", "Total number of devices across all pools."),
        text("Available", "Number of available devices across all pools."),
        text("Allocated", "Number of allocated devices across all pools."),
        text("Unavailable", "Number of unavailable devices across all pools."),
        text("Errors", "Number of pools with validation errors."),
        integer("Pools", "Total number of matching pools."),
        text("Status", "Processing status."),
        text("Completed", "Time since the observation completed."),
    ],
    row: pool_status,
};

fn pool_status(o: &Value, now_s: i64) -> Vec<Value> {
    let pools = o.items("status.pools");
    let decisive = o
        .items("status.conditions")
        .iter()
        .find(|c| matches!(c.str_at("type"), "Complete" | "Failed") && c.str_at("status") == "True");
    let outcome = decisive.map_or("Pending", |c| c.str_at("type"));
    let pool_count = o.int_at("status.poolCount");
    let counted = o.has("status") && outcome != "Failed";
    let sum = |field: &str| {
        if counted { pools.iter().map(|p| p.int_at(field)).sum::<i64>().to_string() } else { "-".to_owned() }
    };
    let errors = if counted {
        pools.iter().filter(|p| p.has("validationError")).count().to_string()
    } else {
        "-".to_owned()
    };
    let status = if outcome == "Complete" && pool_count > pools.len() as i64 {
        format!("Complete ({}/{pool_count} pools)", pools.len())
    } else {
        outcome.to_owned()
    };
    let completed = decisive
        .filter(|c| c.str_at("type") == "Complete")
        .map_or_else(|| "<none>".to_owned(), |c| format::since(c.str_at("lastTransitionTime"), now_s));
    cells![
        name(o),
        o.str_at("spec.driver"),
        sum("totalDevices"),
        sum("availableDevices"),
        sum("allocatedDevices"),
        sum("unavailableDevices"),
        errors,
        pool_count,
        status,
        completed,
    ]
}

/// `Scale`, as which a workload is shown by its subresource.
pub const SCALE: Printer = Printer {
    columns: &[
        NAME,
        integer("Desired", "Number of replicas there should be."),
        integer("Available", "Number of replicas there are."),
        AGE,
    ],
    row: |o, now_s| cells![name(o), o.int_at("spec.replicas"), o.int_at("status.replicas"), age(o, now_s)],
};
