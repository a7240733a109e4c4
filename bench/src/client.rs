//! A small HTTP/2 client over TLS for one API server: as much as a benchmark needs, and nothing that would
//! cost time on its own side (no JSON is decoded unless a caller asks).

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

/// Longer than any answer should take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Room for a big answer without waiting for the window; client-go asks for as much.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const EXEC_PROTOCOL: HeaderValue = HeaderValue::from_static("v5.channel.k8s.io");

/// Where the server is and how to get in.
#[derive(Clone)]
pub struct Access {
    tls: Arc<ClientConfig>,
    address: SocketAddr,
}

impl Access {
    /// Reads a kubeconfig as `yare server` writes it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let decode = |name: &str| -> anyhow::Result<Vec<u8>> {
            STANDARD.decode(field(&text, name)?).with_context(|| name.to_owned())
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&decode("certificate-authority-data")?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&decode("client-certificate-data")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&decode("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = field(&text, "server")?;
        let address = server.strip_prefix("https://").unwrap_or(server).parse().context(server.to_owned())?;
        Ok(Self { tls: Arc::new(tls), address })
    }

    /// Opens a connection of its own.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(self.address).await.context("connect")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await.context("TLS")?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(tls))
            .await?;
        // Its end shows in the next request.
        tokio::spawn(driver);
        Ok(Connection { sender, authority: self.address })
    }

    /// Runs a command in a container as `kubectl exec` does, over a connection of its own, and waits for its end. What
    /// it wrote to its standard output.
    pub async fn exec(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(self.address).await.context("connect")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.context("TLS")?;
        let mut request = format!("wss://{}{path}", self.address).into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", EXEC_PROTOCOL);
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.context("upgrade")?;
        let (mut output, mut status) = (Vec::new(), Vec::new());
        while let Some(message) = timeout(ANSWER_TIMEOUT, socket.next()).await? {
            let data = match message? {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            // The first byte is the stream: 1 the command's output, 3 how it ended.
            match data.split_first() {
                Some((1, rest)) => output.extend_from_slice(rest),
                Some((3, rest)) => status.extend_from_slice(rest),
                _ => {}
            }
        }
        let status: Value = serde_json::from_slice(&status).context("no status of the command")?;
        anyhow::ensure!(status["status"] == "Success", "the command ended with {status}");
        Ok(output)
    }

    /// Opens several.
    pub async fn connect_all(&self, count: usize) -> anyhow::Result<Vec<Connection>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.connect().await?);
        }
        Ok(all)
    }
}

/// The value of a line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> anyhow::Result<&'a str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
        .with_context(|| format!("the kubeconfig has no {name}"))
}

/// One TLS connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: SocketAddr,
}

