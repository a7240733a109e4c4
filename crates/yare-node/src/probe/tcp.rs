//! TCP probes: a connection that opens is success.

use std::time::Duration;

use tokio::net::TcpStream;

use super::Attempt;

pub(crate) async fn probe(host: &str, port: u16, timeout: Duration) -> Attempt {
    match connect(host, port, timeout).await {
        Ok(_) => Attempt::Success,
        Err(text) => Attempt::Failure(text),
    }
}

/// `host:port`, an IPv6 address in brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects; the error is worded as Go's dialer words it.
pub(crate) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, dial(host, port)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("dial tcp {}: i/o timeout", authority(host, port))),
    }
}

/// The same, however long it takes.
pub(crate) async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {}: {why}", authority(host, port))
    })
}
