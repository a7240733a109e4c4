//! What every request needs: the store, what is served, who may, clock and randomness; and [`Call`], one
//! request on its way through the pipeline.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, Method, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{sync::oneshot, time::Instant};
use yare_metrics::text::Page;
use yare_schema::features::Gates;
use yare_store::Store;

use crate::{
    admission::{Admission, Settings},
    audit::{Audit, Layer, Record},
    auth::{Auth, User},
    flow::{self, Ticket},
    outbound::{
        Calls,
        egress::{Egress, Network, Route},
    },
    path::{Query, RequestInfo},
    registry::Registry,
    runtime_config::RuntimeConfig,
    warnings::Warnings,
};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Gives random bytes.
pub trait Random: Send + Sync {
    /// Fills the buffer.
    fn fill(&self, bytes: &mut [u8]);
}

/// The machine's randomness.
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        use ring::rand::SecureRandom;
        if ring::rand::SystemRandom::new().fill(bytes).is_err() {
            // Without randomness names and UIDs would repeat, which is worse than stopping this request.
            panic!("the operating system gives no random bytes");
        }
    }
}

/// Adds what a component counts to a page.
pub type Expose = Arc<dyn Fn(&mut Page) + Send + Sync>;

/// How a server is set up.
pub struct Config {
    /// Where objects rest; opened with [`crate::index::indexer`].
    pub store: Store,
    /// Who may come in and what they may do.
    pub auth: Auth,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness for UIDs and generated names.
    pub random: Arc<dyn Random>,
    /// TLS for [`crate::ApiServer::serve`]; absent: plain HTTP (tests on loopback only).
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The certificates that it shows, where they change with files.
    pub certificates: Option<crate::serving::Certificates>,
    /// How HTTP is spoken.
    pub http: crate::server::Http,
    /// What browsers are told.
    pub browsers: crate::browsers::Browsers,
    /// How nodes' own APIs are spoken to.
    pub kubelets: Option<crate::outbound::shown::Kubelets>,
    /// How the server's Lease is kept; absent: it has none.
    pub identity: Option<crate::identity::Timing>,
    /// Ranges of service addresses, the first one preferred.
    pub service_cidrs: Vec<String>,
    /// Range of node ports, both ends included.
    pub node_ports: (u16, u16),
    /// Where clients inside the cluster reach this server: behind the `kubernetes` service.
    pub advertise: Option<(IpAddr, u16)>,
    /// Whether that is written into the service's endpoints here.
    pub own_endpoints: bool,
    /// The port of nodes at which that service is, where it is.
    pub own_node_port: Option<u16>,
    /// Host and port under which clients outside know this server; absent: the advertised ones.
    pub external: Option<String>,
    /// Types of nodes' addresses at which kubelets are asked, best first.
    pub kubelet_addresses: Vec<String>,
    /// Objects that must exist: created at start where absent, in this order (RBAC bootstrap and the like).
    pub objects: Vec<Value>,
    /// Seats for requests, and how long they may take.
    pub flow: flow::Settings,
    /// Chance that a request over HTTP/2 is the last one of its connection, so that clients spread out.
    pub goaway_chance: f64,
    /// How long events stay after they were written last; zero: for ever.
    pub event_ttl: Duration,
    /// What of it rests encrypted; the store was opened with it. None: nothing.
    pub encryption: Option<Arc<crate::encryption::Encryption>>,
    /// What is written down of requests; none: nothing.
    pub audit: Option<Arc<Audit>>,
    /// How the server ends.
    pub shutdown: crate::shutdown::Settings,
    /// Watches that name no time of their own end after this, plus up to as much again, so that they spread out.
    pub min_request_timeout: Duration,
    /// For how long `/livez` takes it that what begins with the server will come to its end.
    pub livez_grace: Duration,
    /// Where `/.well-known/openid-configuration` says that the keys of service-account tokens are; absent: there
    /// is no such document here.
    pub openid: Option<String>,
    /// How admission is set up.
    pub admission: Settings,
    /// Which features are on.
    pub gates: Gates,
    /// Which built-in group versions are served.
    pub runtime_config: RuntimeConfig,
    /// How this server proves itself to the API servers behind it; absent: it does not.
    pub front_proxy: Option<crate::aggregation::FrontProxy>,
    /// How requests reach the API servers behind it.
    pub aggregator_routing: crate::aggregation::resolve::Routing,
    /// What other components of this process count; `/metrics` says it too.
    pub metrics: Vec<Expose>,
    /// What is counted of calls to others.
    pub calls: Arc<Calls>,
    /// Proxies that connections to others go through; absent: none does.
    pub egress: Option<Arc<Egress>>,
    /// Where traces of requests go; absent: there are none.
    pub tracer: Option<crate::trace::Tracer>,
    /// The flags that the process was started with, those that hold secrets without their values.
    pub flags: BTreeMap<String, String>,
}

