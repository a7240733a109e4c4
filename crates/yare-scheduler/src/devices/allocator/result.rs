//! What an allocation says: devices, configuration for their drivers, and the nodes from which they can be reached.

use serde_json::{Map, Value, json};

use super::{Given, World};
use crate::devices::{
    requests::{Alternative, ClaimSpec, Request},
    taken::Holding,
    types::{Node, NodeSelector, Nodes},
};

/// An allocation of one claim.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// `status.allocation`, without the ids of shares.
    value: Value,
    /// What it holds.
    pub holdings: Vec<Holding>,
    /// Its place in each list of alternatives, by request: the first is 0.
    pub chosen: Vec<usize>,
}

impl Allocation {
    pub(super) fn new(
        world: &World<'_>,
        node: Node<'_>,
        claim: &ClaimSpec,
        given: &[Given<'_>],
    ) -> Result<Self, String> {
        let wish = |g: &Given<'_>| &claim.requests[g.place.0].alternatives[g.place.1];
        let mut results = Vec::with_capacity(given.len());
        let mut holdings = Vec::with_capacity(given.len());
        for g in given {
            let (wish, id, spec) = (wish(g), &g.device.id, &g.device.spec);
            let mut result = json!({
                "request": wish.name, "driver": id.pool.driver, "pool": id.pool.pool, "device": id.device,
            });
            if wish.admin_access {
                result["adminAccess"] = true.into();
            } else {
                holdings.push(Holding { device: id.clone(), share: g.share.clone() });
            }
            if let Some(tolerations) = &wish.tolerations_value {
                result["tolerations"] = tolerations.clone();
            }
            if world.features.bindings && !spec.binding_conditions.is_empty() {
                result["bindingConditions"] = json!(spec.binding_conditions);
                if !spec.binding_failure_conditions.is_empty() {
                    result["bindingFailureConditions"] = json!(spec.binding_failure_conditions);
                }
            }
            if let Some(share) = &g.share {
                result["shareID"] = Value::Null;
                if !share.is_empty() {
                    let text =
                        share.iter().map(|(name, amount)| (name.to_string(), amount.0.to_string().into()));
                    result["consumedCapacity"] = Value::Object(text.collect());
                }
            }
            results.push(result);
        }
        let chosen: Vec<usize> = (0..claim.requests.len())
            .map(|request| given.iter().find(|g| g.place.0 == request).map_or(0, |g| g.place.1))
            .collect();
        let mut value = json!({"devices": {"results": results}});
        let config = configuration(world, claim, &chosen);
        if !config.is_empty() {
            value["devices"]["config"] = config.into();
        }
        if let Some(selector) = node_selector(node, claim, given)? {
            value["nodeSelector"] = selector;
        }
        Ok(Self { value, holdings, chosen })
    }

    /// `status.allocation`; `share_id` makes the id of each share.
    pub fn to_json(&self, mut share_id: impl FnMut() -> String) -> Value {
        let mut value = self.value.clone();
        for result in value["devices"]["results"].as_array_mut().into_iter().flatten() {
            if let Some(id) = result.get_mut("shareID") {
                *id = share_id().into();
            }
        }
        value
    }
}

/// The configuration of classes, then of the claim itself.
fn configuration(world: &World<'_>, claim: &ClaimSpec, chosen: &[usize]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let entry = |source: &str, requests: Value, config: &Value| {
        let mut entry = Map::new();
        entry.insert("source".into(), source.into());
        if requests.as_array().is_some_and(|r| !r.is_empty()) {
            entry.insert("requests".into(), requests);
        }
        if let Some(opaque) = config.get("opaque") {
            entry.insert("opaque".into(), opaque.clone());
        }
        Value::Object(entry)
    };
    let wishes: Vec<_> = claim.requests.iter().zip(chosen).map(|(r, at)| (r, &r.alternatives[*at])).collect();
    let mut seen: Vec<&str> = Vec::new();
    for (_, wish) in &wishes {
        if seen.contains(&&*wish.class) {
            continue;
        }
        seen.push(&wish.class);
        let names: Vec<&str> =
            wishes.iter().filter(|(_, w)| w.class == wish.class).map(|(_, w)| &*w.name).collect();
        let class = world.classes.get(&wish.class);
        for config in class.into_iter().flat_map(|c| &c.config) {
            out.push(entry("FromClass", json!(names), config));
        }
    }
    for config in &claim.config {
        let requests = config.get("requests").cloned().unwrap_or_default();
        let named: Vec<&str> = requests.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let concerns = |(request, wish): &(&Request, &Alternative)| {
            named.contains(&&*request.name) || named.contains(&&*wish.name)
        };
        if named.is_empty() || wishes.iter().any(concerns) {
            out.push(entry("FromClaim", requests, config));
        }
    }
    out
}

/// The nodes from which all devices can be reached; `None`: from everywhere.
fn node_selector(node: Node<'_>, claim: &ClaimSpec, given: &[Given<'_>]) -> Result<Option<Value>, String> {
    let mut term = Map::new();
    for g in given {
        let nodes = match &g.slice.nodes {
            Nodes::PerDevice => &g.device.nodes,
            nodes => nodes,
        };
        if matches!(nodes, Nodes::Named(_)) || g.device.spec.binds_to_node {
            return Ok(Some(json!({"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node.name]}]}]})));
        }
        let Nodes::Matching(NodeSelector { value, .. }) = nodes else { continue };
        let terms = value["nodeSelectorTerms"].as_array().map_or(&[][..], Vec::as_slice);
        let [only] = terms else {
            if terms.is_empty() {
                continue;
            }
            return Err(format!(
                "create NodeSelector for claim {}: unsupported ResourceSlice.NodeSelector with {} terms",
                claim.name.rsplit('/').next().unwrap_or_default(),
                terms.len()
            ));
        };
        for field in ["matchFields", "matchExpressions"] {
            for requirement in only[field].as_array().into_iter().flatten() {
                let list = term.entry(field).or_insert_with(|| json!([]));
                if let Value::Array(list) = list
                    && !list.contains(requirement)
                {
                    list.push(requirement.clone());
                }
            }
        }
    }
    Ok((!term.is_empty()).then(|| json!({"nodeSelectorTerms": [term]})))
}
