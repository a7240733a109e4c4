//! A server behind TLS with RBAC, and clients that show a certificate or none.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use yare_apiserver::{
    ApiServer, Auth, Config,
    auth::FrontProxy,
    serving::Source,
    shown::{Kubelets, NodeAuthority},
};
use yare_auth::{
    pki::{Authority, KeyPairPem, Pki, Subject, Usage},
    tls::{self, ClientAuthority, Limits, Serving, Speaks},
    token::Signer,
};

use crate::common::open;

const DAY: Duration = Duration::from_secs(86_400);

pub fn issue(ca: &Authority, usage: Usage, name: &str, groups: &[&str]) -> KeyPairPem {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    ca.issue(usage, &Subject { common_name: name, organizations: groups, alternative_names: &names }, DAY)
        .unwrap()
}

pub struct Cluster {
    pub api: ApiServer,
    pub address: SocketAddr,
    pub pki: Pki,
    pub dir: tempfile::TempDir,
}

pub async fn cluster() -> Cluster {
    cluster_with(|_, _| {}).await
}

/// A cluster that is set up further: with the configuration and a directory for files.
pub async fn cluster_with(change: impl FnOnce(&mut Config, &std::path::Path)) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&dir.path().join("pki")).unwrap();
    let ca = &pki.cluster;
    let serving = issue(ca, Usage::Server, "kube-apiserver", &[]);
    let client = issue(ca, Usage::Client, "kube-apiserver-kubelet-client", &["system:masters"]);
    let mut config = Config::new(open(&dir.path().join("store")).await);
    let signer = Signer::new(
        &pki.service_account_key,
        "https://kubernetes.default.svc",
        &["https://kubernetes.default.svc".to_owned()],
    )
    .unwrap();
    config.openid = Some("https://x/openid/v1/jwks".into());
    let auth = Auth::new(Some(Arc::new(signer)));
    let proxies = ClientAuthority::new(&pki.front_proxy.certificate).unwrap();
    let proxy = FrontProxy::new(proxies, vec!["front-proxy-client".into()]);
    auth.trust(Some(ClientAuthority::new(&ca.certificate).unwrap()), Some(proxy));
    let serving = Serving::new(&serving).unwrap();
    config.tls = Some(auth.authorities.load().server(serving, &Limits::default(), Speaks::Both).unwrap());
    config.auth = auth;
    config.objects = yare_auth::bootstrap::objects(&config.gates);
    let vouching = NodeAuthority { own: ca.certificate.clone(), file: None };
    config.kubelets = Some(Kubelets::open(Source::Own(client), Some(vouching)).unwrap());
    change(&mut config, dir.path());
    let api = Box::pin(ApiServer::start(config)).await.unwrap();
    let listener = ApiServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = api.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    Cluster { api, address, pki, dir }
}

impl Cluster {
    pub async fn request(
        &self,
        who: Option<&KeyPairPem>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Response<Incoming> {
        let any = issue(&self.pki.front_proxy, Usage::Client, "nobody", &[]);
        let pair = who.unwrap_or(&any);
        let mut config = (*tls::client(pair, &self.pki.cluster.certificate, Speaks::Http1).unwrap()).clone();
        if who.is_none() {
            config.client_auth_cert_resolver = Arc::new(NoCertificate);
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        sender.send_request(request.body(Full::new(bytes)).unwrap()).await.unwrap()
    }

    pub async fn json(
        &self,
        who: Option<&KeyPairPem>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, Value) {
        let response = self.request(who, method, path, headers, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
