//! The table of controllers: what there is, what each watches, and how an event becomes a key.

use std::sync::Arc;

use yare_client::{
    CONFIG_MAPS, DEPLOYMENTS, ENDPOINT_SLICES, ENDPOINTS, JOBS, NAMESPACES, NODES, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS,
    SERVICE_ACCOUNTS, SERVICES,
};

use crate::{
    context::Context,
    deployment, endpoints, endpointslice, garbage,
    harness::{
        Keys::{ControllerOrSelector, Own, With},
        Reconcile, Watch,
    },
    job, namespace, node_ipam, node_lifecycle, podgc, replicaset, root_ca, service_pods, serviceaccount, taint_eviction,
};

/// One controller.
pub struct Row {
    /// Upstream's name, by which it is disabled and which its events carry.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub description: &'static str,
    /// What it watches.
    pub watches: &'static [Watch],
    /// Makes it.
    pub make: fn(&Context) -> Arc<dyn Reconcile>,
    /// Keys it works on at the same time.
    pub workers: usize,
}

const fn watch(resource: yare_client::Resource, keys: crate::harness::Keys) -> Watch {
    Watch { resource, keys }
}

/// For what a controller reads but is not woken by: the cache has to be complete before it starts.
fn none(_: &Context, _: &yare_client::Change, _: &mut dyn FnMut(yare_client::ObjectKey)) {}

/// All controllers, in alphabetical order.
pub const CONTROLLERS: &[Row] = &[
    Row {
        name: "deployment-controller",
        description: "Rolls new versions of a pod template out through ReplicaSets.",
        watches: &[
            watch(DEPLOYMENTS, Own),
            watch(REPLICA_SETS, ControllerOrSelector(DEPLOYMENTS)),
            watch(PODS, With(deployment::deleted_pod)),
        ],
        make: deployment::new,
        workers: 5,
    },
    Row {
        name: "endpoints-controller",
        description: "Keeps the addresses of the pods behind each Service in Endpoints.",
        watches: &[
            watch(SERVICES, Own),
            watch(PODS, With(service_pods::services_of_pod)),
            watch(ENDPOINTS, Own),
        ],
        make: endpoints::new,
        workers: 5,
    },
    Row {
        name: "endpointslice-controller",
        description: "Keeps the addresses of the pods behind each Service in EndpointSlices.",
        watches: &[
            watch(SERVICES, Own),
            watch(PODS, With(service_pods::services_of_pod)),
            watch(NODES, With(service_pods::services_of_node)),
            watch(ENDPOINT_SLICES, With(endpointslice::service_of_slice)),
        ],
        make: endpointslice::new,
        workers: 5,
    },
    Row {
        name: "garbage-collector-controller",
        description: "Deletes objects whose owners are gone; carries out foreground and orphaning deletions.",
        watches: &[],
        make: garbage::new,
        workers: 0,
    },
    Row {
        name: "job-controller",
        description: "Runs the pods of Jobs to completion.",
        watches: &[watch(JOBS, Own), watch(PODS, ControllerOrSelector(JOBS))],
        make: job::new,
        workers: 5,
    },
    Row {
        name: "namespace-controller",
        description: "Empties namespaces that are being deleted, then lets them go.",
        watches: &[
            watch(NAMESPACES, With(namespace::deleted_namespace)),
            watch(PODS, With(namespace::deleted_pod)),
        ],
        make: namespace::new,
        workers: 10,
    },
    Row {
        name: "node-ipam-controller",
        description: "Gives every node address ranges for its pods.",
        watches: &[watch(NODES, Own)],
        make: node_ipam::new,
        workers: 1,
    },
    Row {
        name: "node-lifecycle-controller",
        description: "Notices nodes that fall silent, and turns conditions into taints.",
        watches: &[watch(NODES, Own), watch(PODS, With(none))],
        make: node_lifecycle::new,
        workers: 4,
    },
    Row {
        name: "pod-garbage-collector-controller",
        description: "Removes pods that nobody else will: of lost nodes, never scheduled, or too many finished.",
        watches: &[watch(PODS, With(podgc::changed_pod)), watch(NODES, With(podgc::changed_node))],
        make: podgc::new,
        workers: 2,
    },
    Row {
        name: "replicaset-controller",
        description: "Keeps as many pods of each ReplicaSet as it asks for.",
        watches: &[watch(REPLICA_SETS, Own), watch(PODS, ControllerOrSelector(REPLICA_SETS))],
        make: replicaset::replica_sets,
        workers: 5,
    },
    Row {
        name: "replicationcontroller-controller",
        description: "Keeps as many pods of each ReplicationController as it asks for.",
        watches: &[
            watch(REPLICATION_CONTROLLERS, Own),
            watch(PODS, ControllerOrSelector(REPLICATION_CONTROLLERS)),
        ],
        make: replicaset::replication_controllers,
        workers: 5,
    },
    Row {
        name: "root-ca-certificate-publisher-controller",
        description: "Publishes the API server's certificate authority in every namespace.",
        watches: &[watch(NAMESPACES, Own), watch(CONFIG_MAPS, With(root_ca::changed_map))],
        make: root_ca::new,
        workers: 1,
    },
    Row {
        name: "serviceaccount-controller",
        description: "Gives every namespace its default ServiceAccount.",
        watches: &[watch(NAMESPACES, Own), watch(SERVICE_ACCOUNTS, With(serviceaccount::deleted_account))],
        make: serviceaccount::new,
        workers: 1,
    },
    Row {
        name: "taint-eviction-controller",
        description: "Evicts pods that do not tolerate a NoExecute taint of their node.",
        watches: &[
            watch(PODS, With(taint_eviction::changed_pod)),
            watch(NODES, With(taint_eviction::changed_node)),
        ],
        make: taint_eviction::new,
        workers: 4,
    },
];
