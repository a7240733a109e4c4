//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a service.
//!
//! One small HTTP/1.1 server per service that wants it: any request is answered with the number of endpoints
//! here, status 200 where there are any and 503 where not, and the connection ends.

use std::{collections::HashMap, net::Ipv6Addr, sync::Arc, time::Duration};

use parking_lot::RwLock;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use yare_client::ObjectKey;

use super::plan::Health;

/// Connections at once, per service.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most of a request that is read.
const REQUEST_BYTES: usize = 8 * 1024;
/// Between tries to open a port that is in use.
const RETRY: Duration = Duration::from_secs(5);

struct Server {
    port: u16,
    endpoints: Arc<RwLock<usize>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The servers of all services. Needs a tokio runtime.
#[derive(Default)]
pub struct HealthServers(HashMap<ObjectKey, Server>);

impl HealthServers {
    /// Sets what is answered for a service; `None` ends its server.
    pub fn set(&mut self, service: &ObjectKey, health: Option<Health>) {
        let Some(health) = health else {
            self.0.remove(service);
            return;
        };
        match self.0.get(service) {
            Some(server) if server.port == health.port => *server.endpoints.write() = health.endpoints,
            _ => {
                // The old one's port may be the new one's of another service: it is closed first.
                self.0.remove(service);
                let endpoints = Arc::new(RwLock::new(health.endpoints));
                let task = tokio::spawn(serve(service.clone(), health.port, endpoints.clone()));
                self.0.insert(service.clone(), Server { port: health.port, endpoints, task });
            }
        }
    }
}

async fn serve(service: ObjectKey, port: u16, endpoints: Arc<RwLock<usize>>) {
    let listener = loop {
        match listen(port).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%service, port, %error, "healthCheckNodePort not opened, trying again")
            }
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
        let answer = answer(&service, *endpoints.read());
        tokio::spawn(async move {
            // A client that is slow or gone is its own loss.
            let _ = tokio::time::timeout(PATIENCE, respond(stream, answer)).await;
            drop(permit);
        });
    }
}

/// On all addresses of both families, or of IPv4 where there is no IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        other => other,
    }
}

fn answer(service: &ObjectKey, endpoints: usize) -> String {
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    })
    .to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn respond(mut stream: TcpStream, answer: String) -> std::io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    let mut length = 0;
    while length < request.len() && !request[..length].windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut request[length..]).await? {
            0 => break,
            more => length += more,
        }
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
