//! Calls that the server makes to webhooks: a JSON document posted over TLS, a JSON document back, both
//! bounded in size and time.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use yare_kinds::view::View;

use crate::{body::BoxError, core::Core, subresource::proxy};

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Where a `clientConfig` (of a webhook or a conversion) points.
struct Target {
    host: String,
    port: u16,
    /// The name on the certificate.
    name: String,
    path: String,
    url: String,
}

fn target(core: &Core, config: &Value) -> Result<Target, String> {
    if let Some(url) = config.str_opt("url") {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri
            .host()
            .ok_or_else(|| format!("url {url:?} names no host"))?
            .trim_matches(['[', ']'])
            .to_owned();
        return Ok(Target {
            port: uri.port_u16().unwrap_or(443),
            name: host.clone(),
            host,
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            url: url.to_owned(),
        });
    }
    let service = config.at("service");
    let (namespace, name) = (service.str_at("namespace"), service.str_at("name"));
    let port = service.int_opt("port").unwrap_or(443);
    let path = format!("/{}", service.str_at("path").trim_start_matches('/'));
    let dns = format!("{name}.{namespace}.svc");
    let endpoint =
        proxy::service_endpoint(core, namespace, name, &port.to_string()).map_err(|e| e.message)?;
    let url = format!("https://{dns}:{port}{path}");
    Ok(Target { host: endpoint.host, port: endpoint.port, name: dns, path, url })
}

fn tls(config: &Value) -> Result<Arc<ClientConfig>, String> {
    let bundle = STANDARD.decode(config.str_at("caBundle")).map_err(|e| format!("caBundle: {e}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bundle) {
        let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
        roots.add(certificate).map_err(|e| format!("caBundle: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Posts `document` to where `config` points. `query` is added to the path. The error is one line that names
/// the URL.
pub async fn post(
    core: &Core,
    config: &Value,
    query: &str,
    document: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let target = target(core, config)?;
    let named = |e: &dyn std::fmt::Display| format!("Post \"{}{query}\": {e}", target.url);
    let tls = tls(config).map_err(|e| named(&e))?;
    let exchange = exchange(&target, query, tls, document);
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer.map_err(|e| named(&e)),
        Err(_) => Err(named(&"context deadline exceeded")),
    }
}

async fn exchange(
    target: &Target,
    query: &str,
    tls: Arc<ClientConfig>,
    document: &Value,
) -> Result<Value, BoxError> {
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
    let name = ServerName::try_from(target.name.clone())?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}{query}", target.path))
        .header(header::HOST, &target.name)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(document.to_string())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body[..body.len().min(512)]).into_owned();
            return Err(BoxError::from(format!("an error on the server ({text:?}) has prevented the request from succeeding (status {status})")));
        }
        Ok(serde_json::from_slice(&body)?)
    }
    .await;
    connection.abort();
    answer
}