impl Connection {
    /// Sends a request and answers as soon as the headers are there.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Incoming)> {
        self.send_in(method, path, content_type, JSON, body).await
    }

    async fn send_in(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Incoming)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::USER_AGENT, "yare-bench")
            .body(Full::new(body.into()))?;
        self.transmit(path, request).await
    }

    async fn transmit(
        &mut self,
        path: &str,
        request: Request<Full<Bytes>>,
    ) -> anyhow::Result<(StatusCode, Incoming)> {
        self.sender.ready().await?;
        let response = timeout(ANSWER_TIMEOUT, self.sender.send_request(request))
            .await
            .with_context(|| format!("{path}: no answer in {ANSWER_TIMEOUT:?}"))??;
        Ok((response.status(), response.into_body()))
    }

    /// Sends a request in the name of another user, who is in one group; in one's own where `user` is empty.
    pub async fn send_as(
        &mut self,
        method: Method,
        path: &str,
        user: &str,
        group: &str,
    ) -> anyhow::Result<(StatusCode, Incoming)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header(header::ACCEPT, JSON)
            .header(header::USER_AGENT, "yare-bench");
        if !user.is_empty() {
            request = request.header("impersonate-user", user).header("impersonate-group", group);
        }
        self.transmit(path, request.body(Full::new(Bytes::new()))?).await
    }

    /// Sends a request in one encoding and takes the answer in another.
    pub async fn answer(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let (status, body) = self.send_in(method, path, content_type, accept, body).await?;
        Ok((status, timeout(ANSWER_TIMEOUT, body.collect()).await??.to_bytes()))
    }

    /// The same with a request that must succeed.
    pub async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        accept: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Bytes> {
        let (status, bytes) = self.answer(method.clone(), path, content_type, accept, body).await?;
        if !status.is_success() {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
            bail!("{method} {path}: {status}: {start}");
        }
        Ok(bytes)
    }

    /// Sends a request that must succeed; the body of the answer.
    async fn call(&mut self, method: Method, path: &str, kind: &str, body: Bytes) -> anyhow::Result<Bytes> {
        self.exchange(method, path, kind, JSON, body).await
    }

    /// GET.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        self.call(Method::GET, path, JSON, Bytes::new()).await
    }

    /// GET, decoded.
    pub async fn get_value(&mut self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.get(path).await?)?)
    }

    /// GET of an answer that is counted and thrown away as it comes.
    pub async fn get_bytes(&mut self, path: &str) -> anyhow::Result<usize> {
        let (status, mut body) = self.send(Method::GET, path, JSON, Bytes::new()).await?;
        anyhow::ensure!(status.is_success(), "GET {path}: {status}");
        let mut bytes = 0;
        while let Some(frame) = timeout(ANSWER_TIMEOUT, body.frame()).await? {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }

    /// POST.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<()> {
        self.call(Method::POST, path, JSON, body.into()).await.map(drop)
    }

    /// PATCH with a JSON merge patch.
    pub async fn merge(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<()> {
        self.call(Method::PATCH, path, "application/merge-patch+json", body.into()).await.map(drop)
    }

    /// DELETE with the object's own grace period.
    pub async fn delete(&mut self, path: &str) -> anyhow::Result<()> {
        self.call(Method::DELETE, path, JSON, Bytes::new()).await.map(drop)
    }

    /// Opens a watch.
    pub async fn watch(&mut self, path: &str) -> anyhow::Result<Watch> {
        self.watch_in(path, JSON).await
    }

    /// Opens a watch whose events come in this encoding.
    pub async fn watch_in(&mut self, path: &str, accept: &str) -> anyhow::Result<Watch> {
        let accept = if accept == JSON { accept.to_owned() } else { format!("{accept};stream=watch") };
        let (status, body) = self.send_in(Method::GET, path, "", &accept, Bytes::new()).await?;
        anyhow::ensure!(status.is_success(), "GET {path}: {status}");
        Ok(Watch { body, rest: BytesMut::new() })
    }
}

const JSON: &str = "application/json";

/// An open watch.
pub struct Watch {
    body: Incoming,
    rest: BytesMut,
}

impl Watch {
    /// The next piece as it comes: any number of events, cut anywhere. None at the end.
    pub async fn piece(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Reads until these bytes have come.
    pub async fn until(&mut self, wanted: &[u8]) -> anyhow::Result<()> {
        while !self.rest.windows(wanted.len()).any(|part| part == wanted) {
            // What is sought may be cut in two.
            let keep = self.rest.len().min(wanted.len().saturating_sub(1));
            self.rest.advance(self.rest.len() - keep);
            let piece = self.piece().await?.context("the watch ended")?;
            self.rest.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// The next event.
    pub async fn event(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line = self.rest.split_to(end);
                self.rest.advance(1);
                return Ok(serde_json::from_slice(&line)?);
            }
            let piece = self.piece().await?.context("the watch ended")?;
            self.rest.extend_from_slice(&piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_kubeconfig() {
        let text = "clusters:\n- name: a\n  cluster:\n    server: https://127.0.0.1:1\n";
        assert_eq!(field(text, "server").unwrap(), "https://127.0.0.1:1");
        assert!(field(text, "client-key-data").is_err());
    }
}
