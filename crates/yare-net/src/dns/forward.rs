//! Names outside the cluster: asked of the node's own resolvers, one after the other.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query},
    rr::Record,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// How long one resolver may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How many resolvers are used, as in the C library.
const MAX_UPSTREAMS: usize = 3;

/// The resolvers in a `resolv.conf`, without those in `own`: a question must not come back to us.
pub fn upstreams(resolv_conf: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|ip| ip.trim().split('%').next()?.parse::<IpAddr>().ok())
        .filter(|ip| !own.contains(ip))
        .map(|ip| SocketAddr::new(ip, 53))
        .take(MAX_UPSTREAMS)
        .collect()
}

/// Passes a question on as it is and returns the first answer.
pub async fn relay(upstreams: &[SocketAddr], question: &[u8], udp: bool) -> Option<Vec<u8>> {
    for upstream in upstreams {
        let ask = async {
            if udp { ask_udp(*upstream, question).await } else { ask_tcp(*upstream, question).await }
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(TIMEOUT, ask).await {
            return Some(answer);
        }
    }
    None
}

/// The records of a name; none where nobody knows it.
pub async fn resolve(upstreams: &[SocketAddr], query: Query) -> Vec<Record> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query);
    let Ok(bytes) = question.to_vec() else { return Vec::new() };
    match relay(upstreams, &bytes, true).await.map(|a| Message::from_vec(&a)) {
        Some(Ok(answer)) if answer.metadata.id == question.metadata.id => answer.answers,
        _ => Vec::new(),
    }
}

async fn ask_udp(upstream: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    // A socket per question: its random port is what keeps forged answers out.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 2 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
