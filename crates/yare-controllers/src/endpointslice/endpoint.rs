//! An endpoint as it stands in a slice.

use serde::{Deserialize, Serialize};

use crate::views::nullable;

/// One endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<String>,
    pub(super) conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hints: Option<Hints>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TargetRef {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hints {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) for_zones: Vec<ForName>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) for_nodes: Vec<ForName>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ForName {
    pub(super) name: String,
}

impl Endpoint {
    /// What makes it the same endpoint in another state.
    pub(super) fn identity(&self) -> (Vec<&str>, &str, &str) {
        let target = self.target_ref.as_ref().map_or("", |t| &t.name);
        (self.addresses.iter().map(String::as_str).collect(), self.node_name.as_deref().unwrap_or(""), target)
    }
}

/// Whom an endpoint should serve first.
pub(super) fn hints(
    distribution: Option<&str>,
    ready: bool,
    zone: Option<&str>,
    node: Option<&str>,
) -> Option<Hints> {
    let names = |name: Option<&str>| name.map(|n| ForName { name: n.into() }).into_iter().collect::<Vec<_>>();
    let hints = match distribution {
        _ if !ready => return None,
        Some("PreferClose" | "PreferSameZone") => Hints { for_zones: names(zone), for_nodes: Vec::new() },
        Some("PreferSameNode") => Hints { for_zones: names(zone), for_nodes: names(node) },
        _ => return None,
    };
    (hints != Hints::default()).then_some(hints)
}
