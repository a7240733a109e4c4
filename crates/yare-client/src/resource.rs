//! Resources as clients address them, and the built-in ones by name.

use std::borrow::Cow;

use kube::core::{ApiResource, GroupVersionKind};

/// What to watch or write: the place of a kind in the API.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Resource {
    /// Empty for core.
    pub group: Cow<'static, str>,
    /// `v1`
    pub version: Cow<'static, str>,
    /// `deployments`
    pub plural: Cow<'static, str>,
    /// `Deployment`
    pub kind: Cow<'static, str>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// A resource known when the program is built.
    pub const fn fixed(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
        namespaced: bool,
    ) -> Self {
        Self {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            plural: Cow::Borrowed(plural),
            kind: Cow::Borrowed(kind),
            namespaced,
        }
    }

    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// For `kube::Api<DynamicObject>`.
    pub fn api_resource(&self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(&self.group, &self.version, &self.kind);
        ApiResource::from_gvk_with_plural(&gvk, &self.plural)
    }

    /// Path of the collection, in `namespace` or everywhere.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }
}

/// One constant per row: name, group, version, plural, kind, namespaced.
macro_rules! resources {
    ($($name:ident $group:literal $version:literal $plural:literal $kind:ident $namespaced:literal;)*) => {
        $(
            #[doc = concat!("`", stringify!($kind), "` in `", $group, "/", $version, "`.")]
            pub const $name: Resource = Resource::fixed($group, $version, $plural, stringify!($kind), $namespaced);
        )*
    };
}

