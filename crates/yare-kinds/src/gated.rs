//! Fields that come with a feature gate: while the gate is off, writes lose them unless the object has them
//! already.
//!
//! One table says it all. A row names a gate, where its fields stand and the fields; [`of`] picks the rows that
//! matter for a resource under given gates, which by default are few, and [`Rows::drop`] applies them.

use serde_json::Value;
use yare_schema::features::Gates;

use crate::{table::Resource, view::is_zero};

/// Where the fields of a row stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In every specification of pods: of pods, templates and what holds templates.
    PodSpec,
    /// Under a path of one resource.
    In(&'static str, &'static str, &'static str),
}

use Place::{In, PodSpec};

/// Resources with a specification of pods, and where it stands.
const POD_SPECS: &[(&str, &str, &str)] = &[
    ("", "pods", "spec"),
    ("", "podtemplates", "template.spec"),
    ("", "replicationcontrollers", "spec.template.spec"),
    ("apps", "daemonsets", "spec.template.spec"),
    ("apps", "deployments", "spec.template.spec"),
    ("apps", "replicasets", "spec.template.spec"),
    ("apps", "statefulsets", "spec.template.spec"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template.spec"),
    ("batch", "jobs", "spec.template.spec"),
];

const POD_STATUS: Place = In("", "pods", "status");
const CLAIM: Place = In("resource.k8s.io", "resourceclaims", "spec");
const CLAIM_STATUS: Place = In("resource.k8s.io", "resourceclaims", "status");
const CLAIM_TEMPLATE: Place = In("resource.k8s.io", "resourceclaimtemplates", "spec.spec");
const SLICE: Place = In("resource.k8s.io", "resourceslices", "spec");
const POD_GROUP: Place = In("scheduling.k8s.io", "podgroups", "spec");
const POD_GROUP_TEMPLATE: Place = In("scheduling.k8s.io", "workloads", "spec");

/// Where a resource holds a specification of pods.
pub fn pod_spec_of(resource: &Resource) -> Option<&'static str> {
    let target = (resource.group, resource.plural);
    POD_SPECS.iter().find(|(group, plural, _)| (*group, *plural) == target).map(|(.., at)| *at)
}

/// One gate and what goes while it is off.
struct Row {
    gate: &'static str,
    place: Place,
    /// Paths under the place. `x[]`: each item of a list; `x{}`: each value of a map; `containers*`: containers,
    /// init containers and ephemeral ones (with `containerStatuses*` alike); `x!=V`: only values other than `V`.
    /// The row's fields stay all together if the object that is changed has one of them.
    fields: &'static [&'static str],
}