impl Config {
    /// A server on `store` with permissive auth and defaults in everything else.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            auth: Auth::permissive(),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            tls: None,
            certificates: None,
            http: Default::default(),
            browsers: Default::default(),
            kubelets: None,
            identity: None,
            service_cidrs: vec!["10.43.0.0/16".into()],
            node_ports: (30000, 32767),
            advertise: None,
            own_endpoints: true,
            own_node_port: None,
            external: None,
            kubelet_addresses: ["InternalIP", "ExternalIP", "Hostname"].map(str::to_owned).to_vec(),
            objects: Vec::new(),
            flow: flow::Settings {
                fair: true,
                readonly: 400,
                mutating: 200,
                request_timeout: Duration::from_secs(60),
            },
            goaway_chance: 0.0,
            event_ttl: Duration::from_secs(3600),
            encryption: None,
            audit: None,
            shutdown: Default::default(),
            min_request_timeout: Duration::from_secs(1800),
            livez_grace: Duration::ZERO,
            openid: None,
            admission: Settings::default(),
            gates: Gates::default(),
            runtime_config: RuntimeConfig::default(),
            front_proxy: None,
            aggregator_routing: Default::default(),
            metrics: Vec::new(),
            calls: Arc::default(),
            egress: None,
            tracer: None,
            flags: BTreeMap::new(),
        }
    }

    /// The way to a network; none: directly.
    pub fn route(&self, network: Network) -> Option<Arc<Route>> {
        self.egress.as_ref()?.route(network)
    }
}

/// The parts of a running server that requests share.
pub struct Core {
    /// How it was set up.
    pub config: Config,
    /// What is served now.
    pub registry: ArcSwap<Registry>,
    /// The built-in part of it.
    pub builtin: Registry,
    /// In which way callers acted in others' names last.
    pub impersonation: crate::auth::impersonate::LastModes,
    /// Admission plugins and webhooks.
    pub admission: Admission,
    /// Service addresses and node ports.
    pub allocators: crate::alloc::Allocators,
    /// Counters and histograms.
    pub metrics: crate::metrics::Metrics,
    /// OpenAPI documents while hot.
    pub openapi: crate::openapi::Cache,
    /// Aggregated discovery documents while hot.
    pub discovery: crate::discovery::Cache,
    /// API versions that other servers serve.
    pub aggregation: crate::aggregation::Aggregation,
    /// Custom resource definitions whose objects are being removed.
    pub cleaning: Mutex<std::collections::HashSet<String>>,
    /// Ready once bootstrap is done.
    pub ready: std::sync::atomic::AtomicBool,
    /// The server is about to stop: `/readyz` fails.
    pub closing: std::sync::atomic::AtomicBool,
    /// Requests come too late.
    pub closed: std::sync::atomic::AtomicBool,
    /// Tells long-running requests to end.
    pub stop: tokio_util::sync::CancellationToken,
    /// Nothing listens any more, and connections close when they are idle.
    pub hang_up: tokio_util::sync::CancellationToken,
    /// Lets watches go.
    pub farewell: crate::shutdown::Farewell,
    /// When this server began.
    pub began: Instant,
    /// Requests that end by themselves and have not.
    pub requests: tokio_util::task::TaskTracker,
    /// Who runs, who waits, who is refused.
    pub flow: Arc<flow::FlowControl>,
    /// Makes the IDs of requests.
    pub request_ids: RequestIds,
    /// Which versions the server writes, where it puts that on record.
    pub storage_versions: Option<crate::identity::versions::Versions>,
}

