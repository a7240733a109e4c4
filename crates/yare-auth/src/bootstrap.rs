//! The RBAC objects that every cluster starts with, from the table `bootstrap.txt`.

use serde_json::{Value, json};
use yare_schema::features::Gates;

use crate::rbac::Rule;

const TABLE: &str = include_str!("bootstrap.txt");
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";

/// All bootstrap objects: cluster roles, roles, and bindings, ready to be created or reconciled; of features,
/// those that are on.
pub fn objects(gates: &Gates) -> Vec<Value> {
    objects_where(|gate| gates.is_on(gate))
}

fn objects_where(is_on: impl Fn(&str) -> bool) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let mut off = false;
    for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let mut on = true;
        if let [rest @ .., "if", gate] = words.as_slice() {
            on = is_on(gate);
            words = rest.to_vec();
        }
        if line.starts_with(' ') {
            // The table is ours and a test reads all of it: a detail always follows its object.
            if let Some(object) = out.last_mut().filter(|_| on && !off) {
                detail(object, &words);
            }
        } else {
            off = !on;
            out.extend(head(&words).filter(|_| on));
        }
    }
    out
}

/// The rules of the node agents' role, which the Node authorizer applies without a binding. Of features too
/// that are off: what they are about is not served then.
pub fn node_rules() -> Vec<Rule> {
    objects_where(|_| true)
        .into_iter()
        .find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:node")
        .and_then(|o| serde_json::from_value(o["rules"].clone()).ok())
        .unwrap_or_default()
}

fn head(words: &[&str]) -> Option<Value> {
    let object = |kind: &str, namespace: &str, name: &str, labels: &[&str]| {
        let mut metadata = json!({
            "name": name,
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        });
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        for (key, value) in labels.iter().filter_map(|l| l.split_once('=')) {
            metadata["labels"][key] = value.into();
        }
        json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata})
    };
    let role_ref =
        |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    match words {
        ["clusterrole", name, rest @ ..] => {
            let split = rest.iter().position(|w| *w == "aggregate").unwrap_or(rest.len());
            let mut out = object("ClusterRole", "", name, &rest[..split]);
            out["rules"] = json!([]);
            let aggregated: Vec<Value> = rest[split..]
                .iter()
                .filter_map(|w| w.split_once('='))
                .map(|(key, value)| json!({"matchLabels": {key: value}}))
                .collect();
            if !aggregated.is_empty() {
                out["aggregationRule"] = json!({"clusterRoleSelectors": aggregated});
            }
            Some(out)
        }
        ["role", namespace, name] => {
            let mut out = object("Role", namespace, name, &[]);
            out["rules"] = json!([]);
            Some(out)
        }
        ["clusterbinding", name, "->", role, labels @ ..] => {
            let mut out = object("ClusterRoleBinding", "", name, labels);
            out["roleRef"] = role_ref("ClusterRole", role);
            out["subjects"] = json!([]);
            Some(out)
        }
        ["binding", namespace, name, "->", kind, role] => {
            let mut out = object("RoleBinding", namespace, name, &[]);
            let kind = if *kind == "role" { "Role" } else { "ClusterRole" };
            out["roleRef"] = role_ref(kind, role);
            out["subjects"] = json!([]);
            Some(out)
        }
        _ => None,
    }
}

fn detail(object: &mut Value, words: &[&str]) {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let groups = |text: &str| {
        list(text).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect::<Vec<_>>()
    };
    let (field, value) = match words {
        ["user", name] => {
            ("subjects", json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}))
        }
        ["group", name] => {
            ("subjects", json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}))
        }
        ["sa", namespace, name] => {
            ("subjects", json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        [verbs, "url", urls] => ("rules", json!({"verbs": list(verbs), "nonResourceURLs": list(urls)})),
        [verbs, api_groups, resources, rest @ ..] => {
            let mut rule = json!({
                "verbs": list(verbs),
                "apiGroups": groups(api_groups),
                "resources": list(resources),
            });
            if let ["names", names] = rest {
                rule["resourceNames"] = json!(list(names));
            }
            ("rules", rule)
        }
        _ => return,
    };
    if let Some(items) = object.get_mut(field).and_then(Value::as_array_mut) {
        items.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        User,
        rbac::{Action, Decision, Rbac},
    };

    fn key(object: &Value) -> String {
        let name = object["metadata"]["name"].as_str().unwrap();
        match object["metadata"].get("namespace").and_then(Value::as_str) {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        let objects = objects_where(|_| true);
        let heads = TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', ' '])).count();
        let details = TABLE.lines().filter(|l| l.starts_with(' ')).count();
        assert_eq!(objects.len(), heads);
        let held: usize = objects
            .iter()
            .map(|o| {
                ["rules", "subjects"].iter().filter_map(|f| o[f].as_array()).map(Vec::len).sum::<usize>()
            })
            .sum();
        assert_eq!(held, details);
        assert!(node_rules().len() > 10);
    }

    #[test]
    fn features_bring_their_objects() {
        let count = |gates: &str| {
            let objects = objects(&Gates::parse(gates).unwrap());
            let about =
                |o: &&Value| o.to_string().contains("trust-bundle") || o.to_string().contains("trustbundle");
            objects.iter().filter(about).count()
        };
        assert_eq!(count(""), 0);
        // Two roles, a binding of each, and a rule of node agents.
        assert_eq!(count("ClusterTrustBundle=true"), 5);
        for line in TABLE.lines() {
            if let [.., "if", gate] = line.split_whitespace().collect::<Vec<_>>().as_slice() {
                assert!(yare_schema::features::find(gate).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn components_hold_what_their_work_needs() {
        let rbac = Rbac::default();
        for object in objects(&Gates::default()) {
            let resource = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
            rbac.apply(&resource, &key(&object), Some(object.to_string().as_bytes()));
        }
        let scheduler = User::new("system:kube-scheduler", &[]);
        let action = |verb, resource, subresource| Action {
            verb,
            resource,
            subresource,
            namespace: "default",
            ..Action::default()
        };
        let allowed = |user: &User, a: Action<'_>| matches!(rbac.authorize(user, &a), Decision::Allow(_));
        assert!(allowed(&scheduler, action("create", "pods", "binding")));
        assert!(!allowed(&scheduler, action("create", "pods", "")));
        assert!(allowed(&User::admin(), action("delete", "nodes", "")));
        assert!(allowed(&User::anonymous(), Action { verb: "get", path: "/healthz", ..Action::default() }));
        assert!(!allowed(&User::anonymous(), action("list", "pods", "")));
    }
}
