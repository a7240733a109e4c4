//! The pair every component is given: a kube client for writes and shared informers for reads.

use std::{path::Path, sync::Arc};

use http::{HeaderValue, Request, Response, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Service, ServiceExt as _};
use yare_schema::release::{KUBERNETES_VERSION, architecture};

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

/// [`in_process`] for a component that says who it is (`kubelet`): the server calls the owner of what it writes so.
pub fn in_process_as<S, B>(service: S, component: &str) -> kube::Client
where
    S: Service<Request<kube::client::Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent = user_agent(component);
    in_process(service.map_request(move |mut request: Request<kube::client::Body>| {
        request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| agent.clone());
        request
    }))
}

/// What a component calls itself in its requests, in the form that upstream's components do.
pub(crate) fn user_agent(component: &str) -> HeaderValue {
    let text = format!("{component}/{KUBERNETES_VERSION} (linux/{}) yare", architecture());
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("yare"))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::Full;
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_component_says_who_it_is() {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = seen.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let agent = request.headers().get(header::USER_AGENT).and_then(|v| v.to_str().ok());
            log.lock().push(agent.unwrap_or_default().to_owned());
            async { Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::new()))) }
        });
        let client = in_process_as(service, "kubelet");
        let ask = |agent: Option<&str>| {
            let mut request = Request::get("/");
            if let Some(agent) = agent {
                request = request.header(header::USER_AGENT, agent);
            }
            request.body(Body::empty()).unwrap()
        };
        client.send(ask(None)).await.unwrap();
        client.send(ask(Some("other"))).await.unwrap();
        let seen = seen.lock();
        assert!(seen[0].starts_with("kubelet/v1.36.0 (linux/"), "{seen:?}");
        assert_eq!(seen[1], "other");
    }
}
