//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a service.
//!
//! One small server per service that wants it: any request is answered with the number of endpoints here, status 200
//! where there are any and 503 where not.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::RwLock;
use serde_json::json;
use tokio::task::JoinHandle;
use yare_client::ObjectKey;

use super::{
    answer::{self, Answer, JSON, OK, UNAVAILABLE},
    plan::Health,
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
                let (whose, count) = (service.clone(), endpoints.clone());
                let answers = Arc::new(move |_: &str| answer(&whose, *count.read()));
                let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), health.port);
                let task = tokio::spawn(answer::serve(
                    format!("healthCheckNodePort of {service}"),
                    address,
                    answers,
                ));
                self.0.insert(service.clone(), Server { port: health.port, endpoints, task });
            }
        }
    }
}

fn answer(service: &ObjectKey, endpoints: usize) -> Answer {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    Answer {
        status: if endpoints > 0 { OK } else { UNAVAILABLE },
        kind: JSON,
        headers: format!("X-Load-Balancing-Endpoint-Weight: {endpoints}\r\n"),
        body: body.to_string(),
    }
}
