//! A server in this process on a store of its own, and a client that speaks JSON to it.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use yare_apiserver::{ApiServer, Body, Config, User};
use yare_store::{Options, Store};

/// A server and the directory it lives in.
pub struct Server {
    pub api: ApiServer,
    pub dir: TempDir,
}

/// What came back.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }

    /// Nothing is served at this path: there is not even a Status.
    #[track_caller]
    pub fn expect_no_such_path(&self) {
        assert_eq!((self.code, self.text().as_str()), (404, "404 page not found\n"));
    }

    /// The reason of a Status.
    #[track_caller]
    pub fn expect_reason(self, code: u16, reason: &str) -> String {
        let status = self.expect(code);
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["reason"], reason, "{status}");
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

pub async fn open(dir: &std::path::Path) -> Store {
    Store::open(Options::new(dir), yare_apiserver::indexer()).await.unwrap()
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(open(&dir.path().join("store")).await);
        config.advertise = Some(("127.0.0.1".parse().unwrap(), 6443));
        change(&mut config);
        let api = Box::pin(ApiServer::start(config)).await.unwrap();
        let server = Self { api, dir };
        // The service account controller is not here: pods need this one.
        for namespace in ["default", "kube-system"] {
            server
                .post(
                    &format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
                    &serde_json::json!({"metadata": {"name": "default"}}),
                )
                .await
                .expect(201);
        }
        server
    }

    pub async fn raw(&self, request: Request<Full<Bytes>>) -> http::Response<Body> {
        self.api.service(User::admin()).oneshot(request).await.unwrap()
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.raw(request.body(Full::new(body.into())).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    pub async fn patch(&self, kind: &str, path: &str, body: &Value) -> Answer {
        let media = match kind {
            "json" => "application/json-patch+json",
            "merge" => "application/merge-patch+json",
            "strategic" => "application/strategic-merge-patch+json",
            other => other,
        };
        self.send("PATCH", path, &[("content-type", media)], body.to_string()).await
    }

    pub async fn apply(&self, path: &str, manager: &str, body: &Value) -> Answer {
        let dash = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{dash}fieldManager={manager}");
        self.send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body.to_string()).await
    }

    /// Waits until what is there fits, by its code and its body.
    pub async fn until_is(&self, path: &str, what: &str, fits: impl Fn(u16, &Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..400 {
            let answer = self.get(path).await;
            // Where nothing is served, no object comes.
            last = serde_json::from_slice(&answer.bytes).unwrap_or_default();
            if fits(answer.code, &last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{what}: {last}");
    }

    pub async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, "application/json").await
    }

    #[allow(dead_code, reason = "not every test binary needs it")]
    pub async fn watch_as(&self, path: &str, accept: &str) -> Events {
        let request = Request::builder().uri(path).header("accept", accept).body(Full::default()).unwrap();
        let response = self.raw(request).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

/// Events of a watch, one JSON line each.
pub struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        )
    }
}