resources! {
    CONFIG_MAPS                 "" "v1" "configmaps" ConfigMap true;
    ENDPOINTS                   "" "v1" "endpoints" Endpoints true;
    EVENTS                      "" "v1" "events" Event true;
    LIMIT_RANGES                "" "v1" "limitranges" LimitRange true;
    NAMESPACES                  "" "v1" "namespaces" Namespace false;
    NODES                       "" "v1" "nodes" Node false;
    PERSISTENT_VOLUMES          "" "v1" "persistentvolumes" PersistentVolume false;
    PERSISTENT_VOLUME_CLAIMS    "" "v1" "persistentvolumeclaims" PersistentVolumeClaim true;
    PODS                        "" "v1" "pods" Pod true;
    REPLICATION_CONTROLLERS     "" "v1" "replicationcontrollers" ReplicationController true;
    RESOURCE_QUOTAS             "" "v1" "resourcequotas" ResourceQuota true;
    SECRETS                     "" "v1" "secrets" Secret true;
    SERVICE_ACCOUNTS            "" "v1" "serviceaccounts" ServiceAccount true;
    SERVICES                    "" "v1" "services" Service true;
    CONTROLLER_REVISIONS        "apps" "v1" "controllerrevisions" ControllerRevision true;
    DAEMON_SETS                 "apps" "v1" "daemonsets" DaemonSet true;
    DEPLOYMENTS                 "apps" "v1" "deployments" Deployment true;
    REPLICA_SETS                "apps" "v1" "replicasets" ReplicaSet true;
    STATEFUL_SETS               "apps" "v1" "statefulsets" StatefulSet true;
    HORIZONTAL_POD_AUTOSCALERS  "autoscaling" "v2" "horizontalpodautoscalers" HorizontalPodAutoscaler true;
    CRON_JOBS                   "batch" "v1" "cronjobs" CronJob true;
    JOBS                        "batch" "v1" "jobs" Job true;
    CERTIFICATE_SIGNING_REQUESTS "certificates.k8s.io" "v1" "certificatesigningrequests" CertificateSigningRequest false;
    CLUSTER_TRUST_BUNDLES       "certificates.k8s.io" "v1beta1" "clustertrustbundles" ClusterTrustBundle false;
    POD_CERTIFICATE_REQUESTS    "certificates.k8s.io" "v1beta1" "podcertificaterequests" PodCertificateRequest true;
    LEASE_CANDIDATES            "coordination.k8s.io" "v1beta1" "leasecandidates" LeaseCandidate true;
    LEASES                      "coordination.k8s.io" "v1" "leases" Lease true;
    ENDPOINT_SLICES             "discovery.k8s.io" "v1" "endpointslices" EndpointSlice true;
    FLOW_SCHEMAS                "flowcontrol.apiserver.k8s.io" "v1" "flowschemas" FlowSchema false;
    PRIORITY_LEVEL_CONFIGURATIONS "flowcontrol.apiserver.k8s.io" "v1" "prioritylevelconfigurations" PriorityLevelConfiguration false;
    INGRESSES                   "networking.k8s.io" "v1" "ingresses" Ingress true;
    INGRESS_CLASSES             "networking.k8s.io" "v1" "ingressclasses" IngressClass false;
    IP_ADDRESSES                "networking.k8s.io" "v1" "ipaddresses" IPAddress false;
    NETWORK_POLICIES            "networking.k8s.io" "v1" "networkpolicies" NetworkPolicy true;
    SERVICE_CIDRS               "networking.k8s.io" "v1" "servicecidrs" ServiceCIDR false;
    RUNTIME_CLASSES             "node.k8s.io" "v1" "runtimeclasses" RuntimeClass false;
    POD_DISRUPTION_BUDGETS      "policy" "v1" "poddisruptionbudgets" PodDisruptionBudget true;
    CLUSTER_ROLES               "rbac.authorization.k8s.io" "v1" "clusterroles" ClusterRole false;
    CLUSTER_ROLE_BINDINGS       "rbac.authorization.k8s.io" "v1" "clusterrolebindings" ClusterRoleBinding false;
    ROLES                       "rbac.authorization.k8s.io" "v1" "roles" Role true;
    ROLE_BINDINGS               "rbac.authorization.k8s.io" "v1" "rolebindings" RoleBinding true;
    DEVICE_CLASSES              "resource.k8s.io" "v1" "deviceclasses" DeviceClass false;
    DEVICE_TAINT_RULES          "resource.k8s.io" "v1beta2" "devicetaintrules" DeviceTaintRule false;
    RESOURCE_CLAIMS             "resource.k8s.io" "v1" "resourceclaims" ResourceClaim true;
    RESOURCE_CLAIM_TEMPLATES    "resource.k8s.io" "v1" "resourceclaimtemplates" ResourceClaimTemplate true;
    RESOURCE_SLICES             "resource.k8s.io" "v1" "resourceslices" ResourceSlice false;
    POD_GROUPS                  "scheduling.k8s.io" "v1alpha2" "podgroups" PodGroup true;
    PRIORITY_CLASSES            "scheduling.k8s.io" "v1" "priorityclasses" PriorityClass false;
    WORKLOADS                   "scheduling.k8s.io" "v1alpha2" "workloads" Workload true;
    CSI_DRIVERS                 "storage.k8s.io" "v1" "csidrivers" CSIDriver false;
    CSI_NODES                   "storage.k8s.io" "v1" "csinodes" CSINode false;
    CSI_STORAGE_CAPACITIES      "storage.k8s.io" "v1" "csistoragecapacities" CSIStorageCapacity true;
    STORAGE_CLASSES             "storage.k8s.io" "v1" "storageclasses" StorageClass false;
    VOLUME_ATTACHMENTS          "storage.k8s.io" "v1" "volumeattachments" VolumeAttachment false;
    VOLUME_ATTRIBUTES_CLASSES   "storage.k8s.io" "v1" "volumeattributesclasses" VolumeAttributesClass false;
    STORAGE_VERSIONS            "internal.apiserver.k8s.io" "v1alpha1" "storageversions" StorageVersion false;
    STORAGE_VERSION_MIGRATIONS  "storagemigration.k8s.io" "v1beta1" "storageversionmigrations" StorageVersionMigration false;
    VALIDATING_ADMISSION_POLICIES "admissionregistration.k8s.io" "v1" "validatingadmissionpolicies" ValidatingAdmissionPolicy false;
    CUSTOM_RESOURCE_DEFINITIONS "apiextensions.k8s.io" "v1" "customresourcedefinitions" CustomResourceDefinition false;
    API_SERVICES                "apiregistration.k8s.io" "v1" "apiservices" APIService false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(PODS.path(None), "/api/v1/pods");
        assert_eq!(PODS.path(Some("a")), "/api/v1/namespaces/a/pods");
        assert_eq!(NODES.path(Some("a")), "/api/v1/nodes");
        assert_eq!(DEPLOYMENTS.path(Some("a")), "/apis/apps/v1/namespaces/a/deployments");
    }
}
