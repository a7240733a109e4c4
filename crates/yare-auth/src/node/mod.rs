//! The Node authorizer: a node agent reaches only what the pods on its node need.
//!
//! Rules: <https://kubernetes.io/docs/reference/access-authn-authz/node/>, as of 1.36 with
//! `AuthorizeNodeWithSelectors`. What a node needs is in the [`graph`].

mod graph;

use std::sync::{PoisonError, RwLock};

use yare_schema::{
    local_path::NODE_LABEL,
    selector::{Operator, Requirement},
};

use self::graph::{Graph, Kind};
use crate::{
    User, bootstrap,
    rbac::{Action, Decision, Rule},
    user::{NODE_PREFIX, NODES},
};

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

/// The kinds that [`NodeAuthorizer::apply`] takes: group and resource.
pub const RESOURCES: [(&str, &str); 5] = [
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
    ("resource.k8s.io", "resourceslices"),
    ("certificates.k8s.io", "podcertificaterequests"),
];

/// Names of the Secrets that a pod (JSON) refers to, in its own namespace.
pub fn secrets_of_pod(pod: &[u8]) -> Vec<String> {
    graph::secrets(pod)
}

/// `Err`: what was missing.
type Answer = Result<(), String>;

fn no(why: &str) -> Answer {
    Err(why.to_owned())
}

impl NodeAuthorizer {
    /// Takes in a change of one of [`RESOURCES`]; `None`: it is gone.
    pub fn apply(&self, resource: &str, key: &str, object: Option<&[u8]>) {
        // A poisoned lock means a panic while writing; entries are whole all the same.
        self.graph.write().unwrap_or_else(PoisonError::into_inner).apply(resource, key, object);
    }

    /// Whether the node agent `user` may do `action`.
    pub fn authorize(&self, user: &User, action: &Action<'_>) -> Decision {
        let Some(node) = user.name.strip_prefix(NODE_PREFIX).filter(|_| user.in_group(NODES)) else {
            return Decision::NoOpinion(String::new());
        };
        if node.is_empty() {
            return Decision::NoOpinion(format!("unknown node for user {:?}", user.name));
        }
        match (Asked { node, action, authorizer: self }).answer() {
            Ok(()) => Decision::Allow(String::new()),
            Err(why) => Decision::NoOpinion(why),
        }
    }
}

/// One question.
struct Asked<'a> {
    node: &'a str,
    action: &'a Action<'a>,
    authorizer: &'a NodeAuthorizer,
}

