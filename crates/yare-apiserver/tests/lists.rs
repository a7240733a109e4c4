//! Options of lists and watches: what is allowed with what, pages and their tokens, revisions past and to come,
//! selectors, shards.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use common::Server;
use serde_json::{Value, json};
use yare_schema::features::Gates;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn map(server: &Server, name: &str) -> Value {
    server.post(MAPS, &json!({"metadata": {"name": name, "labels": {"x": name}}})).await.expect(201)
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Query, status, and what the message is; of a watch that starts: its first event.
#[tokio::test(flavor = "multi_thread")]
async fn options() {
    let server = Server::start().await;
    map(&server, "a").await;
    let now = server.api.core().store().revision();
    let list = |why: &str| format!("ListOptions.meta.k8s.io \"\" is invalid: {why}");
    let forbidden = |field: &str, why: &str| format!("{field}: Forbidden: {why}");
    let no_version = forbidden(
        "resourceVersionMatch",
        "resourceVersionMatch is forbidden unless resourceVersion is provided",
    );
    let with_continue =
        forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
    let exact_zero = forbidden(
        "resourceVersionMatch",
        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
    );
    let initial_list = forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    let needs_match = forbidden(
        "resourceVersionMatch",
        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
    );
    let needs_initial = forbidden(
        "resourceVersionMatch",
        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
    );
    let odd = |value: &str, allowed: &str| {
        format!("resourceVersionMatch: Unsupported value: \"{value}\": supported values: {allowed}")
    };
    let list_values = "\"Exact\", \"NotOlderThan\", \"\"";
    let number = |text: &str, why: &str| format!("strconv.ParseInt: parsing \"{text}\": {why}");
    let version = |text: &str, why: &str| {
        format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": {why}")
    };
    let rows: Vec<(String, u16, String)> = vec![
        // Lists.
        ("".into(), 200, "".into()),
        ("resourceVersion=0".into(), 200, "".into()),
        ("resourceVersion=0&resourceVersionMatch=NotOlderThan".into(), 200, "".into()),
        (format!("resourceVersion={now}&resourceVersionMatch=NotOlderThan&limit=1"), 200, "".into()),
        (format!("resourceVersion={now}&resourceVersionMatch=Exact"), 200, "".into()),
        ("allowWatchBookmarks=true".into(), 200, "".into()),
        ("limit=-1".into(), 200, "".into()),
        ("resourceVersionMatch=Exact".into(), 422, list(&no_version)),
        ("resourceVersion=0&resourceVersionMatch=Exact".into(), 422, list(&exact_zero)),
        ("resourceVersion=1&resourceVersionMatch=Odd".into(), 422, list(&odd("Odd", list_values))),
        (
            "resourceVersionMatch=NotOlderThan&continue=x".into(),
            422,
            list(&format!("[{no_version}, {with_continue}]")),
        ),
        ("sendInitialEvents=false".into(), 422, list(&initial_list)),
        (
            "resourceVersionMatch=odd&sendInitialEvents=true".into(),
            422,
            list(&format!("[{no_version}, {}, {initial_list}]", odd("odd", list_values))),
        ),
        ("limit=x".into(), 400, number("x", "invalid syntax")),
        ("limit=".into(), 400, number("", "invalid syntax")),
        (
            "timeoutSeconds=99999999999999999999".into(),
            400,
            number("99999999999999999999", "value out of range"),
        ),
        (
            "resourceVersion=x".into(),
            400,
            format!("invalid resource version: {}", version("x", "invalid syntax")),
        ),
        (
            "resourceVersion=%2B1".into(),
            400,
            format!("invalid resource version: {}", version("+1", "invalid syntax")),
        ),
        (
            "resourceVersion=99999999999999999999".into(),
            400,
            format!("invalid resource version: {}", version("99999999999999999999", "value out of range")),
        ),
        (
            "continue=%25".into(),
            400,
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 0".into(),
        ),
        (
            format!("resourceVersion=1&continue={}", token(1, "default/a")),
            400,
            "specifying resource version is not allowed when using continue".into(),
        ),
        ("labelSelector=a+b+c".into(), 400, "*unable to parse requirement".into()),
        ("fieldSelector=a".into(), 400, "invalid selector: 'a'; can't understand 'a'".into()),
        // Without its feature a shard selector is nothing.
        ("shardSelector=x".into(), 200, "".into()),
        // Watches.
        ("watch=1".into(), 200, "ADDED".into()),
        ("watch=1&resourceVersion=0".into(), 200, "ADDED".into()),
        ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan".into(), 200, "ADDED".into()),
        ("watch=1&resourceVersion=1&limit=1&continue=x".into(), 200, "ADDED".into()),
        ("watch=0".into(), 200, "".into()),
        ("watch=1&sendInitialEvents=true".into(), 422, list(&needs_match)),
        (
            "watch=1&sendInitialEvents=true&resourceVersionMatch=Exact".into(),
            422,
            list(&format!("[{needs_match}, {}]", odd("Exact", "\"NotOlderThan\""))),
        ),
        ("watch=1&resourceVersionMatch=NotOlderThan".into(), 422, list(&needs_initial)),
        (
            "watch=1&resourceVersionMatch=odd&continue=x".into(),
            422,
            list(&format!("[{needs_initial}, {}, {with_continue}]", odd("odd", "\"NotOlderThan\""))),
        ),
        ("watch=1&resourceVersion=x".into(), 500, version("x", "invalid syntax")),
    ];
    for (query, code, want) in rows {
        let path = format!("{MAPS}?{query}");
        if query.starts_with("watch=1") && code == 200 {
            let mut events = server.watch(&path).await;
            assert_eq!(events.next().await.unwrap()["type"], *want, "{query}");
            continue;
        }
        let answer = server.get(&path).await;
        assert_eq!(answer.code, code, "{query}: {}", answer.text());
        if code != 200 {
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            match want.strip_prefix('*') {
                Some(start) => assert!(message.starts_with(start), "{query}: {message}"),
                None => assert_eq!(message, want, "{query}"),
            }
        }
    }
    // Without the feature a watch list is refused, and a plain watch starts as it always has.
    let old = Server::with(|config| config.gates = Gates::parse("WatchList=false").unwrap()).await;
    let path = format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    assert_eq!(
        old.get(&path).await.expect_reason(422, "Invalid"),
        list(&forbidden(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        ))
    );
    map(&old, "a").await;
    assert_eq!(old.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=1")).await.brief().await, "ADDED a");
}

fn token(revision: i64, start: &str) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        map(&server, name).await;
    }
    let get = async |query: &str| server.get(&format!("{MAPS}?{query}")).await;
    let first = get("limit=2").await.expect(200);
    let revision = first["metadata"]["resourceVersion"].clone();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens meanwhile shows on no later page.
    server.delete(&format!("{MAPS}/d")).await.expect(200);
    map(&server, "f").await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&format!("limit=2&continue={next}")).await.expect(200);
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    assert_eq!(second["metadata"]["resourceVersion"], revision);
    let third = second["metadata"]["continue"].as_str().unwrap();
    let third = get(&format!("limit=2&continue={third}&resourceVersion=0")).await.expect(200);
    assert_eq!(names(&third), ["e"]);
    assert!(
        third["metadata"].get("continue").is_none() && third["metadata"].get("remainingItemCount").is_none()
    );
    // With a selector nobody counts what is left; with version 0 there are no pages.
    let selected = get("limit=1&labelSelector=x").await.expect(200);
    assert!(selected["metadata"]["continue"].is_string(), "{selected}");
    assert!(selected["metadata"].get("remainingItemCount").is_none(), "{selected}");
    let any = get("limit=1&resourceVersion=0").await.expect(200);
    assert_eq!((names(&any).len(), any["metadata"].get("continue")), (5, None));
    // At a revision: exactly that one.
    let revision = revision.as_str().unwrap();
    for query in ["limit=9&resourceVersion=", "resourceVersionMatch=Exact&resourceVersion="] {
        let at = get(&format!("{query}{revision}")).await.expect(200);
        assert_eq!(names(&at), ["a", "b", "c", "d", "e"], "{query}");
        assert_eq!(at["metadata"]["resourceVersion"], revision);
    }
    let newer =
        get(&format!("resourceVersionMatch=NotOlderThan&resourceVersion={revision}")).await.expect(200);
    assert_eq!(names(&newer), ["a", "b", "c", "e", "f"]);

    // History goes. The token of the error goes on without it.
    let store = server.api.core().store();
    store.compact(store.revision()).await;
    for query in ["limit=9&resourceVersion=", "resourceVersionMatch=Exact&resourceVersion="] {
        let gone = get(&format!("{query}{revision}")).await.expect_reason(410, "Expired");
        assert_eq!(gone, "The resourceVersion for the provided list is too old.", "{query}");
    }
    let gone = get(&format!("limit=2&continue={next}")).await.expect(410);
    assert_eq!(gone["reason"], "Expired");
    assert_eq!(
        gone["message"],
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
    );
    let now = gone["metadata"]["continue"].as_str().unwrap();
    let rest = get(&format!("limit=2&continue={now}")).await.expect(200);
    assert_eq!(names(&rest), ["c", "e"]);
    assert_eq!(rest["metadata"]["remainingItemCount"], 1);
    let last = rest["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&get(&format!("continue={last}")).await.expect(200)), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_to_come() {
    let server = Server::start().await;
    map(&server, "a").await;
    let now = server.api.core().store().revision();
    // The server itself writes now and then.
    let later = now + 100_000;
    for query in [
        format!("?resourceVersion={later}"),
        format!("?resourceVersion={later}&resourceVersionMatch=Exact"),
        format!("?limit=1&continue={}", token(i64::try_from(later).unwrap(), "default/a")),
        format!("/a?resourceVersion={later}"),
    ] {
        let answer = server.get(&format!("{MAPS}{query}")).await;
        assert_eq!(answer.headers["retry-after"], "1", "{query}");
        let status = answer.expect(504);
        let message = status["message"].as_str().unwrap();
        let start = format!("Timeout: Too large resource version: {later}, current: ");
        assert!(message.starts_with(&start), "{query}: {message}");
        assert_eq!(
            (&status["reason"], &status["details"]),
            (
                &json!("Timeout"),
                &json!({"retryAfterSeconds": 1, "causes": [
                    {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]})
            ),
            "{query}"
        );
    }
    let get = server.get(&format!("{MAPS}/a?resourceVersion=x")).await.expect(500);
    assert_eq!(
        get["message"],
        "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax"
    );
    // A watch list waits and then says so in an event; a plain watch waits as long as it is open.
    let path = format!("{MAPS}?watch=1&resourceVersion={later}");
    let mut list =
        server.watch(&format!("{path}&sendInitialEvents=1&resourceVersionMatch=NotOlderThan")).await;
    let event = list.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(504)), "{event}");
    assert!(list.next().await.is_none());
    let soon = server.api.core().store().revision() + 20;
    let mut plain = server.watch(&format!("{MAPS}?watch=1&resourceVersion={soon}")).await;
    let first = loop {
        let map = server.post(MAPS, &json!({"metadata": {"generateName": "b-"}})).await.expect(201);
        let revision: u64 = map["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        if revision > soon {
            break map["metadata"]["name"].as_str().unwrap().to_owned();
        }
    };
    assert_eq!(plain.brief().await, format!("ADDED {first}"));
    // One from before history began ends at once.
    let store = server.api.core().store();
    store.compact(store.revision()).await;
    let mut old = server.watch(&format!("{MAPS}?watch=1&resourceVersion={now}")).await;
    let event = old.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
    let message = event["object"]["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("too old resource version: {now} (")), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches() {
    let server = Server::start().await;
    map(&server, "a").await;
    map(&server, "b").await;
    let now = server.api.core().store().revision();
    // The end of the initial state is marked, also where the client did not ask for the state in so many words.
    for query in ["", "resourceVersion=0", "sendInitialEvents=true&resourceVersionMatch=NotOlderThan"] {
        let mut events = server.watch(&format!("{MAPS}?watch=1&allowWatchBookmarks=true&{query}")).await;
        assert_eq!(events.brief().await, "ADDED a", "{query}");
        assert_eq!(events.brief().await, "ADDED b", "{query}");
        let end = events.next().await.unwrap();
        assert_eq!(end["type"], "BOOKMARK", "{query}");
        let metadata = end["object"]["metadata"].as_object().unwrap();
        assert_eq!(metadata["annotations"], json!({"k8s.io/initial-events-end": "true"}));
        assert_eq!(metadata.len(), 2, "{metadata:?}");
        let revision: u64 = end["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(revision >= now, "{query}: {revision}");
    }
    let mut named = server.watch("/api/v1/watch/namespaces/default/configmaps/b").await;
    let mut field = server.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Db")).await;
    let mut others =
        server.watch(&format!("{MAPS}?watch=1&fieldSelector=metadata.name!%3Da&resourceVersion={now}")).await;
    let mut label = server.watch(&format!("{MAPS}?watch=1&labelSelector=x%3Db")).await;
    let from_now =
        format!("{MAPS}?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=");
    let mut silent = server.watch(&from_now).await;
    let patch = json!({"metadata": {"labels": {"x": "z"}}});
    server.patch("merge", &format!("{MAPS}/b"), &patch).await.expect(200);
    server
        .patch("merge", &format!("{MAPS}/a"), &json!({"metadata": {"labels": {"x": "b"}}}))
        .await
        .expect(200);
    server.delete(&format!("{MAPS}/b")).await.expect(200);
    for (events, want) in [
        (&mut named, &["ADDED b", "MODIFIED b", "DELETED b"][..]),
        (&mut field, &["ADDED b", "MODIFIED b", "DELETED b"]),
        (&mut others, &["MODIFIED b", "DELETED b"]),
        (&mut label, &["ADDED b", "DELETED b", "ADDED a"]),
        (&mut silent, &["MODIFIED b", "MODIFIED a", "DELETED b"]),
    ] {
        for want in want {
            assert_eq!(events.brief().await, *want);
        }
    }
    // A watch that may last for less than no time ends at once.
    let mut over = server.watch(&format!("{from_now}&timeoutSeconds=-1")).await;
    assert_eq!(over.next().await, None);
    let message = server.get(&format!("{MAPS}?watch=1&continue=x")).await.expect_reason(422, "Invalid");
    assert!(message.ends_with("resourceVersionMatch is forbidden when continue is provided"), "{message}");
    // Nothing has two names.
    let none =
        server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Da,metadata.name%3Db")).await.expect(200);
    assert_eq!(none["items"], json!([]));
    let path = "/api/v1/watch/namespaces/default/configmaps/b?fieldSelector=metadata.name%3Da";
    assert_eq!(
        server.get(path).await.expect_reason(400, "BadRequest"),
        "fieldSelector metadata.name doesn't match requested name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_to_select_by() {
    let server = Server::start().await;
    let plain = |field: &str| format!("field label not supported: {field}");
    let meta = |field: &str| {
        format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    };
    for (path, yes, no, why) in [
        ("/api/v1/configmaps", "metadata.name metadata.namespace", "data.x", meta("data.x")),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "metadata.namespace", "x", meta("x")),
        (
            "/api/v1/pods",
            "spec.nodeName spec.host spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase status.podIP status.podIPs status.nominatedNodeName",
            "spec.x",
            plain("spec.x"),
        ),
        (
            "/api/v1/nodes",
            "metadata.name spec.unschedulable",
            "metadata.namespace",
            plain("metadata.namespace"),
        ),
        ("/api/v1/namespaces", "metadata.name status.phase", "spec.x", plain("spec.x")),
        ("/api/v1/secrets", "type", "data", plain("data")),
        ("/api/v1/services", "spec.clusterIP spec.type", "spec.ports", plain("spec.ports")),
        ("/api/v1/replicationcontrollers", "status.replicas", "spec.replicas", plain("spec.replicas")),
        (
            "/api/v1/events",
            "involvedObject.kind involvedObject.uid reason reportingComponent source type",
            "regarding.kind",
            plain("regarding.kind"),
        ),
        (
            "/apis/events.k8s.io/v1/events",
            "regarding.kind regarding.fieldPath reason reportingController type",
            "source",
            plain("source"),
        ),
        (
            "/apis/batch/v1/jobs",
            "metadata.namespace status.successful",
            "status.failed",
            "field label \"status.failed\" not supported for Job".into(),
        ),
        ("/apis/certificates.k8s.io/v1/certificatesigningrequests", "spec.signerName", "x", plain("x")),
        (
            "/apis/resource.k8s.io/v1/resourceslices",
            "spec.nodeName spec.driver",
            "spec.pool",
            "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: spec.pool".into(),
        ),
    ] {
        for field in yes.split(' ') {
            server.get(&format!("{path}?fieldSelector={field}%3Dx")).await.expect(200);
        }
        let message =
            server.get(&format!("{path}?fieldSelector={no}!%3Dx")).await.expect_reason(400, "BadRequest");
        assert_eq!(message, why, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards() {
    let server =
        Server::with(|config| config.gates = Gates::parse("ShardedListAndWatch=true").unwrap()).await;
    let all: Vec<String> = (0..16).map(|i| format!("m{i:02}")).collect();
    for name in &all {
        map(&server, name).await;
    }
    let half = |from: &str, to: &str| format!("shardRange(object.metadata.uid, '{from}', '{to}')");
    let halves =
        [half("0x0000000000000000", "0x8000000000000000"), half("0x8000000000000000", "0x10000000000000000")];
    let mut found = Vec::new();
    for half in &halves {
        let query: String = half.bytes().map(|b| format!("%{b:02X}")).collect();
        let list = server.get(&format!("{MAPS}?shardSelector={query}")).await.expect(200);
        assert_eq!(list["metadata"]["shardInfo"], json!({"selector": half}));
        let part = names(&list);
        let mut events = server.watch(&format!("{MAPS}?watch=1&shardSelector={query}")).await;
        for name in &part {
            assert_eq!(events.brief().await, format!("ADDED {name}"));
        }
        found.extend(part);
    }
    found.sort();
    assert_eq!(found, all);
    // A watch of a half is told of what comes to it, and of nothing else.
    let query: String = halves[0].bytes().map(|b| format!("%{b:02X}")).collect();
    let path = format!("{MAPS}?watch=1&resourceVersion=1&shardSelector={query}");
    let mut events = server.watch(&path).await;
    let mine = names(&server.get(&format!("{MAPS}?shardSelector={query}")).await.expect(200));
    let mut others = all.len() - mine.len();
    for name in &mine {
        assert_eq!(events.brief().await, format!("ADDED {name}"));
    }
    for number in 0.. {
        let name = format!("n{number}");
        map(&server, &name).await;
        if names(&server.get(&format!("{MAPS}?shardSelector={query}")).await.expect(200)).contains(&name) {
            assert_eq!(events.brief().await, format!("ADDED {name}"));
            break;
        }
        others += 1;
    }
    let page = server.get("/metrics").await.text();
    for line in [
        r#"apiserver_watch_shards_total{group="",resource="configmaps"} 1"#.to_owned(),
        format!(r#"apiserver_watch_filtered_events_total{{group="",resource="configmaps"}} {others}"#),
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    let refused = server.get(&format!("{MAPS}?shardSelector=x")).await.expect(500);
    assert_eq!(
        refused["message"],
        "invalid shard selector: unexpected expression kind 3; expected shardRange() call or || operator"
    );
}
