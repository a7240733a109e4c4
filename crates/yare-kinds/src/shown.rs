//! Values in messages as upstream shows them: its validation sees types of its own, whose fields have other names
//! than the API's, stand in another order and are all there.

use serde_json::Value;
use yare_schema::field::html_safe;

use crate::view::View;

/// What a field is where the object does not have it, and how it is shown where it does.
#[derive(Clone, Copy)]
pub enum Form {
    /// `""`
    Text,
    /// `0`
    Number,
    /// `false`
    Truth,
    /// `null`; shown as in the API.
    Plain,
    /// `null`; shown as upstream's type.
    Of(&'static Shape),
    /// `null`; a list of upstream's type.
    ListOf(&'static Shape),
    /// `null`; a label selector, which is the API's own type.
    Selector,
}

use Form::{ListOf, Number, Of, Plain, Selector, Text, Truth};

/// The fields of one of upstream's types: its name, the API's, and what it is.
pub type Shape = [(&'static str, &'static str, Form)];

/// `value` as a list of `shape`, or as one.
pub fn show(value: &Value, shape: &Shape) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| one(item, shape)).collect::<Vec<_>>().join(","))
        }
        Value::Null => "null".to_owned(),
        _ => one(value, shape),
    }
}

fn one(value: &Value, shape: &Shape) -> String {
    let members = shape.iter().map(|(name, field, form)| {
        let member = value.at(field);
        let text = match (form, member) {
            (Text, Value::Null) => "\"\"".to_owned(),
            (Number, Value::Null) => "0".to_owned(),
            (Truth, Value::Null) => "false".to_owned(),
            (Of(shape) | ListOf(shape), _) => show(member, shape),
            (Selector, _) => selector(member),
            _ => html_safe(&member.to_string()),
        };
        format!("\"{name}\":{text}")
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// A label selector as the API writes it, in the order of its fields there.
pub fn selector(value: &Value) -> String {
    if value.is_null() {
        return "null".to_owned();
    }
    let json = |value: &Value| html_safe(&value.to_string());
    let mut members = Vec::new();
    if value.is_set("matchLabels") {
        members.push(format!("\"matchLabels\":{}", json(value.at("matchLabels"))));
    }
    if value.is_set("matchExpressions") {
        let one = |item: &Value| {
            let values = if item.is_set("values") {
                format!(",\"values\":{}", json(item.at("values")))
            } else {
                String::new()
            };
            let (key, operator) = (Value::from(item.str_at("key")), Value::from(item.str_at("operator")));
            format!("{{\"key\":{},\"operator\":{}{values}}}", json(&key), json(&operator))
        };
        let items: Vec<String> = value.items("matchExpressions").iter().map(one).collect();
        members.push(format!("\"matchExpressions\":[{}]", items.join(",")));
    }
    format!("{{{}}}", members.join(","))
}

/// `PodResourceClaim`
pub const POD_CLAIM: &Shape = &[
    ("Name", "name", Text),
    ("ResourceClaimName", "resourceClaimName", Plain),
    ("ResourceClaimTemplateName", "resourceClaimTemplateName", Plain),
];

const NAMED: &Shape = &[("Name", "name", Text)];

/// `FlowSchemaSpec`
pub const FLOW_SCHEMA: &Shape = &[
    ("PriorityLevelConfiguration", "priorityLevelConfiguration", Of(NAMED)),
    ("MatchingPrecedence", "matchingPrecedence", Number),
    ("DistinguisherMethod", "distinguisherMethod", Of(&[("Type", "type", Text)])),
    (
        "Rules",
        "rules",
        ListOf(&[
            (
                "Subjects",
                "subjects",
                ListOf(&[
                    ("Kind", "kind", Text),
                    ("User", "user", Of(NAMED)),
                    ("Group", "group", Of(NAMED)),
                    (
                        "ServiceAccount",
                        "serviceAccount",
                        Of(&[("Namespace", "namespace", Text), ("Name", "name", Text)]),
                    ),
                ]),
            ),
            (
                "ResourceRules",
                "resourceRules",
                ListOf(&[
                    ("Verbs", "verbs", Plain),
                    ("APIGroups", "apiGroups", Plain),
                    ("Resources", "resources", Plain),
                    ("ClusterScope", "clusterScope", Truth),
                    ("Namespaces", "namespaces", Plain),
                ]),
            ),
            (
                "NonResourceRules",
                "nonResourceRules",
                ListOf(&[("Verbs", "verbs", Plain), ("NonResourceURLs", "nonResourceURLs", Plain)]),
            ),
        ]),
    ),
];

/// `PriorityLevelConfigurationSpec`
pub const PRIORITY_LEVEL: &Shape = &[
    ("Type", "type", Text),
    (
        "Limited",
        "limited",
        Of(&[
            ("NominalConcurrencyShares", "nominalConcurrencyShares", Number),
            (
                "LimitResponse",
                "limitResponse",
                Of(&[
                    ("Type", "type", Text),
                    (
                        "Queuing",
                        "queuing",
                        Of(&[
                            ("Queues", "queues", Number),
                            ("HandSize", "handSize", Number),
                            ("QueueLengthLimit", "queueLengthLimit", Number),
                        ]),
                    ),
                ]),
            ),
            ("LendablePercent", "lendablePercent", Plain),
            ("BorrowingLimitPercent", "borrowingLimitPercent", Plain),
        ]),
    ),
    (
        "Exempt",
        "exempt",
        Of(&[
            ("NominalConcurrencyShares", "nominalConcurrencyShares", Plain),
            ("LendablePercent", "lendablePercent", Plain),
        ]),
    ),
];

/// `ClusterTrustBundleProjection`
pub const TRUST_BUNDLE: &Shape = &[
    ("Name", "name", Plain),
    ("SignerName", "signerName", Plain),
    ("LabelSelector", "labelSelector", Selector),
    ("Optional", "optional", Plain),
    ("Path", "path", Text),
];

/// `PodIP` and `HostIP`
pub const ADDRESS: &Shape = &[("IP", "ip", Text)];

/// `SeccompProfile` and `AppArmorProfile`
pub const PROFILE: &Shape = &[("Type", "type", Text), ("LocalhostProfile", "localhostProfile", Plain)];

/// `SecurityContext`
pub const SECURITY_CONTEXT: &Shape = &[
    ("Capabilities", "capabilities", Of(&[("Add", "add", Plain), ("Drop", "drop", Plain)])),
    ("Privileged", "privileged", Plain),
    (
        "SELinuxOptions",
        "seLinuxOptions",
        Of(&[
            ("User", "user", Text),
            ("Role", "role", Text),
            ("Type", "type", Text),
            ("Level", "level", Text),
        ]),
    ),
    (
        "WindowsOptions",
        "windowsOptions",
        Of(&[
            ("GMSACredentialSpecName", "gmsaCredentialSpecName", Plain),
            ("GMSACredentialSpec", "gmsaCredentialSpec", Plain),
            ("RunAsUserName", "runAsUserName", Plain),
            ("HostProcess", "hostProcess", Plain),
        ]),
    ),
    ("RunAsUser", "runAsUser", Plain),
    ("RunAsGroup", "runAsGroup", Plain),
    ("RunAsNonRoot", "runAsNonRoot", Plain),
    ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem", Plain),
    ("AllowPrivilegeEscalation", "allowPrivilegeEscalation", Plain),
    ("ProcMount", "procMount", Plain),
    ("SeccompProfile", "seccompProfile", Of(PROFILE)),
    ("AppArmorProfile", "appArmorProfile", Of(PROFILE)),
];

const NODE_REQUIREMENT: &Shape =
    &[("Key", "key", Text), ("Operator", "operator", Text), ("Values", "values", Plain)];

/// `NodeSelectorTerm`
pub const NODE_TERM: &Shape = &[
    ("MatchExpressions", "matchExpressions", ListOf(NODE_REQUIREMENT)),
    ("MatchFields", "matchFields", ListOf(NODE_REQUIREMENT)),
];

/// `VolumeNodeAffinity`
pub const VOLUME_AFFINITY: &Shape =
    &[("Required", "required", Of(&[("NodeSelectorTerms", "nodeSelectorTerms", ListOf(NODE_TERM))]))];

/// `ServicePort`
pub const SERVICE_PORT: &Shape = &[
    ("Name", "name", Text),
    ("Protocol", "protocol", Text),
    ("AppProtocol", "appProtocol", Plain),
    ("Port", "port", Number),
    ("TargetPort", "targetPort", Number),
    ("NodePort", "nodePort", Number),
];

/// `ObjectReference`
pub const OBJECT: &Shape = &[
    ("Kind", "kind", Text),
    ("Namespace", "namespace", Text),
    ("Name", "name", Text),
    ("UID", "uid", Text),
    ("APIVersion", "apiVersion", Text),
    ("ResourceVersion", "resourceVersion", Text),
    ("FieldPath", "fieldPath", Text),
];

/// `EventSource`
pub const EVENT_SOURCE: &Shape = &[("Component", "component", Text), ("Host", "host", Text)];

/// `Taint`
pub const TAINT: &Shape = &[
    ("Key", "key", Text),
    ("Value", "value", Text),
    ("Effect", "effect", Text),
    ("TimeAdded", "timeAdded", Plain),
];

/// `NodeAddress`
pub const NODE_ADDRESS: &Shape = &[("Type", "type", Text), ("Address", "address", Text)];

/// `NodeConfigSource`
pub const NODE_CONFIG: &Shape = &[(
    "ConfigMap",
    "configMap",
    Of(&[
        ("Namespace", "namespace", Text),
        ("Name", "name", Text),
        ("UID", "uid", Text),
        ("ResourceVersion", "resourceVersion", Text),
        ("KubeletConfigKey", "kubeletConfigKey", Text),
    ]),
)];

/// `ScopeSelector`
pub const SCOPE_SELECTOR: &Shape = &[(
    "MatchExpressions",
    "matchExpressions",
    ListOf(&[("ScopeName", "scopeName", Text), ("Operator", "operator", Text), ("Values", "values", Plain)]),
)];

/// `RoleRef`
pub const ROLE_REF: &Shape =
    &[("APIGroup", "apiGroup", Text), ("Kind", "kind", Text), ("Name", "name", Text)];

/// `PodDisruptionBudgetSpec`
pub const BUDGET: &Shape = &[
    ("MinAvailable", "minAvailable", Plain),
    ("Selector", "selector", Selector),
    ("MaxUnavailable", "maxUnavailable", Plain),
    ("UnhealthyPodEvictionPolicy", "unhealthyPodEvictionPolicy", Plain),
];

/// `NonResourceAttributes`
pub const NON_RESOURCE: &Shape = &[("Path", "path", Text), ("Verb", "verb", Text)];

/// `VolumeAttachmentSpec`
pub const ATTACHMENT: &Shape = &[
    ("Attacher", "attacher", Text),
    (
        "Source",
        "source",
        Of(&[
            ("PersistentVolumeName", "persistentVolumeName", Plain),
            ("InlineVolumeSpec", "inlineVolumeSpec", Plain),
        ]),
    ),
    ("NodeName", "nodeName", Text),
];

/// `CSINodeDriver`
pub const CSI_DRIVER: &Shape = &[
    ("Name", "name", Text),
    ("NodeID", "nodeID", Text),
    ("TopologyKeys", "topologyKeys", Plain),
    ("Allocatable", "allocatable", Of(&[("Count", "count", Plain)])),
];

/// `UncountedTerminatedPods`
pub const UNCOUNTED: &Shape = &[("Succeeded", "succeeded", Plain), ("Failed", "failed", Plain)];

/// `DaemonSetUpdateStrategy` and `DeploymentStrategy`
pub const ROLLOUT: &Shape = &[
    ("Type", "type", Text),
    (
        "RollingUpdate",
        "rollingUpdate",
        Of(&[("MaxUnavailable", "maxUnavailable", Number), ("MaxSurge", "maxSurge", Number)]),
    ),
];

/// `StatefulSetUpdateStrategy`
pub const ORDERED_ROLLOUT: &Shape = &[
    ("Type", "type", Text),
    (
        "RollingUpdate",
        "rollingUpdate",
        Of(&[("Partition", "partition", Number), ("MaxUnavailable", "maxUnavailable", Plain)]),
    ),
];

/// `SuccessPolicy`
pub const SUCCESS_POLICY: &Shape = &[(
    "Rules",
    "rules",
    ListOf(&[("SucceededIndexes", "succeededIndexes", Plain), ("SucceededCount", "succeededCount", Plain)]),
)];

/// `ServiceCIDRSpec`
pub const SERVICE_RANGES: &Shape = &[("CIDRs", "cidrs", Plain)];

/// `ParentReference`
pub const PARENT: &Shape = &[
    ("Group", "group", Text),
    ("Resource", "resource", Text),
    ("Namespace", "namespace", Text),
    ("Name", "name", Text),
];

/// `DeviceAttribute`
pub const ATTRIBUTE: &Shape = &[
    ("IntValue", "int", Plain),
    ("BoolValue", "bool", Plain),
    ("StringValue", "string", Plain),
    ("VersionValue", "version", Plain),
    ("IntValues", "ints", Plain),
    ("BoolValues", "bools", Plain),
    ("StringValues", "strings", Plain),
    ("VersionValues", "versions", Plain),
];

/// `Toleration`
pub const TOLERATION: &Shape = &[
    ("Key", "key", Text),
    ("Operator", "operator", Text),
    ("Value", "value", Text),
    ("Effect", "effect", Text),
    ("TolerationSeconds", "tolerationSeconds", Plain),
];

/// `StorageVersionMigrationSpec`
pub const MIGRATION: &Shape =
    &[("Resource", "resource", Of(&[("group", "group", Text), ("resource", "resource", Text)]))];

/// `ContainerPort`, as Go prints a struct with the names of its fields.
pub fn container_port(port: &Value) -> String {
    format!(
        "{{Name:{} HostPort:{} ContainerPort:{} Protocol:{} HostIP:{}}}",
        port.str_at("name"),
        port.int_at("hostPort"),
        port.int_at("containerPort"),
        port.str_at("protocol"),
        port.str_at("hostIP")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_is_there() {
        assert_eq!(
            show(&json!({"key": "a<b", "effect": "NoSchedule"}), TAINT),
            r#"{"Key":"a\u003cb","Value":"","Effect":"NoSchedule","TimeAdded":null}"#
        );
        assert_eq!(
            show(
                &json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}]}}),
                VOLUME_AFFINITY
            ),
            r#"{"Required":{"NodeSelectorTerms":[{"MatchExpressions":[{"Key":"k","Operator":"In","Values":["v"]}],"MatchFields":null}]}}"#
        );
        assert_eq!(show(&json!([{"ip": "1.2.3.4"}]), ADDRESS), r#"[{"IP":"1.2.3.4"}]"#);
        assert_eq!(show(&Value::Null, PROFILE), "null");
        let expressions = json!([{"operator": "In", "values": ["v"], "key": "k"}, {}]);
        assert_eq!(
            selector(&json!({"matchLabels": {"a": "b"}, "matchExpressions": expressions})),
            r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"k","operator":"In","values":["v"]},{"key":"","operator":""}]}"#
        );
        assert_eq!(selector(&json!({"matchLabels": {}})), "{}");
    }
}
