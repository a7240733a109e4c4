//! `EgressSelectorConfiguration` (KEP-1281): which of the server's connections go through a proxy, and how that is
//! reached.

use std::path;

use serde::Deserialize;
use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{ConfigError, Errors, document};

const KIND: &str = "EgressSelectorConfiguration";
const VERSIONS: [&str; 2] = ["apiserver.k8s.io/v1alpha1", "apiserver.k8s.io/v1beta1"];
const NAMES: [&str; 3] = ["cluster", "controlplane", "etcd"];
const PROTOCOLS: [&str; 3] = ["Direct", "GRPC", "HTTPConnect"];

/// What goes where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EgressSelectorConfiguration {
    /// One entry for each network that is not reached directly.
    pub egress_selections: Vec<EgressSelection>,
}

/// How one network is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressSelection {
    /// `controlplane` (in old files `master`), `cluster` or `etcd`.
    pub name: String,
    /// How.
    pub connection: Connection,
}

/// How a network is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Connection {
    /// `Direct`, `HTTPConnect` or `GRPC`.
    pub proxy_protocol: String,
    /// Where the proxy is.
    pub transport: Option<Transport>,
}

/// Where a proxy is: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// At an address.
    pub tcp: Option<Tcp>,
    /// At a socket of this machine.
    pub uds: Option<Uds>,
}

/// A proxy at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tcp {
    /// `https://127.0.0.1:8131`
    pub url: String,
    /// How it is spoken to over TLS.
    pub tls_config: Option<TlsConfig>,
}

/// A proxy at a socket of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Uds {
    /// Its path.
    pub uds_name: String,
}

/// Files for TLS with a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsConfig {
    /// Who vouches for it; empty: whom this machine trusts.
    pub ca_bundle: String,
    /// The key of the certificate that it is shown.
    pub client_key: String,
    /// The certificate.
    pub client_cert: String,
    /// The name that it must prove; empty: that of the URL.
    pub tls_server_name: String,
}

impl EgressSelectorConfiguration {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let (value, version, kind) = document(text)?;
        if kind != KIND || !VERSIONS.contains(&version.as_str()) {
            let why = format!("no kind {kind:?} is registered for version {version:?}");
            return Err(ConfigError::Form(why));
        }
        let mut configuration: Self = serde_json::from_value(value)
            .map_err(|e| ConfigError::Form(format!("strict decoding error: {e}")))?;
        for selection in configuration.egress_selections.iter_mut().filter(|s| s.name == "master") {
            selection.name = "controlplane".into();
        }
        let mut errs = Errors::default();
        configuration.check(&mut errs);
        for selection in &mut configuration.egress_selections {
            selection.name = selection.name.to_lowercase();
        }
        errs.finish(configuration)
    }

    fn check(&self, errs: &mut Errors) {
        let path = Path::new("service.connection");
        for selection in &self.egress_selections {
            selection.connection.check(errs, &path);
        }
        let mut seen: Vec<String> = Vec::new();
        for (i, selection) in self.egress_selections.iter().enumerate() {
            let name = selection.name.to_lowercase();
            if seen.contains(&name) {
                errs.duplicate(&path.index(i), name);
                continue;
            }
            if !NAMES.contains(&name.as_str()) {
                errs.0.push(FieldError::not_listed(&path, name.as_str(), &NAMES));
            }
            seen.push(name);
        }
    }
}

impl Connection {
    fn check(&self, errs: &mut Errors, path: &Path<'_>) {
        let transport = path.child("transport");
        match (self.proxy_protocol.as_str(), &self.transport) {
            ("Direct", None) => {}
            ("Direct", Some(_)) => {
                errs.invalid(&transport, "direct", "config must be absent for direct connect");
            }
            (protocol @ ("HTTPConnect" | "GRPC"), None) => {
                errs.required(&transport, &format!("transport must be set for {protocol}"));
            }
            ("GRPC", Some(Transport { uds: None, .. })) => {
                errs.required(&path.child("uds"), "UDS must be set with GRPC");
            }
            ("GRPC", Some(Transport { uds: Some(uds), .. })) => uds.check(errs, path),
            ("HTTPConnect", Some(Transport { tcp, uds })) => match (tcp, uds) {
                (Some(_), Some(_)) => {
                    errs.invalid(&path.child("tcp"), Value::Null, "TCP and UDS cannot both be set");
                }
                (None, None) => errs.required(&path.child("tcp"), "One of TCP or UDS must be set"),
                (Some(tcp), None) => tcp.check(errs, path),
                (None, Some(uds)) => uds.check(errs, path),
            },
            (other, _) => errs.0.push(FieldError::not_listed(&path.child("protocol"), other, &PROTOCOLS)),
        }
    }
}

