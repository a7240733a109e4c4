//! Rows of what runs and scales workloads: `apps`, `batch`, `autoscaling`, `policy`, `scheduling.k8s.io`,
//! `resource.k8s.io`.

use super::{
    ALL, Resource, SCALE, STATUS, V1, Version, cluster, namespaced, off, off_stored, served, stored,
};
use crate::{
    printers, selectors,
    strategy::{apps, autoscaling, batch, policy, resource, scheduling},
};

const RESOURCE: &str = "resource.k8s.io";
const RESOURCE_VERSIONS: &[Version] = &[stored("v1").since(34), off("v1beta2"), off("v1beta1")];
const SCHEDULING: &str = "scheduling.k8s.io";

pub(super) const ROWS: &[Resource] = &[
    namespaced("apps", V1, "ControllerRevision", "controllerrevisions", "controllerrevision")
        .print(printers::CONTROLLER_REVISION)
        .does(apps::CONTROLLER_REVISION),
    namespaced("apps", V1, "DaemonSet", "daemonsets", "daemonset")
        .short(&["ds"])
        .in_category(ALL)
        .sub(&[STATUS])
        .print(printers::DAEMON_SET)
        .does(apps::DAEMON_SET),
    namespaced("apps", V1, "Deployment", "deployments", "deployment")
        .short(&["deploy"])
        .in_category(ALL)
        .sub(&[SCALE, STATUS])
        .print(printers::DEPLOYMENT)
        .does(apps::DEPLOYMENT),
    namespaced("apps", V1, "ReplicaSet", "replicasets", "replicaset")
        .short(&["rs"])
        .in_category(ALL)
        .sub(&[SCALE, STATUS])
        .print(printers::REPLICA_SET)
        .does(apps::REPLICA_SET),
    namespaced("apps", V1, "StatefulSet", "statefulsets", "statefulset")
        .short(&["sts"])
        .in_category(ALL)
        .sub(&[SCALE, STATUS])
        .print(printers::STATEFUL_SET)
        .does(apps::STATEFUL_SET),
    namespaced("batch", V1, "CronJob", "cronjobs", "cronjob")
        .short(&["cj"])
        .in_category(ALL)
        .sub(&[STATUS])
        .print(printers::CRON_JOB)
        .does(batch::CRON_JOB),
    namespaced("batch", V1, "Job", "jobs", "job")
        .in_category(ALL)
        .sub(&[STATUS])
        .print(printers::JOB)
        .select(selectors::JOB)
        .does(batch::JOB),
    namespaced(
        "autoscaling",
        &[stored("v2"), served("v1")],
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
    )
    .short(&["hpa"])
    .in_category(ALL)
    .sub(&[STATUS])
    .print(printers::HORIZONTAL_POD_AUTOSCALER)
    .does(autoscaling::HORIZONTAL_POD_AUTOSCALER),
    namespaced("policy", V1, "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget")
        .short(&["pdb"])
        .sub(&[STATUS])
        .print(printers::POD_DISRUPTION_BUDGET)
        .does(policy::POD_DISRUPTION_BUDGET),
    cluster(SCHEDULING, V1, "PriorityClass", "priorityclasses", "priorityclass")
        .short(&["pc"])
        .print(printers::PRIORITY_CLASS)
        .does(scheduling::PRIORITY_CLASS),
    namespaced(SCHEDULING, &[off_stored("v1alpha2")], "PodGroup", "podgroups", "podgroup")
        .sub(&[STATUS])
        .print(printers::POD_GROUP)
        .does(scheduling::POD_GROUP)
        .gated("GenericWorkload"),
    namespaced(SCHEDULING, &[off_stored("v1alpha2")], "Workload", "workloads", "workload")
        .print(printers::NAME_AND_AGE)
        .does(scheduling::WORKLOAD)
        .gated("GenericWorkload"),
    cluster(RESOURCE, RESOURCE_VERSIONS, "DeviceClass", "deviceclasses", "deviceclass")
        .print(printers::NAME_AND_AGE)
        .does(resource::DEVICE_CLASS),
    cluster(
        RESOURCE,
        &[off("v1beta2").since(36), off_stored("v1alpha3")],
        "DeviceTaintRule",
        "devicetaintrules",
        "devicetaintrule",
    )
    .sub(&[STATUS])
    .print(printers::DEVICE_TAINT_RULE)
    .does(resource::DEVICE_TAINT_RULE),
    namespaced(RESOURCE, RESOURCE_VERSIONS, "ResourceClaim", "resourceclaims", "resourceclaim")
        .sub(&[STATUS])
        .print(printers::RESOURCE_CLAIM)
        .does(resource::RESOURCE_CLAIM),
    namespaced(
        RESOURCE,
        RESOURCE_VERSIONS,
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
    )
    .print(printers::NAME_AND_AGE)
    .does(resource::RESOURCE_CLAIM_TEMPLATE),
    cluster(
        RESOURCE,
        &[off_stored("v1alpha3").since(36)],
        "ResourcePoolStatusRequest",
        "resourcepoolstatusrequests",
        "resourcepoolstatusrequest",
    )
    .sub(&[STATUS])
    .print(printers::RESOURCE_POOL_STATUS_REQUEST)
    .does(resource::RESOURCE_POOL_STATUS_REQUEST),
    cluster(RESOURCE, RESOURCE_VERSIONS, "ResourceSlice", "resourceslices", "resourceslice")
        .print(printers::RESOURCE_SLICE)
        .select(selectors::RESOURCE_SLICE)
        .does(resource::RESOURCE_SLICE),
];
