//! From a name to a connection. What goes wrong is told in the words of Go's network stack, which operators look
//! for.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    CertificateError, ClientConfig,
    pki_types::{ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::egress::{Pipe, Route};

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes connections that all are to show the same name.
#[derive(Clone)]
pub struct Dialer {
    /// Absent: without TLS.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The proxy that they go through; absent: none.
    out: Option<Arc<Route>>,
}

impl Dialer {
    /// Over TLS, to servers that prove to be `name`.
    pub fn tls(config: Arc<ClientConfig>, name: &str) -> Result<Self, String> {
        let name = ServerName::try_from(name.to_owned()).map_err(|e| format!("{name}: {e}"))?;
        Ok(Self { tls: Some((config.into(), name)), out: None })
    }

    /// Without.
    pub fn plain() -> Self {
        Self { tls: None, out: None }
    }

    /// Goes this way.
    #[must_use]
    pub fn through(mut self, out: Option<Arc<Route>>) -> Self {
        self.out = out;
        self
    }

    /// Connects. An IPv6 address may stand in brackets.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Stream, String> {
        let connecting = async {
            let stream: Wire = match &self.out {
                None => {
                    let stream = tcp(host, port).await?;
                    // A request is one write; its answer should not wait for an acknowledgement.
                    let _ = stream.set_nodelay(true);
                    Box::new(stream)
                }
                Some(route) => route.open(host, port).await?,
            };
            match &self.tls {
                None => Ok(Stream::Plain(stream)),
                Some((tls, name)) => tls
                    .connect(name.clone(), stream)
                    .await
                    .map(|stream| Stream::Tls(Box::new(stream)))
                    .map_err(|e| io_text(&e)),
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(done) => done,
            Err(_) => Err(format!("dial tcp {}: i/o timeout", authority(host, port))),
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let bare = host.trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((bare, port)).await;
    let addresses = found.map_err(|_| format!("dial tcp: lookup {bare}: no such host"))?;
    let mut last = "no such host".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("dial tcp {address}: connect: {}", io_text(&error)),
        }
    }
    Err(last)
}

/// `host:port`, with brackets where the host is an IPv6 address.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// What went wrong below HTTP.
pub fn io_text(error: &std::io::Error) -> String {
    if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::InvalidCertificate(why) => {
                format!("tls: failed to verify certificate: x509: {}", certificate_text(why))
            }
            other => format!("tls: {other}"),
        };
    }
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        std::io::ErrorKind::UnexpectedEof => "EOF".into(),
        _ => error.to_string(),
    }
}

/// What is wrong with a certificate, as Go says it.
fn certificate_text(why: &CertificateError) -> String {
    use CertificateError as E;
    let time = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
        seconds.map(|s| s.to_string()).unwrap_or_default()
    };
    let expired = "certificate has expired or is not yet valid";
    match why {
        // Of another authority of the same name, too.
        E::UnknownIssuer | E::BadSignature => "certificate signed by unknown authority".into(),
        E::ExpiredContext { time: now, not_after } => {
            format!("{expired}: current time {} is after {}", time(now), time(not_after))
        }
        E::NotValidYetContext { time: now, not_before } => {
            format!("{expired}: current time {} is before {}", time(now), time(not_before))
        }
        E::Expired | E::NotValidYet => expired.into(),
        E::NotValidForNameContext { expected: ServerName::IpAddress(wanted), presented } => {
            let wanted = IpAddr::from(*wanted);
            let addresses = names(presented, "IpAddress(");
            match addresses.is_empty() {
                true => {
                    format!("cannot validate certificate for {wanted} because it doesn't contain any IP SANs")
                }
                false => format!("certificate is valid for {}, not {wanted}", addresses.join(", ")),
            }
        }
        E::NotValidForNameContext { expected, presented } => {
            let hosts = names(presented, "DnsName(");
            match hosts.is_empty() {
                true => "certificate relies on legacy Common Name field, use SANs instead".into(),
                false => format!("certificate is valid for {}, not {}", hosts.join(", "), expected.to_str()),
            }
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".into()
        }
        other => other.to_string(),
    }
}

/// The names of one kind among those that a certificate is good for, which come as text.
fn names<'a>(presented: &'a [String], kind: &str) -> Vec<&'a str> {
    let bare = |name: &'a String| Some(name.strip_prefix(kind)?.trim_end_matches(')').trim_matches('"'));
    presented.iter().filter_map(bare).collect()
}

/// Whether a text of [`io_text`] says that the other side could not prove itself.
pub fn is_untrusted(text: &str) -> bool {
    text.contains("tls: failed to verify certificate")
}

/// What went wrong with a request: the last cause, which is the one that says something.
pub fn http_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    loop {
        if let Some(io) = at.downcast_ref::<std::io::Error>() {
            return io_text(io);
        }
        if at.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message) {
            return "EOF".into();
        }
        match at.source() {
            Some(source) => at = source,
            None => return at.to_string(),
        }
    }
}

/// Whether a request was cut off by the other side: a new one may fare better.
pub fn is_reset(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset) {
            return true;
        }
        at = error.source();
    }
    false
}

/// What a connection rests on: the network, or a proxy.
pub type Wire = Box<dyn Pipe>;

/// A connection.
pub enum Stream {
    /// Without TLS.
    Plain(Wire),
    /// With.
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// For hyper, which learns of the protocol that was agreed on.
    pub fn io(self) -> Io {
        Io(TokioIo::new(self))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection as hyper wants it.
pub struct Io(TokioIo<Stream>);

impl Connection for Io {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        match self.0.inner() {
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                connected.negotiated_h2()
            }
            _ => connected,
        }
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_of_places_where_nobody_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(Dialer::plain().connect("127.0.0.1", port).await.is_ok());
        drop(listener);
        let error = Dialer::plain().connect("127.0.0.1", port).await.err().unwrap();
        assert_eq!(error, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
        let error = Dialer::plain().connect("no such name", 1).await.err().unwrap();
        assert_eq!(error, "dial tcp: lookup no such name: no such host");
        assert_eq!(authority("::1", 2), "[::1]:2");
        assert_eq!(authority("[::1]", 2), "[::1]:2");
    }
}
