//! What an API server serves, each resource once, in its preferred version.

use std::collections::HashSet;

use serde::Deserialize;
use yare_client::Resource;

use crate::api::{Api, ApiError};

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource and what can be done with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// The resource in its preferred version.
    pub resource: Resource,
    /// `list`, `watch`, `delete`, …
    pub verbs: Vec<String>,
}

impl Served {
    /// Whether all the verbs can be used.
    pub fn supports(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|v| self.verbs.iter().any(|w| w == v))
    }
}

/// The outcome of discovery.
#[derive(Default, Debug)]
pub struct Discovery {
    /// What is served.
    pub resources: Vec<Served>,
    /// Group versions that could not be read (their aggregated server is down), with the reason.
    pub failed: Vec<String>,
}

#[derive(Deserialize)]
struct GroupDiscoveryList {
    kind: String,
    #[serde(default)]
    items: Vec<GroupDiscovery>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GroupDiscovery {
    metadata: Named,
    versions: Vec<VersionDiscovery>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct VersionDiscovery {
    version: String,
    freshness: String,
    resources: Vec<ResourceDiscovery>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ResourceDiscovery {
    resource: String,
    response_kind: Kind,
    scope: String,
    verbs: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GroupList {
    groups: Vec<Group>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Group {
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct GroupVersion {
    group_version: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourceList {
    resources: Vec<LegacyResource>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LegacyResource {
    name: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
}

/// Asks the server what it serves.
pub async fn discover(api: &Api) -> Result<Discovery, ApiError> {
    let mut found = Discovery::default();
    for root in ["/api", "/apis"] {
        let bytes = api.read(root, AGGREGATED).await?;
        match serde_json::from_slice::<GroupDiscoveryList>(&bytes) {
            Ok(list) if list.kind == "APIGroupDiscoveryList" => found.add_aggregated(list),
            _ if root == "/api" => found.add_legacy(api, "/api/v1", "", "v1").await,
            _ => {
                let list: GroupList = serde_json::from_slice(&bytes)
                    .map_err(|source| ApiError::Json { what: format!("discovery at {root}"), source })?;
                for version in list.groups.iter().flat_map(|g| &g.versions) {
                    let (group, name) =
                        version.group_version.split_once('/').unwrap_or(("", &version.group_version));
                    found.add_legacy(api, &format!("/apis/{}", version.group_version), group, name).await;
                }
            }
        }
    }
    let mut seen = HashSet::new();
    found.resources.retain(|s| seen.insert((s.resource.group.clone(), s.resource.plural.clone())));
    Ok(found)
}

impl Discovery {
    fn add_aggregated(&mut self, list: GroupDiscoveryList) {
        for group in list.items {
            for version in group.versions {
                if version.freshness == "Stale" {
                    self.failed.push(format!(
                        "{}/{}: stale GroupVersion discovery",
                        group.metadata.name, version.version
                    ));
                    continue;
                }
                for r in version.resources {
                    // An answer of another group (Scale) is no object of this resource.
                    let answer = r.response_kind;
                    let unnamed = answer.group.is_empty() && answer.version.is_empty();
                    if !unnamed && answer.group != group.metadata.name {
                        continue;
                    }
                    self.resources.push(Served {
                        resource: Resource {
                            group: group.metadata.name.clone().into(),
                            version: version.version.clone().into(),
                            plural: r.resource.into(),
                            kind: answer.kind.into(),
                            namespaced: r.scope == "Namespaced",
                        },
                        verbs: r.verbs,
                    });
                }
            }
        }
    }

    async fn add_legacy(&mut self, api: &Api, path: &str, group: &str, version: &str) {
        let list = match api.read(path, "application/json").await {
            Ok(bytes) => serde_json::from_slice::<ResourceList>(&bytes).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let list = match list {
            Ok(list) => list,
            Err(error) => {
                self.failed.push(format!("{group}/{version}: {error}"));
                return;
            }
        };
        for r in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            self.resources.push(Served {
                resource: Resource {
                    group: group.to_owned().into(),
                    version: version.to_owned().into(),
                    plural: r.name.into(),
                    kind: r.kind.into(),
                    namespaced: r.namespaced,
                },
                verbs: r.verbs,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_discovery_is_read() {
        let list: GroupDiscoveryList = serde_json::from_str(
            r#"{"kind":"APIGroupDiscoveryList","items":[{"metadata":{"name":"apps"},"versions":[
              {"version":"v1","freshness":"Current","resources":[{"resource":"deployments","responseKind":{"group":"apps","version":"v1","kind":"Deployment"},"scope":"Namespaced","verbs":["list","delete"]}]},
              {"version":"v2","freshness":"Stale"}]}]}"#,
        )
        .unwrap();
        let mut found = Discovery::default();
        found.add_aggregated(list);
        assert_eq!(found.resources.len(), 1);
        assert!(found.resources[0].supports(&["delete"]) && !found.resources[0].supports(&["watch"]));
        assert_eq!(found.resources[0].resource, yare_client::DEPLOYMENTS);
        assert_eq!(found.failed, ["apps/v2: stale GroupVersion discovery"]);
    }
}
