//! Who the server is to others: credentials of kubeconfigs, programs that say some, and the webhook that judges
//! images, against a real TLS server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::Server;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use yare_apiserver::admission::Settings;
use yare_auth::{
    User,
    pki::{KeyPairPem, Pki, Subject, Usage},
    tls::{self, Speaks},
};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A server that knows neither the token `t1` nor anybody without one, and says of what it was asked.
struct Other {
    port: u16,
    pki: Pki,
    /// Who asked, by certificate and token, and in whose name; and what.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    dir: tempfile::TempDir,
}

fn answer(body: &Value) -> Value {
    if body["kind"] == "AdmissionReview" {
        let response = json!({"uid": body["request"]["uid"], "allowed": true});
        return json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    }
    let mut status = json!({"allowed": true, "auditAnnotations": {"seen": "yes"}});
    for container in body["spec"]["containers"].as_array().unwrap() {
        match container["image"].as_str().unwrap() {
            "bad" => status = json!({"allowed": false, "reason": "not this one"}),
            "worse" => status = json!({"allowed": false}),
            _ => {}
        }
    }
    json!({"apiVersion": body["apiVersion"], "kind": body["kind"], "status": status})
}

async fn other() -> Other {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let pair = issue(&pki, Usage::Server, "other");
    let acceptor =
        tokio_rustls::TlsAcceptor::from(tls::server(&pair, &pki.cluster.certificate, Speaks::Http1).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, log) = (acceptor.clone(), log.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
                let peer = leaf.and_then(|leaf| User::from_certificate(&leaf).unwrap());
                let peer = peer.map_or_else(String::new, |user| user.name);
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (log, peer) = (log.clone(), peer.clone());
                    async move {
                        let header = |name: &str| {
                            let value = request.headers().get(name).and_then(|v| v.to_str().ok());
                            value.unwrap_or("-").to_owned()
                        };
                        let who =
                            format!("{peer} {} {}", header("authorization"), header("impersonate-user"));
                        let bytes = request.into_body().collect().await?.to_bytes();
                        let body: Value = serde_json::from_slice(&bytes).unwrap();
                        let known = !who.contains("Bearer t1") && who.contains("Bearer");
                        let text = if known { answer(&body).to_string() } else { String::new() };
                        log.lock().push((who, body));
                        let mut response = Response::new(Full::new(Bytes::from(text)));
                        if !known {
                            *response.status_mut() = StatusCode::UNAUTHORIZED;
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
    Other { port, pki, asked, dir }
}

fn issue(pki: &Pki, usage: Usage, name: &str) -> KeyPairPem {
    let names = ["127.0.0.1".to_owned()];
    let subject = Subject { common_name: name, organizations: &[], alternative_names: &names };
    pki.cluster.issue(usage, &subject, Duration::from_secs(3600)).unwrap()
}

impl Other {
    fn write(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn bundle(&self) -> String {
        STANDARD.encode(&self.pki.cluster.certificate)
    }

    /// A program that shows another token and certificate each time.
    fn program(&self) -> Value {
        for n in 1..=3 {
            let pair = issue(&self.pki, Usage::Client, &format!("c{n}"));
            let credential = json!({
                "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1",
                "status": {"token": format!("t{n}"), "clientCertificateData": pair.certificate, "clientKeyData": pair.key},
            });
            self.write(&format!("credential-{n}"), &credential.to_string());
        }
        let script = "cd $DIR; echo x >> runs; cat credential-$(wc -l < runs)";
        json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "interactiveMode": "Never", "env": [{"name": "DIR", "value": self.dir.path()}],
        })
    }

    fn settings(&self, plugin: &str, configuration: &Value) -> Settings {
        let config = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
            "plugins": [{"name": plugin, "configuration": configuration}],
        });
        let file = self.write("admission.yaml", &config.to_string());
        let enable = if plugin == "ImagePolicyWebhook" { vec![plugin.to_owned()] } else { Vec::new() };
        Settings::load(&enable, &[], Some(Path::new(&file))).unwrap()
    }

    fn who(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(who, _)| who.clone()).collect()
    }
}

