//! Informers against a scripted API server in this process: initial state, resumption, loss of history,
//! servers that cannot stream lists, and bytes that are shared instead of copied.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use tokio::sync::mpsc;
use yare_client::{ChangeKind, Client, ObjectKey, PODS, Selection, in_process};

type Frames = mpsc::UnboundedSender<Bytes>;

/// Answers each request with the next step of the script and writes the requests down.
#[derive(Clone, Default)]
struct Server {
    steps: Arc<Mutex<VecDeque<Step>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

enum Step {
    Stream(mpsc::UnboundedReceiver<Bytes>),
    Reply(u16, String),
}

impl Server {
    fn stream(&self) -> Frames {
        let (tx, rx) = mpsc::unbounded_channel();
        self.steps.lock().unwrap().push_back(Step::Stream(rx));
        tx
    }

    fn reply(&self, code: u16, body: &str) {
        self.steps.lock().unwrap().push_back(Step::Reply(code, body.to_owned()));
    }

    fn client(&self) -> Client {
        let server = self.clone();
        Client::new(in_process(tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(&request)) }
        })))
    }

    fn answer(&self, request: &Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        self.requests.lock().unwrap().push(request.uri().to_string());
        let frames = |rx| {
            let stream = futures::stream::unfold(rx, |mut rx: mpsc::UnboundedReceiver<Bytes>| async move {
                rx.recv().await.map(|b| (Ok(http_body::Frame::data(b)), rx))
            });
            StreamBody::new(stream).boxed_unsync()
        };
        match self.steps.lock().unwrap().pop_front() {
            Some(Step::Stream(rx)) => Response::new(frames(rx)),
            Some(Step::Reply(code, body)) => {
                let body = http_body_util::Full::new(Bytes::from(body)).boxed_unsync();
                Response::builder().status(code).body(body).unwrap()
            }
            // Nothing more to say: a watch that stays silent.
            None => Response::new(StreamBody::new(futures::stream::pending()).boxed_unsync()),
        }
    }

    fn request(&self, i: usize) -> String {
        self.requests.lock().unwrap()[i].clone()
    }
}

fn pod(name: &str, rv: u64) -> Bytes {
    Bytes::from(format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","uid":"{name}","resourceVersion":"{rv}"}}}}"#
    ))
}

fn send(frames: &Frames, kind: &str, object: &Bytes) {
    let prefix = match kind {
        "ADDED" => r#"{"type":"ADDED","object":"#,
        "MODIFIED" => r#"{"type":"MODIFIED","object":"#,
        "DELETED" => r#"{"type":"DELETED","object":"#,
        "BOOKMARK" => r#"{"type":"BOOKMARK","object":"#,
        _ => r#"{"type":"ERROR","object":"#,
    };
    for frame in [Bytes::from_static(prefix.as_bytes()), object.clone(), Bytes::from_static(b"}\n")] {
        frames.send(frame).unwrap();
    }
}

fn initial_end(frames: &Frames, rv: u64) {
    let mark = format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"{rv}","annotations":{{"k8s.io/initial-events-end":"true"}}}}}}"#
    );
    send(frames, "BOOKMARK", &mark.into());
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("d", name)
}

