//! The table of controllers: what there is, what each watches, and how an event becomes a key.

use std::sync::Arc;

use yare_client::{
    CERTIFICATE_SIGNING_REQUESTS, CLUSTER_ROLES, CONFIG_MAPS, CONTROLLER_REVISIONS, CRON_JOBS, CSI_DRIVERS,
    DAEMON_SETS, DEPLOYMENTS, DEVICE_TAINT_RULES, ENDPOINT_SLICES, ENDPOINTS, IP_ADDRESSES, JOBS, LEASES,
    NAMESPACES, NODES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, POD_CERTIFICATE_REQUESTS,
    POD_DISRUPTION_BUDGETS, POD_GROUPS, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS,
    RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, RESOURCE_QUOTAS, RESOURCE_SLICES, SECRETS, SERVICE_ACCOUNTS,
    SERVICE_CIDRS, SERVICES, STATEFUL_SETS, STORAGE_CLASSES, STORAGE_VERSION_MIGRATIONS, STORAGE_VERSIONS,
    VALIDATING_ADMISSION_POLICIES, VOLUME_ATTACHMENTS, VOLUME_ATTRIBUTES_CLASSES, WORKLOADS,
};

use crate::{
    attach_detach, attributes_class_protection, bootstrap_signer, certificates, clusterrole_aggregation,
    context::Context,
    cronjob, daemonset, deployment, device_taint_eviction, disruption, endpoints, endpointslice,
    endpointslice_mirroring, ephemeral_volume, garbage,
    harness::{
        Keys::{Controller, ControllerOrSelector, Own, With},
        Reconcile, Watch,
    },
    job, legacy_tokens, local_path, namespace, node_ipam, node_lifecycle, pod_certificates,
    pod_group_protection, podgc, policy_status, replicaset, resource_claim, resourcequota, root_ca,
    service_account_tokens, service_cidr, service_pods, serviceaccount, statefulset, storage_migration,
    storage_version_gc, taint_eviction, token_cleaner, trust_bundle, ttl_after_finished, volume_binder,
    volume_expand, volume_protection,
};

/// One controller.
pub struct Row {
    /// Upstream's name, by which it is disabled and which its events carry.
    pub name: &'static str,
    /// The service account in `kube-system` whose role says what it may write; empty: it writes as the
    /// controller manager itself.
    pub account: &'static str,
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
    Watch { resource, keys, gate: None }
}

/// What is watched only where a feature is on.
const fn watch_if(gate: &'static str, resource: yare_client::Resource, keys: crate::harness::Keys) -> Watch {
    Watch { resource, keys, gate: Some(gate) }
}

/// For what a controller reads but is not woken by: the cache has to be complete before it starts.
fn none(_: &Context, _: &yare_client::Change, _: &mut dyn FnMut(yare_client::ObjectKey)) {}

/// Controllers that run only where a feature is on, and its gate.
pub const GATED: &[(&str, &str)] = &[
    ("device-taint-eviction-controller", "DRADeviceTaints"),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", "ClusterTrustBundle"),
    ("podcertificaterequest-cleaner-controller", "PodCertificateRequest"),
    ("podgroup-protection-controller", pod_group_protection::GATE),
    ("resourceclaim-controller", "DynamicResourceAllocation"),
    ("storage-version-migrator-controller", "StorageVersionMigrator"),
    ("storageversion-garbage-collector-controller", "StorageVersionAPI"),
    ("volumeattributesclass-protection-controller", "VolumeAttributesClass"),
];

