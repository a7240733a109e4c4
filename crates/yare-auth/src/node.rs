//! The Node authorizer: a node agent reaches only what the pods on its node need.
//!
//! A graph, fed with pods as they change, says which node is related to which secret, config map, claim or
//! service account. Rules: <https://kubernetes.io/docs/reference/access-authn-authz/node/>.

use std::{
    collections::{HashMap, HashSet},
    sync::RwLock,
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    User, bootstrap,
    rbac::{Action, Decision, Rule},
};

/// What a pod may refer to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

type Reference = (Kind, String);

#[derive(Default)]
struct Graph {
    /// Pod key to its node and what it refers to (`namespace/name`).
    pods: HashMap<String, (String, HashSet<Reference>)>,
    /// What is referred to, to the nodes that need it and how many of their pods do.
    nodes: HashMap<Reference, HashMap<String, u32>>,
    /// Claim (`namespace/name`) to its volume.
    volumes: HashMap<String, String>,
    /// Volume attachment to its node.
    attachments: HashMap<String, String>,
}

/// The Node authorizer.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<Rule>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        Self { graph: RwLock::default(), rules: bootstrap::node_rules() }
    }
}

impl NodeAuthorizer {
    /// Takes in a change of a pod, persistent volume or volume attachment; `None`: it is gone.
    pub fn apply(&self, resource: &str, key: &str, object: Option<&[u8]>) {
        // A poisoned lock means a panic while writing; entries are whole all the same.
        let mut graph = self.graph.write().unwrap_or_else(|e| e.into_inner());
        match resource {
            "pods" => graph.apply_pod(key, object),
            "persistentvolumes" => {
                graph.volumes.retain(|_, volume| volume != key);
                if let Some(claim) = object.and_then(claim_of_volume) {
                    graph.volumes.insert(claim, key.to_owned());
                }
            }
            "volumeattachments" => {
                graph.attachments.remove(key);
                if let Some(node) = object.and_then(node_of_attachment) {
                    graph.attachments.insert(key.to_owned(), node);
                }
            }
            _ => {}
        }
    }

    /// Whether the node agent `user` may do `action`.
    pub fn authorize(&self, user: &User, action: &Action<'_>) -> Decision {
        let Some(node) = user.node_name() else { return Decision::NoOpinion(String::new()) };
        let no = |why: &str| Decision::NoOpinion(why.to_owned());
        let yes = || Decision::Allow(String::new());
        let related = |kind: Kind| {
            if action.name.is_empty() {
                return no("No Object name found");
            }
            let key = format!("{}/{}", action.namespace, action.name);
            let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
            if graph.nodes.get(&(kind, key)).is_some_and(|nodes| nodes.contains_key(node)) {
                yes()
            } else {
                no(&format!("no relationship found between node '{node}' and this object"))
            }
        };
        let read = |kind: Kind| match action.verb {
            "get" | "list" | "watch" if !action.subresource.is_empty() => no("cannot read subresource"),
            "get" | "list" | "watch" if action.namespace.is_empty() => {
                no("can only read namespaced object of this type")
            }
            "get" | "list" | "watch" => related(kind),
            _ => no("can only read resources of this type"),
        };
        let get = |kind: Kind| match (action.verb, action.subresource) {
            ("get", "") => related(kind),
            ("get", _) => no("cannot get subresource"),
            _ => no("can only get individual resources of this type"),
        };
        let own_lease = || match action.verb {
            "get" | "create" | "update" | "patch" | "delete"
                if action.verb == "create" || action.name == node =>
            {
                yes()
            }
            _ => no("can only access the object with the same name as the requesting node"),
        };
        match (action.group, action.resource) {
            ("", "secrets") => read(Kind::Secret),
            ("", "configmaps") => read(Kind::ConfigMap),
            ("", "persistentvolumeclaims") if action.subresource == "status" => match action.verb {
                "update" | "patch" => related(Kind::Claim),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => get(Kind::Claim),
            ("", "persistentvolumes") => match (action.verb, action.subresource) {
                ("get", "") if self.needs_volume(node, action.name) => yes(),
                ("get", "") => no(&format!("no relationship found between node '{node}' and this object")),
                _ => no("can only get individual resources of this type"),
            },
            ("resource.k8s.io", "resourceclaims") => get(Kind::ResourceClaim),
            ("storage.k8s.io", "volumeattachments") => {
                let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
                let own = graph.attachments.get(action.name).is_some_and(|n| n == node);
                match (action.verb, action.subresource) {
                    ("get", "") if own => yes(),
                    ("get", "") => {
                        no(&format!("no relationship found between node '{node}' and this object"))
                    }
                    _ => no("can only get individual resources of this type"),
                }
            }
            ("", "serviceaccounts") => match (action.verb, action.subresource) {
                ("get", "") => related(Kind::ServiceAccount),
                ("create", "token") if !action.name.is_empty() => related(Kind::ServiceAccount),
                ("create", "token") => no("can only create tokens for individual service accounts"),
                _ => no("can only create token subresource of serviceaccount"),
            },
            ("coordination.k8s.io", "leases") if action.namespace != "kube-node-lease" => {
                no("can only access leases in the \"kube-node-lease\" system namespace")
            }
            ("coordination.k8s.io", "leases") => own_lease(),
            ("storage.k8s.io", "csinodes") if !action.subresource.is_empty() => {
                no("cannot authorize CSINode subresources")
            }
            ("storage.k8s.io", "csinodes") => own_lease(),
            ("resource.k8s.io", "resourceslices") => match action.verb {
                "create" => yes(),
                "get" | "update" | "patch" | "delete" | "list" | "watch" | "deletecollection"
                    if action.selected_node == node =>
                {
                    yes()
                }
                _ => no("can only list/watch/deletecollection resourceslices with nodeName field selector"),
            },
            ("", "nodes") => match (action.verb, action.subresource) {
                ("create" | "update" | "patch", "") => yes(),
                ("get" | "list" | "watch", "") if action.name == node => yes(),
                ("get" | "list" | "watch", "") => {
                    no(&format!("node '{node}' cannot read '{}', only its own Node object", action.name))
                }
                ("update" | "patch", "status") => yes(),
                _ => self.by_rules(action),
            },
            ("", "pods") => match (action.verb, action.subresource) {
                ("get", "") => self.own_pod(node, action),
                ("list" | "watch", "") if action.selected_node == node || !action.name.is_empty() => {
                    if action.selected_node == node { yes() } else { self.own_pod(node, action) }
                }
                ("list" | "watch", "") => no("can only list/watch pods with spec.nodeName field selector"),
                _ => self.by_rules(action),
            },
            _ => self.by_rules(action),
        }
    }

    fn by_rules(&self, action: &Action<'_>) -> Decision {
        if self.rules.iter().any(|rule| rule.allows(action)) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion(String::new())
        }
    }

