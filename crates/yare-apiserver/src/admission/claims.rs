//! Who may have administrative access to devices, and who may write which part of a claim's status (KEP-5018,
//! KEP-4817). No plugin asks this: it is part of what makes the write valid, before everything else.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;
use yare_auth::{Action, User};
use yare_kinds::view::{View, same};
use yare_schema::field::{FieldError, Path};

use super::{Attributes, Operation};
use crate::auth;

const ADMIN_LABEL: &str = "resource.kubernetes.io/admin-access";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const RESULTS: &str = "status.allocation.devices.results";

/// What is forbidden to this caller, or in this namespace.
pub async fn errors(attributes: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let claim = attributes.is("resource.k8s.io", "resourceclaims");
    match (attributes.operation, old) {
        (Operation::Create, _) if claim => admin_in_spec(attributes, new.items("spec.devices.requests")),
        (Operation::Create, _) if attributes.is("resource.k8s.io", "resourceclaimtemplates") => {
            admin_in_spec(attributes, new.items("spec.spec.devices.requests"))
        }
        (Operation::Update, Some(old)) if claim && attributes.subresource == "status" => {
            let mut errors = admin_in_status(attributes, new, old);
            let gates = &attributes.call.core.config.gates;
            if gates.is_on("DRAResourceClaimGranularStatusAuthorization") {
                errors.extend(binding(attributes, new, old).await);
                if gates.is_on("DRAResourceClaimDeviceStatus") && new.is_set("status.allocation") {
                    errors.extend(device_status(attributes, new, old).await);
                }
            }
            errors
        }
        _ => Vec::new(),
    }
}

/// The path is that of a claim, in templates as well.
fn admin_in_spec(attributes: &Attributes<'_>, requests: &[Value]) -> Vec<FieldError> {
    let at = requests.iter().position(|r| r.at("exactly").bool_at("adminAccess"));
    let spec = Path::new("spec");
    let devices = spec.child("devices");
    admin(attributes, &devices.child("requests"), at)
}

/// What was granted once stays: the allocation cannot change.
fn admin_in_status(attributes: &Attributes<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
    let granted = |claim: &Value| claim.items(RESULTS).iter().position(|r| r.bool_at("adminAccess"));
    if granted(old).is_some() {
        return Vec::new();
    }
    let status = Path::new("status");
    let allocation = status.child("allocation");
    let devices = allocation.child("devices");
    admin(attributes, &devices.child("results"), granted(new))
}

fn admin(attributes: &Attributes<'_>, path: &Path<'_>, at: Option<usize>) -> Vec<FieldError> {
    let Some(at) = at else { return Vec::new() };
    let namespace = attributes.call.core.store().get("namespaces", attributes.namespace);
    let label = namespace
        .and_then(|object| serde_json::from_slice::<Value>(&object.bytes).ok())
        .and_then(|object| Some(object.at("metadata.labels").get(ADMIN_LABEL)?.as_str()?.to_owned()));
    if label.as_deref() == Some("true") {
        return Vec::new();
    }
    let detail = format!(
        "admin access to devices requires the `{ADMIN_LABEL}: true` label on the containing namespace"
    );
    vec![FieldError::forbidden(&path.index(at).child("adminAccess"), detail)]
}

/// `None`: it may; else upstream's words of refusal.
async fn refusal(attributes: &Attributes<'_>, action: &Action<'_>) -> Option<String> {
    let call = attributes.call;
    let reason = auth::decide(&call.core, &call.user, action).await.err()?;
    Some(auth::forbidden(&call.user, action, &reason).message)
}

/// Allocating and reserving takes the verb on `resourceclaims/binding`, of all claims.
async fn binding(attributes: &Attributes<'_>, new: &Value, old: &Value) -> Option<FieldError> {
    if ["status.allocation", "status.reservedFor"].iter().all(|field| same(new.at(field), old.at(field))) {
        return None;
    }
    let verb = attributes.call.info.verb;
    let action = Action {
        verb,
        group: "resource.k8s.io",
        version: &attributes.call.info.version,
        resource: "resourceclaims",
        subresource: "binding",
        ..Action::default()
    };
    let refusal = refusal(attributes, &action).await?;
    let detail = format!(
        "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {refusal}"
    );
    Some(FieldError::forbidden(&Path::new("status").child("allocation"), detail))
}

