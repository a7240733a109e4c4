//! HTTP probes and hooks: a GET; any status from 200 to 399 is success.
//!
//! Certificates are not verified (a probe asks whether something answers, not who), redirects are followed
//! on the same host only, bodies are read up to 10 KiB.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use yare_schema::kubernetes_minor;

use super::{Attempt, tcp};
use crate::view::{Container, HttpGetAction, HttpHeader};

/// Body that is read.
const BODY_MAX_BYTES: usize = 10 << 10;
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 10;
/// What probes call themselves.
pub const USER_AGENT: &str = concat!("kube-probe/", kubernetes_minor!());

/// A GET to make.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<HttpHeader>,
    pub(crate) user_agent: &'static str,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    /// As much of it as is read; or why it did not come.
    pub(crate) body: Result<Bytes, String>,
}

/// Why nothing came back.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) message: String,
    /// The server spoke plain HTTP where TLS was expected.
    pub(crate) plain_http: bool,
}

impl Request {
    /// The request of an action, to the pod's address unless it names a host.
    pub(crate) fn for_action(
        action: &HttpGetAction,
        container: &Container,
        ip: Option<IpAddr>,
        user_agent: &'static str,
    ) -> Result<Self, String> {
        let host = if action.host.is_empty() {
            ip.map(|i| i.to_string()).unwrap_or_default()
        } else {
            action.host.clone()
        };
        let path =
            if action.path.starts_with('/') { action.path.clone() } else { format!("/{}", action.path) };
        Ok(Request {
            tls: action.scheme.eq_ignore_ascii_case("https"),
            host,
            port: container.resolve_port(&action.port)?,
            path,
            headers: action.http_headers.clone(),
            user_agent,
        })
    }

    fn url(&self) -> String {
        format!(
            "{}://{}{}",
            if self.tls { "https" } else { "http" },
            tcp::authority(&self.host, self.port),
            self.path
        )
    }
}

pub(crate) async fn probe(
    action: &HttpGetAction,
    container: &Container,
    ip: Option<IpAddr>,
    timeout: Duration,
) -> Attempt {
    let mut request = match Request::for_action(action, container, ip, USER_AGENT) {
        Ok(request) => request,
        Err(error) => return Attempt::Error("unknown", error),
    };
    let first = request.url();
    // One deadline for all of it.
    let deadline = Instant::now() + timeout;
    for _ in 0..REDIRECTS_MAX {
        let response = match get(&request, deadline).await {
            Ok(response) => response,
            Err(failed) => return Attempt::Failure(failed.message),
        };
        let next = redirect(&request, &response).filter(|next| next.host == request.host);
        if let Some(next) = next {
            request = next;
            continue;
        }
        let body = match response.body {
            Ok(body) => body,
            // Half an answer is none: upstream throws it away.
            Err(error) => return Attempt::Error("failure", error),
        };
        return match response.status {
            200..300 => Attempt::Success,
            // To another host, or nowhere: somebody answers there, which is what was asked.
            300..400 => {
                let body = String::from_utf8_lossy(&body);
                Attempt::Warning(format!("Probe terminated redirects, Response body: {body}"))
            }
            status => Attempt::Failure(format!("HTTP probe failed with statuscode: {status}")),
        };
    }
    Attempt::Failure(format!("Get {first:?}: stopped after {REDIRECTS_MAX} redirects"))
}

/// The request that an answer leads to, if it leads anywhere.
fn redirect(from: &Request, answer: &Response) -> Option<Request> {
    if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let uri: Uri = answer.location.as_ref()?.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut next = Request { path, ..from.clone() };
    if let Some(authority) = uri.authority() {
        next.tls = uri.scheme_str() == Some("https");
        authority.host().trim_matches(['[', ']']).clone_into(&mut next.host);
        next.port = authority.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
    }
    Some(next)
}

/// Makes one request. A body that does not come is no failure of it.
pub(crate) async fn get(request: &Request, deadline: Instant) -> Result<Response, Failed> {
    let failed = |message: String| Failed {
        message: format!("Get {:?}: {message}", request.url()),
        plain_http: false,
    };
    let run = async {
        let stream = tcp::dial(&request.host, request.port).await.map_err(failed)?;
        if !request.tls {
            return exchange(request, stream).await.map_err(failed);
        }
        let name = ServerName::try_from(request.host.clone()).map_err(|e| failed(e.to_string()))?;
        let config = tls_config().map_err(failed)?;
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => exchange(request, stream).await.map_err(failed),
            Err(error) if error.to_string().contains("corrupt message") => Err(Failed {
                plain_http: true,
                ..failed("http: server gave HTTP response to HTTPS client".to_owned())
            }),
            Err(error) => Err(failed(error.to_string())),
        }
    };
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let (_connection, response) =
        tokio::time::timeout_at(deadline, run).await.unwrap_or_else(|_| Err(failed(late.to_owned())))?;
    let location = response.headers().get(http::header::LOCATION);
    let location = location.and_then(|l| l.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    let late = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
    // Some of it is read, so that the server sees its answer taken.
    let body = tokio::time::timeout_at(deadline, beginning(response.into_body())).await;
    Ok(Response { status, location, body: body.unwrap_or_else(|_| Err(late.to_owned())) })
}