const fn row(gate: &'static str, place: Place, fields: &'static [&'static str]) -> Row {
    Row { gate, place, fields }
}

const TOLERATIONS: &[&str] =
    &["devices.requests[].exactly.tolerations", "devices.requests[].firstAvailable[].tolerations"];
const CAPACITY: &[&str] = &[
    "devices.constraints[].distinctAttribute",
    "devices.requests[].exactly.capacity",
    "devices.requests[].firstAvailable[].capacity",
];

/// By gate. Gates that are locked have no row: nobody can switch them off.
const TABLE: &[Row] = &[
    row("ClusterTrustBundleProjection", PodSpec, &["volumes[].projected.sources[].clusterTrustBundle"]),
    row(
        "ContainerRestartRules",
        PodSpec,
        &[
            "initContainers[].restartPolicy!=Always",
            "initContainers[].restartPolicyRules",
            "containers[].restartPolicy",
            "containers[].restartPolicyRules",
            "ephemeralContainers[].restartPolicy",
            "ephemeralContainers[].restartPolicyRules",
        ],
    ),
    row("ContainerStopSignals", PodSpec, &["containers*[].lifecycle.stopSignal"]),
    row("CoordinatedLeaderElection", In("coordination.k8s.io", "leases", "spec"), &["strategy"]),
    row("CoordinatedLeaderElection", In("coordination.k8s.io", "leases", "spec"), &["preferredHolder"]),
    row("DRAConsumableCapacity", CLAIM, CAPACITY),
    row("DRAConsumableCapacity", CLAIM_TEMPLATE, CAPACITY),
    row(
        "DRAConsumableCapacity",
        CLAIM_STATUS,
        &[
            "allocation.devices.results[].shareID",
            "allocation.devices.results[].consumedCapacity",
            "devices[].shareID",
        ],
    ),
    row(
        "DRAConsumableCapacity",
        SLICE,
        &["devices[].allowMultipleAllocations", "devices[].capacity{}.requestPolicy"],
    ),
    row(
        "DRADeviceBindingConditions",
        CLAIM_STATUS,
        &[
            "allocation.devices.results[].bindingConditions",
            "allocation.devices.results[].bindingFailureConditions",
        ],
    ),
    row("DRADeviceBindingConditions", SLICE, BINDING),
    row("DRADeviceTaints", CLAIM, TOLERATIONS),
    row("DRADeviceTaints", CLAIM_TEMPLATE, TOLERATIONS),
    row("DRADeviceTaints", SLICE, &["devices[].taints"]),
    row("DRAExtendedResource", POD_STATUS, &["extendedResourceClaimStatus"]),
    row("DRAExtendedResource", In("resource.k8s.io", "deviceclasses", "spec"), &["extendedResourceName"]),
    row(
        "DRAListTypeAttributes",
        SLICE,
        &[
            "devices[].attributes{}.bools",
            "devices[].attributes{}.ints",
            "devices[].attributes{}.strings",
            "devices[].attributes{}.versions",
        ],
    ),
    row("DRANodeAllocatableResources", POD_STATUS, &["nodeAllocatableResourceClaimStatuses"]),
    row("DRANodeAllocatableResources", SLICE, &["devices[].nodeAllocatableResourceMappings"]),
    row(
        "DRAPartitionableDevices",
        SLICE,
        &[
            "sharedCounters",
            "perDeviceNodeSelection",
            "devices[].consumesCounters",
            "devices[].nodeName",
            "devices[].nodeSelector",
            "devices[].allNodes",
        ],
    ),
    row("DRAPrioritizedList", CLAIM, &["devices.requests[].firstAvailable"]),
    row("DRAPrioritizedList", CLAIM_TEMPLATE, &["devices.requests[].firstAvailable"]),
    row("DRAResourceClaimDeviceStatus", CLAIM_STATUS, &["devices"]),
    row("DRAResourceClaimDeviceStatus", SLICE, BINDING),
    row("DRAWorkloadResourceClaims", POD_GROUP, &["resourceClaims"]),
    row("DRAWorkloadResourceClaims", POD_GROUP_TEMPLATE, &["podGroupTemplates[].resourceClaims"]),
    row(
        "DRAWorkloadResourceClaims",
        In("scheduling.k8s.io", "podgroups", "status"),
        &["resourceClaimStatuses"],
    ),
    row(
        "DeploymentReplicaSetTerminatingReplicas",
        In("apps", "deployments", "status"),
        &["terminatingReplicas"],
    ),
    row(
        "DeploymentReplicaSetTerminatingReplicas",
        In("apps", "replicasets", "status"),
        &["terminatingReplicas"],
    ),
    row("EnvFiles", PodSpec, &["containers*[].env[].valueFrom.fileKeyRef"]),
    row("GenericWorkload", PodSpec, &["schedulingGroup"]),
    row(
        "HPAConfigurableTolerance",
        In("autoscaling", "horizontalpodautoscalers", "spec.behavior"),
        &["scaleDown.tolerance", "scaleUp.tolerance"],
    ),
    row("HostnameOverride", PodSpec, &["hostnameOverride"]),
    row("ImageVolumeWithDigest", POD_STATUS, &["containerStatuses*[].volumeMounts[].volumeStatus"]),
    row("InPlacePodLevelResourcesVerticalScaling", POD_STATUS, &["resources", "allocatedResources"]),
    row("MatchLabelKeysInPodTopologySpread", PodSpec, &["topologySpreadConstraints[].matchLabelKeys"]),
    row(
        "MaxUnavailableStatefulSet",
        In("apps", "statefulsets", "spec.updateStrategy.rollingUpdate"),
        &["maxUnavailable"],
    ),
    row("NodeDeclaredFeatures", In("", "nodes", "status"), &["declaredFeatures"]),
    row("PodCertificateRequest", PodSpec, &["volumes[].projected.sources[].podCertificate"]),
    row("PodLevelResources", PodSpec, &["resources"]),
    row("ResourceHealthStatus", POD_STATUS, &["containerStatuses*[].allocatedResourcesStatus"]),
    row(
        "ResourceHealthStatusMessage",
        POD_STATUS,
        &["containerStatuses*[].allocatedResourcesStatus[].resources[].message"],
    ),
    row("TopologyAwareWorkloadScheduling", POD_GROUP, &["schedulingConstraints"]),
    row(
        "TopologyAwareWorkloadScheduling",
        POD_GROUP_TEMPLATE,
        &["podGroupTemplates[].schedulingConstraints"],
    ),
    row("VolumeLimitScaling", In("storage.k8s.io", "csidrivers", "spec"), &["preventPodSchedulingIfMissing"]),
    row("WorkloadAwarePreemption", POD_GROUP, &["disruptionMode"]),
    row("WorkloadAwarePreemption", POD_GROUP, &["priorityClassName"]),
    row("WorkloadAwarePreemption", POD_GROUP, &["priority"]),
    row("WorkloadAwarePreemption", POD_GROUP_TEMPLATE, &["podGroupTemplates[].disruptionMode"]),
    row("WorkloadAwarePreemption", POD_GROUP_TEMPLATE, &["podGroupTemplates[].priorityClassName"]),
    row("WorkloadAwarePreemption", POD_GROUP_TEMPLATE, &["podGroupTemplates[].priority"]),
];

const BINDING: &[&str] =
    &["devices[].bindingConditions", "devices[].bindingFailureConditions", "devices[].bindsToNode"];

/// The rows that matter for one resource.
#[derive(Clone, Debug, Default)]
pub struct Rows(Box<[Group]>);

/// The fields of one row, as paths from the object.
#[derive(Clone, Debug)]
struct Group(Box<[Pattern]>);

/// The rows of gates that are off and concern `resource`.
pub fn of(resource: &Resource, gates: &Gates) -> Rows {
    let target = (resource.group, resource.plural);
    let pods = pod_spec_of(resource);
    let groups = TABLE.iter().filter_map(|row| {
        let at = match row.place {
            PodSpec => pods?,
            In(group, plural, at) => (target == (group, plural)).then_some(at)?,
        };
        if gates.is_on(row.gate) {
            return None;
        }
        Some(Group(row.fields.iter().flat_map(|field| patterns(&format!("{at}.{field}"))).collect()))
    });
    Rows(groups.collect())
}

impl Rows {
    /// Whether there is nothing to drop, as is mostly so.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the fields from `new`, but for those of features that `old` uses already.
    pub fn drop(&self, new: &mut Value, old: Option<&Value>) {
        for Group(patterns) in &self.0 {
            if !old.is_some_and(|old| patterns.iter().any(|p| p.is_in(old, &p.steps))) {
                for pattern in patterns {
                    pattern.drop(new, &pattern.steps);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A member.
    Field(Box<str>),
    /// Every item of a list.
    Items,
    /// Every value of a map.
    Values,
}

#[derive(Clone, Debug)]
struct Pattern {
    steps: Box<[Step]>,
    /// Values that are not meant.
    except: Option<Box<str>>,
}

/// What stands for several lists of containers becomes several patterns.
fn patterns(text: &str) -> Vec<Pattern> {
    for (name, all) in [
        ("containers*", ["containers", "initContainers", "ephemeralContainers"]),
        ("containerStatuses*", ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]),
    ] {
        if text.contains(name) {
            return all.iter().map(|one| pattern(&text.replace(name, one))).collect();
        }
    }
    vec![pattern(text)]
}

fn pattern(text: &str) -> Pattern {
    let (path, except) = match text.split_once("!=") {
        Some((path, except)) => (path, Some(except.into())),
        None => (text, None),
    };
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, more) = match part.strip_suffix("[]") {
            Some(name) => (name, Some(Step::Items)),
            None => match part.strip_suffix("{}") {
                Some(name) => (name, Some(Step::Values)),
                None => (part, None),
            },
        };
        steps.push(Step::Field(name.into()));
        steps.extend(more);
    }
    Pattern { steps: steps.into(), except }
}

impl Pattern {
    fn is_meant(&self, value: &Value) -> bool {
        !is_zero(value) && self.except.as_deref().is_none_or(|except| value.as_str() != Some(except))
    }

    /// Whether a value that is there is taken away: an empty one too, unless it is excepted.
    fn goes(&self, value: &Value) -> bool {
        self.except.is_none() || self.is_meant(value)
    }

    fn is_in(&self, value: &Value, steps: &[Step]) -> bool {
        match (steps, value) {
            ([], _) => self.is_meant(value),
            ([Step::Field(name), rest @ ..], Value::Object(map)) => {
                map.get(&**name).is_some_and(|member| self.is_in(member, rest))
            }
            ([Step::Items, rest @ ..], Value::Array(items)) => {
                items.iter().any(|item| self.is_in(item, rest))
            }
            ([Step::Values, rest @ ..], Value::Object(map)) => map.values().any(|v| self.is_in(v, rest)),
            _ => false,
        }
    }

    fn drop(&self, value: &mut Value, steps: &[Step]) {
        match (steps, value) {
            ([Step::Field(name)], Value::Object(map)) if map.get(&**name).is_some_and(|m| self.goes(m)) => {
                map.remove(&**name);
            }
            ([Step::Field(name), rest @ ..], Value::Object(map)) => {
                if let Some(member) = map.get_mut(&**name) {
                    self.drop(member, rest);
                }
            }
            ([Step::Items, rest @ ..], Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.drop(item, rest));
            }
            ([Step::Values, rest @ ..], Value::Object(map)) => {
                map.values_mut().for_each(|member| self.drop(member, rest));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yare_schema::{builtin::builtin, features, model::Shape};

    use super::*;
    use crate::table::{RESOURCES, find};

    #[test]
    fn rows_name_gates_that_can_be_off_and_fields_that_are_there() {
        for row in TABLE {
            let gate = features::find(row.gate).unwrap_or_else(|| panic!("{} is no gate", row.gate));
            assert!(!gate.now().locked, "{} is locked", row.gate);
        }
        let off = features::all().iter().filter(|g| !g.now().locked && !g.name.starts_with("All"));
        let off: Vec<String> = off.map(|g| format!("{}=false", g.name)).collect();
        let gates = Gates::parse(&off.join(",")).expect("everything off needs nothing");
        let mut used = 0;
        for resource in RESOURCES {
            let rows = of(resource, &gates);
            used += usize::from(!rows.is_empty());
            let version = resource.storage_version();
            for pattern in rows.0.iter().flat_map(|group| &group.0) {
                let kind = builtin().kind(resource.group, version, resource.kind).expect("has a type");
                let mut ty = builtin().at(kind.ty);
                for step in &pattern.steps {
                    let next = match (step, ty.shape()) {
                        (Step::Field(name), _) => ty.member(name),
                        (Step::Items, _) => ty.item(),
                        (Step::Values, Shape::Map(m)) => Some(ty.to(&m.value)),
                        (Step::Values, _) => None,
                    };
                    ty = next.unwrap_or_else(|| panic!("{} has no {pattern:?}", resource.plural));
                }
            }
        }
        assert!(used > 15, "{used}");
    }

    #[track_caller]
    fn check(gates: &str, resource: (&str, &str), old: Option<Value>, new: Value, expect: Value) {
        let gates = Gates::parse(gates).expect("good gates");
        let resource = find(resource.0, resource.1).expect("in the table");
        let mut new = new;
        of(resource, &gates).drop(&mut new, old.as_ref());
        assert_eq!(new, expect);
    }

    #[test]
    fn drops_what_is_off_and_not_in_use() {
        let pod = json!({"spec": {"schedulingGroup": {"podGroupName": "g"}, "hostnameOverride": "h"}});
        check("", ("", "pods"), None, pod.clone(), json!({"spec": {"hostnameOverride": "h"}}));
        check("GenericWorkload=true", ("", "pods"), None, pod.clone(), pod.clone());
        check("", ("", "pods"), Some(pod.clone()), pod.clone(), pod);
        let policies = |a: &str| {
            json!({"spec": {"template": {"spec": {
                "initContainers": [{"name": "a", "restartPolicy": a}],
                "containers": [{"name": "b", "restartPolicy": "Never"}],
            }}}})
        };
        let off = "ContainerRestartRules=false,RestartAllContainersOnContainerExits=false";
        check(off, ("apps", "deployments"), None, policies("Always"), {
            let mut expect = policies("Always");
            expect["spec"]["template"]["spec"]["containers"][0] = json!({"name": "b"});
            expect
        });
        check(off, ("apps", "deployments"), Some(policies("Never")), policies("Never"), policies("Never"));
        let slice = json!({"spec": {"devices": [{"name": "d", "attributes": {"a": {"ints": [1]}}}]}});
        let expect = json!({"spec": {"devices": [{"name": "d", "attributes": {"a": {}}}]}});
        check("", ("resource.k8s.io", "resourceslices"), None, slice, expect);
    }
}
