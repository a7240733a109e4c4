//! A small HTTP/1.1 server for those who ask how things are: a function of the path makes the whole answer, and the
//! connection ends with it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most of a request that is read.
const REQUEST_BYTES: usize = 8 * 1024;
/// Between tries to open a port that is in use.
const RETRY: Duration = Duration::from_secs(5);

pub(super) const OK: &str = "200 OK";
pub(super) const UNAVAILABLE: &str = "503 Service Unavailable";
pub(super) const NOT_FOUND: &str = "404 Not Found";
pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered.
pub(super) struct Answer {
    /// Code and reason.
    pub status: &'static str,
    /// `Content-Type`
    pub kind: &'static str,
    /// Further header lines, each with its line end.
    pub headers: String,
    /// Body.
    pub body: String,
}

impl Answer {
    fn text(&self) -> String {
        let Self { status, kind, headers, body } = self;
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\n{headers}\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Makes the answer to a path.
pub(super) type Answers = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Serves at an address for as long as the task lives; `what` it is for the log.
pub(super) async fn serve(what: String, address: SocketAddr, answers: Answers) {
    let listener = loop {
        match listen(address).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%address, %error, "{what} not opened, trying again"),
        }
        tokio::time::sleep(RETRY).await;
    };
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = free.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: they come back as others end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answers = answers.clone();
        tokio::spawn(async move {
            // A client that is slow or gone is its own loss.
            let _ = tokio::time::timeout(PATIENCE, respond(stream, answers)).await;
            drop(permit);
        });
    }
}

/// All addresses of IPv6 are those of IPv4 too, or these alone where there is no IPv6.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip() == Ipv6Addr::UNSPECIFIED =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    }
}

async fn respond(mut stream: TcpStream, answers: Answers) -> io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    let mut length = 0;
    while length < request.len() && !request[..length].windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut request[length..]).await? {
            0 => break,
            more => length += more,
        }
    }
    let line =
        String::from_utf8_lossy(request[..length].split(|byte| *byte == b'\r').next().unwrap_or_default());
    let path = line.split(' ').nth(1).unwrap_or_default();
    let answer = answers(path.split('?').next().unwrap_or_default());
    stream.write_all(answer.text().as_bytes()).await?;
    stream.shutdown().await
}
