//! The fields of pods and nodes that scheduling reads, decoded straight from their JSON.

use std::collections::BTreeMap;

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
pub(crate) use yare_client::nullable;

/// A pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// How often the spec was changed.
    pub metadata: Metadata,
    /// What should run.
    pub spec: PodSpec,
    /// What became of it.
    pub status: PodStatus,
}

/// `ObjectMeta`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// 1 for a spec as it was made.
    pub generation: i64,
}

/// `PodStatus`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, …
    pub phase: String,
    /// Where room was made for the pod.
    pub nominated_node_name: String,
    /// When the kubelet took it, RFC 3339.
    pub start_time: String,
    /// Claims that were made for its entries.
    pub resource_claim_statuses: Vec<PodResourceClaimStatus>,
}

/// `PodResourceClaimStatus`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodResourceClaimStatus {
    /// The entry.
    pub name: String,
    /// The claim; absent: none is needed.
    pub resource_claim_name: Option<String>,
}

/// `PodResourceClaim`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodResourceClaim {
    /// Its name in the pod.
    pub name: String,
    /// The claim.
    pub resource_claim_name: Option<String>,
    /// What a claim is made from.
    pub resource_claim_template_name: Option<String>,
}

/// `PodSpec`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node, once there is one.
    pub node_name: String,
    /// Who schedules it.
    pub scheduler_name: String,
    /// Higher goes first.
    pub priority: i32,
    /// `PreemptLowerPriority` (default) or `Never`
    pub preemption_policy: String,
    /// Keep the pod out of the queue while there are any.
    pub scheduling_gates: Vec<Gate>,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Affinities.
    pub affinity: Affinity,
    /// Taints that do not matter.
    pub tolerations: Vec<Toleration>,
    /// How pods are spread.
    pub topology_spread_constraints: Vec<SpreadConstraint>,
    /// Containers.
    pub containers: Vec<Container>,
    /// Init containers, sidecars among them.
    pub init_containers: Vec<Container>,
    /// What the sandbox itself takes.
    pub overhead: BTreeMap<String, String>,
    /// Requests of the pod as a whole.
    pub resources: Option<Resources>,
    /// Uses the node's network: container ports are host ports.
    pub host_network: bool,
    /// `false`: its users are not the node's.
    pub host_users: Option<bool>,
    /// Volumes that matter to where the pod may run; most pods have none.
    #[serde(deserialize_with = "volumes_that_matter")]
    pub volumes: Vec<Volume>,
    /// Claims for devices.
    pub resource_claims: Vec<PodResourceClaim>,
}

/// A volume of a pod that matters to where it may run.
#[derive(Debug, Default)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The claim that it uses.
    pub claim: Option<String>,
    /// A claim is made for it.
    pub ephemeral: bool,
    /// `gcePersistentDisk`
    pub gce: Option<Disk>,
    /// `awsElasticBlockStore`
    pub aws: Option<Disk>,
    /// `iscsi`
    pub iscsi: Option<Disk>,
    /// `rbd`
    pub rbd: Option<Disk>,
}

/// A disk that a pod names itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Disk {
    /// What tells it from others.
    #[serde(alias = "pdName", alias = "volumeID", alias = "iqn", alias = "image")]
    pub name: String,
    /// It is only read.
    pub read_only: bool,
    /// Ceph pool.
    pub pool: String,
    /// Ceph monitors.
    #[serde(deserialize_with = "nullable")]
    pub monitors: Vec<String>,
}

/// A volume as it stands in the JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeDocument<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    persistent_volume_claim: Option<ClaimSource>,
    ephemeral: Option<IgnoredAny>,
    gce_persistent_disk: Option<Disk>,
    aws_elastic_block_store: Option<Disk>,
    iscsi: Option<Disk>,
    rbd: Option<Disk>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSource {
    #[serde(default)]
    claim_name: String,
}

/// Keeps nothing of the volumes that every pod has.
fn volumes_that_matter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Volume>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<Volume>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of volumes")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some(v) = list.next_element::<VolumeDocument<'de>>()? {
                let volume = Volume {
                    claim: v.persistent_volume_claim.map(|c| c.claim_name),
                    ephemeral: v.ephemeral.is_some(),
                    gce: v.gce_persistent_disk,
                    aws: v.aws_elastic_block_store,
                    iscsi: v.iscsi,
                    rbd: v.rbd,
                    name: String::new(),
                };
                if volume.claim.is_some()
                    || volume.ephemeral
                    || [&volume.gce, &volume.aws, &volume.iscsi, &volume.rbd].into_iter().any(Option::is_some)
                {
                    out.push(Volume { name: v.name.into_owned(), ..volume });
                }
            }
            Ok(out)
        }
    }
    deserializer.deserialize_any(List)
}

/// A scheduling gate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// Its name.
    pub name: String,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Image.
    pub image: String,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: String,
    /// What follows from how it ends.
    pub restart_policy_rules: Vec<RestartRule>,
    /// Requests.
    pub resources: Resources,
    /// Ports.
    pub ports: Vec<Port>,
}