impl Core {
    /// The shared parts of a new server.
    pub fn new(config: Config) -> Arc<Self> {
        let builtin = Registry::builtin(&config.gates, &config.runtime_config);
        Arc::new(Self {
            registry: ArcSwap::from_pointee(builtin.patched(&builtin, &[], &[])),
            storage_versions: crate::identity::versions::Versions::of(&config, &builtin),
            builtin,
            impersonation: crate::auth::impersonate::LastModes::default(),
            admission: Admission::new(&config.admission),
            allocators: crate::alloc::Allocators::new(&config),
            metrics: crate::metrics::Metrics::default(),
            openapi: crate::openapi::Cache::default(),
            discovery: crate::discovery::Cache::default(),
            aggregation: crate::aggregation::Aggregation::default(),
            cleaning: Mutex::default(),
            ready: std::sync::atomic::AtomicBool::new(false),
            closing: std::sync::atomic::AtomicBool::new(false),
            closed: std::sync::atomic::AtomicBool::new(false),
            stop: tokio_util::sync::CancellationToken::new(),
            hang_up: tokio_util::sync::CancellationToken::new(),
            farewell: Default::default(),
            began: Instant::now(),
            requests: tokio_util::task::TaskTracker::new(),
            flow: Arc::new(flow::FlowControl::new(config.flow)),
            request_ids: RequestIds::new(&*config.random),
            config,
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.config.store
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// Now as `metadata.creationTimestamp` has it.
    pub fn now_rfc3339(&self) -> String {
        rfc3339(self.now())
    }

    /// A new UID: a random (version 4) UUID.
    pub fn new_uid(&self) -> String {
        let mut bytes = [0u8; 16];
        self.config.random.fill(&mut bytes);
        random_uuid(bytes).map(char::from).iter().collect()
    }

    /// Random letters and digits that spell no words.
    pub fn random_suffix(&self, length: usize) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bytes = vec![0u8; length];
        self.config.random.fill(&mut bytes);
        bytes.iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
    }

    /// A name from `metadata.generateName`.
    pub fn generate_name(&self, base: &str) -> String {
        const MAX: usize = 63 - 5;
        let mut end = base.len().min(MAX);
        while !base.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}{}", &base[..end], self.random_suffix(5))
    }

    /// A stored object as JSON value.
    pub fn read(&self, kind: &str, key: &str) -> Option<Value> {
        let object = self.store().get(kind, key)?;
        serde_json::from_slice(&object.bytes).ok()
    }
}

/// IDs of requests: unique and cheap. Nothing depends on them being secret.
pub struct RequestIds {
    seed: [u64; 2],
    next: AtomicU64,
}

impl RequestIds {
    fn new(random: &dyn Random) -> Self {
        let mut bytes = [[0u8; 8]; 2];
        bytes.iter_mut().for_each(|b| random.fill(b));
        Self { seed: bytes.map(u64::from_le_bytes), next: AtomicU64::new(0) }
    }

    /// The next one, in the form of a random UUID.
    pub fn next(&self) -> [u8; 36] {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // SplitMix64: a bijection of the counter, so that no ID comes twice.
        let mix = |seed: u64| {
            let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        random_uuid((u128::from(mix(self.seed[0])) << 64 | u128::from(mix(self.seed[1]))).to_be_bytes())
    }
}

/// The text of the random (version 4) UUID that these bytes make.
fn random_uuid(mut bytes: [u8; 16]) -> [u8; 36] {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        for digit in [byte >> 4, byte & 0x0f] {
            text[at] = b"0123456789abcdef"[usize::from(digit)];
            at += 1;
        }
    }
    text
}

/// RFC 3339 with seconds, as `metav1.Time` is written.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One request.
pub struct Call {
    /// The server.
    pub core: Arc<Core>,
    /// HTTP method.
    pub method: Method,
    /// The protocol's version.
    pub version: http::Version,
    /// What is asked for.
    pub info: Arc<RequestInfo>,
    /// Query parameters.
    pub query: Query,
    /// The query as sent.
    pub raw_query: Option<String>,
    /// `:authority` of HTTP/2, or what a request in absolute form names.
    pub authority: Option<http::uri::Authority>,
    /// Headers.
    pub headers: HeaderMap,
    /// Who asks.
    pub user: Arc<User>,
    /// The client is in this process: pieces of bodies are handed over shared instead of coalesced.
    pub in_process: bool,
    /// When it came.
    pub received: Instant,
    /// When it must be answered; absent: no limit.
    pub until: Option<Instant>,
    /// Where it came from.
    pub peer: Option<IpAddr>,
    /// What audit writes down of it, where it does.
    pub audit: Option<Arc<Record>>,
    /// What it is called in audit events and traces.
    pub id: http::HeaderValue,
    warnings: Mutex<Warnings>,
    ticket: Mutex<Option<Ticket>>,
    /// Told when the connection ends that the request took over.
    stream: Mutex<Option<oneshot::Receiver<()>>>,
    excluded_ns: AtomicU64,
    /// When webhooks must have answered; set when the first is asked.
    deadline: OnceLock<Instant>,
}

/// How long a write may take, webhooks included (`k8s.io/apiserver/pkg/endpoints/handlers/rest.go`).
const MAX_WRITE_TIME: Duration = Duration::from_secs(34);

impl Call {
    /// A request that has been authenticated.
    pub fn new(
        core: Arc<Core>,
        method: Method,
        info: impl Into<Arc<RequestInfo>>,
        query: Query,
        headers: HeaderMap,
        user: impl Into<Arc<User>>,
        in_process: bool,
    ) -> Self {
        Self {
            core,
            method,
            version: http::Version::HTTP_11,
            info: info.into(),
            query,
            raw_query: None,
            authority: None,
            headers,
            user: user.into(),
            in_process,
            received: Instant::now(),
            until: None,
            peer: None,
            audit: None,
            id: http::HeaderValue::from_static(""),
            warnings: Mutex::default(),
            ticket: Mutex::default(),
            stream: Mutex::default(),
            excluded_ns: AtomicU64::new(0),
            deadline: OnceLock::new(),
        }
    }

