//! The server behind TLS: certificates, tokens, RBAC, and streams to kubelets.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use secure::{cluster, cluster_with, issue};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use yare_apiserver::{
    ApiServer, SystemClock, SystemRandom,
    audit::{Audit, Batching, LogSettings, Mode, Settings, Target},
};
use yare_auth::{
    User,
    pki::{Authority, KeyPairPem, Usage},
    tls::{self, Speaks},
    token::legacy,
};

#[tokio::test]
async fn who_may_what() {
    let cluster = cluster().await;
    let ca = &cluster.pki.cluster;
    let admin = issue(ca, Usage::Client, "root", &["system:masters"]);
    let jane = issue(ca, Usage::Client, "jane", &["dev"]);
    let pods = "/api/v1/namespaces/default/pods";
    let get = Method::GET;
    let none = Value::Null;
    assert_eq!(cluster.json(Some(&admin), get.clone(), pods, &[], &none).await.0, 200);
    let (code, status) = cluster.json(Some(&jane), get.clone(), pods, &[], &none).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    // Without credentials: only what everybody may.
    assert_eq!(cluster.json(None, get.clone(), "/version", &[], &none).await.0, 200);
    let (code, status) = cluster.json(None, get.clone(), pods, &[], &none).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(
        cluster.json(None, get.clone(), pods, &[("authorization", "Bearer nonsense")], &none).await.0,
        401
    );

    // A binding changes it, soon.
    let binding = json!({
        "metadata": {"name": "jane"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"},
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(cluster.json(Some(&jane), Method::POST, bindings, &[], &binding).await.0, 403);
    assert_eq!(cluster.json(Some(&admin), Method::POST, bindings, &[], &binding).await.0, 201);
    let role = json!({"metadata": {"name": "view-pods"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    assert_eq!(
        cluster
            .json(
                Some(&admin),
                Method::POST,
                "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
                &[],
                &role
            )
            .await
            .0,
        201
    );
    let mut own = binding.clone();
    own["metadata"]["name"] = "jane-pods".into();
    own["roleRef"] = json!({"kind": "Role", "name": "view-pods", "apiGroup": "rbac.authorization.k8s.io"});
    assert_eq!(cluster.json(Some(&admin), Method::POST, bindings, &[], &own).await.0, 201);
    let mut code = 0;
    for _ in 0..200 {
        code = cluster.json(Some(&jane), get.clone(), pods, &[], &none).await.0;
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code, 200);
    // Impersonation is a permission of its own.
    assert_eq!(
        cluster.json(Some(&jane), get.clone(), pods, &[("impersonate-user", "root")], &none).await.0,
        403
    );
    assert_eq!(
        cluster.json(Some(&admin), get.clone(), pods, &[("impersonate-user", "nobody")], &none).await.0,
        403
    );
    assert_eq!(cluster.json(None, get, "/openid/v1/jwks", &[], &none).await.0, 403);
    cluster.api.shutdown().await;
    drop(cluster.dir);
}

/// What it is, the certificate, the headers, and who the server says it is (empty: 401).
type Case<'a> = (&'a str, Option<&'a KeyPairPem>, &'a [(&'a str, &'a str)], &'a str);

/// Items of built-in kinds do not say what they are, as their list does; those of custom resources do.
#[tokio::test]
async fn what_items_say_of_themselves() {
    let cluster = cluster().await;
    let admin = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let send = async |method: Method, path: &str, body: Value| {
        let (code, value) = cluster.json(Some(&admin), method, path, &[], &body).await;
        assert!(code < 300, "{path}: {value}");
        value
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = send(Method::POST, maps, json!({"metadata": {"name": "a"}})).await;
    assert_eq!((&map["kind"], &map["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    for query in ["", "?pretty=true"] {
        let list = send(Method::GET, &format!("{maps}{query}"), Value::Null).await;
        assert_eq!(list["kind"], "ConfigMapList");
        let item = &list["items"][0];
        assert!(item["kind"].is_null() && item["apiVersion"].is_null(), "{query}: {item}");
        assert_eq!(item["metadata"], map["metadata"], "{query}");
    }
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    send(Method::POST, definitions, definition).await;
    let things = "/apis/example.com/v1/things";
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while cluster.json(Some(&admin), Method::GET, things, &[], &Value::Null).await.0 != 200 {
        assert!(std::time::Instant::now() < deadline, "{things} is not served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let thing = json!({"kind": "Thing", "apiVersion": "example.com/v1", "metadata": {"name": "a"}});
    send(Method::POST, things, thing).await;
    let list = send(Method::GET, things, Value::Null).await;
    assert_eq!(list["items"][0]["kind"], "Thing");
}

#[tokio::test]
async fn who_is_known() {
    let cluster = cluster_with(|config, _| {
        config.auth.tokens.add("static-token", User { uid: "7".into(), ..User::new("jane", &["dev"]) });
    })
    .await;
    let (ca, proxies) = (&cluster.pki.cluster, &cluster.pki.front_proxy);
    let admin = issue(ca, Usage::Client, "root", &["system:masters"]);
    let jane = issue(ca, Usage::Client, "jane", &["dev"]);
    let proxy = issue(proxies, Usage::Client, "front-proxy-client", &[]);
    let other = issue(proxies, Usage::Client, "some-proxy", &[]);
    let secret = |id: &str, expiration: &str| {
        json!({
            "metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:edge", "expiration": expiration,
            },
        })
    };
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    for (id, expiration) in [("abcdef", "2999-01-01T00:00:00Z"), ("fedcba", "2020-01-01T00:00:00Z")] {
        let (code, answer) =
            cluster.json(Some(&admin), Method::POST, secrets, &[], &secret(id, expiration)).await;
        assert_eq!(code, 201, "{answer}");
    }
    let named = [("x-remote-user", "eve"), ("x-remote-group", "ops"), ("x-remote-extra-acme%2fkey", "v")];
    let bearer = |token: &'static str| [("authorization", token)];
    let cases: &[Case<'_>] = &[
        ("a certificate", Some(&jane), &[], "jane dev,system:authenticated"),
        ("a static token", None, &bearer("Bearer static-token"), "jane dev,system:authenticated"),
        ("a wrong one", None, &bearer("Bearer static-tokem"), ""),
        (
            "a wrong one beside a certificate",
            Some(&jane),
            &bearer("Bearer nonsense"),
            "jane dev,system:authenticated",
        ),
        (
            "a bootstrap token",
            None,
            &bearer("Bearer abcdef.0123456789abcdef"),
            "system:bootstrap:abcdef system:bootstrappers,system:bootstrappers:edge,system:authenticated",
        ),
        ("one with another secret", None, &bearer("Bearer abcdef.0123456789abcdee"), ""),
        ("one whose time is over", None, &bearer("Bearer fedcba.0123456789abcdef"), ""),
        ("a proxy's word", Some(&proxy), &named, "eve ops,system:authenticated"),
        ("the word of a proxy of another name", Some(&other), &named, ""),
        (
            "the same words without a proxy's certificate",
            Some(&jane),
            &named,
            "jane dev,system:authenticated",
        ),
        ("nothing", None, &[], "system:anonymous system:unauthenticated"),
        ("words alone", None, &named, "system:anonymous system:unauthenticated"),
    ];
    for (what, pair, headers, wanted) in cases {
        // Nobody may see this path, and the refusal names who asked.
        let (code, status) = cluster.json(*pair, Method::GET, "/secret/place", headers, &Value::Null).await;
        if wanted.is_empty() {
            assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{what}");
            continue;
        }
        let (name, groups) = wanted.split_once(' ').unwrap();
        assert_eq!(code, 403, "{what}: {status}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(&format!("User \"{name}\" cannot get path")), "{what}: {message}");
        if name == "system:anonymous" {
            continue;
        }
        let me = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let (code, review) = cluster.json(*pair, Method::POST, me, headers, &json!({})).await;
        assert_eq!(code, 201, "{what}: {review}");
        let info = &review["status"]["userInfo"];
        let mut groups: Vec<&str> = groups.split(',').collect();
        let mut found: Vec<&str> =
            info["groups"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        groups.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, groups, "{what}");
        if name == "eve" {
            assert_eq!(info["extra"]["acme/key"], json!(["v"]));
        }
    }
    // A review tells of others' tokens, and for which audiences they are good.
    let review = |token: &str, audiences: Value| json!({"spec": {"token": token, "audiences": audiences}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    for (token, audiences, wanted) in [
        ("static-token", json!(null), json!(true)),
        ("static-token", json!(["https://kubernetes.default.svc"]), json!(true)),
        ("static-token", json!(["elsewhere"]), Value::Null),
        ("nonsense", json!(null), Value::Null),
    ] {
        let body = review(token, audiences.clone());
        let (_, answer) = cluster.json(Some(&admin), Method::POST, reviews, &[], &body).await;
        assert_eq!(answer["status"]["authenticated"], wanted, "{token} {audiences}: {answer}");
        if wanted.is_null() {
            assert_eq!(answer["status"]["error"], "invalid bearer token", "{token} {audiences}");
        } else {
            assert_eq!(answer["status"]["user"]["uid"], "7");
            assert_eq!(answer["status"]["audiences"], json!(["https://kubernetes.default.svc"]));
        }
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn service_account_tokens() {
    let cluster = cluster().await;
    let admin = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(
        cluster
            .json(Some(&admin), Method::POST, accounts, &[], &json!({"metadata": {"name": "robot"}}))
            .await
            .0,
        201
    );
    let request = json!({"spec": {"expirationSeconds": 600}});
    let (code, answer) =
        cluster.json(Some(&admin), Method::POST, &format!("{accounts}/robot/token"), &[], &request).await;
    assert_eq!(code, 201, "{answer}");
    let token = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
    let me = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (code, review) = cluster.json(None, Method::POST, me, &[("authorization", &token)], &json!({})).await;
    assert_eq!(code, 201, "{review}");
    assert_eq!(review["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
    let short = json!({"spec": {"expirationSeconds": 5}});
    assert_eq!(
        cluster.json(Some(&admin), Method::POST, &format!("{accounts}/robot/token"), &[], &short).await.0,
        422
    );
    // The token dies with its account.
    assert_eq!(
        cluster.json(Some(&admin), Method::DELETE, &format!("{accounts}/robot"), &[], &Value::Null).await.0,
        200
    );
    assert_eq!(cluster.json(None, Method::POST, me, &[("authorization", &token)], &json!({})).await.0, 401);
    cluster.api.shutdown().await;
}

/// A kubelet that answers one request: logs as text, anything else with an upgrade that echoes.
async fn kubelet(ca: &Authority) -> SocketAddr {
    let pair = issue(ca, Usage::Server, "n1", &[]);
    let config = tls::server(&pair, &ca.certificate, Speaks::Both).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                assert!(
                    stream.get_ref().1.peer_certificates().is_some(),
                    "the API server shows its certificate"
                );
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                if target.starts_with("/containerLogs") {
                    assert!(!head.to_lowercase().contains("upgrade"), "logs are asked for plainly: {head}");
                    if target.contains("previous") {
                        let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 8\r\n\r\nnot here";
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        return;
                    }
                    let text = format!("log of {target}\n");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return;
                }
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n").await.unwrap();
                stream.write_all(target.as_bytes()).await.unwrap();
                let mut buffer = [0; 64];
                while let Ok(n) = stream.read(&mut buffer).await {
                    if n == 0 || stream.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Audit of everything, into `audit.log` in the directory.
fn audit(dir: &std::path::Path) -> Option<Arc<Audit>> {
    let policy = dir.join("policy.yaml");
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse}]}";
    std::fs::write(&policy, text).unwrap();
    let target = Target {
        path: dir.join("audit.log"),
        max_age_days: 0,
        max_backups: 0,
        max_size_bytes: 0,
        compress: false,
    };
    let batching = Batching { buffer: 1, max_size: 1, max_wait: Duration::ZERO, throttle: None };
    let log = LogSettings { target, text: false, mode: Mode::Blocking, batching, truncate: None };
    let settings = Settings { policy: Some(policy), log: Some(log), ..Settings::default() };
    Audit::open(&settings, Arc::new(SystemClock), Arc::new(SystemRandom)).unwrap()
}

/// The stages so far of requests for a subresource.
fn stages(dir: &std::path::Path, subresource: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("audit.log")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter(|event| event["objectRef"]["subresource"] == subresource)
        .map(|event| format!("{} {}", event["stage"].as_str().unwrap(), event["responseStatus"]["code"]))
        .collect()
}

#[tokio::test]
async fn streams_to_kubelets() {
    let cluster = cluster_with(|config, dir| config.audit = audit(dir)).await;
    let admin = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let address = kubelet(&cluster.pki.cluster).await;
    let node = json!({"metadata": {"name": "n1"}});
    assert_eq!(cluster.json(Some(&admin), Method::POST, "/api/v1/nodes", &[], &node).await.0, 201);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    let merge = [("content-type", "application/merge-patch+json")];
    let (code, answer) =
        cluster.json(Some(&admin), Method::PATCH, "/api/v1/nodes/n1/status", &merge, &status).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        cluster
            .json(
                Some(&admin),
                Method::POST,
                "/api/v1/namespaces/default/serviceaccounts",
                &[],
                &json!({"metadata": {"name": "default"}})
            )
            .await
            .0,
        201
    );
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    let (code, answer) = cluster.json(Some(&admin), Method::POST, pods, &[], &pod).await;
    assert_eq!(code, 201, "{answer}");

    let logs = cluster
        .request(
            Some(&admin),
            Method::GET,
            &format!("{pods}/p/log?tailLines=5&follow=true"),
            &[],
            &Value::Null,
        )
        .await;
    assert_eq!(logs.status(), 200);
    let text = logs.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "log of /containerLogs/default/p/c?follow=true&tailLines=5\n");
    assert_eq!(
        cluster
            .json(Some(&admin), Method::GET, &format!("{pods}/p/log?container=x"), &[], &Value::Null)
            .await
            .0,
        400
    );

    // What the kubelet says when it refuses is what the client reads.
    let path = format!("{pods}/p/log?previous=true");
    let (code, answer) = cluster.json(Some(&admin), Method::GET, &path, &[], &Value::Null).await;
    assert_eq!(
        (code, &answer["reason"], &answer["message"]),
        (400, &json!("BadRequest"), &json!("not here"))
    );

    // Logs over WebSocket: an empty message, the log, a close with status 1000.
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "binary.k8s.io"),
    ];
    let path = format!("{pods}/p/log");
    let mut response = cluster.request(Some(&admin), Method::GET, &path, &upgrade, &Value::Null).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(response.headers()["sec-websocket-protocol"], "binary.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let text = b"log of /containerLogs/default/p/c\n";
    let want = [&[0x82, 0, 0x82, u8::try_from(text.len()).unwrap()], &text[..], &[0x88, 2, 3, 232]].concat();
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, want);
    drop(stream);

    let upgrade = [("connection", "upgrade"), ("upgrade", "SPDY/3.1")];
    let path = format!("{pods}/p/exec?command=echo&command=a%20b&stdout=true&tty=true");
    let mut response = cluster.request(Some(&admin), Method::POST, &path, &upgrade, &Value::Null).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let want = b"/exec/default/p/c?output=1&tty=1&command=echo&command=a%20b";
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(want));
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    // The request lasts as long as the stream.
    let dir = cluster.dir.path();
    assert_eq!(stages(dir, "exec"), ["RequestReceived null", "ResponseStarted 101"]);
    drop(stream);
    for _ in 0..1000 {
        if stages(dir, "exec").len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stages(dir, "exec"), ["RequestReceived null", "ResponseStarted 101", "ResponseComplete 101"]);
    assert_eq!(
        stages(dir, "log")[..3],
        ["RequestReceived null", "ResponseStarted 200", "ResponseComplete 200"]
    );

    // Over WebSocket; and a kubelet that cannot prove that it is one.
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    let path = format!("{pods}/p/attach?stdout=true");
    let response = cluster.request(Some(&admin), Method::GET, &path, &upgrade, &Value::Null).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let stranger = kubelet(&cluster.pki.front_proxy).await;
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": stranger.port()}}}});
    cluster.json(Some(&admin), Method::PATCH, "/api/v1/nodes/n1/status", &merge, &status).await;
    let (code, answer) =
        cluster.json(Some(&admin), Method::GET, &format!("{pods}/p/log"), &[], &Value::Null).await;
    assert_eq!(code, 503, "{answer}");
    let page = cluster.request(Some(&admin), Method::GET, "/metrics", &[], &Value::Null).await;
    let page = page.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    for line in [
        r#"kube_apiserver_pod_logs_insecure_backend_total{usage="enforce_tls"} 5"#,
        "kube_apiserver_pod_logs_backend_tls_failure_total 1",
        r#"apiserver_websocket_streaming_requests_total{proxy_type="proxied_to_kubelet",subresource="attach"} 1"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    assert!(page.contains(r#"apiserver_request_filter_duration_seconds_count{filter="audit"} "#), "{page}");
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = ApiServer::bind(address).await.unwrap_err().to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("another process uses this port"),
        "{error}"
    );
    assert!(!error.contains('\n'));
}

#[tokio::test]
async fn a_certificate_is_asked_for_in_ones_own_name() {
    let cluster = cluster().await;
    let proxy = issue(&cluster.pki.front_proxy, Usage::Client, "front-proxy-client", &[]);
    let headers = [
        ("x-remote-user", "jane"),
        ("x-remote-uid", "7"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-scopes", "all"),
    ];
    let params = rcgen::CertificateParams::default();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap());
    // Whatever it says itself.
    let body = json!({"metadata": {"name": "r"}, "spec": {
        "signerName": "example.com/s", "usages": ["client auth"], "request": request,
        "username": "root", "uid": "0", "groups": ["others"], "extra": {"scopes": ["none"]}},
        "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (code, made) = cluster.json(Some(&proxy), Method::POST, path, &headers, &body).await;
    assert_eq!(code, 201, "{made}");
    let spec = &made["spec"];
    assert_eq!((&spec["username"], &spec["uid"]), (&json!("jane"), &json!("7")));
    assert_eq!(spec["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(spec["extra"], json!({"scopes": ["all"]}));
    assert_eq!(made["status"], json!({}));
    let mut other = body.clone();
    other["metadata"]["name"] = "s".into();
    let root = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let (_, made) = cluster.json(Some(&root), Method::POST, path, &[], &other).await;
    assert_eq!((&made["spec"]["username"], &made["spec"]["uid"]), (&json!("root"), &Value::Null));
    assert_eq!(made["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
    let credential = "authentication.kubernetes.io/credential-id";
    assert!(made["spec"]["extra"][credential][0].is_string() && made["spec"]["extra"]["scopes"].is_null());
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn whether_certificates_last_as_long_as_they_were_asked_to() {
    let cluster = cluster().await;
    let root = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let params = rcgen::CertificateParams::default();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap());
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let merge = [("content-type", "application/merge-patch+json")];
    // Each gets a certificate for a day.
    for (name, signer, wanted_s) in [
        ("a", "kubernetes.io/kube-apiserver-client", json!(86_400)),
        ("b", "kubernetes.io/kube-apiserver-client", json!(600)),
        ("c", "example.com/s", json!(86_400)),
        ("d", "example.com/s", Value::Null),
    ] {
        let body = json!({"metadata": {"name": name}, "spec": {
            "signerName": signer, "usages": ["client auth"], "request": request, "expirationSeconds": wanted_s}});
        let (code, made) = cluster.json(Some(&root), Method::POST, path, &[], &body).await;
        assert_eq!(code, 201, "{made}");
        let approved =
            json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r"}]}});
        let approval = format!("{path}/{name}/approval");
        let (code, made) = cluster.json(Some(&root), Method::PATCH, &approval, &merge, &approved).await;
        assert_eq!(code, 200, "{made}");
        let certificate = issue(&cluster.pki.cluster, Usage::Client, name, &[]).certificate;
        let issued = json!({"status": {"certificate": STANDARD.encode(certificate)}});
        let status = format!("{path}/{name}/status");
        let (code, made) = cluster.json(Some(&root), Method::PATCH, &status, &merge, &issued).await;
        assert_eq!(code, 200, "{made}");
        // What happens to it afterwards is no other certificate.
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        let (code, made) =
            cluster.json(Some(&root), Method::PATCH, &format!("{path}/{name}"), &merge, &labelled).await;
        assert_eq!(code, 200, "{made}");
    }
    let page = cluster.request(Some(&root), Method::GET, "/metrics", &[], &Value::Null).await;
    let page = page.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    let counted: Vec<&str> =
        page.lines().filter_map(|l| l.strip_prefix("apiserver_certificates_registry_csr_")).collect();
    assert_eq!(
        counted,
        [
            r#"requested_duration_total{signerName="kubernetes.io/kube-apiserver-client"} 2"#,
            r#"requested_duration_total{signerName="other"} 1"#,
            r#"honored_duration_total{signerName="kubernetes.io/kube-apiserver-client"} 1"#,
            r#"honored_duration_total{signerName="other"} 1"#,
        ]
    );
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn since_when_the_use_of_tokens_is_noted_stays_known() {
    let cluster = cluster().await;
    let root = issue(&cluster.pki.cluster, Usage::Client, "root", &["system:masters"]);
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{}", legacy::TRACKING_MAP);
    let merge = [("content-type", "application/merge-patch+json")];
    let is_day = |text: &str| text.parse::<jiff::civil::Date>().is_ok();
    // What is written there (at first nothing), and whether it stays.
    for (text, stays) in [("", false), ("2020-01-01", true), ("lately", false)] {
        if !text.is_empty() {
            let body = json!({"data": {"since": text}});
            assert_eq!(cluster.json(Some(&root), Method::PATCH, &path, &merge, &body).await.0, 200);
        }
        let mut now = String::new();
        for _ in 0..500 {
            let (_, map) = cluster.json(Some(&root), Method::GET, &path, &[], &Value::Null).await;
            now = map["data"]["since"].as_str().unwrap_or_default().to_owned();
            if is_day(&now) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(if stays { now == text } else { is_day(&now) }, "{now}");
    }
    cluster.api.shutdown().await;
}