impl Uds {
    fn check(&self, errs: &mut Errors, path: &Path<'_>) {
        if self.uds_name.is_empty() {
            errs.invalid(&path.child("udsName"), "nil", "must be present for UDS connections");
        }
    }
}

impl Tcp {
    fn check(&self, errs: &mut Errors, path: &Path<'_>) {
        let tls = path.child("tlsConfig");
        match &self.tls_config {
            Some(_) if self.url.starts_with("http://") => {
                errs.invalid(&tls, "nil", "config must not be present when using HTTP");
            }
            None if self.url.starts_with("http://") => {}
            Some(config) if self.url.starts_with("https://") => config.check(errs, &tls),
            None if self.url.starts_with("https://") => {
                errs.required(&tls, "TLSConfig must be present when using HTTPS");
            }
            _ => {
                let detail = "supported connection protocols are http:// and https://";
                errs.invalid(&path.child("url"), self.url.as_str(), detail);
            }
        }
    }
}

impl TlsConfig {
    fn check(&self, errs: &mut Errors, path: &Path<'_>) {
        let is_there = |file: &str| path::Path::new(file).exists();
        if !self.ca_bundle.is_empty() && !is_there(&self.ca_bundle) {
            let detail = "TLS config ca bundle does not exist";
            errs.invalid(&path.child("caBundle"), self.ca_bundle.as_str(), detail);
        }
        for (field, file, needed, missing) in [
            (
                "clientCert",
                &self.client_cert,
                "Using TLS requires clientCert",
                "TLS client cert does not exist",
            ),
            (
                "clientKey",
                &self.client_key,
                "Using TLS requires requires clientKey",
                "TLS client key does not exist",
            ),
        ] {
            if file.is_empty() {
                errs.invalid(&path.child(field), "nil", needed);
            } else if !is_there(file) {
                errs.invalid(&path.child(field), file.as_str(), missing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(selections: Value) -> String {
        let text = json!({"apiVersion": VERSIONS[1], "kind": KIND, "egressSelections": selections});
        match EgressSelectorConfiguration::parse(text.to_string().as_bytes()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_refused() {
        let of = |connection: Value| errors(json!([{"name": "cluster", "connection": connection}]));
        for (connection, error) in [
            (json!({"proxyProtocol": "Direct"}), ""),
            (json!({"proxyProtocol": "GRPC", "transport": {"uds": {"udsName": "/a"}}}), ""),
            (json!({"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": "/a"}}}), ""),
            (json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": "http://a:1"}}}), ""),
            (
                json!({"proxyProtocol": "Direct", "transport": {}}),
                "service.connection.transport: Invalid value: \"direct\": config must be absent for direct connect",
            ),
            (
                json!({"proxyProtocol": "GRPC", "transport": {"tcp": {"url": "https://a"}}}),
                "service.connection.uds: Required value: UDS must be set with GRPC",
            ),
            (
                json!({"proxyProtocol": "HTTPConnect"}),
                "service.connection.transport: Required value: transport must be set for HTTPConnect",
            ),
            (
                json!({"proxyProtocol": "HTTPConnect", "transport": {}}),
                "service.connection.tcp: Required value: One of TCP or UDS must be set",
            ),
            (
                json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": "ftp://a"}}}),
                "service.connection.url: Invalid value: \"ftp://a\": supported connection protocols are http:// and https://",
            ),
            (
                json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": "https://a"}}}),
                "service.connection.tlsConfig: Required value: TLSConfig must be present when using HTTPS",
            ),
            (
                json!({"proxyProtocol": "SOCKS"}),
                "service.connection.protocol: Unsupported value: \"SOCKS\": supported values: \"Direct\", \"GRPC\", \"HTTPConnect\"",
            ),
        ] {
            assert_eq!(of(connection.clone()), error, "{connection}");
        }
        let direct = |name: &str| json!({"name": name, "connection": {"proxyProtocol": "Direct"}});
        assert_eq!(
            errors(json!([direct("master"), direct("ControlPlane")])),
            "service.connection[1]: Duplicate value: \"controlplane\""
        );
        assert!(
            errors(json!([direct("other")])).starts_with("service.connection: Unsupported value: \"other\"")
        );
        assert!(errors(json!([{"name": "etcd", "conection": {}}])).contains("unknown field `conection`"));
    }
}