    fn own_pod(&self, node: &str, action: &Action<'_>) -> Decision {
        let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
        let key = format!("{}/{}", action.namespace, action.name);
        match graph.pods.get(&key) {
            Some((on, _)) if on == node => Decision::Allow(String::new()),
            _ => Decision::NoOpinion(format!("no relationship found between node '{node}' and this object")),
        }
    }

    fn needs_volume(&self, node: &str, volume: &str) -> bool {
        let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
        graph.volumes.iter().filter(|(_, v)| *v == volume).any(|(claim, _)| {
            graph.nodes.get(&(Kind::Claim, claim.clone())).is_some_and(|n| n.contains_key(node))
        })
    }
}

impl Graph {
    fn apply_pod(&mut self, key: &str, object: Option<&[u8]>) {
        if let Some((node, references)) = self.pods.remove(key) {
            for reference in references {
                if let Some(nodes) = self.nodes.get_mut(&reference) {
                    if let Some(count) = nodes.get_mut(&node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&node);
                        }
                    }
                    if nodes.is_empty() {
                        self.nodes.remove(&reference);
                    }
                }
            }
        }
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let Some((node, references)) = object.and_then(|json| pod_references(namespace, json)) else {
            return;
        };
        for reference in &references {
            *self.nodes.entry(reference.clone()).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(key.to_owned(), (node, references));
    }
}

