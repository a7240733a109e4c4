//! Plain blocking HTTP/1.1, one request a connection: what a test asks of a service, and of the API server
//! where `kubectl` would never send such a thing.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

/// How long a peer may be silent.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body, decoded.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

/// `GET` over plain HTTP from the thread's network namespace.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let stream = connect(address)?;
    exchange(stream, &request("GET", &address.to_string(), path, &[], b""))
}

/// An HTTPS client that sends a bearer token.
#[derive(Debug, Clone)]
pub struct Https {
    address: SocketAddr,
    token: String,
    config: Arc<ClientConfig>,
}

impl Https {
    /// A client of the server at `address` whose certificate the authority `ca` (PEM) signed.
    pub fn new(address: SocketAddr, ca: &str, token: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, token: token.to_owned(), config: Arc::new(config) })
    }

    /// The same client with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Sends a request; `content_type` goes with a body that is not empty.
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let name = match self.address.ip() {
            IpAddr::V4(ip) => ServerName::from(IpAddr::V4(ip)),
            IpAddr::V6(ip) => ServerName::from(IpAddr::V6(ip)),
        };
        let connection = ClientConnection::new(self.config.clone(), name)?;
        let stream = StreamOwned::new(connection, connect(self.address)?);
        let authorization = format!("Bearer {}", self.token);
        let mut headers = vec![("Accept", "application/json")];
        if !self.token.is_empty() {
            headers.push(("Authorization", &authorization));
        }
        if !content_type.is_empty() {
            headers.push(("Content-Type", content_type));
        }
        exchange(stream, &request(method, &self.address.to_string(), path, &headers, body))
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send("GET", path, "", b"")
    }
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn request(method: &str, host: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> anyhow::Result<Answer> {
    // A server may answer and close before it has read a body that is too long.
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    let mut bytes = Vec::new();
    let received = stream.read_to_end(&mut bytes);
    match parse(&bytes) {
        Some(answer) => Ok(answer),
        None => {
            sent.context("send")?;
            received.context("receive")?;
            bail!("no whole answer: {:?}", String::from_utf8_lossy(&bytes))
        }
    }
}

/// `None` when it is not whole.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let code = head.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
    };
    let rest = &bytes[end + 4..];
    let body = match (header("transfer-encoding"), header("content-length")) {
        (Some(coding), _) if coding == "chunked" => unchunk(rest)?,
        (_, Some(length)) => rest.get(..length.parse().ok()?)?.to_vec(),
        _ => rest.to_vec(),
    };
    Some(Answer { code, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 2 + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, "hi"))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None),
            (
                "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
                Some((404, "hi")),
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", Some((200, "to the end"))),
            ("HTTP/1.1 200", None),
        ];
        for (text, want) in cases {
            let got = parse(text.as_bytes());
            assert_eq!(got.as_ref().map(|a| (a.code, a.body.as_str())), want, "{text:?}");
        }
    }
}
