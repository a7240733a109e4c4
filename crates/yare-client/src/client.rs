//! The pair every component is given: a kube client for writes and shared informers for reads.

use std::{path::Path, sync::Arc};

use http::{Request, Response};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service};

use crate::Informers;

/// A kube client, in this process or over the network (holders cannot tell), and shared informers.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    informers: Arc<Informers>,
}

/// Why a client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig is missing, unreadable or incomplete.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The configuration was read but no connection can be made from it.
    #[error("client from kubeconfig {path}: {source}")]
    Connect {
        /// The file.
        path: String,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

impl Client {
    /// Informers are started when they are first asked for.
    pub fn new(kube: kube::Client) -> Self {
        let informers = Arc::new(Informers::new(kube.clone()));
        Self { kube, informers }
    }

    /// The client for typed and dynamic `kube::Api`s.
    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    /// Shared informers: asking twice for the same gives the same cache.
    pub fn informers(&self) -> &Informers {
        &self.informers
    }
}

impl From<&Client> for kube::Client {
    fn from(client: &Client) -> Self {
        client.kube()
    }
}

impl From<Client> for kube::Client {
    fn from(client: Client) -> Self {
        client.kube
    }
}

/// Builds a `kube::Client` over a tower service in this process: no socket, no TLS, response frames pass
/// through untouched. The caller's service sets the identity as a request extension. Must be called
/// within a tokio runtime.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: Service<Request<kube::client::Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}

/// Builds a `kube::Client` for the current context of the kubeconfig at `path`.
pub async fn from_kubeconfig(path: impl AsRef<Path>) -> Result<kube::Client, ClientError> {
    let path = path.as_ref();
    let shown = || path.display().to_string();
    let read = |source| ClientError::Kubeconfig { path: shown(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(read)?;
    let config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(read)?;
    kube::Client::try_from(config)
        .map_err(|source| ClientError::Connect { path: shown(), source: Box::new(source) })
}
