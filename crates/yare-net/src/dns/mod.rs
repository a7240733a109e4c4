//! Cluster DNS: the names of services and their endpoints, by the Kubernetes DNS schema
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>), and everything else by the node's
//! own resolvers.
//!
//! In flow Services, EndpointSlices and Namespaces; [`zone::Zone`] answers from them; [`server`] speaks UDP and
//! TCP.

mod forward;
mod publish;
mod server;
mod view;
pub mod zone;

use std::{net::SocketAddr, sync::Arc};

use parking_lot::RwLock;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use yare_client::{Change, Client, ENDPOINT_SLICES, NAMESPACES, SERVICES};

pub use forward::upstreams;
pub use publish::{ANNOTATION, publish, tell};
use zone::Zone;

/// How the server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, UDP and TCP.
    pub listen: SocketAddr,
    /// The cluster's domain: `cluster.local`.
    pub domain: String,
    /// Resolvers for other names.
    pub upstreams: Vec<SocketAddr>,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
#[error("cluster DNS on {listen}: {source}; is another DNS server there?")]
pub struct DnsError {
    listen: SocketAddr,
    source: std::io::Error,
}

/// A running server; it stops when dropped.
pub struct Dns {
    tasks: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

impl Drop for Dns {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Dns {
    /// Listens, and keeps the zone as the cluster changes.
    pub async fn start(client: Client, config: Config) -> Result<Self, DnsError> {
        let fail = |source| DnsError { listen: config.listen, source };
        let udp = UdpSocket::bind(config.listen).await.map_err(fail)?;
        let address = udp.local_addr().map_err(fail)?;
        let tcp = TcpListener::bind(address).await.map_err(fail)?;
        let zone = Arc::new(RwLock::new(Zone::new(&config.domain)));
        let server = server::Server::new(zone.clone(), config.upstreams);
        Ok(Self {
            tasks: vec![
                tokio::spawn(follow(client, zone)),
                tokio::spawn(server.clone().udp(udp)),
                tokio::spawn(server.tcp(tcp)),
            ],
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn follow(client: Client, zone: Arc<RwLock<Zone>>) {
    let informers = client.informers();
    let services = informers.of(SERVICES);
    let slices = informers.of(ENDPOINT_SLICES);
    let namespaces = informers.of(NAMESPACES);
    let (mut services, mut slices, mut namespaces) =
        (services.subscribe(), slices.subscribe(), namespaces.subscribe());
    loop {
        tokio::select! {
            Some(change) = services.recv() => service_changed(&zone, &change),
            Some(change) = slices.recv() => slice_changed(&zone, &change),
            Some(change) = namespaces.recv() => namespace_changed(&zone, &change),
            else => return,
        }
    }
}

fn service_changed(zone: &RwLock<Zone>, change: &Change) {
    let Some(object) = change.object() else { return };
    let service = change.new.as_ref().and_then(|new| new.view().ok());
    zone.write().set_service(object.namespace(), object.name(), service);
}

fn slice_changed(zone: &RwLock<Zone>, change: &Change) {
    const SERVICE: &str = "kubernetes.io/service-name";
    let mut zone = zone.write();
    if let Some(old) = &change.old
        && let Some(service) = old.label(SERVICE)
    {
        zone.set_slice(old.namespace(), service, old.name(), None);
    }
    if let Some(new) = &change.new
        && let Some(service) = new.label(SERVICE)
    {
        zone.set_slice(new.namespace(), service, new.name(), new.view().ok());
    }
}

fn namespace_changed(zone: &RwLock<Zone>, change: &Change) {
    if let Some(object) = change.object() {
        zone.write().set_namespace(object.name(), change.new.is_some());
    }
}