/// What carries a connection's bytes; ends with it.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    request: &Request,
    stream: S,
) -> Result<(Connection, http::Response<Incoming>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = Connection(tokio::spawn(connection).abort_handle());
    let mut builder = http::Request::builder().method(Method::GET).uri(request.path.as_str());
    let mut host = tcp::authority(&request.host, request.port);
    let mut agent_given = false;
    let mut accept_given = false;
    let headers = builder.headers_mut().ok_or("invalid path")?;
    for header in &request.headers {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
            continue;
        }
        agent_given |= header.name.eq_ignore_ascii_case("user-agent");
        accept_given |= header.name.eq_ignore_ascii_case("accept");
        // An empty value asks for the header not to be sent.
        if header.value.is_empty()
            && (header.name.eq_ignore_ascii_case("user-agent") || header.name.eq_ignore_ascii_case("accept"))
        {
            continue;
        }
        let name = HeaderName::try_from(header.name.as_str()).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(header.value.as_str()).map_err(|e| e.to_string())?;
        headers.append(name, value);
    }
    headers.insert(http::header::HOST, HeaderValue::try_from(host).map_err(|e| e.to_string())?);
    if !agent_given {
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(request.user_agent));
    }
    if !accept_given {
        headers.insert(http::header::ACCEPT, HeaderValue::from_static("*/*"));
    }
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    let get = builder.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(get).await.map_err(|e| e.to_string())?;
    Ok((connection, response))
}

/// The beginning of a body.
async fn beginning(mut body: Incoming) -> Result<Bytes, String> {
    let mut read = BytesMut::new();
    while read.len() < BODY_MAX_BYTES
        && let Some(frame) = body.frame().await
    {
        let whole = |e: hyper::Error| {
            let cause = e.source().and_then(|c| c.downcast_ref::<std::io::Error>());
            let ended = cause.is_some_and(|c| c.kind() == std::io::ErrorKind::UnexpectedEof);
            if ended || e.is_incomplete_message() { "unexpected EOF".to_owned() } else { e.to_string() }
        };
        if let Ok(data) = frame.map_err(whole)?.into_data() {
            read.extend_from_slice(&data);
        }
    }
    read.truncate(BODY_MAX_BYTES);
    Ok(read.freeze())
}

/// Probes do not authenticate their target.
fn tls_config() -> Result<Arc<rustls::ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<rustls::ClientConfig>, String>> = OnceLock::new();
    CONFIG.get_or_init(|| yare_auth::tls::unverified().map_err(|e| e.to_string())).clone()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each path with the head and the body of a row.
    async fn serve(answers: &'static [(&'static str, &'static str, &'static str)]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
                let text = String::from_utf8(request).unwrap();
                let path = text.split(' ').nth(1).unwrap();
                let (_, head, body) = answers.iter().find(|(at, ..)| *at == path).unwrap();
                // A body that ends with an ellipsis has a rest that does not come.
                let length = body.len();
                let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n");
                let body = body.split('…').next().unwrap();
                stream.write_all((answer + body).as_bytes()).await.unwrap();
                if body.contains("slow") {
                    tokio::spawn(async move { stream.read_buf(&mut Vec::new()).await });
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn answers_and_redirects() {
        let port = serve(&[
            ("/fine", "200 OK", "fine"),
            ("/none", "404 Not Found", "secret"),
            ("/here", "302 Found\r\nlocation: /fine", ""),
            ("/ill", "307 Temporary Redirect\r\nlocation: /none", ""),
            ("/away", "302 Found\r\nlocation: http://elsewhere.example/", "<a>Found</a>"),
            ("/nowhere", "301 Moved Permanently", "gone"),
            ("/same", "304 Not Modified\r\nlocation: /none", ""),
            ("/round", "302 Found\r\nlocation: /round", ""),
            ("/half", "200 OK", "begun …"),
            ("/half-ill", "500 Internal Server Error", "begun …"),
            ("/slow", "200 OK", "slow …"),
            ("/led", "302 Found\r\nlocation: /fine", "begun …"),
        ])
        .await;
        let ended =
            |body: &str| Attempt::Warning(format!("Probe terminated redirects, Response body: {body}"));
        for (path, want) in [
            ("fine", Attempt::Success),
            ("/here", Attempt::Success),
            ("/none", Attempt::Failure("HTTP probe failed with statuscode: 404".into())),
            ("/ill", Attempt::Failure("HTTP probe failed with statuscode: 404".into())),
            ("/away", ended("<a>Found</a>")),
            ("/nowhere", ended("gone")),
            ("/same", ended("")),
            ("/half", Attempt::Error("failure", "unexpected EOF".into())),
            ("/half-ill", Attempt::Error("failure", "unexpected EOF".into())),
            ("/led", Attempt::Success),
            (
                "/slow",
                Attempt::Error(
                    "failure",
                    "context deadline exceeded (Client.Timeout or context cancellation while reading body)"
                        .into(),
                ),
            ),
            (
                "/round",
                Attempt::Failure(format!(
                    "Get \"http://127.0.0.1:{port}/round\": stopped after 10 redirects"
                )),
            ),
        ] {
            let action = serde_json::json!({"path": path, "port": port, "host": "127.0.0.1"});
            let action = serde_json::from_value(action).unwrap();
            let patience = Duration::from_secs(if path == "/slow" { 2 } else { 15 });
            let got = probe(&action, &Container::default(), None, patience).await;
            assert_eq!(got, want, "{path}");
        }
    }
}