/// Saying something of devices takes a verb on `resourceclaims/driver` of each driver whose devices it is.
async fn device_status(attributes: &Attributes<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
    let call = attributes.call;
    let node = allocated_node(new.at("status.allocation.nodeSelector"));
    let mut verbs = vec![format!("arbitrary-node:{}", call.info.verb)];
    if node.is_some_and(|node| runs_on(&call.user, node)) {
        verbs.insert(0, format!("associated-node:{}", call.info.verb));
    }
    let mut errors = Vec::new();
    for driver in modified_drivers(new, old) {
        let action = |verb| Action {
            verb,
            group: "resource.k8s.io",
            version: &call.info.version,
            resource: "resourceclaims",
            subresource: "driver",
            namespace: attributes.namespace,
            name: driver,
            ..Action::default()
        };
        let mut first = None;
        let mut allowed = false;
        for verb in &verbs {
            let Some(refusal) = refusal(attributes, &action(verb)).await else {
                allowed = true;
                break;
            };
            first.get_or_insert(refusal);
        }
        if let Some(first) = first.filter(|_| !allowed) {
            let detail = format!(
                "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {first}",
                verbs.join(" ")
            );
            errors.push(FieldError::forbidden(&Path::new("status").child("devices"), detail));
        }
    }
    errors
}

/// Drivers whose entries were added, removed or changed.
fn modified_drivers<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    fn id(device: &Value) -> [&str; 4] {
        ["driver", "pool", "device", "shareID"].map(|field| device.str_at(field))
    }
    let mut before: HashMap<_, _> = old.items("status.devices").iter().map(|d| (id(d), d)).collect();
    let mut drivers = BTreeSet::new();
    for device in new.items("status.devices") {
        if before.remove(&id(device)).is_none_or(|old| !same(device, old)) {
            drivers.insert(device.str_at("driver"));
        }
    }
    drivers.extend(before.into_values().map(|device| device.str_at("driver")));
    drivers
}

/// The one node that the selector of an allocation names.
fn allocated_node(selector: &Value) -> Option<&str> {
    let [term] = selector.items("nodeSelectorTerms") else { return None };
    let [field] = term.items("matchFields") else { return None };
    let [name] = field.items("values") else { return None };
    let by_name = field.str_at("key") == "metadata.name" && field.str_at("operator") == "In";
    (term.items("matchExpressions").is_empty() && by_name).then(|| name.as_str()).flatten()
}

/// Whether the caller is a service account whose token says that it runs on `node`.
fn runs_on(user: &User, node: &str) -> bool {
    let account = user.name.strip_prefix("system:serviceaccount:");
    account.and_then(|name| name.split_once(':')).is_some_and(|(ns, name)| !ns.is_empty() && !name.is_empty())
        && user.extra.get(NODE_NAME).is_some_and(|nodes| nodes.len() == 1 && nodes[0] == node)
        && !node.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drivers_of_changed_entries() {
        let device =
            |driver: &str, data: i64| json!({"driver": driver, "pool": "p", "device": "d", "data": data});
        let claim = |devices: Vec<Value>| json!({"status": {"devices": devices}});
        let old = claim(vec![device("gone", 1), device("kept", 1), device("changed", 1)]);
        let new = claim(vec![device("kept", 1), device("changed", 2), device("new", 1)]);
        assert_eq!(modified_drivers(&new, &old), BTreeSet::from(["changed", "gone", "new"]));
    }

    #[test]
    fn node_of_an_allocation() {
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
        let selector = |terms: Value| json!({"nodeSelectorTerms": terms});
        assert_eq!(allocated_node(&selector(json!([{"matchFields": [field]}]))), Some("n1"));
        for other in [
            json!([]),
            json!([{"matchFields": [field]}, {"matchFields": [field]}]),
            json!([{"matchFields": [field], "matchExpressions": [{"key": "a", "operator": "Exists"}]}]),
            json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}]),
        ] {
            assert_eq!(allocated_node(&selector(other)), None);
        }
    }

    #[test]
    fn accounts_on_nodes() {
        let mut user = User::service_account("ns", "driver", "u");
        assert!(!runs_on(&user, "n1"));
        user.extra.insert(NODE_NAME.into(), vec!["n1".into()]);
        assert!(runs_on(&user, "n1"));
        assert!(!runs_on(&user, "n2"));
        user.name = "system:node:n1".into();
        assert!(!runs_on(&user, "n1"));
    }
}
