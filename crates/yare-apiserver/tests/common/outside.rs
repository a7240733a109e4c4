//! HTTPS servers beside the one that is tested (webhooks, issuers), and what tests of callers ask of it.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use yare_auth::{
    pki::{KeyPairPem, Pki, Usage},
    tls::{self, Speaks},
};

use crate::secure::{Cluster, issue};

const ME: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
pub const NONE: Value = Value::Null;

/// An HTTPS server that answers as it is told: path and body to JSON, or to text as it is. What it was asked is on record.
pub struct Outside {
    pub port: u16,
    pub authority: String,
    pub asked: Arc<Mutex<Vec<Value>>>,
    _dir: tempfile::TempDir,
}

type Answers = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

pub async fn outside(answers: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Outside {
    let answers: Answers = Arc::new(answers);
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let pair = issue(&pki.cluster, Usage::Server, "outside", &[]);
    let acceptor =
        tokio_rustls::TlsAcceptor::from(tls::server(&pair, &pki.cluster.certificate, Speaks::Http1).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, log, answers) = (acceptor.clone(), log.clone(), answers.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (log, answers) = (log.clone(), answers.clone());
                    async move {
                        let path = request.uri().path().to_owned();
                        let header = |name: &str| {
                            request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
                        };
                        let (authorization, traceparent) = (header("authorization"), header("traceparent"));
                        let body = request.into_body().collect().await?.to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                        log.lock().push(json!({
                            "path": path, "body": body, "authorization": authorization,
                            "traceparent": traceparent,
                        }));
                        let mut response = Response::new(Full::new(Bytes::new()));
                        match answers(&path, &body) {
                            Some(Value::String(text)) => *response.body_mut() = Full::new(Bytes::from(text)),
                            Some(answer) => *response.body_mut() = Full::new(Bytes::from(answer.to_string())),
                            None => *response.status_mut() = http::StatusCode::NOT_FOUND,
                        }
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Outside { port, authority: pki.cluster.certificate.clone(), asked, _dir: dir }
}

impl Outside {
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    pub fn kubeconfig(&self, dir: &Path, path: &str) -> PathBuf {
        let file = dir.join(format!("webhook-{}.yaml", self.port));
        let text = json!({
            "clusters": [{"name": "a", "cluster": {
                "server": self.url(path), "certificate-authority-data": STANDARD.encode(&self.authority)}}],
            "users": [{"name": "b", "user": {"token": "own"}}],
        });
        std::fs::write(&file, text.to_string()).unwrap();
        file
    }

    pub fn count(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|a| a["path"] == path).count()
    }
}

impl Cluster {
    /// Who the server thinks a caller is.
    pub async fn who(&self, pair: Option<&KeyPairPem>, headers: &[(&str, &str)]) -> (u16, Value) {
        let (code, answer) = self.json(pair, Method::POST, ME, headers, &json!({})).await;
        (code, answer["status"]["userInfo"].clone())
    }

    pub async fn by_token(&self, token: &str) -> (u16, Value) {
        self.who(None, &[("authorization", &format!("Bearer {token}"))]).await
    }

    pub fn admin(&self) -> KeyPairPem {
        issue(&self.pki.cluster, Usage::Client, "root", &["system:masters"])
    }

    pub async fn create(&self, path: &str, object: &Value) -> Value {
        let (code, answer) = self.json(Some(&self.admin()), Method::POST, path, &[], object).await;
        assert!(code == 201 || code == 200, "{path}: {answer}");
        answer
    }
}

/// The page of metrics.
pub async fn metrics(cluster: &Cluster) -> String {
    let answer = cluster.request(Some(&cluster.admin()), Method::GET, "/metrics", &[], &NONE).await;
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
