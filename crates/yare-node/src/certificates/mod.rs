//! The node's own certificates: the one that it shows to the API server, and the one that its HTTPS API shows.
//!
//! Each is asked for by a CertificateSigningRequest ([`request`]), kept in a file that only root reads
//! ([`store`]), and asked for again when most of its life is over or the node has got other names ([`rotate`]).
//! Who asks for the first one of a machine that joins, is whoever holds a bootstrap token; from then on the node
//! asks for itself.

mod request;
mod rotate;
mod store;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use yare_auth::tls::Shown;
use yare_client::Client;

use crate::error::{Error, Result};
use crate::kubelet::Kubelet;

pub use request::{CertificateError, bootstrap};
pub use rotate::{Rotation, Template};
pub use store::{Held, Store};

/// Which certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the node as a client of the API server.
    Client,
    /// Of the node as a server.
    Serving,
}

impl Kind {
    /// How its files begin, as upstream names them.
    fn file(self) -> &'static str {
        match self {
            Self::Client => "kubelet-client",
            Self::Serving => "kubelet-server",
        }
    }

    /// Who signs it.
    fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// What it is for. Keys are ECDSA, which have no use for `key encipherment`.
    fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }
}

/// The group of all nodes.
const NODES: &str = "system:nodes";

/// The user that a node is.
fn user(node_name: &str) -> String {
    format!("system:node:{node_name}")
}

/// Whom a certificate of this node names. Names are those of the node's addresses, for serving certificates.
pub fn template(node_name: &str, dns_names: &[String], addresses: &[IpAddr]) -> Template {
    let (mut dns_names, mut addresses) = (dns_names.to_vec(), addresses.to_vec());
    dns_names.sort();
    dns_names.dedup();
    addresses.sort();
    addresses.dedup();
    Template { common_name: user(node_name), dns_names, addresses }
}

/// What the node's API shows with `serverTLSBootstrap`, and the task that asks for it. Until somebody has approved
/// the first request there is nothing to show, and connections end.
pub(crate) fn serving(
    kubelet: &Kubelet,
    client: Client,
    directory: PathBuf,
) -> Result<(Arc<Shown>, Rotation)> {
    let store = Store::new(directory, Kind::Serving);
    let held = store.current()?;
    let shown = Arc::new(Shown::default());
    let show = |shown: &Shown, held: &Held| {
        shown.replace(&held.pair).map_err(|e| Error::Request(format!("the serving certificate: {e}")))
    };
    if let Some(held) = held.as_ref().filter(|held| kubelet.seams.now() < held.leaf.not_after) {
        show(&shown, held)?;
    }
    let name = &kubelet.node_name;
    let names: Vec<String> = name.parse::<IpAddr>().is_err().then(|| name.clone()).into_iter().collect();
    let template = template(name, &names, &kubelet.node_ips);
    let replaced = shown.clone();
    let rotation = Rotation {
        store,
        held,
        template: watch::channel(Some(template)).1,
        client: Box::new(move |_| client.clone()),
        seams: kubelet.seams.clone(),
        replaced: Box::new(move |held| match show(&replaced, held) {
            // Connections that are open go on under the certificate that they began with.
            Ok(()) => tracing::info!(until = %held.leaf.not_after, "the serving certificate was renewed"),
            Err(error) => tracing::warn!(%error, "the serving certificate"),
        }),
    };
    Ok((shown, rotation))
}
