//! What clients accept and send: encodings of lists, objects and errors, gzip, what is refused and how.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use common::Server;
use serde_json::{Value, json};
use yare_apiserver::Clock;
use yare_schema::{builtin::builtin, proto};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip() {
    let server = Server::start().await;
    for i in 0..20 {
        let body =
            json!({"metadata": {"name": format!("m{i}")}, "data": {"text": "0123456789".repeat(1000)}});
        server.post(MAPS, &body).await.expect(201);
    }
    // The version of a list moves with whatever the server writes after its start: one version is asked for.
    let list: Value = serde_json::from_slice(&server.send("GET", MAPS, &[], "").await.bytes).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let maps = format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact");
    for accept in ["application/json", "application/yaml", PROTOBUF] {
        let plain = server.send("GET", &maps, &[("accept", accept)], "").await;
        assert!(!plain.headers.contains_key("content-encoding"), "{accept}");
        let packed =
            server.send("GET", &maps, &[("accept", accept), ("accept-encoding", "deflate, gzip")], "").await;
        assert_eq!(packed.headers["content-encoding"], "gzip", "{accept}");
        assert_eq!(packed.headers["vary"], "Accept-Encoding", "{accept}");
        assert_eq!(packed.headers["content-type"], accept);
        assert!(packed.bytes.len() < plain.bytes.len() / 10);
        assert!(unpacked(&packed.bytes) == plain.bytes, "{accept}");
    }
    // One object is short, a watch is never compressed, and the feature can be off.
    let gzip = ("accept-encoding", "gzip");
    let one = server.send("GET", &format!("{MAPS}/m1"), &[gzip], "").await;
    assert!(!one.headers.contains_key("content-encoding"));
    let watch = server.send("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"), &[gzip], "").await;
    assert!(!watch.headers.contains_key("content-encoding") && watch.bytes.len() > 200_000);
    let off = Server::with(|config| {
        config.gates = yare_schema::features::Gates::parse("APIResponseCompression=false").unwrap();
    })
    .await;
    let body = json!({"metadata": {"name": "a"}, "data": {"text": "x".repeat(200_000)}});
    off.post(MAPS, &body).await.expect(201);
    let answer = off.send("GET", MAPS, &[gzip], "").await;
    assert!(!answer.headers.contains_key("content-encoding") && answer.bytes.len() > 200_000);
}

/// `Status` in whatever encoding it came.
fn status(media: &str, bytes: &[u8]) -> Value {
    match media {
        PROTOBUF => {
            let ty = builtin().lookup("", "v1", "Status").unwrap();
            proto::decode(ty, proto::unwrap(bytes).unwrap().raw).unwrap()
        }
        "application/yaml" => yare_apiserver::codec::from_yaml(bytes).unwrap(),
        _ => serde_json::from_slice(bytes).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused() {
    let server = Server::start().await;
    let routed = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    let all = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let body = "the body of the request was in an unknown format - accepted media types include: ";
    let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
    let watch = format!("{MAPS}?watch=1");
    let missing = format!("{MAPS}/none");
    let not_found = "configmaps \"none\" not found".to_owned();
    let include = format!("{MAPS}?includeObject=x");
    for (method, path, accept, content, code, media, want) in [
        ("GET", MAPS, "text/html", "", 406, "application/json", routed.to_owned()),
        ("GET", MAPS, "application/*", "", 406, "application/json", routed.to_owned()),
        ("GET", MAPS, table, "", 406, "application/json", all.to_owned()),
        (
            "GET",
            &watch,
            "application/yaml",
            "",
            406,
            "application/yaml",
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch".into(),
        ),
        (
            "POST",
            MAPS,
            "",
            "text/plain",
            415,
            "application/json",
            format!("{body}application/json, application/yaml, application/vnd.kubernetes.protobuf"),
        ),
        ("PATCH", &missing, "", "application/json", 415, "application/json", "415: Unsupported Media Type".into()),
        ("GET", &missing, "", "", 404, "application/json", not_found.clone()),
        ("GET", &missing, "application/yaml", "", 404, "application/yaml", not_found.clone()),
        ("GET", &missing, PROTOBUF, "", 404, PROTOBUF, not_found.clone()),
        ("GET", &missing, "application/json;as=Table;v=v1;g=meta.k8s.io", "", 404, "application/json", not_found.clone()),
        (
            "GET",
            &missing,
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/vnd.kubernetes.protobuf",
            "",
            404,
            PROTOBUF,
            not_found,
        ),
        (
            "GET",
            &include,
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            "",
            400,
            "application/json",
            "Unable to convert to Table as requested: includeObject: Invalid value: \"x\": must be 'Metadata', 'Object', 'None', or empty".into(),
        ),
    ] {
        let headers: Vec<(&str, &str)> =
            [("accept", accept), ("content-type", content)].into_iter().filter(|(_, v)| !v.is_empty()).collect();
        let answer = server.send(method, path, &headers, "{}").await;
        assert_eq!(answer.headers["content-type"], media, "{method} {path} {accept}");
        let status = status(media, &answer.bytes);
        assert_eq!(
            (answer.code, status["code"].as_u64().unwrap(), status["message"].as_str().unwrap()),
            (code, u64::from(code), want.as_str()),
            "{method} {path} {accept}"
        );
    }
    // Of what is no table, nobody asks what its rows hold.
    server.get(&include).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn indented() {
    let server = Server::start().await;
    let json = "application/json";
    for (query, agent, accept, want) in [
        ("", "x", json, false),
        ("?pretty=1", "x", json, true),
        ("?pretty=true", "x", json, true),
        ("?pretty=yes", "curl/8", json, false),
        ("?pretty=0", "curl/8", json, false),
        ("?pretty=", "curl/8", json, true),
        ("", "Mozilla/5.0 (X11)", json, true),
        ("", "x", "application/json;pretty=1", true),
    ] {
        for path in [MAPS, "/api/v1/namespaces/default", "/api/v1/namespaces/none"] {
            let headers = [("user-agent", agent), ("accept", accept)];
            let answer = server.send("GET", &format!("{path}{query}"), &headers, "").await;
            assert_eq!(answer.text().contains("\n  \"kind\""), want, "{path}{query} {agent} {accept}");
        }
    }
}

/// A clock that is moved by hand, in seconds.
struct ByHand(AtomicI64);

impl Clock for ByHand {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap()
    }
}

#[tokio::test]
async fn ages_are_told_as_of_now_however_long_a_watch_lasts() {
    let clock = Arc::new(ByHand(AtomicI64::new(2_000_000_000)));
    let shown = clock.clone();
    let server = Server::with(move |config| config.clock = shown).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let make = async |name: &str| {
        server.post(MAPS, &json!({"metadata": {"name": name}})).await.expect(201);
    };
    make("a").await;
    let from = server.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut events = server.watch_as(&format!("{MAPS}?watch=1&resourceVersion={from}"), table).await;
    clock.0.fetch_add(90, Ordering::Relaxed);
    make("b").await;
    server.patch("merge", &format!("{MAPS}/a"), &json!({"data": {"x": "y"}})).await.expect(200);
    for (name, age) in [("b", "0s"), ("a", "90s")] {
        let row = events.next().await.unwrap()["object"]["rows"][0].clone();
        assert_eq!((&row["cells"][0], &row["cells"][2]), (&name.into(), &age.into()), "{row}");
    }
}
