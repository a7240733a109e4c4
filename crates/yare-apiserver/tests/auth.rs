//! Who comes in: every authenticator against a real server, with webhooks and issuers that are real HTTPS servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/outside.rs"]
mod outside;
#[path = "common/secure.rs"]
mod secure;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use outside::{NONE, metrics, outside};
use parking_lot::Mutex;
use secure::{cluster, cluster_with, issue};
use serde_json::{Value, json};
use yare_apiserver::auth::{Issuers, TokenWebhook};
use yare_auth::{
    User,
    config::authentication::AuthenticationConfiguration,
    jws::{self, Algorithm},
    pki::{Pki, Usage},
    token::legacy,
};

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
        config.auth.oidc.replace(Issuers::start(&parsed, &Algorithm::ALL, None).unwrap());
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
        config.auth.oidc.replace(Issuers::start(&parsed, &Algorithm::ALL, None).unwrap());
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