impl Asked<'_> {
    fn answer(&self) -> Answer {
        let action = self.action;
        match (action.group, action.resource) {
            ("", "secrets") => self.read(Kind::Secret),
            ("", "configmaps") => self.read(Kind::ConfigMap),
            ("", "persistentvolumeclaims") if action.subresource == "status" => match action.verb {
                "update" | "patch" => self.needs(Kind::Claim),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.get(|a| a.needs(Kind::Claim)),
            ("", "persistentvolumes") => self.volume(),
            ("resource.k8s.io", "resourceclaims") => self.get(|a| a.needs(Kind::ResourceClaim)),
            ("storage.k8s.io", "volumeattachments") => self.get(|a| a.related(Graph::attaches)),
            ("", "serviceaccounts") => self.service_account(),
            ("coordination.k8s.io", "leases") => self.lease(),
            ("storage.k8s.io", "csinodes") => self.csi_node(),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(),
            ("", "nodes") => self.node_object(),
            ("", "pods") => self.pod(),
            ("certificates.k8s.io", "podcertificaterequests") => self.certificate_request(),
            _ if self.authorizer.rules.iter().any(|rule| rule.allows(action)) => Ok(()),
            _ => no(""),
        }
    }

    /// Whether the graph relates the node to the object asked for.
    fn related(&self, is: fn(&Graph, &str, &str) -> bool) -> Answer {
        self.find(|graph, key| is(graph, self.node, key))
    }

    /// Whether a pod of the node refers to the object asked for.
    fn needs(&self, kind: Kind) -> Answer {
        self.find(|graph, key| graph.needs(self.node, kind, key))
    }

    fn find(&self, is: impl Fn(&Graph, &str) -> bool) -> Answer {
        let action = self.action;
        if action.name.is_empty() {
            return no("No Object name found");
        }
        let graph = self.authorizer.graph.read().unwrap_or_else(PoisonError::into_inner);
        let found = if action.namespace.is_empty() {
            is(&graph, action.name)
        } else {
            is(&graph, &format!("{}/{}", action.namespace, action.name))
        };
        if found {
            return Ok(());
        }
        Err(format!("no relationship found between node '{}' and this object", self.node))
    }

    fn read(&self, kind: Kind) -> Answer {
        let action = self.action;
        if !matches!(action.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !action.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if action.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.needs(kind)
    }

    fn get(&self, then: impl Fn(&Self) -> Answer) -> Answer {
        if self.action.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !self.action.subresource.is_empty() {
            return no("cannot get subresource");
        }
        then(self)
    }

    /// Beyond upstream: a node watches, and says what became of, the volumes whose files it has.
    fn volume(&self) -> Answer {
        let action = self.action;
        // Nothing but exactly its own name.
        let own = |r: &Requirement| {
            r.key() == NODE_LABEL
                && r.values().eq([self.node])
                && matches!(r.operator(), Operator::In | Operator::Equals | Operator::DoubleEquals)
        };
        match action.verb {
            "list" | "watch" if action.subresource.is_empty() && action.labels.iter().any(own) => Ok(()),
            // What of them is NodeRestriction's to check.
            "patch" if action.subresource.is_empty() => self.related(Graph::stores),
            _ => self.get(|a| a.related(Graph::needs_volume)),
        }
    }

    fn service_account(&self) -> Answer {
        let action = self.action;
        if action.verb == "get" && action.subresource.is_empty() {
            return self.read(Kind::ServiceAccount);
        }
        if action.verb != "create" || action.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if action.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.needs(Kind::ServiceAccount)
    }

    fn lease(&self) -> Answer {
        let action = self.action;
        if !matches!(action.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if action.namespace != "kube-node-lease" {
            return no("can only access leases in the \"kube-node-lease\" system namespace");
        }
        // The name of what is created is NodeRestriction's to check.
        if action.verb != "create" && action.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn csi_node(&self) -> Answer {
        let action = self.action;
        if !matches!(action.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !action.subresource.is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if action.verb != "create" && action.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        Ok(())
    }

    fn resource_slice(&self) -> Answer {
        let action = self.action;
        if !action.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match action.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(Graph::offers),
            "watch" | "list" | "deletecollection" if action.selects("spec.nodeName", self.node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn certificate_request(&self) -> Answer {
        let action = self.action;
        if !action.subresource.is_empty() {
            return no("nodes may not access the status subresource of PodCertificateRequests");
        }
        match action.verb {
            "create" => Ok(()),
            "get" => self.related(Graph::requests),
            "list" | "watch" if action.selects("spec.nodeName", self.node) => Ok(()),
            "list" | "watch" => no("can only list/watch podcertificaterequests with nodeName field selector"),
            verb => Err(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn node_object(&self) -> Answer {
        let (node, action) = (self.node, self.action);
        match (action.subresource, action.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            // By name and not by the graph: an agent reads its object before it exists.
            ("", "get" | "list" | "watch") if action.name == node => Ok(()),
            ("", "get" | "list" | "watch") if action.name.is_empty() => {
                Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            ("", "get" | "list" | "watch") => {
                Err(format!("node '{node}' cannot read '{}', only its own Node object", action.name))
            }
            _ => no(""),
        }
    }

    fn pod(&self) -> Answer {
        let action = self.action;
        match (action.subresource, action.verb) {
            ("", "get") => self.related(Graph::runs),
            ("", "list" | "watch") if action.selects("spec.nodeName", self.node) => Ok(()),
            ("", "list" | "watch") if !action.name.is_empty() => self.related(Graph::runs),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // Which ones is NodeRestriction's to check.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => no(""),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yare_schema::selector::FieldSelector;

    use super::*;

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
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "claim"}, "csi": {
            "nodeStageSecretRef": {"name": "stage", "namespace": "drivers"},
            "nodePublishSecretRef": {"name": "publish"},
            "controllerPublishSecretRef": {"name": "controller", "namespace": "drivers"}}}});
        authorizer.apply("persistentvolumes", "pv", Some(volume.to_string().as_bytes()));
        let here = json!({"metadata": {"labels": {NODE_LABEL: "n1"}}});
        authorizer.apply("persistentvolumes", "here", Some(here.to_string().as_bytes()));
        let on = |operator| [Requirement::new(NODE_LABEL, operator, ["n1"]).unwrap()];
        let (on_n1, not_on_n1) = (on(Operator::Equals), on(Operator::NotEquals));
        for (resource, key) in
            [("volumeattachments", "va"), ("resourceslices", "rs"), ("podcertificaterequests", "ns/pcr")]
        {
            authorizer.apply(resource, key, Some(br#"{"spec": {"nodeName": "n1"}}"#));
        }
        let n1 = User::new("system:node:n1", &["system:nodes"]);
        let n2 = User::new("system:node:n2", &["system:nodes"]);
        let core =
            |verb, resource, name| Action { verb, resource, name, namespace: "ns", ..Action::default() };
        let group = |group, verb, resource, name| Action { verb, group, resource, name, ..Action::default() };
        let own = FieldSelector::parse("spec.nodeName=n1").unwrap();
        let not_own = FieldSelector::parse("spec.nodeName!=n1").unwrap();
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
            (&n1, group("", "get", "persistentvolumes", "pv"), true),
            (&n2, group("", "get", "persistentvolumes", "pv"), false),
            (&n1, group("", "patch", "persistentvolumes", "here"), true),
            (&n2, group("", "patch", "persistentvolumes", "here"), false),
            (&n1, group("", "patch", "persistentvolumes", "pv"), false),
            (&n1, group("", "update", "persistentvolumes", "here"), false),
            (&n1, group("", "delete", "persistentvolumes", "here"), false),
            (&n1, group("", "list", "persistentvolumes", ""), false),
            (&n1, Action { labels: &on_n1, ..group("", "watch", "persistentvolumes", "") }, true),
            (&n2, Action { labels: &on_n1, ..group("", "list", "persistentvolumes", "") }, false),
            (&n1, Action { labels: &not_on_n1, ..group("", "list", "persistentvolumes", "") }, false),
            (&n1, core("get", "pods", "p"), true),
            (&n2, core("get", "pods", "p"), false),
            (&n1, core("list", "pods", ""), false),
            (&n1, Action { fields: own.requirements(), ..core("list", "pods", "") }, true),
            (&n2, Action { fields: own.requirements(), ..core("list", "pods", "") }, false),
            (&n1, Action { fields: not_own.requirements(), ..core("list", "pods", "") }, false),
            (&n1, core("delete", "pods", "p"), true),
            (&n1, core("deletecollection", "pods", ""), false),
            (&n1, Action { subresource: "exec", ..core("create", "pods", "p") }, false),
            (&n1, core("get", "secrets", "publish"), true),
            (&n2, core("get", "secrets", "publish"), false),
            (&n1, Action { namespace: "drivers", ..core("get", "secrets", "stage") }, true),
            (&n1, Action { namespace: "drivers", ..core("get", "secrets", "controller") }, false),
            (&n1, group("storage.k8s.io", "get", "volumeattachments", "va"), true),
            (&n2, group("storage.k8s.io", "get", "volumeattachments", "va"), false),
            (&n1, group("resource.k8s.io", "update", "resourceslices", "rs"), true),
            (&n2, group("resource.k8s.io", "update", "resourceslices", "rs"), false),
            (&n1, group("resource.k8s.io", "list", "resourceslices", ""), false),
            (
                &n1,
                Action {
                    fields: own.requirements(),
                    ..group("resource.k8s.io", "list", "resourceslices", "")
                },
                true,
            ),
            (
                &n1,
                Action {
                    namespace: "ns",
                    ..group("certificates.k8s.io", "get", "podcertificaterequests", "pcr")
                },
                true,
            ),
            (
                &n2,
                Action {
                    namespace: "ns",
                    ..group("certificates.k8s.io", "get", "podcertificaterequests", "pcr")
                },
                false,
            ),
            (&n1, group("", "get", "nodes", "n1"), true),
            (&n1, group("", "get", "nodes", "n2"), false),
            (&n1, group("", "list", "nodes", ""), false),
            (&n1, group("", "delete", "nodes", "n1"), false),
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

    #[test]
    fn a_change_of_status_keeps_what_a_pod_refers_to_and_a_new_pod_of_the_name_does_not() {
        let authorizer = NodeAuthorizer::default();
        let node = User::new("system:node:n1", &["system:nodes"]);
        let may = |name| {
            let action =
                Action { verb: "get", resource: "secrets", namespace: "ns", name, ..Action::default() };
            matches!(authorizer.authorize(&node, &action), Decision::Allow(_))
        };
        let put = |uid: &str, secret: &str, more: serde_json::Value| {
            let pod = json!({
                "metadata": {"name": "p", "uid": uid},
                "spec": {"nodeName": "n1", "imagePullSecrets": [{"name": secret}], "ephemeralContainers": more},
                "status": {"phase": "Running"},
            });
            authorizer.apply("pods", "ns/p", Some(pod.to_string().as_bytes()));
        };
        put("1", "a", json!(null));
        put("1", "a", json!(null));
        assert!(may("a") && !may("b"));
        put("2", "b", json!(null));
        assert!(!may("a") && may("b"));
        put("2", "b", json!([{"name": "e", "envFrom": [{"secretRef": {"name": "c"}}]}]));
        assert!(may("b") && may("c"));
        authorizer.apply("pods", "ns/p", None);
        assert!(!may("b") && !may("c"));
    }
}
