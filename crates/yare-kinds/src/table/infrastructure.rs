//! Rows of what workloads stand on: `networking.k8s.io`, `discovery.k8s.io`, `storage.k8s.io`, `node.k8s.io`,
//! `coordination.k8s.io`.

use super::{Resource, STATUS, V1, Version, cluster, namespaced, off, off_stored, stored};
use crate::{
    printers,
    strategy::{coordination, discovery, networking, node, storage},
};

const NETWORKING: &str = "networking.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const COORDINATION: &str = "coordination.k8s.io";
const V1_AND_BETA: &[Version] = &[stored("v1"), off("v1beta1")];

pub(super) const ROWS: &[Resource] = &[
    cluster(NETWORKING, V1, "IngressClass", "ingressclasses", "ingressclass")
        .print(printers::INGRESS_CLASS)
        .does(networking::INGRESS_CLASS),
    namespaced(NETWORKING, V1, "Ingress", "ingresses", "ingress")
        .short(&["ing"])
        .sub(&[STATUS])
        .print(printers::INGRESS)
        .does(networking::INGRESS),
    cluster(NETWORKING, V1_AND_BETA, "IPAddress", "ipaddresses", "ipaddress")
        .short(&["ip"])
        .print(printers::IP_ADDRESS)
        .does(networking::IP_ADDRESS),
    namespaced(NETWORKING, V1, "NetworkPolicy", "networkpolicies", "networkpolicy")
        .short(&["netpol"])
        .print(printers::NETWORK_POLICY)
        .does(networking::NETWORK_POLICY),
    cluster(NETWORKING, V1_AND_BETA, "ServiceCIDR", "servicecidrs", "servicecidr")
        .sub(&[STATUS])
        .print(printers::SERVICE_CIDR)
        .does(networking::SERVICE_CIDR),
    namespaced("discovery.k8s.io", V1, "EndpointSlice", "endpointslices", "endpointslice")
        .print(printers::ENDPOINT_SLICE)
        .does(discovery::ENDPOINT_SLICE),
    cluster(STORAGE, V1, "CSIDriver", "csidrivers", "csidriver")
        .print(printers::CSI_DRIVER)
        .does(storage::CSI_DRIVER),
    cluster(STORAGE, V1, "CSINode", "csinodes", "csinode").print(printers::CSI_NODE).does(storage::CSI_NODE),
    namespaced(STORAGE, V1, "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity")
        .print(printers::CSI_STORAGE_CAPACITY)
        .does(storage::CSI_STORAGE_CAPACITY),
    cluster(STORAGE, V1, "StorageClass", "storageclasses", "storageclass")
        .short(&["sc"])
        .print(printers::STORAGE_CLASS)
        .does(storage::STORAGE_CLASS),
    cluster(STORAGE, V1, "VolumeAttachment", "volumeattachments", "volumeattachment")
        .sub(&[STATUS])
        .print(printers::VOLUME_ATTACHMENT)
        .does(storage::VOLUME_ATTACHMENT),
    cluster(
        STORAGE,
        &[stored("v1").since(34), off("v1beta1")],
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
    )
    .short(&["vac"])
    .print(printers::VOLUME_ATTRIBUTES_CLASS)
    .does(storage::VOLUME_ATTRIBUTES_CLASS),
    cluster("node.k8s.io", V1, "RuntimeClass", "runtimeclasses", "runtimeclass")
        .print(printers::RUNTIME_CLASS)
        .does(node::RUNTIME_CLASS),
    namespaced(COORDINATION, V1, "Lease", "leases", "lease").print(printers::LEASE).does(coordination::LEASE),
    namespaced(
        COORDINATION,
        &[off_stored("v1beta1"), off("v1alpha2")],
        "LeaseCandidate",
        "leasecandidates",
        "leasecandidate",
    )
    .print(printers::LEASE_CANDIDATE)
    .does(coordination::LEASE_CANDIDATE),
];
