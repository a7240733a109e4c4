//! Who comes in and what they may do: every authenticator and authorizer against a real server, with webhooks
//! and issuers that are real HTTPS servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/secure.rs"]
mod secure;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use secure::{Cluster, cluster, cluster_with, issue};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt as _;
use yare_apiserver::auth::{Chain, Issuers, TokenWebhook};
use yare_auth::{
    User,
    config::{authentication::AuthenticationConfiguration, authorization::AuthorizationConfiguration},
    jws::{self, Algorithm},
    pki::{KeyPairPem, Pki, Usage},
    tls::{self, Speaks},
    token::legacy,
};

const ME: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const NONE: Value = Value::Null;

/// An HTTPS server that answers as it is told: path and body to JSON, or to text as it is. What it was asked is on record.
struct Outside {
    port: u16,
    authority: String,
    asked: Arc<Mutex<Vec<Value>>>,
    _dir: tempfile::TempDir,
}

type Answers = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

async fn outside(answers: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Outside {
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
                        let authorization = request
                            .headers()
                            .get("authorization")
                            .and_then(|v| v.to_str().ok())
                            .map(str::to_owned);
                        let body = request.into_body().collect().await?.to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                        log.lock().push(json!({"path": path, "body": body, "authorization": authorization}));
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
    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    fn kubeconfig(&self, dir: &Path, path: &str) -> PathBuf {
        let file = dir.join(format!("webhook-{}.yaml", self.port));
        let text = json!({
            "clusters": [{"name": "a", "cluster": {
                "server": self.url(path), "certificate-authority-data": STANDARD.encode(&self.authority)}}],
            "users": [{"name": "b", "user": {"token": "own"}}],
        });
        std::fs::write(&file, text.to_string()).unwrap();
        file
    }

    fn count(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|a| a["path"] == path).count()
    }
}

impl Cluster {
    /// Who the server thinks a caller is.
    async fn who(&self, pair: Option<&KeyPairPem>, headers: &[(&str, &str)]) -> (u16, Value) {
        let (code, answer) = self.json(pair, Method::POST, ME, headers, &json!({})).await;
        (code, answer["status"]["userInfo"].clone())
    }

    async fn by_token(&self, token: &str) -> (u16, Value) {
        self.who(None, &[("authorization", &format!("Bearer {token}"))]).await
    }

    fn admin(&self) -> KeyPairPem {
        issue(&self.pki.cluster, Usage::Client, "root", &["system:masters"])
    }

    async fn create(&self, path: &str, object: &Value) -> Value {
        let (code, answer) = self.json(Some(&self.admin()), Method::POST, path, &[], object).await;
        assert!(code == 201 || code == 200, "{path}: {answer}");
        answer
    }
}

