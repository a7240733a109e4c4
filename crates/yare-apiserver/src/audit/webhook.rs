//! The webhook backend: lists of events posted to the server that a kubeconfig names.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::net::TcpStream;
use yare_kinds::view::View;

use crate::{body::BoxError, core::Random};

/// How long one post may take.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Attempts, and how the time between them grows.
const ATTEMPTS: u32 = 5;
const GROWTH: f64 = 1.5;
const JITTER: f64 = 0.2;

/// Where events are posted, and as whom.
pub struct Receiver {
    host: String,
    port: u16,
    path: String,
    name: String,
    url: String,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<HeaderValue>,
    random: Arc<dyn Random>,
}

impl Receiver {
    /// Reads a kubeconfig. The error is one line that names the file.
    pub fn read(path: &Path, random: Arc<dyn Random>) -> Result<Self, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let text = std::fs::read(path).map_err(|e| named(e.to_string()))?;
        let config = crate::codec::from_yaml(&text).map_err(named)?;
        Self::new(&config, path.parent().unwrap_or(Path::new(".")), random).map_err(named)
    }

    /// `directory`: where relative paths start.
    fn new(config: &Value, directory: &Path, random: Arc<dyn Random>) -> Result<Self, String> {
        let named = |list: &str, name: &str| {
            let found = config.items(list).iter().find(|entry| entry.str_at("name") == name);
            found.ok_or_else(|| format!("{list} has no entry {name:?}"))
        };
        let context = named("contexts", config.str_at("current-context"))?;
        let cluster = named("clusters", context.str_at("context.cluster"))?.at("cluster");
        let nobody = Value::Null;
        let user = match context.str_at("context.user") {
            "" => &nobody,
            name => named("users", name)?.at("user"),
        };
        let server = cluster.str_at("server");
        let uri: Uri = server.parse().map_err(|e| format!("server {server:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("server {server:?} names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let plain = uri.scheme_str() == Some("http");
        let data = |of: &Value, field: &str| -> Result<Option<Vec<u8>>, String> {
            if let Some(text) = of.str_opt(&format!("{field}-data")) {
                return STANDARD.decode(text).map(Some).map_err(|e| format!("{field}-data: {e}"));
            }
            let Some(file) = of.str_opt(field) else { return Ok(None) };
            std::fs::read(directory.join(file)).map(Some).map_err(|e| format!("{field} {file:?}: {e}"))
        };
        let tls = if plain { None } else { Some(tls(cluster, user, &data)?) };
        let token = match (user.str_opt("token"), user.str_opt("tokenFile")) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(directory.join(file));
                Some(text.map_err(|e| format!("tokenFile {file:?}: {e}"))?.trim().to_owned())
            }
            (None, None) => None,
        };
        let authorization = match (token, user.str_opt("username")) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(name)) => {
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{}", user.str_at("password")))))
            }
            (None, None) => None,
        };
        let mut authorization = authorization
            .map(|text| HeaderValue::from_str(&text))
            .transpose()
            .map_err(|_| "the user's token is no header value".to_owned())?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let and = if path.contains('?') { '&' } else { '?' };
        Ok(Self {
            port: uri.port_u16().unwrap_or(if plain { 80 } else { 443 }),
            path: format!("{path}{and}timeout={}s", TIMEOUT.as_secs()),
            name: cluster.str_opt("tls-server-name").map_or_else(|| host.clone(), str::to_owned),
            host,
            url: server.to_owned(),
            tls,
            authorization,
            random,
        })
    }

    /// Posts a list of events (JSON), again and again with growing pauses where that fails.
    pub async fn deliver(&self, body: Bytes, first_pause: Duration) -> Result<(), String> {
        let mut pause = first_pause;
        for attempt in 1.. {
            let done = tokio::time::timeout(TIMEOUT, self.post(body.clone())).await;
            let why = match done {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "context deadline exceeded".to_owned(),
            };
            if attempt == ATTEMPTS {
                return Err(format!("Post \"{}\": {why}", self.url));
            }
            // Servers that lost the same receiver should not come back to it at the same time.
            let mut byte = [0u8];
            self.random.fill(&mut byte);
            let spread = 1.0 + JITTER * f64::from(byte[0]) / 255.0;
            tokio::time::sleep(pause.mul_f64(spread)).await;
            pause = pause.mul_f64(GROWTH);
        }
        Ok(())
    }

    async fn post(&self, body: Bytes) -> Result<(), BoxError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => self.exchange(TokioIo::new(stream), body).await,
            Some(tls) => {
                let name = ServerName::try_from(self.name.clone())?;
                let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, stream).await?;
                self.exchange(TokioIo::new(stream), body).await
            }
        }
    }

    async fn exchange<I>(&self, io: I, body: Bytes) -> Result<(), BoxError>
    where
        I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(header::HOST, &self.name)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .body(Full::new(body))?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?;
            if status.is_success() {
                Ok(())
            } else {
                Err(BoxError::from(format!("the server answered {status}")))
            }
        }
        .await;
        connection.abort();
        answer
    }
}

type Data<'a> = &'a dyn Fn(&Value, &str) -> Result<Option<Vec<u8>>, String>;

fn tls(cluster: &Value, user: &Value, data: Data<'_>) -> Result<Arc<ClientConfig>, String> {
    if cluster.bool_at("insecure-skip-tls-verify") {
        return Err("insecure-skip-tls-verify is not supported: name the certificate-authority".into());
    }
    let authority = data(cluster, "certificate-authority")?
        .ok_or("the cluster names no certificate-authority, and this server trusts no others")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authority) {
        let certificate = certificate.map_err(|e| format!("certificate-authority: {e}"))?;
        roots.add(certificate).map_err(|e| format!("certificate-authority: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let (certificate, key) = (data(user, "client-certificate")?, data(user, "client-key")?);
    let mut config = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
            let chain = chain.map_err(|e| format!("client-certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| format!("client-key: {e}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubeconfigs() {
        let config = |cluster: Value, user: Value| {
            json!({
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
            })
        };
        let plain = config(json!({"server": "http://127.0.0.1:99/audit?x=1"}), json!({"token": "t"}));
        let new = |config: &Value| Receiver::new(config, Path::new("."), Arc::new(crate::SystemRandom));
        let receiver = new(&plain).unwrap();
        assert_eq!((receiver.host.as_str(), receiver.port), ("127.0.0.1", 99));
        assert_eq!(receiver.path, "/audit?x=1&timeout=30s");
        assert_eq!(receiver.authorization.unwrap(), "Bearer t");
        for (config, why) in [
            (json!({"current-context": "c"}), "contexts has no entry \"c\""),
            (config(json!({"server": "https://x"}), json!({})), "no certificate-authority"),
            (
                config(json!({"server": "https://x", "insecure-skip-tls-verify": true}), json!({})),
                "not supported",
            ),
            (
                config(json!({"server": "https://x", "certificate-authority": "/none"}), json!({})),
                "\"/none\"",
            ),
            (config(json!({"server": "http://x"}), json!({"tokenFile": "/none"})), "tokenFile"),
            (config(json!({"server": "/x"}), json!({})), "names no host"),
        ] {
            let error = new(&config).err().unwrap();
            assert!(error.contains(why), "{error}");
        }
    }
}
