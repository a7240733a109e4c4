//! Another server behind this one: where it is, how it is spoken to, and what it said of itself.

use std::sync::{Arc, atomic::AtomicBool};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use yare_auth::{pki::KeyPairPem, tls::Trust};
use yare_kinds::view::View;

use crate::{
    core::Core,
    outbound::{Transport, bundle, egress::Network},
};

/// A service, as an APIService names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
}

/// What a server said of itself when it was asked last.
#[derive(Clone, Default)]
pub struct Documents {
    /// `APIVersionDiscovery` of the version (of `apidiscovery.k8s.io/v2`); `None` until it was read once.
    pub discovery: Option<Value>,
    /// The last attempt to read it failed.
    pub stale: bool,
    /// The part of its OpenAPI v2 that is about this version.
    pub openapi_v2: Option<Arc<Value>>,
    /// The `ETag` of the whole.
    pub openapi_v2_etag: String,
    /// Where it has OpenAPI v3: the URL with hash, empty where this version is not in it.
    pub openapi_v3: Option<String>,
    /// Where it has none: the same made of v2, and its hash.
    pub openapi_v3_made: Option<(Bytes, String)>,
}

/// The server that an APIService points at.
pub struct Backend {
    /// `v1alpha1.wardle.example.com`
    pub name: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Where it is.
    pub service: ServiceRef,
    spec: Value,
    way: ArcSwap<Way>,
    /// Condition `Available` as it is in the store.
    pub available: AtomicBool,
    /// What it said of itself.
    pub documents: ArcSwap<Documents>,
    /// The APIService is gone or points elsewhere.
    pub closed: CancellationToken,
}

/// How a server is spoken to, or why it cannot be; and what it is shown.
pub struct Way {
    transport: Result<Transport, String>,
    pair: Option<Arc<KeyPairPem>>,
}

impl Way {
    /// How it is spoken to.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn transport(&self) -> Result<&Transport, &str> {
        self.transport.as_ref().map_err(|why| &**why)
    }
}

/// The certificate that is shown.
fn shown(core: &Core) -> Option<Arc<KeyPairPem>> {
    core.config.front_proxy.as_ref().map(|proxy| proxy.pair.now())
}

/// By the rules of an APIService: its bundle, or none at all where it says so; the front proxy's certificate is
/// shown.
fn transport(
    core: &Core,
    spec: &Value,
    service: &ServiceRef,
    pair: Option<&KeyPairPem>,
) -> Result<Transport, String> {
    let bundle = bundle(spec)?;
    let trust = match &bundle {
        _ if spec.bool_at("insecureSkipTLSVerify") => Trust::Anybody,
        Some(bundle) => Trust::Authority(bundle),
        None => Trust::System,
    };
    let name = format!("{}.{}.svc", service.name, service.namespace);
    let out = core.config.route(Network::Cluster);
    Transport::new(&name, trust, pair, out).map_err(|e| format!("{name}: {e}"))
}

fn way(core: &Core, spec: &Value, service: &ServiceRef) -> Way {
    let pair = shown(core);
    Way { transport: transport(core, spec, service, pair.as_deref()), pair }
}

impl Backend {
    /// The backend of an APIService with a service.
    pub fn new(core: &Core, object: &Value) -> Self {
        let spec = object.at("spec");
        let service = ServiceRef {
            namespace: spec.str_at("service.namespace").to_owned(),
            name: spec.str_at("service.name").to_owned(),
            port: spec.int_opt("service.port").and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
        };
        let way = way(core, spec, &service);
        Self {
            name: object.str_at("metadata.name").to_owned(),
            group: spec.str_at("group").to_owned(),
            version: spec.str_at("version").to_owned(),
            spec: spec.clone(),
            way: ArcSwap::from_pointee(way),
            service,
            available: AtomicBool::new(false),
            documents: ArcSwap::default(),
            closed: CancellationToken::new(),
        }
    }

    /// How it is spoken to now: with the certificate that is shown now. Connections that showed another end with what
    /// goes on over them.
    pub fn way(&self, core: &Core) -> Arc<Way> {
        let known = self.way.load_full();
        let is_same = match (&known.pair, &shown(core)) {
            (Some(known), Some(now)) => Arc::ptr_eq(known, now),
            (known, now) => known.is_none() && now.is_none(),
        };
        if is_same {
            return known;
        }
        let new = Arc::new(way(core, &self.spec, &self.service));
        self.way.store(new.clone());
        new
    }

    /// The path at which the version's resources are listed.
    pub fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Nobody asks for it any more.
    pub fn close(&self) {
        self.closed.cancel();
    }
}