#[tokio::test]
async fn certificates_that_nobody_vouches_for_get_a_401() {
    let cluster = cluster().await;
    let own = issue(&cluster.pki.cluster, Usage::Client, "jane", &["dev"]);
    let (code, user) = cluster.who(Some(&own), &[]).await;
    assert_eq!((code, &user["username"]), (201, &json!("jane")));
    assert!(
        user["extra"]["authentication.kubernetes.io/credential-id"][0]
            .as_str()
            .unwrap()
            .starts_with("X509SHA256=")
    );
    // A server's certificate, and one of an authority for something else.
    for bad in [
        issue(&cluster.pki.cluster, Usage::Server, "jane", &[]),
        issue(&cluster.pki.front_proxy, Usage::Client, "jane", &[]),
    ] {
        let (code, status) = cluster.json(Some(&bad), Method::GET, "/version", &[], &NONE).await;
        assert_eq!((code, &status["message"]), (401, &json!("Unauthorized")));
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn a_front_proxy_says_whom_it_speaks_for() {
    let cluster = cluster().await;
    let proxy = issue(&cluster.pki.front_proxy, Usage::Client, "front-proxy-client", &[]);
    let headers = [
        ("x-remote-user", "jane"),
        ("x-remote-uid", "7"),
        ("x-remote-group", "dev"),
        ("x-remote-extra-example.org%2fScopes", "all"),
    ];
    let (code, user) = cluster.who(Some(&proxy), &headers).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"example.org/scopes": ["all"]}})
    );
    // Others may say it, and are not believed.
    let other = issue(&cluster.pki.front_proxy, Usage::Client, "other", &[]);
    assert_eq!(cluster.who(Some(&other), &headers).await.0, 401);
    let client = issue(&cluster.pki.cluster, Usage::Client, "client", &[]);
    assert_eq!(cluster.who(Some(&client), &headers).await.1["username"], "client");
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn bootstrap_and_static_tokens() {
    let cluster = cluster_with(|config, _| {
        config.auth.tokens.add("static-1", User::new("alice", &["ops"]));
        config.auth.anonymous.paths = vec!["/livez".into()];
    })
    .await;
    assert_eq!(cluster.by_token("static-1").await.1["username"], "alice");
    assert_eq!(cluster.by_token("static-2").await.0, 401);
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "auth-extra-groups": encode("system:bootstrappers:workers"),
        },
    });
    cluster.create("/api/v1/namespaces/kube-system/secrets", &secret).await;
    let (code, user) = cluster.by_token("abcdef.0123456789abcdef").await;
    assert_eq!(code, 201);
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(
        user["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"])
    );
    assert_eq!(cluster.by_token("abcdef.0123456789abcdee").await.0, 401);
    // Anonymous callers are let in for one path only.
    assert_eq!(cluster.json(None, Method::GET, "/livez", &[], &NONE).await.0, 200);
    assert_eq!(cluster.json(None, Method::GET, "/version", &[], &NONE).await.0, 401);
    // A review says whose a token is; no reason is given to the caller of a request.
    let review = json!({"spec": {"token": "static-1"}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = cluster.create(path, &review).await;
    assert_eq!(answer["status"]["user"]["username"], "alice");
    assert_eq!(answer["status"]["audiences"], json!(["https://kubernetes.default.svc"]));
    let answer = cluster.create(path, &json!({"spec": {"token": "static-1", "audiences": ["other"]}})).await;
    assert_eq!(answer["status"], json!({"user": {}, "error": "invalid bearer token"}));
    let (code, status) =
        cluster.json(Some(&cluster.admin()), Method::POST, path, &[], &json!({"spec": {}})).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("token is required for TokenReview in authentication"))
    );
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn service_account_tokens_are_bound_and_have_audiences() {
    let cluster = cluster().await;
    let (accounts, admin) = ("/api/v1/namespaces/default/serviceaccounts", cluster.admin());
    let account = cluster.create(accounts, &json!({"metadata": {"name": "robot"}})).await;
    cluster.create(accounts, &json!({"metadata": {"name": "default"}})).await;
    let token = async |spec: Value| {
        let answer = cluster.create(&format!("{accounts}/robot/token"), &json!({"spec": spec})).await;
        answer["status"]["token"].as_str().unwrap().to_owned()
    };
    let plain = token(json!({})).await;
    let (_, user) = cluster.by_token(&plain).await;
    assert!(
        user["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap().starts_with("JTI=")
    );
    // For somebody else: not good here, good in a review that asks for it.
    let other = token(json!({"audiences": ["vault"]})).await;
    assert_eq!(cluster.by_token(&other).await.0, 401);
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer =
        cluster.create(reviews, &json!({"spec": {"token": other, "audiences": ["vault", "x"]}})).await;
    assert_eq!(
        (&answer["status"]["authenticated"], &answer["status"]["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    let answer = cluster.create(reviews, &json!({"spec": {"token": other}})).await;
    assert_eq!(
        answer["status"]["error"],
        r#"token audiences ["vault"] is invalid for the target audiences ["https://kubernetes.default.svc"]"#
    );
    // Bound to a secret: it dies with it.
    let secrets = "/api/v1/namespaces/default/secrets";
    cluster.create(secrets, &json!({"metadata": {"name": "s"}})).await;
    let bound = token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "s"}})).await;
    assert_eq!(cluster.by_token(&bound).await.0, 201);
    cluster.json(Some(&admin), Method::DELETE, &format!("{secrets}/s"), &[], &NONE).await;
    assert_eq!(cluster.by_token(&bound).await.0, 401);
    let answer = cluster.create(reviews, &json!({"spec": {"token": bound}})).await;
    assert_eq!(answer["status"]["error"], "service account token has been invalidated");
    // A node binding.
    cluster.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await;
    let bound = token(json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n1"}})).await;
    let (_, user) = cluster.by_token(&bound).await;
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    // Tokens of the old kind rest in a Secret.
    let signer = cluster.api.core().config.auth.signer.as_ref().unwrap();
    let claims = legacy::Claims::new("default", "robot", account["metadata"]["uid"].as_str().unwrap(), "old");
    let old = signer.sign_legacy(&claims).unwrap();
    assert_eq!(cluster.by_token(&old).await.0, 401);
    let secret = json!({
        "metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token", "data": {"token": STANDARD.encode(&old)},
    });
    cluster.create(secrets, &secret).await;
    assert_eq!(cluster.by_token(&old).await.1["username"], "system:serviceaccount:default:robot");
    let mut label = NONE;
    for _ in 0..500 {
        let (_, found) = cluster.json(Some(&admin), Method::GET, &format!("{secrets}/old"), &[], &NONE).await;
        label = found["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].clone();
        if label.is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(label.as_str().map(str::len), Some("2026-01-01".len()));
    let merge = [("content-type", "application/merge-patch+json")];
    let invalid = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}});
    cluster.json(Some(&admin), Method::PATCH, &format!("{secrets}/old"), &merge, &invalid).await;
    assert_eq!(cluster.by_token(&old).await.0, 401);
    // What asks for too much or for another account.
    for (body, code) in [
        (json!({"spec": {"expirationSeconds": 1}}), 422),
        (json!({"metadata": {"name": "other"}, "spec": {}}), 422),
        (json!({"metadata": {"uid": "other"}, "spec": {}}), 409),
        (json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "no"}}}), 404),
    ] {
        let path = format!("{accounts}/robot/token");
        assert_eq!(cluster.json(Some(&admin), Method::POST, &path, &[], &body).await.0, code, "{body}");
    }
    cluster.api.shutdown().await;
}

