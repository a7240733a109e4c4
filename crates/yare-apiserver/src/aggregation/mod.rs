//! The aggregation layer: API versions that another server serves, behind this one
//! (`k8s.io/kube-aggregator`).
//!
//! An APIService with a service says that `/apis/GROUP/VERSION` is somebody else's. [`table`] follows these
//! objects and is what requests are looked up in; [`available`] asks whether those servers answer and
//! what they serve, and writes condition `Available`; [`proxy`] sends requests on under the caller's identity;
//! [`discovery`] and [`openapi`] are about their documents, which appear merged with this server's own.
//! [`register`] keeps an APIService for everything that is served here, and [`trust`] publishes how an extension
//! server recognizes this one.
//!
//! While no APIService points elsewhere, all of it costs a request one load of a pointer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use self::{backend::Backend, table::Table};
use crate::{core::Core, outbound::shown::ClientPair, path::RequestInfo};

mod available;
pub mod backend;
pub mod discovery;
pub mod metrics;
pub mod openapi;
pub mod priorities;
pub mod proxy;
pub mod register;
pub mod resolve;
pub mod table;
pub mod trust;

/// How this server proves itself to the servers behind it.
#[derive(Clone)]
pub struct FrontProxy {
    /// The client certificate that it shows.
    pub pair: Arc<ClientPair>,
    /// The authority that signed it, PEM.
    pub authority: String,
    /// The authority of ordinary clients, PEM.
    pub client_authority: String,
    /// Common names that may speak for others.
    pub allowed_names: Vec<String>,
}

/// What the parts of the aggregation layer share.
#[derive(Default)]
pub struct Aggregation {
    /// What is forwarded.
    pub table: ArcSwap<Table>,
    /// Changes whenever anything in discovery that does not come from the registry does.
    changes: AtomicU64,
    /// APIServices may have to be made or taken away.
    pub registration: Notify,
    /// The first round of that is done.
    pub registered: AtomicBool,
    /// The published authentication data is gone.
    pub trust: Notify,
    /// How often which backend became unavailable, and why.
    pub metrics: metrics::Unavailable,
}

impl Aggregation {
    /// A number that changes whenever what the table or the backends say does.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Something in discovery has changed.
    pub fn touch(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The server that answers a request, where that is not this one.
    pub fn route(&self, info: &RequestInfo) -> Option<Arc<Backend>> {
        let table = self.table.load();
        if table.is_local() {
            return None;
        }
        if info.is_resource {
            return table.backend(&info.group, &info.version).cloned();
        }
        let mut parts = info.path.trim_matches('/').split('/');
        let backend = match (parts.next()?, parts.next(), parts.next()) {
            // The legacy group has no versions beside its one, and goes whole.
            ("api", ..) => table.backend("", "v1"),
            ("apis", Some(group), Some(version)) => table.backend(group, version),
            ("openapi", Some("v3"), Some("apis")) => table
                .backend(parts.next()?, parts.next()?)
                // What was made of version 2 is here.
                .filter(|b| b.documents.load().openapi_v3.is_some()),
            _ => None,
        };
        backend.cloned()
    }
}

/// Takes in the APIServices there are, and follows them until the server stops.
pub fn start(core: &Arc<Core>) {
    table::follow(core);
    register::start(core);
    trust::start(core);
}
