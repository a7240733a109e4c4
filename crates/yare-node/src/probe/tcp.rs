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
    let address = authority(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let why = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
                std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
                _ => error.to_string(),
            };
            Err(format!("dial tcp {address}: {why}"))
        }
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}
