//! Ways out of this machine's network (KEP-1281): connections to the control plane's own servers and to the cluster
//! may have to go through a proxy, which is asked with HTTP's CONNECT or over gRPC. In: a host and a port. Out: a
//! stream of bytes to it.

mod connect;
mod tunnel;

use std::{sync::Arc, time::Instant};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use yare_auth::{
    config::egress::{Connection, EgressSelectorConfiguration, Tcp, TlsConfig, Transport},
    pki::KeyPairPem,
};
use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
};

use super::{
    Dialer, authority,
    identity::{Believed, Peer},
};

static STARTS: Family = Family::labelled(
    "apiserver_egress_dialer_dial_start_total",
    Kind::Counter,
    &["protocol", "transport"],
    "[ALPHA] Dial starts, labeled by the protocol (http-connect or grpc) and transport (tcp or uds).",
);
static FAILURES: Family = Family::labelled(
    "apiserver_egress_dialer_dial_failure_count",
    Kind::Counter,
    &["protocol", "transport", "stage"],
    "[ALPHA] Dial failure count, labeled by the protocol (http-connect or grpc), transport (tcp or uds), and stage (connect or proxy). The stage indicates at which stage the dial failed",
);
static TOOK: Family = Family::labelled(
    "apiserver_egress_dialer_dial_duration_seconds",
    Kind::Histogram(&[0.005, 0.025, 0.1, 0.5, 2.5, 12.5]),
    &["protocol", "transport"],
    "[ALPHA] Dial latency histogram in seconds, labeled by the protocol (http-connect or grpc), transport (tcp or uds)",
);
static FAMILIES: &[&Family] = &[&STARTS, &FAILURES, &TOOK];

/// Where a connection leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// To servers of the control plane, webhooks at URLs among them.
    ControlPlane,
    /// To nodes, pods and services.
    Cluster,
}

/// Bytes both ways.
pub trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

/// The proxy of a network.
enum Proxy {
    /// Asked with CONNECT, at an address.
    Address { dialer: Dialer, host: String, port: u16 },
    /// Asked with CONNECT, at a socket.
    Socket(String),
    /// Asked over gRPC, at a socket.
    Grpc(String),
}

/// Why there is no connection, and how far it came.
struct Failed {
    stage: &'static str,
    why: String,
}

impl Failed {
    fn connect(why: String) -> Self {
        Self { stage: "connect", why }
    }

    fn proxy(why: String) -> Self {
        Self { stage: "proxy", why }
    }
}

/// The way to a network.
pub struct Route {
    proxy: Proxy,
    metrics: Arc<Counts>,
}

impl Route {
    /// A connection to the host and port, on the other side of the proxy.
    ///
    /// Boxed with its type, since the way to a proxy is a connection too.
    pub(crate) fn open<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Pipe>, String>> {
        Box::pin(self.dial(host, port))
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Pipe>, String> {
        let labels = match &self.proxy {
            Proxy::Address { .. } => ["http_connect", "tcp"],
            Proxy::Socket(_) => ["http_connect", "uds"],
            Proxy::Grpc(_) => ["grpc", "uds"],
        };
        self.metrics.count(&STARTS, &labels);
        let (start, target) = (Instant::now(), authority(host.trim_matches(['[', ']']), port));
        let opened = match &self.proxy {
            Proxy::Address { dialer, host, port } => match dialer.connect(host, *port).await {
                Ok(stream) => connect::ask(Box::new(stream), &authority(host, *port), &target).await,
                Err(why) => Err(Failed::connect(why)),
            },
            Proxy::Socket(path) => match tokio::net::UnixStream::connect(path).await {
                Ok(stream) => connect::ask(Box::new(stream), path, &target).await,
                Err(e) => {
                    Err(Failed::connect(format!("dial unix {path}: connect: {}", super::dial::io_text(&e))))
                }
            },
            Proxy::Grpc(path) => tunnel::open(path, &target).await,
        };
        match opened {
            Ok(pipe) => {
                self.metrics.observe(&TOOK, &labels, start.elapsed().as_secs_f64());
                Ok(pipe)
            }
            Err(Failed { stage, why }) => {
                self.metrics.count(&FAILURES, &[labels[0], labels[1], stage]);
                Err(why)
            }
        }
    }
}

/// The ways out that a file configures.
pub struct Egress {
    control_plane: Option<Arc<Route>>,
    cluster: Option<Arc<Route>>,
    /// Networks that the file names, also where they are reached directly.
    named: Vec<String>,
    metrics: Arc<Counts>,
}

impl Egress {
    /// Reads the text of an EgressSelectorConfiguration and the certificates that it names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let config = EgressSelectorConfiguration::parse(text).map_err(|e| e.to_string())?;
        let metrics = Arc::<Counts>::default();
        let route = |name: &str| -> Result<Option<Arc<Route>>, String> {
            let Some(selection) = config.egress_selections.iter().find(|s| s.name == name) else {
                return Ok(None);
            };
            let proxy = proxy(&selection.connection)
                .map_err(|e| format!("failed to create dialer for egressSelection {name:?}: {e}"))?;
            Ok(proxy.map(|proxy| Arc::new(Route { proxy, metrics: metrics.clone() })))
        };
        Ok(Self {
            control_plane: route("controlplane")?,
            cluster: route("cluster")?,
            named: config.egress_selections.iter().map(|s| s.name.clone()).collect(),
            metrics,
        })
    }

