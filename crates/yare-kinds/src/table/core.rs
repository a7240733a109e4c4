//! Rows of the core group (and `events.k8s.io`, the other face of core's events).

use super::{ALL, CREATE, PROXY, Resource, SCALE, STATUS, V1, WRITE_STATUS, cluster, namespaced, sub};
use crate::{printers, selectors, strategy::core};

const CONNECT: &[&str] = &["create", "get"];

pub(super) const ROWS: &[Resource] = &[
    namespaced("", V1, "Binding", "bindings", "binding").verbs(CREATE).does(core::BINDING),
    cluster("", V1, "ComponentStatus", "componentstatuses", "componentstatus")
        .short(&["cs"])
        .verbs(&["get", "list"])
        .print(printers::COMPONENT_STATUS)
        .does(core::COMPONENT_STATUS),
    namespaced("", V1, "ConfigMap", "configmaps", "configmap")
        .short(&["cm"])
        .print(printers::CONFIG_MAP)
        .does(core::CONFIG_MAP),
    namespaced("", V1, "Endpoints", "endpoints", "endpoints")
        .short(&["ep"])
        .print(printers::ENDPOINTS)
        .does(core::ENDPOINTS),
    namespaced("", V1, "Event", "events", "event")
        .short(&["ev"])
        .print(printers::EVENT)
        .select(selectors::EVENT)
        .does(core::EVENT),
    namespaced("", V1, "LimitRange", "limitranges", "limitrange").short(&["limits"]).does(core::LIMIT_RANGE),
    cluster("", V1, "Namespace", "namespaces", "namespace")
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .sub(&[sub("finalize", &["update"]), STATUS])
        .print(printers::NAMESPACE)
        .select(selectors::NAMESPACE)
        .does(core::NAMESPACE),
    cluster("", V1, "Node", "nodes", "node")
        .short(&["no"])
        .sub(&[sub("proxy", PROXY).of("", "v1", "NodeProxyOptions"), STATUS])
        .print(printers::NODE)
        .select(selectors::NODE)
        .does(core::NODE),
    namespaced("", V1, "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
        .sub(&[STATUS])
        .print(printers::PERSISTENT_VOLUME_CLAIM)
        .does(core::PERSISTENT_VOLUME_CLAIM),
    cluster("", V1, "PersistentVolume", "persistentvolumes", "persistentvolume")
        .short(&["pv"])
        .sub(&[STATUS])
        .print(printers::PERSISTENT_VOLUME)
        .does(core::PERSISTENT_VOLUME),
    namespaced("", V1, "Pod", "pods", "pod")
        .short(&["po"])
        .in_category(ALL)
        .sub(&[
            sub("attach", CONNECT).of("", "v1", "PodAttachOptions"),
            sub("binding", CREATE).of("", "v1", "Binding"),
            sub("ephemeralcontainers", WRITE_STATUS),
            sub("eviction", CREATE).of("policy", "v1", "Eviction"),
            sub("exec", CONNECT).of("", "v1", "PodExecOptions"),
            sub("log", &["get"]),
            sub("portforward", CONNECT).of("", "v1", "PodPortForwardOptions"),
            sub("proxy", PROXY).of("", "v1", "PodProxyOptions"),
            sub("resize", WRITE_STATUS),
            STATUS,
        ])
        .print(printers::POD)
        .select(selectors::POD)
        .does(core::POD),
    namespaced("", V1, "PodTemplate", "podtemplates", "podtemplate")
        .print(printers::POD_TEMPLATE)
        .does(core::POD_TEMPLATE),
    namespaced("", V1, "ReplicationController", "replicationcontrollers", "replicationcontroller")
        .short(&["rc"])
        .in_category(ALL)
        .sub(&[SCALE, STATUS])
        .print(printers::REPLICATION_CONTROLLER)
        .select(selectors::REPLICATION_CONTROLLER)
        .does(core::REPLICATION_CONTROLLER),
    namespaced("", V1, "ResourceQuota", "resourcequotas", "resourcequota")
        .short(&["quota"])
        .sub(&[STATUS])
        .print(printers::RESOURCE_QUOTA)
        .does(core::RESOURCE_QUOTA),
    namespaced("", V1, "Secret", "secrets", "secret")
        .print(printers::SECRET)
        .select(selectors::SECRET)
        .does(core::SECRET),
    namespaced("", V1, "ServiceAccount", "serviceaccounts", "serviceaccount")
        .short(&["sa"])
        .sub(&[sub("token", CREATE).of("authentication.k8s.io", "v1", "TokenRequest")])
        .print(printers::NAME_AND_AGE)
        .does(core::SERVICE_ACCOUNT),
    namespaced("", V1, "Service", "services", "service")
        .short(&["svc"])
        .in_category(ALL)
        .sub(&[sub("proxy", PROXY).of("", "v1", "ServiceProxyOptions"), STATUS])
        .print(printers::SERVICE)
        .select(selectors::SERVICE)
        .does(core::SERVICE),
    namespaced("events.k8s.io", V1, "Event", "events", "event")
        .short(&["ev"])
        .print(printers::EVENT)
        .select(selectors::EVENT)
        .does(core::NEW_EVENT)
        .stored_as("", "events"),
];