#[tokio::test]
async fn webhooks_are_shown_what_a_program_says() {
    let other = other().await;
    let users = json!({"users": [
        {"name": format!("127.0.0.1:{}", other.port), "user": {"exec": other.program(), "as": "somebody"}},
        {"name": "*", "user": {"token": "for-others"}},
    ]});
    let file = other.write("users.yaml", &users.to_string());
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": file,
    });
    let settings = other.settings("ValidatingAdmissionWebhook", &configuration);
    let server = Server::with(|config| config.admission = settings).await;
    let hook = json!({
        "name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "clientConfig": {"url": format!("https://127.0.0.1:{}/", other.port), "caBundle": other.bundle()},
    });
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    server.post(hooks, &json!({"metadata": {"name": "hooks"}, "webhooks": [hook]})).await.expect(201);
    let create = async |name: &str| {
        let path = "/api/v1/namespaces/default/configmaps";
        server.post(path, &json!({"metadata": {"name": name}})).await
    };
    // Nobody knows the first token; the program is asked for another, whose certificate needs a new connection.
    let message = create("a").await.expect_reason(500, "InternalError");
    assert!(message.contains("has asked for the client to provide credentials"), "{message}");
    for name in ["b", "c"] {
        create(name).await.expect(201);
    }
    let wanted = ["c1 Bearer t1 somebody", "c2 Bearer t2 somebody", "c2 Bearer t2 somebody"];
    assert_eq!(other.who(), wanted);
}

#[tokio::test]
async fn images_are_judged_by_a_webhook() {
    let other = other().await;
    let kubeconfig = json!({
        "clusters": [{"name": "a", "cluster": {
            "server": format!("https://127.0.0.1:{}/images", other.port), "certificate-authority-data": other.bundle()}}],
        "users": [{"name": "b", "user": {"token": "own"}}],
    });
    let file = other.write("kubeconfig", &kubeconfig.to_string());
    let configuration =
        json!({"imagePolicy": {"kubeConfigFile": file, "retryBackoff": 1, "defaultAllow": false}});
    let settings = other.settings("ImagePolicyWebhook", &configuration);
    let server = Server::with(|config| config.admission = settings).await;
    let pod = |name: &str, image: &str| {
        json!({
            "metadata": {"name": name, "annotations": {"a.image-policy.k8s.io/b": "c", "other": "d"}},
            "spec": {"containers": [{"name": "c", "image": image}], "initContainers": [{"name": "i", "image": "init"}]},
        })
    };
    server.post(PODS, &pod("a", "good")).await.expect(201);
    server.post(PODS, &pod("b", "good")).await.expect(201);
    for (image, message) in [
        (
            "bad",
            "pods \"c\" is forbidden: image policy webhook backend denied one or more images: not this one",
        ),
        ("worse", "pods \"c\" is forbidden: one or more images rejected by webhook backend"),
    ] {
        assert_eq!(server.post(PODS, &pod("c", image)).await.expect_reason(403, "Forbidden"), message);
    }
    let asked = other.asked.lock().clone();
    assert_eq!(asked.len(), 3, "answers are kept: {asked:?}");
    let (who, review) = &asked[0];
    assert_eq!(who, " Bearer own -");
    assert_eq!(
        (&review["kind"], &review["apiVersion"]),
        (&json!("ImageReview"), &json!("imagepolicy.k8s.io/v1alpha1"))
    );
    let wanted = json!({
        "containers": [{"image": "good"}, {"image": "init"}],
        "annotations": {"a.image-policy.k8s.io/b": "c"}, "namespace": "default",
    });
    assert_eq!(review["spec"], wanted);
}

#[tokio::test]
async fn without_the_webhook_images_may_run_or_not() {
    let other = other().await;
    for (allow, code) in [(true, 201), (false, 403)] {
        // Nobody is there.
        let kubeconfig = json!({"clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}]});
        let file = other.write("kubeconfig", &kubeconfig.to_string());
        let configuration =
            json!({"imagePolicy": {"kubeConfigFile": file, "retryBackoff": 1, "defaultAllow": allow}});
        let settings = other.settings("ImagePolicyWebhook", &configuration);
        let server = Server::with(|config| config.admission = settings).await;
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let answer = server.post(PODS, &pod).await.expect(code);
        if !allow {
            let message = answer["message"].as_str().unwrap();
            assert!(message.contains("connection refused"), "{message}");
        }
    }
}