/// The node of a pod and all that its specification refers to.
fn pod_references(namespace: &str, json: &[u8]) -> Option<(String, HashSet<Reference>)> {
    #[derive(Deserialize)]
    struct Pod {
        #[serde(default)]
        metadata: Metadata,
        spec: Value,
        #[serde(default)]
        status: Status,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Metadata {
        name: String,
        annotations: HashMap<String, Value>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Status {
        resource_claim_statuses: Vec<ResourceClaimStatus>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct ResourceClaimStatus {
        resource_claim_name: Option<String>,
    }
    let pod: Pod = serde_json::from_slice(json).ok()?;
    let node = pod.spec.get("nodeName")?.as_str().filter(|n| !n.is_empty())?.to_owned();
    let mut out = HashSet::new();
    // A mirror pod is the node's own report: it must not widen what the node may read.
    if pod.metadata.annotations.contains_key("kubernetes.io/config.mirror") {
        return Some((node, out));
    }
    let mut add = |kind: Kind, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|n| !n.is_empty()) {
            out.insert((kind, format!("{namespace}/{name}")));
        }
    };
    add(Kind::ServiceAccount, pod.spec.get("serviceAccountName"));
    for secret in items(&pod.spec, "imagePullSecrets") {
        add(Kind::Secret, secret.get("name"));
    }
    for volume in items(&pod.spec, "volumes") {
        add(Kind::ConfigMap, volume.pointer("/configMap/name"));
        add(Kind::Secret, volume.pointer("/secret/secretName"));
        add(Kind::Claim, volume.pointer("/persistentVolumeClaim/claimName"));
        for source in ["csi/nodePublishSecretRef", "iscsi/secretRef", "rbd/secretRef", "cephfs/secretRef"] {
            add(Kind::Secret, volume.pointer(&format!("/{source}/name")));
        }
        if volume.get("ephemeral").is_some()
            && let Some(name) = volume.get("name").and_then(Value::as_str)
        {
            add(Kind::Claim, Some(&Value::from(format!("{}-{name}", pod.metadata.name))));
        }
        if let Some(projected) = volume.get("projected") {
            for source in items(projected, "sources") {
                add(Kind::ConfigMap, source.pointer("/configMap/name"));
                add(Kind::Secret, source.pointer("/secret/name"));
            }
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(&pod.spec, list) {
            for env in items(container, "env") {
                add(Kind::ConfigMap, env.pointer("/valueFrom/configMapKeyRef/name"));
                add(Kind::Secret, env.pointer("/valueFrom/secretKeyRef/name"));
            }
            for source in items(container, "envFrom") {
                add(Kind::ConfigMap, source.pointer("/configMapRef/name"));
                add(Kind::Secret, source.pointer("/secretRef/name"));
            }
        }
    }
    for claim in items(&pod.spec, "resourceClaims") {
        add(Kind::ResourceClaim, claim.get("resourceClaimName"));
    }
    for claim in &pod.status.resource_claim_statuses {
        add(Kind::ResourceClaim, claim.resource_claim_name.clone().map(Value::from).as_ref());
    }
    Some((node, out))
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn claim_of_volume(json: &[u8]) -> Option<String> {
    let volume: Value = serde_json::from_slice(json).ok()?;
    let claim = volume.pointer("/spec/claimRef")?;
    Some(format!("{}/{}", claim.get("namespace")?.as_str()?, claim.get("name")?.as_str()?))
}

fn node_of_attachment(json: &[u8]) -> Option<String> {
    let attachment: Value = serde_json::from_slice(json).ok()?;
    attachment.pointer("/spec/nodeName")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_reads_what_its_pods_need_and_no_more() {
        let authorizer = NodeAuthorizer::default();
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n1",
            "serviceAccountName": "sa",
            "volumes": [
                {"name": "v", "secret": {"secretName": "s1"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "q", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            ],
            "containers": [{"name": "c", "env": [
                {"name": "E", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}],
        }});
        authorizer.apply("pods", "ns/p", Some(pod.to_string().as_bytes()));
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "claim"}}});
        authorizer.apply("persistentvolumes", "pv", Some(volume.to_string().as_bytes()));
        let n1 = User::new("system:node:n1", &["system:nodes"]);
        let n2 = User::new("system:node:n2", &["system:nodes"]);
        let core =
            |verb, resource, name| Action { verb, resource, name, namespace: "ns", ..Action::default() };
        let lease = |verb, name| Action {
            verb,
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: "kube-node-lease",
            name,
            ..Action::default()
        };
        let cases = [
            (&n1, core("get", "secrets", "s1"), true),
            (&n2, core("get", "secrets", "s1"), false),
            (&n1, core("get", "secrets", "other"), false),
            (&n1, core("list", "secrets", ""), false),
            (&n1, core("update", "secrets", "s1"), false),
            (&n1, core("get", "configmaps", "cm"), true),
            (&n1, core("watch", "configmaps", "kube-root-ca.crt"), true),
            (&n1, core("get", "persistentvolumes", "pv"), true),
            (&n2, core("get", "persistentvolumes", "pv"), false),
            (&n1, core("get", "pods", "p"), true),
            (&n2, core("get", "pods", "p"), false),
            (&n1, core("list", "pods", ""), false),
            (&n1, Action { selected_node: "n1", ..core("list", "pods", "") }, true),
            (&n1, Action { subresource: "token", ..core("create", "serviceaccounts", "sa") }, true),
            (&n2, Action { subresource: "token", ..core("create", "serviceaccounts", "sa") }, false),
            (&n1, lease("update", "n1"), true),
            (&n1, lease("update", "n2"), false),
            (&n1, core("create", "events", ""), true),
            (&User::new("system:node:n1", &[]), core("get", "secrets", "s1"), false),
        ];
        for (user, action, allowed) in cases {
            let got = authorizer.authorize(user, &action);
            assert_eq!(matches!(got, Decision::Allow(_)), allowed, "{} {action:?}: {got:?}", user.name);
        }
        authorizer.apply("pods", "ns/p", None);
        let gone = authorizer.authorize(&n1, &core("get", "secrets", "s1"));
        assert!(matches!(gone, Decision::NoOpinion(_)));
    }
}
