//! What a controller is given: reads, writes, events, time and configuration.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use yare_auth::{pki::Authority, token::Signer};
use yare_client::{Cached, Client, EventKind, Informer, ObjectRef, Recorder, Resource};
use yare_schema::features::Gates;

use crate::{
    api::{Api, ApiError},
    metrics::Metrics,
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads the time; a simulation gives its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The client that writes as a service account in `kube-system`: each controller has an identity of its own.
pub type Writers = Arc<dyn Fn(&str) -> kube::Client + Send + Sync>;

/// Configuration of all controllers.
#[derive(Clone)]
pub struct Config {
    /// Names of controllers that do not run.
    pub disabled: Vec<String>,
    /// The certificates (PEM) that `kube-root-ca.crt` publishes in every namespace; empty: not published.
    pub root_ca: String,
    /// Signs what approved CertificateSigningRequests ask for; absent: nobody here does.
    pub cluster_signing: Option<Arc<Authority>>,
    /// The same for single signers, by their names. Where there are some, they alone sign.
    pub signer_authorities: BTreeMap<&'static str, Arc<Authority>>,
    /// The longest validity of what it signs.
    pub cluster_signing_duration: Duration,
    /// Signs the tokens in Secrets of service accounts; absent: those stay empty.
    pub token_signer: Option<Arc<Signer>>,
    /// How long such a token must be unused before it is marked invalid, and marked before it goes.
    pub legacy_token_clean_up_period: Duration,
    /// Features: some controllers belong to one.
    pub gates: Gates,
    /// Where pod CIDRs come from, one per address family; empty: nodes get none.
    pub cluster_cidrs: Vec<String>,
    /// Length of a node's IPv4 pod CIDR.
    pub node_cidr_mask_size_ipv4: u8,
    /// Length of a node's IPv6 pod CIDR.
    pub node_cidr_mask_size_ipv6: u8,
    /// How long a node may be silent before its conditions become unknown.
    pub node_monitor_grace_period: Duration,
    /// Evictions per second from unreachable nodes of one zone.
    pub node_eviction_rate: f64,
    /// Terminated pods that may stay before the oldest are deleted; 0: all may.
    pub terminated_pod_gc_threshold: usize,
    /// The directory on each node in which volumes of `yare.io/local-path` are made.
    pub local_storage_path: String,
    /// Reads the time.
    pub clock: Clock,
    /// The client of each controller; absent: all write with the shared client.
    pub writers: Option<Writers>,
    /// What they count.
    pub metrics: Arc<Metrics>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            disabled: Vec::new(),
            root_ca: String::new(),
            cluster_signing: None,
            signer_authorities: BTreeMap::new(),
            cluster_signing_duration: YEAR,
            token_signer: None,
            legacy_token_clean_up_period: YEAR,
            gates: Gates::default(),
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_grace_period: Duration::from_secs(50),
            node_eviction_rate: 0.1,
            terminated_pod_gc_threshold: 12_500,
            local_storage_path: "/var/lib/yare/storage".into(),
            clock: Arc::new(Timestamp::now),
            writers: None,
            metrics: Arc::default(),
        }
    }
}

/// What one controller is given.
#[derive(Clone)]
pub struct Context {
    /// Name of the controller.
    pub name: &'static str,
    /// Shared reads.
    pub client: Client,
    /// Writes with the controller's identity.
    pub api: Api,
    /// Events.
    pub recorder: Recorder,
    /// Configuration of all controllers.
    pub config: Arc<Config>,
}

impl Context {
    /// For the controller `name`, which writes as `account`; with an empty one as the shared client. Must be
    /// called within a tokio runtime.
    pub fn new(name: &'static str, account: &str, client: &Client, config: Arc<Config>) -> Self {
        let own = config.writers.as_ref().filter(|_| !account.is_empty());
        let writer = own.map_or_else(|| client.kube(), |w| w(account));
        Self {
            name,
            client: client.clone(),
            api: Api::new(writer.clone()),
            recorder: Recorder::new(writer, name, None),
            config,
        }
    }

    /// The shared informer of a resource.
    pub fn informer(&self, resource: Resource) -> Informer {
        self.client.informers().of(resource)
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Records a `Normal` event.
    pub fn normal(&self, resource: &Resource, object: &Cached, reason: &str, message: impl Into<String>) {
        self.recorder.event(ObjectRef::of(resource, object), EventKind::Normal, reason, message);
    }

    /// Records a `Warning` event.
    pub fn warning(&self, resource: &Resource, object: &Cached, reason: &str, message: impl Into<String>) {
        self.recorder.event(ObjectRef::of(resource, object), EventKind::Warning, reason, message);
    }
}

/// Why a reconciliation failed. The key is retried with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API said no.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// An object has a form it should not have.
    #[error("{0}")]
    View(#[from] yare_client::ViewError),
    /// Something else; one line that names the object.
    #[error("{0}")]
    Other(String),
    /// Nothing is wrong, but what it takes is not there yet, and no event will say when it is.
    #[error("{0}")]
    NotYet(String),
}

impl Error {
    /// Nothing more can be made where the object is: its namespace is being emptied.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Self::Api(e) if e.is_namespace_terminating())
    }

    /// Another writer was faster, a cache is behind or it is too early: normal, and not worth a warning.
    pub fn is_race(&self) -> bool {
        match self {
            Self::Api(e) => e.is_conflict() || e.is_not_found() || e.is_already_exists(),
            Self::NotYet(_) => true,
            Self::View(_) | Self::Other(_) => false,
        }
    }
}