#[tokio::test(start_paused = true)]
async fn streams_the_initial_state_and_shares_bytes() {
    let server = Server::default();
    let frames = server.stream();
    let object = pod("a", 5);
    send(&frames, "ADDED", &object);
    let client = server.client();
    let informer = client.informers().of(PODS);
    let same = client.informers().of(PODS);
    let mut changes = informer.subscribe();
    tokio::task::yield_now().await;
    assert!(!informer.has_synced());
    initial_end(&frames, 7);
    informer.synced().await;
    let cached = same.get(&key("a")).unwrap();
    assert_eq!(cached.bytes().as_ptr(), object.as_ptr(), "the object must not be copied");
    assert!(
        server.request(0).starts_with("/api/v1/pods?watch=true&allowWatchBookmarks=true&timeoutSeconds=")
    );
    assert!(server.request(0).ends_with("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"));

    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Added);
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Resynced);
    send(&frames, "MODIFIED", &pod("a", 8));
    let change = changes.recv().await.unwrap();
    assert_eq!(change.old.unwrap().resource_version(), 5);
    assert_eq!(change.new.unwrap().resource_version(), 8);
    send(&frames, "DELETED", &pod("a", 9));
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Deleted);
    assert!(informer.is_empty());

    // The stream ends: the next one resumes where this one was.
    let next = server.stream();
    drop(frames);
    send(&next, "ADDED", &pod("b", 10));
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Added);
    assert!(server.request(1).ends_with("&resourceVersion=9"), "{}", server.request(1));
}

#[tokio::test(start_paused = true)]
async fn lost_history_starts_over_and_tells_the_difference() {
    let server = Server::default();
    let frames = server.stream();
    send(&frames, "ADDED", &pod("a", 1));
    send(&frames, "ADDED", &pod("b", 2));
    initial_end(&frames, 2);
    let client = server.client();
    let informer = client.informers().of(PODS);
    informer.synced().await;
    let mut changes = informer.subscribe();
    for _ in 0..3 {
        changes.recv().await.unwrap();
    }
    let again = server.stream();
    send(&frames, "ERROR", &Bytes::from_static(br#"{"kind":"Status","code":410,"reason":"Expired"}"#));
    send(&again, "ADDED", &pod("b", 2));
    send(&again, "ADDED", &pod("c", 9));
    initial_end(&again, 9);
    let gone = changes.recv().await.unwrap();
    assert_eq!((gone.kind, gone.old.unwrap().name()), (ChangeKind::Deleted, "a"));
    assert_eq!(changes.recv().await.unwrap().new.unwrap().name(), "c");
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Resynced);
    assert!(server.request(1).contains("sendInitialEvents"));
}

#[tokio::test(start_paused = true)]
async fn lists_where_the_server_cannot_stream() {
    let server = Server::default();
    server.reply(503, "");
    server.reply(422, r#"{"kind":"Status","code":422,"message":"sendInitialEvents is forbidden"}"#);
    server.reply(200, r#"{"metadata":{"resourceVersion":"20","continue":"x/y"},"items":[{"metadata":{"name":"a","namespace":"d"}}]}"#);
    server.reply(
        200,
        r#"{"metadata":{"resourceVersion":"20"},"items":[{"metadata":{"name":"b","namespace":"d"}}]}"#,
    );
    let frames = server.stream();
    let selection = Selection { fields: Some("spec.nodeName=n1".into()), ..Selection::default() };
    let client = server.client();
    let informer = client.informers().select(PODS, selection);
    informer.synced().await;
    assert_eq!(informer.len(), 2);
    assert!(
        informer
            .get(&key("a"))
            .unwrap()
            .bytes()
            .starts_with(br#"{"kind":"Pod","apiVersion":"v1","metadata""#)
    );
    let mut changes = informer.subscribe();
    send(&frames, "ADDED", &pod("c", 21));
    while changes.recv().await.unwrap().object().is_none_or(|o| o.name() != "c") {}
    assert_eq!(server.request(3), "/api/v1/pods?limit=500&continue=x%2Fy&fieldSelector=spec.nodeName%3Dn1");
    assert!(server.request(4).contains("&resourceVersion=20&fieldSelector="));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_informer_stops_with_its_last_handle() {
    let server = Server::default();
    let frames = server.stream();
    initial_end(&frames, 1);
    let client = server.client();
    let informer = client.informers().of(PODS);
    informer.synced().await;
    let mut changes = informer.subscribe();
    assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Resynced);
    client.informers().forget(&PODS);
    drop(informer);
    assert!(changes.recv().await.is_none());
}
