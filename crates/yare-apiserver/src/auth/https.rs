//! A client of HTTPS servers outside: webhooks and issuers of tokens. Connections are kept for the next call;
//! answers are bounded in size and time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{body::BoxError, core::Core};

/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Connections that are kept while nobody uses them.
const MAX_IDLE: usize = 8;
/// How often a call that failed is made again, and after what time: upstream's webhook back-off.
const RETRIES: u32 = 4;
const FIRST_DELAY_MS: f64 = 500.0;
const DELAY_FACTOR: f64 = 1.5;
const DELAY_JITTER: f64 = 0.2;

/// A server and how it is spoken to.
pub struct Endpoint {
    url: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    path: String,
    tls: Arc<ClientConfig>,
    /// Sent with every request.
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// Why a call failed: one line that names the URL.
#[derive(Debug)]
pub struct Failure {
    /// The line.
    pub message: String,
    /// Whether it makes sense to try again.
    pub transient: bool,
}

impl Endpoint {
    /// The server of the `https` URL. `name`: the name on its certificate, where that is not the host's.
    pub fn new(url: &str, name: Option<&str>, tls: Arc<ClientConfig>) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("url {url:?}: must begin with https://"));
        }
        let host = uri.host().ok_or_else(|| format!("url {url:?}: names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let shown = name.unwrap_or(&host).to_owned();
        Ok(Self {
            url: url.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            name: ServerName::try_from(shown).map_err(|e| format!("url {url:?}: {e}"))?,
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            host,
            tls,
            authorization: None,
            idle: Mutex::default(),
        })
    }

    /// Sends an `Authorization` header with every request.
    pub fn authorized(mut self, value: &str) -> Result<Self, String> {
        let mut value = HeaderValue::from_str(value).map_err(|_| "credentials cannot stand in a header")?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// What is at the URL.
    pub async fn get(&self, timeout: Duration) -> Result<Bytes, Failure> {
        self.call(Method::GET, "", Bytes::new(), timeout).await
    }

    /// Posts `document`, and tries again while that makes sense.
    pub async fn post(&self, core: &Core, document: &Value, timeout: Duration) -> Result<Value, Failure> {
        let query = format!("?timeout={}s", timeout.as_secs().max(1));
        let body = Bytes::from(document.to_string());
        let mut delay_ms = FIRST_DELAY_MS;
        for attempt in 0.. {
            match self.call(Method::POST, &query, body.clone(), timeout).await {
                Ok(answer) => {
                    return serde_json::from_slice(&answer).map_err(|e| self.failure(&self.url, &e, false));
                }
                Err(failure) if failure.transient && attempt < RETRIES => {
                    let mut random = [0];
                    core.config.random.fill(&mut random);
                    let jitter = 1.0 + DELAY_JITTER * f64::from(random[0]) / 255.0;
                    tokio::time::sleep(Duration::from_secs_f64(delay_ms * jitter / 1000.0)).await;
                    delay_ms *= DELAY_FACTOR;
                }
                Err(failure) => return Err(failure),
            }
        }
        unreachable!("the loop returns")
    }

    fn failure(&self, url: &str, why: &dyn std::fmt::Display, transient: bool) -> Failure {
        Failure { message: format!("{url:?}: {why}"), transient }
    }

    async fn call(
        &self,
        method: Method,
        query: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Failure> {
        let url = format!("{}{query}", self.url);
        let exchange = self.exchange(method, query, body);
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok((status, _, body))) if status.is_success() => Ok(body),
            Ok(Ok((status, _, body))) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(512)]).into_owned();
                let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err(self.failure(&url, &format!("the server answered {status}: {text:?}"), transient))
            }
            Ok(Err(error)) => Err(self.failure(&url, &error, true)),
            Err(_) => Err(self.failure(&url, &"context deadline exceeded", false)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        query: &str,
        body: Bytes,
    ) -> Result<(StatusCode, HeaderMap, Bytes), BoxError> {
        // A connection that was kept may have been closed at the other end meanwhile.
        while let Some(mut kept) = self.take() {
            if kept.is_closed() {
                continue;
            }
            match kept.send_request(self.request(&method, query, body.clone())?).await {
                Ok(response) => return self.read(kept, response).await,
                Err(error) if error.is_canceled() || error.is_closed() || error.is_incomplete_message() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
        let stream = connector.connect(self.name.clone(), stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender.
        tokio::spawn(connection);
        let response = sender.send_request(self.request(&method, query, body)?).await?;
        self.read(sender, response).await
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.lock().pop()
    }

    async fn read(
        &self,
        sender: SendRequest<Full<Bytes>>,
        response: http::Response<hyper::body::Incoming>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), BoxError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push(sender);
        }
        drop(idle);
        Ok((parts.status, parts.headers, body))
    }

    fn request(
        &self,
        method: &Method,
        query: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{query}", self.path))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kube-apiserver");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::new(body))
    }
}
