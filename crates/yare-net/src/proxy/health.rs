//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a service.
//!
//! One small server per service that wants it: any request is answered with the number of endpoints here, status 200
//! where there are any and 503 where not, or where the rules of this node do not follow.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use parking_lot::RwLock;
use serde_json::json;
use tokio::task::JoinHandle;
use yare_client::ObjectKey;

use super::{
    answer::{self, Answer, JSON, OK, UNAVAILABLE},
    plan::Health,
    status::Progress,
};

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
pub struct HealthServers {
    servers: HashMap<ObjectKey, Server>,
    progress: Arc<Progress>,
}

impl HealthServers {
    /// None so far. `progress`: how the proxy is.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self { servers: HashMap::new(), progress }
    }

    /// Sets what is answered for a service; `None` ends its server.
    pub fn set(&mut self, service: &ObjectKey, health: Option<Health>) {
        let Some(health) = health else {
            self.servers.remove(service);
            return;
        };
        match self.servers.get(service) {
            Some(server) if server.port == health.port => *server.endpoints.write() = health.endpoints,
            _ => {
                // The old one's port may be the new one's of another service: it is closed first.
                self.servers.remove(service);
                let endpoints = Arc::new(RwLock::new(health.endpoints));
                let (whose, count, progress) = (service.clone(), endpoints.clone(), self.progress.clone());
                let answers = Arc::new(move |_: &str| {
                    answer(&whose, *count.read(), progress.is_healthy(Instant::now()))
                });
                let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), health.port);
                let task = tokio::spawn(answer::serve(
                    format!("healthCheckNodePort of {service}"),
                    address,
                    answers,
                ));
                self.servers.insert(service.clone(), Server { port: health.port, endpoints, task });
            }
        }
    }
}

fn answer(service: &ObjectKey, endpoints: usize, healthy: bool) -> Answer {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    Answer {
        status: if endpoints > 0 && healthy { OK } else { UNAVAILABLE },
        kind: JSON,
        headers: format!("X-Load-Balancing-Endpoint-Weight: {endpoints}\r\n"),
        body: body.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn traffic_goes_where_there_are_endpoints_and_rules() {
        for (endpoints, healthy, status) in
            [(2, true, OK), (0, true, UNAVAILABLE), (2, false, UNAVAILABLE), (0, false, UNAVAILABLE)]
        {
            let answer = answer(&ObjectKey::new("default", "web"), endpoints, healthy);
            assert_eq!(answer.status, status, "{endpoints} {healthy}");
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(
                (&body["localEndpoints"], &body["serviceProxyHealthy"]),
                (&endpoints.into(), &healthy.into())
            );
        }
    }
}
