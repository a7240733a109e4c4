//! Where another server is, and how it is spoken to.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Uri;
use serde_json::Value;
use yare_kinds::view::View;

use super::{
    Dialer,
    identity::{Believed, Peer},
};

/// Where calls go.
pub(super) enum Place {
    Address {
        host: String,
        port: u16,
    },
    /// A service in the cluster: its endpoints are looked up for each connection.
    Service {
        namespace: String,
        name: String,
        port: i64,
    },
}

impl Place {
    pub(super) fn port(&self) -> i64 {
        match self {
            Self::Address { port, .. } => (*port).into(),
            Self::Service { port, .. } => *port,
        }
    }
}

/// A server, and how it is spoken to.
pub(super) struct Target {
    pub(super) place: Place,
    /// Its name in requests.
    pub(super) host: String,
    pub(super) path: String,
    pub(super) url: String,
    /// How connections to it are made, or why they cannot be.
    pub(super) dialer: Result<Dialer, String>,
}

impl Target {
    /// Host and port, as its URL has them.
    pub(super) fn authority(&self) -> &str {
        let rest = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        rest.split(['/', '?']).next().unwrap_or_default()
    }
}

/// What the `clientConfig` of a webhook or a conversion names.
pub(super) fn webhook(config: &Value) -> Result<(Target, Peer), String> {
    let trust = bundle(config)?.map_or(Believed::System, Believed::Authority);
    let dialer = |peer: &Peer| peer.dialer(None).map_err(|e| format!("caBundle: {e}"));
    if let Some(url) = config.str_opt("url") {
        let uri: Uri = url.parse().map_err(|e| format!("Unparsable URL: parse {url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("Unparsable URL: {url:?} names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let peer = Peer { name: host.clone(), trust };
        let target = Target {
            host: host.clone(),
            dialer: dialer(&peer),
            place: Place::Address { host, port: uri.port_u16().unwrap_or(443) },
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            url: url.to_owned(),
        };
        return Ok((target, peer));
    }
    let service = config.at("service");
    if service.is_null() {
        return Err("webhook configuration must have either service or URL".into());
    }
    let (namespace, name) = (service.str_at("namespace"), service.str_at("name"));
    let port = service.int_opt("port").unwrap_or(443);
    let path = format!("/{}", service.str_at("path").trim_start_matches('/'));
    let dns = format!("{name}.{namespace}.svc");
    let peer = Peer { name: dns.clone(), trust };
    let target = Target {
        url: format!("https://{dns}:{port}{path}"),
        place: Place::Service { namespace: namespace.to_owned(), name: name.to_owned(), port },
        dialer: dialer(&peer),
        host: dns,
        path,
    };
    Ok((target, peer))
}

/// The `caBundle` of a webhook, conversion or APIService, if there is one.
pub fn bundle(config: &Value) -> Result<Option<String>, String> {
    let bytes = STANDARD.decode(config.str_at("caBundle")).map_err(|e| format!("caBundle: {e}"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(bytes).map_err(|e| format!("caBundle: {e}"))?;
    yare_auth::tls::check_authority(&text)
        .map_err(|why| format!("caBundle: unable to load root certificates: {why}"))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bundle_must_hold_certificates() {
        let read = |text: &str| bundle(&json!({ "caBundle": STANDARD.encode(text) }));
        assert_eq!(read(""), Ok(None));
        for text in ["x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("caBundle: unable to load root certificates: "), "{error}");
        }
        assert!(bundle(&json!({"caBundle": "!"})).is_err());
    }
}
