//! The least HTTP client that registries need: one request on one connection, TLS or not, redirects by hand.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long connecting may take, the name's resolution included.
const CONNECT: Duration = Duration::from_secs(30);
/// How long waiting for the next bytes may take.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 8;

/// An answer whose body is still to be read.
pub(super) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    /// Drives the connection while the body is read.
    _connection: Guard,
}

/// Ends a task when dropped.
struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// In an [`io::Error`]: nobody was reached.
#[derive(Debug)]
pub(super) struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {} s", PATIENCE.as_secs()))
}

impl Response {
    /// The next part of the body.
    pub(super) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match timeout(PATIENCE, self.body.frame())
                .await
                .map_err(|_| late("the next part of the answer"))?
            {
                None => return Ok(None),
                Some(Err(e)) => return Err(io::Error::other(e)),
                // Trailers carry nothing for us.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, if it is small enough.
    pub(super) async fn bytes(mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the answer is larger than {limit} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// Sends a request, following redirects. Credentials stay with the host they are for.
pub(super) async fn send(
    method: Method,
    uri: &Uri,
    headers: &[(header::HeaderName, String)],
    body: Bytes,
) -> io::Result<Response> {
    let origin = uri.authority().cloned();
    let mut uri = uri.clone();
    for _ in 0..=MAX_REDIRECTS {
        let same_host = uri.authority() == origin.as_ref();
        let own: Vec<_> =
            headers.iter().filter(|(name, _)| same_host || *name != header::AUTHORIZATION).cloned().collect();
        let response = once(method.clone(), &uri, &own, body.clone()).await?;
        let location = response.header(header::LOCATION).map(str::to_owned);
        match (response.status.is_redirection(), location) {
            (true, Some(location)) => uri = join(&uri, &location)?,
            _ => return Ok(response),
        }
    }
    // It will not lead anywhere else the next time.
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MAX_REDIRECTS} redirects")))
}

/// A redirect's target, which may be relative.
fn join(base: &Uri, location: &str) -> io::Result<Uri> {
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with('/') {
        let authority = base.authority().map_or("", |a| a.as_str());
        format!("{}://{authority}{location}", base.scheme_str().unwrap_or("https"))
    } else {
        return Err(io::Error::other(format!("redirect to {location:?}")));
    };
    let target: Uri = text.parse().map_err(io::Error::other)?;
    if base.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
        return Err(io::Error::other("refusing to be redirected from https to http"));
    }
    Ok(target)
}

async fn once(
    method: Method,
    uri: &Uri,
    headers: &[(header::HeaderName, String)],
    body: Bytes,
) -> io::Result<Response> {
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        other => return Err(io::Error::other(format!("cannot speak {other:?}"))),
    };
    let host = uri.host().ok_or_else(|| io::Error::other(format!("no host in {uri}")))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let unreachable =
        |why: io::Error| io::Error::new(why.kind(), Unreachable(format!("connect to {host}:{port}: {why}")));
    let stream = timeout(CONNECT, TcpStream::connect((bare, port)))
        .await
        .unwrap_or_else(|_| {
            let message = format!("no answer within {} s", CONNECT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
        .map_err(unreachable)?;
    let mut request = Request::builder().method(method).uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    let authority = uri.authority().map_or(host, |a| a.as_str());
    request = request
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("yare/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body)).map_err(io::Error::other)?;
    if tls {
        let name = rustls::pki_types::ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let connector = tokio_rustls::TlsConnector::from(tls_config()?);
        let stream = timeout(PATIENCE, connector.connect(name, stream))
            .await
            .map_err(|_| late("the TLS handshake"))?;
        exchange(stream.map_err(|e| io::Error::new(e.kind(), format!("TLS with {host}: {e}")))?, request)
            .await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> io::Result<Response>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    let connection = Guard(tokio::spawn(async move { drop(connection.await) }).abort_handle());
    let sent = timeout(PATIENCE, sender.send_request(request)).await.map_err(|_| late("the answer"))?;
    let (parts, body) = sent.map_err(io::Error::other)?.into_parts();
    Ok(Response { status: parts.status, headers: parts.headers, body, _connection: connection })
}

/// TLS with the system's certificate authorities.
fn tls_config() -> io::Result<Arc<rustls::ClientConfig>> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = rustls::RootCertStore::empty();
    let files = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from).into_iter().chain(
        [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/ca-bundle.pem",
            "/etc/ssl/cert.pem",
        ]
        .map(std::path::PathBuf::from),
    );
    for file in files {
        let Ok(pem) = std::fs::read(&file) else { continue };
        for certificate in rustls_pemfile::certs(&mut pem.as_slice()).flatten() {
            // One that cannot be parsed cannot be trusted; the others still can.
            let _ = roots.add(certificate);
        }
        if !roots.is_empty() {
            break;
        }
    }
    if roots.is_empty() {
        return Err(io::Error::other(
            "no certificate authorities found; install ca-certificates or set SSL_CERT_FILE",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_lose_tls() {
        let base: Uri = "https://a:1/v2/x".parse().unwrap();
        assert_eq!(join(&base, "/y?z").unwrap(), "https://a:1/y?z");
        assert_eq!(join(&base, "https://b/c").unwrap(), "https://b/c");
        assert!(join(&base, "http://b/c").is_err());
        assert!(join(&base, "y").is_err());
    }
}
