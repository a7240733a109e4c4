//! Leader election of two candidates against a lease kept by a fake API server.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::Instant;
use yare_client::{Elector, ElectorConfig, in_process};

/// One lease with optimistic locking.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    down: Arc<Mutex<bool>>,
}

impl Server {
    fn client(&self) -> kube::Client {
        let server = self.clone();
        in_process(tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (code, value) = server.answer(&method, &body);
                let body = Full::new(Bytes::from(value.to_string()));
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        }))
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (u16, Value) {
        let status = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            )
        };
        if *self.down.lock().unwrap() {
            return status(503, "ServiceUnavailable");
        }
        let mut lease = self.lease.lock().unwrap();
        match (method, lease.as_ref()) {
            (&Method::GET, None) => status(404, "NotFound"),
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (_, current) => {
                let mut new: Value = serde_json::from_slice(body).unwrap();
                let version = current
                    .map_or(0, |c| c["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
                if current.is_some() && new["metadata"]["resourceVersion"] != json!(format!("{version}")) {
                    return status(409, "Conflict");
                }
                new["metadata"]["resourceVersion"] = json!(format!("{}", version + 1));
                *lease = Some(new.clone());
                (200, new)
            }
        }
    }

    fn holder(&self) -> String {
        self.lease.lock().unwrap().as_ref().unwrap()["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

fn elector(server: &Server, identity: &str) -> Elector {
    Elector::new(server.client(), ElectorConfig::new("kube-system", "x", identity))
}

#[tokio::test(start_paused = true)]
async fn a_second_candidate_waits_until_the_lease_is_released() {
    let server = Server::default();
    let first = elector(&server, "a").acquire().await;
    let second = tokio::spawn(elector(&server, "b").acquire());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!second.is_finished(), "a renews");
    first.release().await;
    let _leader = second.await.unwrap();
    assert_eq!(server.holder(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_vanishes_is_replaced_when_its_lease_expires() {
    let server = Server::default();
    let first = elector(&server, "a").acquire().await;
    let second = tokio::spawn(elector(&server, "b").acquire());
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(first);
    let start = Instant::now();
    let _leader = second.await.unwrap();
    let waited = start.elapsed().as_secs();
    assert!((10..=20).contains(&waited), "took over after {waited} s");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_server_steps_down_before_others_may_take_over() {
    let server = Server::default();
    let mut leader = elector(&server, "a").acquire().await;
    *server.down.lock().unwrap() = true;
    let start = Instant::now();
    leader.lost().await;
    let waited = start.elapsed().as_secs();
    assert!((8..=13).contains(&waited), "stepped down after {waited} s");
}
