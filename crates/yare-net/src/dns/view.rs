//! The fields of Services and EndpointSlices that DNS reads.

use std::net::IpAddr;

use serde::Deserialize;
use yare_client::nullable;

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Its specification.
    pub spec: ServiceSpec,
}

/// `ServiceSpec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `ExternalName`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Addresses, or `None` for a headless service.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// What an `ExternalName` stands for.
    pub external_name: String,
    /// Ports.
    pub ports: Vec<Port>,
}

/// A port of a Service or of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Name.
    pub name: Option<String>,
    /// `TCP` unless said.
    pub protocol: Option<String>,
    /// Number.
    pub port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    /// Endpoints.
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    /// Their ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}

/// `Endpoint`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Addresses; of slices with names instead, none can be read and the endpoint is left out.
    #[serde(deserialize_with = "addresses")]
    pub addresses: Vec<IpAddr>,
    /// Its state.
    pub conditions: Conditions,
    /// Name within the service.
    pub hostname: Option<String>,
}

fn addresses<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(from)?.unwrap_or_default();
    Ok(texts.iter().filter_map(|t| t.parse().ok()).collect())
}

/// `EndpointConditions`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Unknown counts as ready.
    pub ready: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As slices of services without ports, or without pods, are.
    #[test]
    fn lists_that_are_null_are_empty() {
        let text = r#"{"addressType":"IPv4","endpoints":null,"ports":null}"#;
        let slice: EndpointSlice = serde_json::from_str(text).unwrap();
        assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
    }
}