    /// The way to a network; none: directly.
    pub fn route(&self, network: Network) -> Option<Arc<Route>> {
        match network {
            Network::ControlPlane => self.control_plane.clone(),
            Network::Cluster => self.cluster.clone(),
        }
    }

    /// The way to a network that must have been named.
    ///
    /// # Errors
    /// That it was not.
    pub fn named(&self, name: &str) -> Result<Option<Arc<Route>>, String> {
        if !self.named.iter().any(|known| known == name) {
            return Err(format!("egress lookup for {name:?} is not configured"));
        }
        let network = if name == "cluster" { Network::Cluster } else { Network::ControlPlane };
        Ok(self.route(network))
    }
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("named", &self.named).finish_non_exhaustive()
    }
}

impl Egress {
    /// Adds what is counted of connections through proxies.
    pub fn expose(&self, page: &mut Page) {
        self.metrics.expose(FAMILIES, page);
    }
}

/// What a connection of the file asks for; none: it is direct.
fn proxy(connection: &Connection) -> Result<Option<Proxy>, String> {
    let none = Transport::default();
    let transport = connection.transport.as_ref().unwrap_or(&none);
    match (connection.proxy_protocol.as_str(), transport) {
        ("GRPC", Transport { uds: Some(uds), .. }) => Ok(Some(Proxy::Grpc(uds.uds_name.clone()))),
        ("HTTPConnect", Transport { uds: Some(uds), .. }) => Ok(Some(Proxy::Socket(uds.uds_name.clone()))),
        ("HTTPConnect", Transport { tcp: Some(tcp), .. }) => address(tcp).map(Some),
        _ => Ok(None),
    }
}

fn address(tcp: &Tcp) -> Result<Proxy, String> {
    let invalid = |why: &dyn std::fmt::Display| format!("invalid proxy server url {:?}: {why}", tcp.url);
    let uri: http::Uri = tcp.url.parse().map_err(|e| invalid(&e))?;
    let host = uri.host().ok_or_else(|| invalid(&"it names no host"))?.trim_matches(['[', ']']).to_owned();
    let Some(config) = &tcp.tls_config else {
        return Ok(Proxy::Address { dialer: Dialer::plain(), host, port: uri.port_u16().unwrap_or(80) });
    };
    let (trust, pair) = files(config)?;
    let name = if config.tls_server_name.is_empty() { &host } else { &config.tls_server_name };
    let dialer = Peer { name: name.clone(), trust }.dialer(Some(&pair))?;
    Ok(Proxy::Address { dialer, host, port: uri.port_u16().unwrap_or(443) })
}

fn files(config: &TlsConfig) -> Result<(Believed, KeyPairPem), String> {
    let read = |file: &str| std::fs::read_to_string(file).map_err(|e| format!("failed to read {file}: {e}"));
    let trust = match config.ca_bundle.as_str() {
        "" => Believed::System,
        file => Believed::Authority(read(file)?),
    };
    let pair = KeyPairPem { certificate: read(&config.client_cert)?, key: read(&config.client_key)? };
    Ok((trust, pair))
}