    /// Adds an annotation to the request's audit event, where it has one. The first value of a key stands.
    pub fn annotate(&self, key: impl AsRef<str>, value: impl Into<String>) {
        if let Some(record) = &self.audit {
            record.annotate(key.as_ref(), value);
        }
    }

    /// Gives the request its seats; they come free with it.
    pub fn hold(&self, ticket: Ticket) {
        *self.ticket.lock() = Some(ticket);
    }

    /// Takes the seats over, to hold them longer or shorter than the request.
    pub fn take_ticket(&self) -> Option<Ticket> {
        self.ticket.lock().take()
    }

    /// The connection is the request's from now on, until what this gives is dropped.
    pub fn take_over(&self) -> oneshot::Sender<()> {
        let (end, told) = oneshot::channel();
        *self.stream.lock() = Some(told);
        end
    }

    /// What tells of that end, if there is to be one.
    pub fn take_stream(&self) -> Option<oneshot::Receiver<()>> {
        self.stream.lock().take()
    }

    /// Notes time spent in a part of the server, for audit.
    pub fn took(&self, layer: Layer, time: Duration) {
        if let Some(record) = &self.audit {
            record.took(layer, time);
        }
    }

    /// Does `work` and notes its time for audit, where that is on.
    pub async fn timed<T>(&self, layer: Layer, work: impl Future<Output = T>) -> T {
        let began = self.audit.as_ref().map(|_| Instant::now());
        let done = work.await;
        if let Some(began) = began {
            self.took(layer, began.elapsed());
        }
        done
    }

    /// [`Call::timed`] for work that does not wait.
    pub fn timed_now<T>(&self, layer: Layer, work: impl FnOnce() -> T) -> T {
        let began = self.audit.as_ref().map(|_| Instant::now());
        let done = work();
        if let Some(began) = began {
            self.took(layer, began.elapsed());
        }
        done
    }

    /// Time that the request spent waiting for others (in a queue, for a webhook), which is not the server's.
    pub fn exclude(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.excluded_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// All of that time.
    pub fn excluded(&self) -> Duration {
        Duration::from_nanos(self.excluded_ns.load(Ordering::Relaxed))
    }

    /// Tells the client something in a `Warning` header.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().add(text.into());
    }

    /// The warnings so far.
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.lock().take()
    }

    /// How long webhooks may still take: 34 seconds from the first question on, and never beyond the request's own
    /// end.
    pub fn time_left(&self) -> Duration {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_init(|| now + MAX_WRITE_TIME);
        self.until.map_or(deadline, |until| until.min(deadline)).saturating_duration_since(now)
    }

    /// The query as sent.
    pub fn query_text(&self) -> Option<&str> {
        self.raw_query.as_deref()
    }

    /// The host (and port) that the client asked for.
    pub fn host(&self) -> Option<&str> {
        let authority = self.authority.as_ref().map(http::uri::Authority::as_str);
        authority.or_else(|| self.headers.get(header::HOST).and_then(|h| h.to_str().ok()))
    }

    /// The request's ID, cut off where it is long.
    pub fn audit_id(&self) -> &str {
        crate::trace::audit_id(&self.id)
    }

    /// The `User-Agent`.
    pub fn user_agent(&self) -> &str {
        self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}