/// A rule for a container's end.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RestartRule {
    /// `Restart`, `RestartAllContainers`
    pub action: String,
}

/// Resource requests.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Quantities by resource name.
    pub requests: BTreeMap<String, String>,
}

/// A container port.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Port on the node, 0 for none.
    pub host_port: u16,
    /// Address on the node, empty for all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// `TCP`, `UDP`, `SCTP`
    pub protocol: String,
}

/// `Affinity`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// To nodes.
    pub node_affinity: NodeAffinity,
    /// To pods.
    pub pod_affinity: PodAffinity,
    /// Away from pods.
    pub pod_anti_affinity: PodAffinity,
}

/// `NodeAffinity`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// Must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// Should hold.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Vec<PreferredTerm>,
}

/// `NodeSelector`: one of the terms must match.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// The terms.
    #[serde(deserialize_with = "nullable")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// `NodeSelectorTerm`: all requirements must hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// On labels.
    pub match_expressions: Vec<Expression>,
    /// On fields (`metadata.name`).
    pub match_fields: Vec<Expression>,
}

/// A requirement.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Expression {
    /// Label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`
    pub operator: String,
    /// Values.
    pub values: Vec<String>,
}

/// `PreferredSchedulingTerm`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PreferredTerm {
    /// 1–100
    pub weight: i64,
    /// The term.
    pub preference: NodeSelectorTerm,
}

/// `PodAffinity` or `PodAntiAffinity`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodAffinity {
    /// Must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Vec<PodAffinityTerm>,
    /// Should hold.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Vec<WeightedTerm>,
}

/// `PodAffinityTerm`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinityTerm {
    /// Which pods.
    pub label_selector: Option<LabelSelector>,
    /// In which namespaces; the pod's own where neither this nor the selector is given.
    pub namespaces: Vec<String>,
    /// In namespaces with these labels.
    pub namespace_selector: Option<LabelSelector>,
    /// The label that makes a topology.
    pub topology_key: String,
    /// Labels whose values are taken from the incoming pod.
    pub match_label_keys: Vec<String>,
    /// Labels whose values must differ from the incoming pod's.
    pub mismatch_label_keys: Vec<String>,
}

/// `WeightedPodAffinityTerm`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedTerm {
    /// 1–100
    pub weight: i64,
    /// The term.
    pub pod_affinity_term: PodAffinityTerm,
}

/// `LabelSelector`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Equalities.
    pub match_labels: BTreeMap<String, String>,
    /// Requirements.
    pub match_expressions: Vec<Expression>,
}

/// `Toleration`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Taint key; empty with `Exists` tolerates everything.
    pub key: String,
    /// `Equal` (default), `Exists`, `Lt`, `Gt`
    pub operator: String,
    /// Taint value.
    pub value: String,
    /// Effect; empty is all.
    pub effect: String,
}

/// `TopologySpreadConstraint`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpreadConstraint {
    /// How uneven it may be.
    pub max_skew: i64,
    /// The label that makes a topology.
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`
    pub when_unsatisfiable: String,
    /// Which pods count.
    pub label_selector: Option<LabelSelector>,
    /// Topologies that count as existing at least.
    pub min_domains: Option<i64>,
    /// `Honor` (default) or `Ignore`
    pub node_affinity_policy: String,
    /// `Honor` or `Ignore` (default)
    pub node_taints_policy: String,
    /// Labels whose values are taken from the incoming pod.
    pub match_label_keys: Vec<String>,
}

/// A node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Taints and the like.
    pub spec: NodeSpec,
    /// What it has.
    pub status: NodeStatus,
}

/// `NodeSpec`
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: bool,
    /// Taints.
    pub taints: Vec<Taint>,
}

/// `Taint`
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`
    pub effect: String,
}

/// `NodeStatus`
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// What pods may use.
    pub allocatable: BTreeMap<String, String>,
    /// Images that are there.
    pub images: Vec<Image>,
    /// What its agent can do.
    pub declared_features: Vec<String>,
}

/// `ContainerImage`
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Image {
    /// Its names.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// Its size.
    pub size_bytes: i64,
}

/// A PodDisruptionBudget.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Budget {
    /// Whom it protects.
    pub spec: BudgetSpec,
    /// How much may go.
    pub status: BudgetStatus,
}

/// `PodDisruptionBudgetSpec`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct BudgetSpec {
    /// Which pods.
    pub selector: Option<LabelSelector>,
}

/// `PodDisruptionBudgetStatus`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetStatus {
    /// How many pods may go now.
    pub disruptions_allowed: i64,
    /// Pods whose eviction is under way, and since when.
    pub disrupted_pods: BTreeMap<String, serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node may hold images without names.
    #[test]
    fn lists_that_are_null_are_empty() {
        let text = r#"{"images":[{"names":null,"sizeBytes":5},{"names":["a"],"sizeBytes":6}]}"#;
        let status: NodeStatus = serde_json::from_str(text).unwrap();
        assert_eq!(status.images.iter().map(|i| i.names.len()).collect::<Vec<_>>(), [0, 1]);
    }
}