/// All controllers, in alphabetical order.
pub const CONTROLLERS: &[Row] = &[
    Row {
        name: "bootstrap-signer-controller",
        account: "bootstrap-signer",
        description: "Signs what kube-public says of the cluster with bootstrap tokens.",
        watches: &[
            watch(CONFIG_MAPS, With(bootstrap_signer::changed_map)),
            watch(SECRETS, With(bootstrap_signer::changed_token)),
        ],
        make: bootstrap_signer::new,
        workers: 1,
    },
    Row {
        name: "certificatesigningrequest-approving-controller",
        account: "certificate-controller",
        description: "Approves kubelets' requests for client certificates.",
        watches: &[watch(CERTIFICATE_SIGNING_REQUESTS, Own)],
        make: certificates::approver::new,
        workers: 5,
    },
    Row {
        name: "certificatesigningrequest-cleaner-controller",
        account: "certificate-controller",
        description: "Removes requests for certificates some time after their end.",
        watches: &[watch(CERTIFICATE_SIGNING_REQUESTS, Own)],
        make: certificates::cleaner::new,
        workers: 1,
    },
    Row {
        name: "certificatesigningrequest-signing-controller",
        account: "certificate-controller",
        description: "Signs approved requests for certificates with the cluster's authority.",
        watches: &[watch(CERTIFICATE_SIGNING_REQUESTS, Own)],
        make: certificates::signer::new,
        workers: 5,
    },
    Row {
        name: "clusterrole-aggregation-controller",
        account: "clusterrole-aggregation-controller",
        description: "Fills ClusterRoles that aggregate with the rules of others.",
        watches: &[watch(CLUSTER_ROLES, With(clusterrole_aggregation::changed_role))],
        make: clusterrole_aggregation::new,
        workers: 1,
    },
    Row {
        name: "cronjob-controller",
        account: "cronjob-controller",
        description: "Makes Jobs on a schedule.",
        watches: &[watch(CRON_JOBS, Own), watch(JOBS, Controller(CRON_JOBS))],
        make: cronjob::new,
        workers: 2,
    },
    Row {
        name: "daemonset-controller",
        account: "daemon-set-controller",
        description: "Runs one pod of each DaemonSet on every node that fits.",
        watches: &[
            watch(DAEMON_SETS, Own),
            watch(PODS, ControllerOrSelector(DAEMON_SETS)),
            watch(NODES, With(daemonset::changed_node)),
            watch(CONTROLLER_REVISIONS, Controller(DAEMON_SETS)),
        ],
        make: daemonset::new,
        workers: 2,
    },
    Row {
        name: "deployment-controller",
        account: "deployment-controller",
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
        name: "device-taint-eviction-controller",
        account: "device-taint-eviction-controller",
        description: "Evicts pods that do not tolerate a NoExecute taint of one of their devices.",
        watches: &[
            watch(PODS, With(device_taint_eviction::changed_pod)),
            watch(RESOURCE_CLAIMS, With(device_taint_eviction::changed_claim)),
            watch(RESOURCE_SLICES, With(device_taint_eviction::changed_slice)),
            watch_if(
                device_taint_eviction::RULES_GATE,
                DEVICE_TAINT_RULES,
                With(device_taint_eviction::changed_rule),
            ),
        ],
        make: device_taint_eviction::new,
        workers: 4,
    },
    Row {
        name: "disruption-controller",
        account: "disruption-controller",
        description: "Computes how many pods PodDisruptionBudgets allow to be evicted.",
        watches: &[
            watch(POD_DISRUPTION_BUDGETS, Own),
            watch(PODS, With(disruption::budgets_of_pod)),
            watch(DEPLOYMENTS, With(disruption::resized)),
            watch(REPLICA_SETS, With(disruption::resized)),
            watch(REPLICATION_CONTROLLERS, With(disruption::resized)),
            watch(STATEFUL_SETS, With(disruption::resized)),
        ],
        make: disruption::new,
        workers: 2,
    },
    Row {
        name: "endpoints-controller",
        account: "endpoint-controller",
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
        account: "endpointslice-controller",
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
        name: "endpointslice-mirroring-controller",
        account: "endpointslicemirroring-controller",
        description: "Mirrors Endpoints written by hand into EndpointSlices.",
        watches: &[
            watch(ENDPOINTS, Own),
            watch(SERVICES, Own),
            watch(ENDPOINT_SLICES, With(endpointslice_mirroring::of_slice)),
        ],
        make: endpointslice_mirroring::new,
        workers: 2,
    },
    Row {
        name: "ephemeral-volume-controller",
        account: "ephemeral-volume-controller",
        description: "Makes the claims of pods' generic ephemeral volumes.",
        watches: &[
            watch(PODS, With(ephemeral_volume::changed_pod)),
            watch(PERSISTENT_VOLUME_CLAIMS, Controller(PODS)),
        ],
        make: ephemeral_volume::new,
        workers: 2,
    },
    Row {
        name: "garbage-collector-controller",
        account: "generic-garbage-collector",
        description: "Deletes objects whose owners are gone; carries out foreground and orphaning deletions.",
        watches: &[],
        make: garbage::new,
        workers: 0,
    },
    Row {
        name: "job-controller",
        account: "job-controller",
        description: "Runs the pods of Jobs to completion.",
        watches: &[
            watch(JOBS, Own),
            watch(PODS, ControllerOrSelector(JOBS)),
            watch(PODS, With(job::stray_pod)),
            watch_if(job::workload::GATE, WORKLOADS, With(none)),
            watch_if(job::workload::GATE, POD_GROUPS, With(none)),
        ],
        make: job::new,
        workers: 5,
    },
    Row {
        name: "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        account: "kube-apiserver-serving-clustertrustbundle-publisher",
        description: "Publishes the API server's certificate authority as a ClusterTrustBundle.",
        // Which version there is it finds out itself.
        watches: &[],
        make: trust_bundle::new,
        workers: 1,
    },
    Row {
        name: "legacy-serviceaccount-token-cleaner-controller",
        account: "legacy-service-account-token-cleaner",
        description: "Marks and removes old tokens of service accounts that nobody uses.",
        watches: &[
            watch(SECRETS, With(legacy_tokens::changed)),
            watch(SERVICE_ACCOUNTS, With(none)),
            watch(PODS, With(none)),
        ],
        make: legacy_tokens::new,
        workers: 1,
    },
    Row {
        name: "local-path-provisioner-controller",
        account: "local-path-provisioner",
        description: "Makes volumes of yare.io/local-path, directories on the node of their first user.",
        watches: &[
            watch(PERSISTENT_VOLUME_CLAIMS, With(local_path::changed_claim)),
            watch(PERSISTENT_VOLUMES, With(local_path::changed_volume)),
            watch(STORAGE_CLASSES, With(none)),
            watch(NODES, With(local_path::changed_node)),
        ],
        make: local_path::new,
        workers: 4,
    },
    Row {
        name: "namespace-controller",
        account: "namespace-controller",
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
        account: "node-controller",
        description: "Gives every node address ranges for its pods.",
        watches: &[watch(NODES, Own)],
        make: node_ipam::new,
        workers: 1,
    },
    Row {
        name: "node-lifecycle-controller",
        account: "node-controller",
        description: "Notices nodes that fall silent, and turns conditions into taints.",
        watches: &[watch(NODES, Own), watch(PODS, With(none))],
        make: node_lifecycle::new,
        workers: 4,
    },
    Row {
        name: "persistentvolume-attach-detach-controller",
        account: "attachdetach-controller",
        description: "Attaches CSI volumes to the nodes of the pods that use them.",
        watches: &[
            watch(PODS, With(attach_detach::changed_pod)),
            watch(PERSISTENT_VOLUME_CLAIMS, With(attach_detach::changed_claim)),
            watch(PERSISTENT_VOLUMES, Own),
            watch(NODES, With(attach_detach::changed_node)),
            watch(CSI_DRIVERS, With(attach_detach::changed_driver)),
            watch(VOLUME_ATTACHMENTS, With(attach_detach::changed_attachment)),
        ],
        make: attach_detach::new,
        // One: what a node is told of its volumes is written as a whole.
        workers: 1,
    },
    Row {
        name: "persistentvolume-binder-controller",
        account: "persistent-volume-binder",
        description: "Binds PersistentVolumeClaims to PersistentVolumes.",
        watches: &[
            watch(PERSISTENT_VOLUME_CLAIMS, With(volume_binder::changed_claim)),
            watch(PERSISTENT_VOLUMES, With(volume_binder::changed_volume)),
            watch(STORAGE_CLASSES, With(volume_binder::changed_class)),
            watch(PODS, With(volume_binder::changed_pod)),
        ],
        make: volume_binder::new,
        // One: two claims must not take the same volume.
        workers: 1,
    },
    Row {
        name: "persistentvolume-expander-controller",
        account: "expand-controller",
        description: "Says of claims that ask for more room that a driver's resizer has to give it.",
        watches: &[
            watch(PERSISTENT_VOLUME_CLAIMS, With(volume_expand::changed_claim)),
            watch(PERSISTENT_VOLUMES, With(none)),
        ],
        make: volume_expand::new,
        workers: 2,
    },
    Row {
        name: "persistentvolume-protection-controller",
        account: "pv-protection-controller",
        description: "Keeps bound PersistentVolumes from being deleted.",
        watches: &[watch(PERSISTENT_VOLUMES, Own)],
        make: volume_protection::volumes,
        workers: 1,
    },
    Row {
        name: "persistentvolumeclaim-protection-controller",
        account: "pvc-protection-controller",
        description: "Keeps PersistentVolumeClaims that pods use from being deleted.",
        watches: &[watch(PERSISTENT_VOLUME_CLAIMS, Own), watch(PODS, With(volume_protection::changed_pod))],
        make: volume_protection::claims,
        workers: 1,
    },
    Row {
        name: "pod-garbage-collector-controller",
        account: "pod-garbage-collector",
        description: "Removes pods that nobody else will: of lost nodes, never scheduled, or too many finished.",
        watches: &[watch(PODS, With(podgc::changed_pod)), watch(NODES, With(podgc::changed_node))],
        make: podgc::new,
        workers: 2,
    },
    Row {
        name: "podcertificaterequest-cleaner-controller",
        account: "podcertificaterequestcleaner",
        description: "Removes old PodCertificateRequests.",
        watches: &[watch(POD_CERTIFICATE_REQUESTS, Own)],
        make: pod_certificates::new,
        workers: 1,
    },
    Row {
        name: "podgroup-protection-controller",
        account: "podgroup-protection-controller",
        description: "Keeps PodGroups that pods belong to from going.",
        watches: &[watch(POD_GROUPS, Own), watch(PODS, With(pod_group_protection::changed_pod))],
        make: pod_group_protection::new,
        workers: 1,
    },
    Row {
        name: "replicaset-controller",
        account: "replicaset-controller",
        description: "Keeps as many pods of each ReplicaSet as it asks for.",
        watches: &[watch(REPLICA_SETS, Own), watch(PODS, ControllerOrSelector(REPLICA_SETS))],
        make: replicaset::replica_sets,
        workers: 5,
    },
    Row {
        name: "replicationcontroller-controller",
        account: "replication-controller",
        description: "Keeps as many pods of each ReplicationController as it asks for.",
        watches: &[
            watch(REPLICATION_CONTROLLERS, Own),
            watch(PODS, ControllerOrSelector(REPLICATION_CONTROLLERS)),
        ],
        make: replicaset::replication_controllers,
        workers: 5,
    },
    Row {
        name: "resourceclaim-controller",
        account: "resource-claim-controller",
        description: "Makes pods' claims for devices from templates, and takes back what nobody uses.",
        watches: &[
            watch(PODS, With(resource_claim::changed_pod)),
            watch(RESOURCE_CLAIMS, With(resource_claim::changed_claim)),
            watch(RESOURCE_CLAIM_TEMPLATES, With(resource_claim::changed_template)),
        ],
        make: resource_claim::new,
        workers: 5,
    },
    Row {
        name: "resourcequota-controller",
        account: "resourcequota-controller",
        description: "Keeps the used amounts of ResourceQuotas true.",
        watches: &[
            watch(RESOURCE_QUOTAS, Own),
            watch(CONFIG_MAPS, With(resourcequota::counted)),
            watch(PERSISTENT_VOLUME_CLAIMS, With(resourcequota::counted)),
            watch(PODS, With(resourcequota::counted)),
            watch(REPLICATION_CONTROLLERS, With(resourcequota::counted)),
            watch(SECRETS, With(resourcequota::counted)),
            watch(SERVICES, With(resourcequota::counted)),
        ],
        make: resourcequota::new,
        workers: 5,
    },
    Row {
        name: "root-ca-certificate-publisher-controller",
        account: "root-ca-cert-publisher",
        description: "Publishes the API server's certificate authority in every namespace.",
        watches: &[watch(NAMESPACES, Own), watch(CONFIG_MAPS, With(root_ca::changed_map))],
        make: root_ca::new,
        workers: 1,
    },
    Row {
        name: "service-cidr-controller",
        account: "service-cidrs-controller",
        description: "Says of ranges of services' addresses that they are ready, and keeps those in use.",
        watches: &[
            watch(SERVICE_CIDRS, With(service_cidr::changed_range)),
            watch(IP_ADDRESSES, With(service_cidr::changed_address)),
        ],
        make: service_cidr::new,
        workers: 5,
    },
    Row {
        name: "serviceaccount-controller",
        account: "service-account-controller",
        description: "Gives every namespace its default ServiceAccount.",
        watches: &[watch(NAMESPACES, Own), watch(SERVICE_ACCOUNTS, With(serviceaccount::deleted_account))],
        make: serviceaccount::new,
        workers: 1,
    },
    Row {
        name: "serviceaccount-token-controller",
        account: "",
        description: "Fills Secrets of service accounts with tokens, and removes them with their account.",
        watches: &[
            watch(SERVICE_ACCOUNTS, With(service_account_tokens::deleted_account)),
            watch(SECRETS, With(service_account_tokens::changed_secret)),
        ],
        make: service_account_tokens::new,
        workers: 5,
    },
    Row {
        name: "statefulset-controller",
        account: "statefulset-controller",
        description: "Runs the pods of StatefulSets, each with its name, its place and its storage.",
        watches: &[
            watch(STATEFUL_SETS, Own),
            watch(PODS, ControllerOrSelector(STATEFUL_SETS)),
            watch(PERSISTENT_VOLUME_CLAIMS, With(none)),
            watch(CONTROLLER_REVISIONS, Controller(STATEFUL_SETS)),
        ],
        make: statefulset::new,
        workers: 5,
    },
    Row {
        name: "storage-version-migrator-controller",
        account: "storage-version-migrator-controller",
        description: "Writes the objects of a resource anew, so that they rest in its storage version.",
        watches: &[watch(STORAGE_VERSION_MIGRATIONS, With(storage_migration::changed))],
        make: storage_migration::new,
        workers: 5,
    },
    Row {
        name: "storageversion-garbage-collector-controller",
        account: "storage-version-garbage-collector",
        description: "Forgets in which versions API servers that are gone wrote objects.",
        watches: &[
            watch(STORAGE_VERSIONS, With(storage_version_gc::changed_version)),
            watch(LEASES, With(storage_version_gc::changed_lease)),
        ],
        make: storage_version_gc::new,
        workers: 1,
    },
    Row {
        name: "taint-eviction-controller",
        account: "node-controller",
        description: "Evicts pods that do not tolerate a NoExecute taint of their node.",
        watches: &[
            watch(PODS, With(taint_eviction::changed_pod)),
            watch(NODES, With(taint_eviction::changed_node)),
        ],
        make: taint_eviction::new,
        workers: 4,
    },
    Row {
        name: "token-cleaner-controller",
        account: "token-cleaner",
        description: "Removes bootstrap tokens whose time is over.",
        watches: &[watch(SECRETS, With(token_cleaner::changed))],
        make: token_cleaner::new,
        workers: 1,
    },
    Row {
        name: "ttl-after-finished-controller",
        account: "ttl-after-finished-controller",
        description: "Deletes finished Jobs when their time has passed.",
        watches: &[watch(JOBS, Own)],
        make: ttl_after_finished::new,
        workers: 1,
    },
    Row {
        name: "validatingadmissionpolicy-status-controller",
        account: "validatingadmissionpolicy-status-controller",
        description: "Checks the expressions of ValidatingAdmissionPolicies against the types they are about.",
        watches: &[watch(VALIDATING_ADMISSION_POLICIES, Own)],
        make: policy_status::new,
        workers: 2,
    },
    Row {
        name: "volumeattributesclass-protection-controller",
        account: "volumeattributesclass-protection-controller",
        description: "Keeps VolumeAttributesClasses that claims and volumes name from being deleted.",
        watches: &[
            watch(VOLUME_ATTRIBUTES_CLASSES, Own),
            watch(PERSISTENT_VOLUME_CLAIMS, With(attributes_class_protection::changed_user)),
            watch(PERSISTENT_VOLUMES, With(attributes_class_protection::changed_user)),
        ],
        make: attributes_class_protection::new,
        workers: 1,
    },
];