/// A key as an issuer has it: PEM.
fn key() -> String {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(dir.path()).unwrap().service_account_key
}

#[tokio::test]
async fn tokens_of_an_issuer_elsewhere() {
    let keys: Arc<Mutex<String>> = Arc::new(Mutex::new(key()));
    let served = keys.clone();
    let port = Arc::new(Mutex::new(0));
    let own_port = port.clone();
    let issuer = outside(move |path, _| {
        let url = format!("https://127.0.0.1:{}", own_port.lock());
        match path {
            "/.well-known/openid-configuration" => {
                Some(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
            }
            "/keys" => {
                let key = jws::private_key(&served.lock()).unwrap();
                Some(json!({"keys": [key.public().to_jwk()]}))
            }
            _ => None,
        }
    })
    .await;
    *port.lock() = issuer.port;
    let configuration = |groups: &str| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {"url": issuer.url(""), "audiences": ["yare"], "certificateAuthority": issuer.authority},
                "claimMappings": {
                    "username": {"claim": "sub", "prefix": "oidc:"}, "groups": {"claim": groups, "prefix": ""}},
            }],
        })
        .to_string()
    };
    let cluster = cluster_with(|config, dir| {
        let file = dir.join("authentication.yaml");
        std::fs::write(&file, configuration("groups")).unwrap();
        let parsed = AuthenticationConfiguration::parse(configuration("groups").as_bytes(), &[]).unwrap();
        config.auth.oidc.replace(Issuers::start(&parsed, &Algorithm::ALL).unwrap());
        config.auth.files.authentication = Some(file);
    })
    .await;
    let token = |sub: &str| {
        let now_s = jiff::Timestamp::now().as_second();
        let claims = json!({"iss": issuer.url(""), "aud": "yare", "sub": sub, "exp": now_s + 600, "groups": ["a"], "roles": "b"});
        jws::sign(&jws::private_key(&keys.lock()).unwrap(), claims.to_string().as_bytes()).unwrap()
    };
    let first = token("jane");
    let mut answer = (0, NONE);
    for _ in 0..500 {
        answer = cluster.by_token(&first).await;
        if answer.0 == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answer.0, 201, "the issuer is looked up in the background");
    assert_eq!(
        (&answer.1["username"], &answer.1["groups"]),
        (&json!("oidc:jane"), &json!(["a", "system:authenticated"]))
    );
    let asked = issuer.count("/keys");
    assert_eq!(cluster.by_token(&token("joe")).await.1["username"], "oidc:joe");
    assert_eq!(issuer.count("/keys"), asked, "keys are kept");
    // The issuer changes its key: tokens of the new one are good as soon as the keys may be fetched again.
    *keys.lock() = key();
    let rotated = token("jim");
    for _ in 0..500 {
        answer = cluster.by_token(&rotated).await;
        if answer.0 == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answer.1["username"], "oidc:jim");
    assert_eq!(cluster.by_token("a.b.c").await.0, 401);
    // The file changes: another claim holds the groups. What is wrong changes nothing.
    let file = cluster.dir.path().join("authentication.yaml");
    std::fs::write(&file, "jwt: 1").unwrap();
    std::fs::write(file.with_extension("new"), configuration("roles")).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    for _ in 0..500 {
        answer = cluster.by_token(&token("jill")).await;
        if answer.1["groups"][0] == "b" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answer.1["groups"], json!(["b", "system:authenticated"]));
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn a_webhook_that_knows_tokens() {
    let hook = outside(|path, body| {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        let status = match token {
            "good" => json!({"authenticated": true, "user": {"username": "web", "groups": ["g"], "extra": {"a": ["b"]}}}),
            "elsewhere" => json!({"authenticated": true, "user": {"username": "web"}, "audiences": ["elsewhere"]}),
            "broken" => return None,
            _ => json!({"error": "never heard of it"}),
        };
        (path == "/tokens").then(|| json!({"apiVersion": body["apiVersion"], "kind": "TokenReview", "status": status}))
    })
    .await;
    let cluster = cluster_with(|config, dir| {
        let file = hook.kubeconfig(dir, "/tokens");
        config.auth.token_webhook = Some(TokenWebhook::open(&file, "v1", Duration::from_secs(60)).unwrap());
    })
    .await;
    for _ in 0..2 {
        let (code, user) = cluster.by_token("good").await;
        assert_eq!(code, 201);
        assert_eq!(
            user,
            json!({"username": "web", "groups": ["g", "system:authenticated"], "extra": {"a": ["b"]}})
        );
    }
    assert_eq!(hook.count("/tokens"), 1, "answers are kept");
    let asked = hook.asked.lock()[0].clone();
    assert_eq!(asked["authorization"], "Bearer own");
    assert_eq!(asked["body"]["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(asked["body"]["spec"]["audiences"], json!(["https://kubernetes.default.svc"]));
    for bad in ["elsewhere", "broken", "unknown"] {
        assert_eq!(cluster.by_token(bad).await.0, 401, "{bad}");
    }
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = cluster.create(path, &json!({"spec": {"token": "unknown"}})).await;
    assert_eq!(answer["status"], json!({"user": {}, "error": "never heard of it"}));
    let answer =
        cluster.create(path, &json!({"spec": {"token": "elsewhere", "audiences": ["elsewhere"]}})).await;
    assert_eq!(answer["status"]["audiences"], json!(["elsewhere"]));
    cluster.api.shutdown().await;
}

const PODS: &str = "/api/v1/namespaces/default/pods";

fn chain(hook: &Outside, dir: &Path, policy: &str) -> String {
    let file = hook.kubeconfig(dir, "/access");
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "hook", "webhook": {
                "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": policy,
                "authorizedTTL": "1m", "unauthorizedTTL": "1m",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": file}}},
            {"type": "Node", "name": "node"},
            {"type": "RBAC", "name": "rbac"},
        ],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_decides() {
    let hook = outside(|_, body| {
        let spec = &body["spec"];
        let resource = &spec["resourceAttributes"];
        let status = match (
            spec["user"].as_str().unwrap_or_default(),
            resource["verb"].as_str().unwrap_or_default(),
        ) {
            ("jane", "list") => json!({"allowed": true, "reason": "she lists"}),
            ("jane", "delete") => json!({"allowed": false, "denied": true, "reason": "never"}),
            ("jane", "bind") | ("jane", "create") => json!({"allowed": true}),
            ("broken", _) => return None,
            _ => json!({"reason": "no idea"}),
        };
        Some(json!({"apiVersion": body["apiVersion"], "kind": "SubjectAccessReview", "status": status}))
    })
    .await;
    let cluster = cluster_with(|config, dir| {
        let file = dir.join("authorization.yaml");
        std::fs::write(&file, chain(&hook, dir, "Deny")).unwrap();
        let parsed = AuthorizationConfiguration::parse(&std::fs::read(&file).unwrap(), &[]).unwrap();
        config.auth.chain.store(Arc::new(Chain::new(&parsed).unwrap()));
        config.auth.files.authorization = Some(file);
        config.auth.files.required = vec!["RBAC".into()];
    })
    .await;
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &["dev"]);
    let list = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1&labelSelector=a%3Db");
    for _ in 0..2 {
        assert_eq!(cluster.json(Some(&jane), Method::GET, &list, &[], &NONE).await.0, 200);
    }
    assert_eq!(hook.count("/access"), 1, "answers are kept");
    let asked = hook.asked.lock()[0]["body"]["spec"].clone();
    assert_eq!(
        asked["resourceAttributes"],
        json!({
            "namespace": "default", "verb": "list", "version": "v1", "resource": "pods",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]},
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]},
        })
    );
    let (code, status) = cluster.json(Some(&jane), Method::DELETE, &format!("{PODS}/p"), &[], &NONE).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().ends_with(": never"), "{status}");
    // Nobody's opinion: the next ones are asked, and all reasons are given.
    let (code, status) = cluster.json(Some(&jane), Method::GET, &format!("{PODS}/p"), &[], &NONE).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().ends_with(": no idea"), "{status}");
    // The administrator is never in its hands, and a hook inside a write waits for it.
    assert_eq!(cluster.json(Some(&cluster.admin()), Method::GET, PODS, &[], &NONE).await.0, 200);
    let binding = json!({
        "metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "x", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"},
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(cluster.json(Some(&jane), Method::POST, bindings, &[], &binding).await.0, 201);
    // A review shows a denial and what went wrong.
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let review = |user: &str, verb: &str| json!({"spec": {"user": user, "resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}}});
    let answer = cluster.create(reviews, &review("jane", "delete")).await;
    assert_eq!(answer["status"], json!({"allowed": false, "denied": true, "reason": "never"}));
    let answer = cluster.create(reviews, &review("broken", "get")).await;
    assert_eq!((&answer["status"]["allowed"], &answer["status"]["denied"]), (&json!(false), &json!(true)));
    assert_eq!(answer["status"]["evaluationError"], "the server could not find the requested resource");
    let broken = issue(&cluster.pki.cluster, Usage::Client, "broken", &[]);
    assert_eq!(cluster.json(Some(&broken), Method::GET, PODS, &[], &NONE).await.0, 500);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = cluster.create(rules, &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(answer["status"]["incomplete"], true);
    assert_eq!(
        answer["status"]["evaluationError"],
        "webhook authorizer does not support user rule resolution"
    );
    // The file changes: now a webhook that fails is passed over. A chain without RBAC is not taken.
    let file = cluster.dir.path().join("authorization.yaml");
    std::fs::write(&file, "authorizers: []").unwrap();
    std::fs::write(&file, chain(&hook, cluster.dir.path(), "NoOpinion")).unwrap();
    let mut answer = NONE;
    for _ in 0..500 {
        answer = cluster.create(reviews, &review("broken", "get")).await;
        if answer["status"]["denied"].is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answer["status"]["denied"], NONE);
    // What is counted, before the file changed and after.
    let page = metrics(&cluster).await;
    for line in [
        "apiserver_authorization_decisions_total{type=\"Webhook\",name=\"hook\",decision=\"denied\"}",
        "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"success\"}",
        "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"error\"}",
        "apiserver_authorization_webhook_evaluations_fail_open_total{name=\"hook\",result=\"error\"} 1",
        "apiserver_authorization_webhook_duration_seconds_count{name=\"hook\",result=\"success\"}",
        "authorization_attempts_total{result=\"denied\"} 1",
        "apiserver_authorization_config_controller_automatic_reloads_total{status=\"success\"",
        "apiserver_authorization_config_controller_last_config_info{",
    ] {
        assert!(page.lines().any(|l| l.starts_with(line)), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

async fn metrics(cluster: &Cluster) -> String {
    let answer = cluster.request(Some(&cluster.admin()), Method::GET, "/metrics", &[], &NONE).await;
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A webhook is asked only where its conditions hold; one that fails counts as its failure policy says.
#[tokio::test]
async fn conditions_of_a_webhook() {
    let hook = outside(|_, body| {
        Some(json!({"apiVersion": body["apiVersion"], "kind": "SubjectAccessReview", "status": {"allowed": true}}))
    })
    .await;
    let cluster = cluster_with(|config, dir| {
        let mut text: Value = serde_json::from_str(&chain(&hook, dir, "Deny")).unwrap();
        let webhook = &mut text["authorizers"][0]["webhook"];
        webhook["matchConditionSubjectAccessReviewVersion"] = "v1".into();
        webhook["matchConditions"] = json!([
            {"expression": "has(request.resourceAttributes)"},
            {"expression": "request.user != 'joe'"},
            {"expression": "request.resourceAttributes.name != 'broken' || request.extra['missing'].size() > 0"},
            {"expression": "!has(request.resourceAttributes.fieldSelector) || request.resourceAttributes.fieldSelector.requirements.all(r, r.key != 'spec.nodeName')"},
        ]);
        let parsed = AuthorizationConfiguration::parse(text.to_string().as_bytes(), &[]).unwrap();
        config.auth.chain.store(Arc::new(Chain::new(&parsed).unwrap()));
    })
    .await;
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    let joe = issue(&cluster.pki.cluster, Usage::Client, "joe", &[]);
    let narrow = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1");
    for (who, path, code) in [
        (&jane, PODS, 200),
        (&joe, PODS, 403),
        (&jane, narrow.as_str(), 403),
        (&jane, "/metrics", 403),
        (&jane, &format!("{PODS}/broken"), 500),
    ] {
        let answer = cluster.json(Some(who), Method::GET, path, &[], &NONE).await;
        assert_eq!(answer.0, code, "{path} {}", answer.1);
    }
    assert_eq!(hook.count("/access"), 1);
    let page = metrics(&cluster).await;
    for line in [
        "apiserver_authorization_match_condition_exclusions_total{type=\"Webhook\",name=\"hook\"} 3",
        "apiserver_authorization_match_condition_evaluation_errors_total{type=\"Webhook\",name=\"hook\"} 1",
        "apiserver_authorization_match_condition_evaluation_seconds_count{type=\"Webhook\",name=\"hook\"} 5",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

/// Expressions make the user; the groups are at another server, in a token of another issuer.
#[tokio::test]
async fn groups_that_another_server_holds() {
    let secret = key();
    let served = secret.clone();
    let port = Arc::new(Mutex::new(0));
    let own_port = port.clone();
    let issuer = outside(move |path, _| {
        let url = format!("https://127.0.0.1:{}", own_port.lock());
        let key = jws::private_key(&served).unwrap();
        match path {
            "/.well-known/openid-configuration" => {
                Some(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
            }
            "/other/.well-known/openid-configuration" => {
                Some(json!({"issuer": format!("{url}/other"), "jwks_uri": format!("{url}/keys")}))
            }
            "/keys" => Some(json!({"keys": [key.public().to_jwk()]})),
            "/groups" => {
                let exp = jiff::Timestamp::now().as_second() + 600;
                let claims =
                    json!({"iss": format!("{url}/other"), "aud": "yare", "exp": exp, "groups": ["far"]});
                Some(jws::sign(&key, claims.to_string().as_bytes()).unwrap().into())
            }
            _ => None,
        }
    })
    .await;
    *port.lock() = issuer.port;
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer.url(""), "audiences": ["yare"], "certificateAuthority": issuer.authority},
            "claimMappings": {
                "username": {"expression": "'oidc:' + claims.sub"},
                "groups": {"claim": "groups", "prefix": "g:"},
                "extra": [{"key": "example.org/level", "valueExpression": "string(int(claims.level))"}],
            },
            "claimValidationRules": [{"expression": "claims.level < 5", "message": "too high"}],
            "userValidationRules": [{"expression": "user.username != 'oidc:root'", "message": "reserved"}],
        }],
    })
    .to_string();
    let cluster = cluster_with(|config, _| {
        let parsed = AuthenticationConfiguration::parse(configuration.as_bytes(), &[]).unwrap();
        config.auth.oidc.replace(Issuers::start(&parsed, &Algorithm::ALL).unwrap());
    })
    .await;
    let token = |sub: &str, level: u32, source: &str| {
        let claims = json!({
            "iss": issuer.url(""), "aud": "yare", "sub": sub, "level": level,
            "exp": jiff::Timestamp::now().as_second() + 600,
            "_claim_names": {"groups": "s"},
            "_claim_sources": {"s": {"endpoint": issuer.url(source), "access_token": "let-me-in"}},
        });
        jws::sign(&jws::private_key(&secret).unwrap(), claims.to_string().as_bytes()).unwrap()
    };
    let mut answer = (0, NONE);
    for _ in 0..500 {
        answer = cluster.by_token(&token("jane", 3, "/groups")).await;
        if answer.0 == 201 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        answer.1,
        json!({
            "username": "oidc:jane", "groups": ["g:far", "system:authenticated"],
            "extra": {"example.org/level": ["3"]},
        })
    );
    let asked = issuer.asked.lock().iter().find(|a| a["path"] == "/groups").cloned().unwrap();
    assert_eq!(asked["authorization"], "Bearer let-me-in");
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    for (token, part) in [
        (token("jane", 7, "/groups"), "validation expression 'claims.level < 5' failed: too high"),
        (
            token("root", 1, "/groups"),
            "validation expression 'user.username != 'oidc:root'' failed: reserved",
        ),
        (
            token("jane", 1, "/nowhere"),
            "oidc: could not expand distributed claims: while getting distributed claim \"groups\"",
        ),
    ] {
        assert_eq!(cluster.by_token(&token).await.0, 401);
        let answer = cluster.create(reviews, &json!({"spec": {"token": token}})).await;
        let error = answer["status"]["error"].as_str().unwrap();
        assert!(error.contains(part), "{error}");
    }
    let page = metrics(&cluster).await;
    for line in [
        "apiserver_authentication_jwt_authenticator_latency_seconds_count{result=\"success\",jwt_issuer_hash=\"sha256:",
        "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds{result=\"success\",",
        "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info{",
        "authentication_attempts{result=\"error\"} ",
        "authentication_attempts{result=\"success\"}",
        "authenticated_user_requests{username=\"other\"}",
    ] {
        assert!(page.lines().any(|l| l.starts_with(line)), "{line}\n{page}");
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn acting_in_anothers_name() {
    let cluster = cluster().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let grant = async |who: &str, name: &str, rules: Value| {
        cluster
            .create(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": name}, "rules": rules}))
            .await;
        let binding = json!({
            "metadata": {"name": name}, "subjects": [{"kind": "User", "name": who, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"},
        });
        cluster.create(&format!("{rbac}/clusterrolebindings"), &binding).await;
    };
    grant(
        "bob",
        "reads",
        json!([{"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["list"]}]),
    )
    .await;
    // The old way: everything bob may.
    grant("old", "old", json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]}])).await;
    let old = issue(&cluster.pki.cluster, Usage::Client, "old", &[]);
    let as_bob = [("impersonate-user", "bob")];
    assert_eq!(cluster.json(Some(&old), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    // The constrained way: only pods.
    grant(
        "new",
        "new",
        json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]},
        ]),
    )
    .await;
    let new = issue(&cluster.pki.cluster, Usage::Client, "new", &[]);
    assert_eq!(cluster.json(Some(&new), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    let (code, status) =
        cluster.json(Some(&new), Method::GET, "/api/v1/namespaces/default/configmaps", &as_bob, &NONE).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "configmaps is forbidden: User \"new\" cannot impersonate-on:user-info:list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    // Never the administrators' group, whatever the rules say.
    grant("all", "all", json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["impersonate:user-info", "impersonate-on:user-info:list"]}])).await;
    let all = issue(&cluster.pki.cluster, Usage::Client, "all", &[]);
    assert_eq!(cluster.json(Some(&all), Method::GET, PODS, &as_bob, &NONE).await.0, 200);
    let masters = [("impersonate-user", "bob"), ("impersonate-group", "system:masters")];
    let (code, status) = cluster.json(Some(&all), Method::GET, PODS, &masters, &NONE).await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("impersonating the system:masters group is not allowed"),
        "{status}"
    );
    // A whole identity.
    let admin = cluster.admin();
    let whole = [
        ("impersonate-user", "bob"),
        ("impersonate-uid", "9"),
        ("impersonate-group", "x"),
        ("impersonate-extra-example.org%2fa", "b"),
    ];
    let (code, user) = cluster.who(Some(&admin), &whole).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "bob", "uid": "9", "groups": ["x", "system:authenticated"], "extra": {"example.org/a": ["b"]}})
    );
    let account = [("impersonate-user", "system:serviceaccount:ns:sa")];
    let (_, user) = cluster.who(Some(&admin), &account).await;
    assert_eq!(
        user["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"])
    );
    let node = [("impersonate-user", "system:node:n1")];
    assert_eq!(
        cluster.who(Some(&admin), &node).await.1["groups"],
        json!(["system:nodes", "system:authenticated"])
    );
    // An anonymous caller may ask for the version, and not who it is.
    let anonymous = [("impersonate-user", "system:anonymous")];
    assert_eq!(cluster.json(Some(&admin), Method::GET, "/version", &anonymous, &NONE).await.0, 200);
    assert_eq!(cluster.who(Some(&admin), &anonymous).await.0, 403);
    assert_eq!(cluster.who(Some(&admin), &[("impersonate-group", "x")]).await.0, 400);
    cluster.api.shutdown().await;
}

/// Authorizers follow the store a moment behind; a refusal must not come of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_request_granted_holds() {
    let cluster = cluster().await;
    let send = async |user: User, method: &str, path: &str, body: &Value| {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).body(Full::new(bytes)).unwrap();
        cluster.api.service(user).oneshot(request).await.unwrap().status().as_u16()
    };
    let create = async |path: &str, object: Value| {
        assert_eq!(send(User::admin(), "POST", path, &object).await, 201, "{path}");
    };
    create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    create("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "c"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
    create(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "reads"}, "rules": rules})).await;
    let config_map = "/api/v1/namespaces/default/configmaps/c";
    for n in 0..40 {
        let (node, user) = (format!("n{n}"), format!("u{n}"));
        let agent = User::new(format!("system:node:{node}"), &["system:nodes"]);
        assert_eq!(send(agent.clone(), "GET", config_map, &NONE).await, 403);
        let pod = json!({"metadata": {"name": node}, "spec": {
            "nodeName": node, "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        }});
        create(PODS, pod).await;
        assert_eq!(send(agent, "GET", config_map, &NONE).await, 200, "{node}");

        let person = User::new(user.clone(), &[]);
        let binding = json!({
            "metadata": {"name": user}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": "reads", "apiGroup": "rbac.authorization.k8s.io"},
        });
        create(&format!("{rbac}/namespaces/default/rolebindings"), binding).await;
        assert_eq!(send(person, "GET", config_map, &NONE).await, 200, "{user}");
    }
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn nobody_grants_more_than_he_holds() {
    let cluster = cluster().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let editor = json!({"metadata": {"name": "editor"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["create", "update", "patch", "get", "list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]});
    cluster.create(&format!("{rbac}/clusterroles"), &editor).await;
    let binding = json!({
        "metadata": {"name": "editor"}, "subjects": [{"kind": "User", "name": "ed", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "editor", "apiGroup": "rbac.authorization.k8s.io"},
    });
    cluster.create(&format!("{rbac}/clusterrolebindings"), &binding).await;
    let ed = issue(&cluster.pki.cluster, Usage::Client, "ed", &["g"]);
    let roles = format!("{rbac}/clusterroles");
    assert_eq!(cluster.json(Some(&ed), Method::GET, &roles, &[], &NONE).await.0, 200);
    let role = |name: &str, verbs: &[&str]| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
    assert_eq!(cluster.json(Some(&ed), Method::POST, &roles, &[], &role("a", &["get"])).await.0, 201);
    let (code, status) =
        cluster.json(Some(&ed), Method::POST, &roles, &[], &role("b", &["get", "list", "watch"])).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "clusterroles.rbac.authorization.k8s.io \"b\" is forbidden: user \"ed\" (groups=[\"g\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}"
    );
    let mut gathering = role("c", &["get"]);
    gathering["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
    let (code, status) = cluster.json(Some(&ed), Method::POST, &roles, &[], &gathering).await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("must have cluster-admin privileges to use the aggregationRule"),
        "{status}"
    );
    // A strong role may not even get a label from him; a finalizer may go.
    let merge = [("content-type", "application/merge-patch+json")];
    let strong = format!("{roles}/cluster-admin");
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    assert_eq!(cluster.json(Some(&ed), Method::PATCH, &strong, &merge, &label).await.0, 403);
    let finalizer = json!({"metadata": {"finalizers": ["a.b/c"]}});
    assert_eq!(cluster.json(Some(&ed), Method::PATCH, &strong, &merge, &finalizer).await.0, 200);
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn access_reviews() {
    let cluster = cluster().await;
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = async |spec: Value| {
        let (code, answer) =
            cluster.json(Some(&cluster.admin()), Method::POST, reviews, &[], &json!({"spec": spec})).await;
        if code == 201 { answer["status"].clone() } else { answer["message"].clone() }
    };
    let node = |more: Value| {
        let mut resource = json!({"verb": "list", "resource": "pods", "version": "v1"});
        for (k, v) in more.as_object().unwrap() {
            resource[k] = v.clone();
        }
        json!({"user": "system:node:n1", "groups": ["system:nodes"], "resourceAttributes": resource})
    };
    // Selectors narrow what a node agent asks for.
    assert_eq!(ask(node(json!({}))).await["allowed"], false);
    assert_eq!(
        ask(node(json!({"fieldSelector": {"rawSelector": "spec.nodeName=n1"}}))).await,
        json!({"allowed": true})
    );
    let own = json!({"fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]}});
    assert_eq!(ask(node(own)).await["allowed"], true);
    let half = json!({"fieldSelector": {"requirements": [
        {"key": "spec.nodeName", "operator": "In", "values": ["n1"]}, {"key": "a", "operator": "Later", "values": ["b"]}]}});
    assert_eq!(
        ask(node(half)).await,
        json!({"allowed": true, "evaluationError": "spec.resourceAttributes.fieldSelector partially ignored due to parse error"})
    );
    let broken = json!({"labelSelector": {"rawSelector": "a in"}});
    assert_eq!(
        ask(node(broken)).await["evaluationError"],
        "spec.resourceAttributes.labelSelector ignored due to parse error"
    );
    for (spec, error) in [
        (
            json!({"user": "a"}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (json!({"resourceAttributes": {}}), "at least one of user or group must be specified"),
        (
            json!({"user": "a", "resourceAttributes": {}, "nonResourceAttributes": {}}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (node(json!({"fieldSelector": {}})), "requirements or rawSelector is required"),
    ] {
        let message = ask(spec.clone()).await;
        assert!(message.as_str().unwrap().contains(error), "{spec}: {message}");
    }
    let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
    let other = json!({"spec": {"user": "a", "resourceAttributes": {"namespace": "other"}}});
    let (code, status) = cluster.json(Some(&cluster.admin()), Method::POST, local, &[], &other).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("must match metadata.namespace"), "{status}");
    // What one may do oneself.
    let jane = issue(&cluster.pki.cluster, Usage::Client, "jane", &[]);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (code, answer) =
        cluster.json(Some(&jane), Method::POST, rules, &[], &json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(code, 201);
    let resources = answer["status"]["resourceRules"].as_array().unwrap();
    assert!(resources.iter().any(|r| r["resources"] == json!(["selfsubjectreviews"])), "{answer}");
    assert_eq!(answer["status"]["incomplete"], false);
    cluster.api.shutdown().await;
}
