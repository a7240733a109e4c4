//! Certificates, and what else proves who somebody is: requests, tokens in Secrets, trust anchors. Against the
//! real API server with RBAC, every controller under its own name.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{Cluster, condition};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};
use yare_apiserver::{User, runtime_config::RuntimeConfig};
use yare_auth::{
    bootstrap_token::detached_signature,
    pki::{Authority, Pki, der, not_after_s},
    tls::ClientAuthority,
    token::Signer,
};
use yare_client::{
    CERTIFICATE_SIGNING_REQUESTS as REQUESTS, CLUSTER_ROLE_BINDINGS, CONFIG_MAPS, NAMESPACES, ObjectKey,
    POD_CERTIFICATE_REQUESTS, PODS, Resource, SECRETS, SERVICE_ACCOUNTS,
};
use yare_controllers::{Config, api::Propagation};
use yare_schema::features::Gates;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE: &str = "system:node:n1";
const NODES_GROUP: &str = "system:nodes";

/// Configuration with the keys in `dir`, whose clock is `ahead` by so much.
fn config(dir: &tempfile::TempDir, ahead: Duration) -> (Pki, Config) {
    let pki = Pki::open(dir.path()).unwrap();
    let signer = Signer::new(&pki.service_account_key, "https://issuer", &["api".into()]).unwrap();
    let config = Config {
        root_ca: pki.cluster.certificate.clone(),
        cluster_signing: Some(pki.cluster.clone()),
        token_signer: Some(Arc::new(signer)),
        clock: Arc::new(move || jiff::Timestamp::now() + ahead),
        ..Config::default()
    };
    (pki, config)
}

/// A request as `spec.request` has it.
fn pkcs10(common_name: &str, organization: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    if !organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().unwrap();
    STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

fn request(name: &str, signer: &str, usages: &[&str], request: String) -> Value {
    json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1",
        "metadata": {"name": name}, "spec": {"signerName": signer, "usages": usages, "request": request}})
}

async fn judge(cluster: &Cluster, name: &str, verdict: &str) {
    let object = cluster.api.get(&REQUESTS, &ObjectKey::cluster(name)).await.unwrap().unwrap();
    let judge = |body: &mut Value| {
        body["status"]["conditions"] = json!([{"type": verdict, "status": "True", "reason": "Test"}]);
    };
    cluster.api.put(&REQUESTS, &object, "/approval", judge).await.unwrap();
}

/// The certificate (DER) of a request, once it is there.
async fn issued(cluster: &Cluster, name: &str) -> Vec<u8> {
    let found = cluster.until_is(&REQUESTS, "", name, |r| r["status"]["certificate"].is_string()).await;
    let pem = STANDARD.decode(found["status"]["certificate"].as_str().unwrap()).unwrap();
    der(&String::from_utf8(pem).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn approved_requests_are_signed_as_their_signer_does() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = config(&dir, Duration::ZERO);
    let cluster = Cluster::secure(config, |_| {}).await;
    let usages = ["client auth", "digital signature"];
    let mut jane = request("jane", CLIENT, &usages, pkcs10("jane", "dev", &[]));
    jane["spec"]["expirationSeconds"] = 3600.into();
    cluster.create(&REQUESTS, "", jane).await;
    let mut foreign = request("foreign", "example.com/own", &usages, pkcs10("jane", "dev", &[]));
    foreign["spec"]["expirationSeconds"] = 3600.into();
    cluster.create(&REQUESTS, "", foreign).await;
    judge(&cluster, "foreign", "Approved").await;
    judge(&cluster, "jane", "Approved").await;
    let certificate = issued(&cluster, "jane").await;
    let user = User::from_certificate(&certificate).unwrap().unwrap();
    assert_eq!((&*user.name, &user.groups[0]), ("jane", &"dev".to_owned()));
    let left = not_after_s(&certificate).unwrap() - jiff::Timestamp::now().as_second();
    assert!((3500..=3600).contains(&left), "{left}");

    // What a signer does not sign fails, with the reason.
    for (name, signer, usages, asked, why) in [
        (
            "both",
            CLIENT,
            &["client auth", "server auth"][..],
            pkcs10("jane", "dev", &[]),
            "invalid usage for client certificate: server auth",
        ),
        (
            "named",
            KUBELET_CLIENT,
            &["client auth", "digital signature"],
            pkcs10(NODE, NODES_GROUP, &["n1"]),
            "DNS subjectAltNames are not allowed",
        ),
        (
            "nameless",
            KUBELET_SERVING,
            &["server auth", "digital signature"],
            pkcs10(NODE, NODES_GROUP, &[]),
            "DNS or IP subjectAltName is required",
        ),
    ] {
        cluster.create(&REQUESTS, "", request(name, signer, usages, asked)).await;
        judge(&cluster, name, "Approved").await;
        let found = cluster.until_is(&REQUESTS, "", name, |r| condition(r, "Failed").is_some()).await;
        let failed = condition(&found, "Failed").unwrap();
        assert_eq!((&failed["reason"], &failed["message"]), (&json!("SignerValidationFailure"), &json!(why)));
        assert!(found["status"]["certificate"].is_null() && failed["lastUpdateTime"].is_string(), "{found}");
    }
    // A kubelet's server certificate takes somebody to approve it.
    let names = ["n1", "10.0.0.1"];
    let serving = request(
        "serving",
        KUBELET_SERVING,
        &["server auth", "digital signature"],
        pkcs10(NODE, NODES_GROUP, &names),
    );
    cluster.create(&REQUESTS, "", serving).await;
    judge(&cluster, "serving", "Approved").await;
    issued(&cluster, "serving").await;
    let denied = request("denied", CLIENT, &usages, pkcs10("jane", "dev", &[]));
    cluster.create(&REQUESTS, "", denied).await;
    judge(&cluster, "denied", "Denied").await;
    for name in ["denied", "foreign"] {
        let found = cluster.find(&REQUESTS, "", name).await.unwrap();
        assert!(found["status"]["certificate"].is_null(), "{found}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn signers_with_authorities_of_their_own_are_the_only_ones() {
    let [dir, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (pki, mut config) = config(&dir, Duration::ZERO);
    let other = Pki::open(elsewhere.path()).unwrap();
    config.signer_authorities.insert(CLIENT, other.cluster.clone());
    let cluster = Cluster::secure(config, |_| {}).await;
    let client = request("client", CLIENT, &["client auth"], pkcs10("jane", "dev", &[]));
    let usages = ["server auth", "digital signature"];
    let serving = request("serving", KUBELET_SERVING, &usages, pkcs10(NODE, NODES_GROUP, &["n1"]));
    for (name, object) in [("serving", serving), ("client", client)] {
        cluster.create(&REQUESTS, "", object).await;
        judge(&cluster, name, "Approved").await;
    }
    let certificate = issued(&cluster, "client").await;
    let vouches = |authority: &Authority| {
        let authority = ClientAuthority::new(&authority.certificate).unwrap();
        authority.vouches(&[certificate.clone().into()], jiff::Timestamp::now().as_second()).is_ok()
    };
    assert!(vouches(&other.cluster) && !vouches(&pki.cluster));
    let found = cluster.find(&REQUESTS, "", "serving").await.unwrap();
    assert!(found["status"]["certificate"].is_null(), "{found}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelets_are_approved_where_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = config(&dir, Duration::ZERO);
    let cluster = Cluster::secure(config, |_| {}).await;
    let usages = ["client auth", "digital signature"];
    let node = cluster.api_as(User::new(NODE, &[NODES_GROUP]));
    let own = request("own", KUBELET_CLIENT, &usages, pkcs10(NODE, NODES_GROUP, &[]));
    node.create(&REQUESTS, "", &own).await.unwrap();
    // A machine that joins, with a bootstrap token.
    let bind = |name: &str, role: &str, group: &str| {
        json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]})
    };
    let bootstrappers = "system:bootstrappers";
    let role = "system:certificates.k8s.io:certificatesigningrequests";
    cluster.create(&CLUSTER_ROLE_BINDINGS, "", bind("ask", "system:node-bootstrapper", bootstrappers)).await;
    cluster
        .create(&CLUSTER_ROLE_BINDINGS, "", bind("first", &format!("{role}:nodeclient"), bootstrappers))
        .await;
    let machine = cluster.api_as(User::new("system:bootstrap:abcdef", &[bootstrappers]));
    let first = request("first", KUBELET_CLIENT, &usages, pkcs10(NODE, NODES_GROUP, &[]));
    cluster
        .until("bootstrappers to ask", || async { machine.create(&REQUESTS, "", &first).await.ok() })
        .await;
    // One that is not for a node waits for somebody to look at it.
    let other = request("other", KUBELET_CLIENT, &usages, pkcs10("jane", NODES_GROUP, &[]));
    machine.create(&REQUESTS, "", &other).await.unwrap();

    let found = cluster.until_is(&REQUESTS, "", "first", |r| condition(r, "Approved").is_some()).await;
    let approved = condition(&found, "Approved").unwrap();
    assert_eq!(approved["reason"], "AutoApproved");
    assert_eq!(approved["message"], "Auto approving kubelet client certificate after SubjectAccessReview.");
    let certificate = issued(&cluster, "first").await;
    assert_eq!(User::from_certificate(&certificate).unwrap().unwrap().node_name(), Some("n1"));
    // Nobody had said that nodes may renew theirs; what was asked before is answered afterwards.
    let own = cluster.find(&REQUESTS, "", "own").await.unwrap();
    assert!(condition(&own, "Approved").is_none(), "{own}");
    cluster
        .create(&CLUSTER_ROLE_BINDINGS, "", bind("renew", &format!("{role}:selfnodeclient"), NODES_GROUP))
        .await;
    let own = cluster.until_is(&REQUESTS, "", "own", |r| r["status"]["certificate"].is_string()).await;
    assert_eq!(
        condition(&own, "Approved").unwrap()["message"],
        "Auto approving self kubelet client certificate after SubjectAccessReview."
    );
    let other = cluster.find(&REQUESTS, "", "other").await.unwrap();
    assert!(other["status"]["conditions"].is_null(), "{other}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_requests_go() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = config(&dir, Duration::from_secs(3700));
    let gates = Gates::parse("PodCertificateRequest=true").unwrap();
    let config = Config { gates: gates.clone(), ..config };
    let cluster = Cluster::secure(config, |server| {
        server.gates = gates;
        server.runtime_config =
            RuntimeConfig::parse("certificates.k8s.io/v1beta1/podcertificaterequests=true").unwrap();
    })
    .await;
    let usages = ["client auth", "digital signature"];
    for name in ["pending", "denied", "approved", "unsigned"] {
        let signer = if name == "unsigned" { "example.com/own" } else { CLIENT };
        cluster.create(&REQUESTS, "", request(name, signer, &usages, pkcs10("jane", "dev", &[]))).await;
    }
    for (name, verdict) in [("denied", "Denied"), ("approved", "Approved"), ("unsigned", "Approved")] {
        judge(&cluster, name, verdict).await;
    }
    cluster.until_gone(&REQUESTS, "", "denied").await;
    cluster.until_gone(&REQUESTS, "", "approved").await;
    for name in ["pending", "unsigned"] {
        assert!(cluster.find(&REQUESTS, "", name).await.is_some(), "{name} has a day");
    }
    let mut stub = CertificateParams::default();
    stub.distinguished_name = DistinguishedName::new();
    let stub = stub.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let of_pod = json!({"metadata": {"name": "p"}, "spec": {
        "signerName": "example.com/own", "podName": "p", "podUID": "u", "serviceAccountName": "default",
        "serviceAccountUID": "u", "nodeName": "n1", "nodeUID": "u", "stubPKCS10Request": STANDARD.encode(stub.der()),
    }});
    cluster.create(&POD_CERTIFICATE_REQUESTS, "default", of_pod).await;
    cluster.until_gone(&POD_CERTIFICATE_REQUESTS, "default", "p").await;
    cluster.stop().await;
}

fn bootstrap_token(id: &str, change: Value) -> Value {
    let mut data =
        json!({"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"});
    for (key, value) in change.as_object().unwrap() {
        data[key] = value.clone();
    }
    json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
        "stringData": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_tokens_sign_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = config(&dir, Duration::ZERO);
    let cluster = Cluster::secure(config, |_| {}).await;
    let soon = (jiff::Timestamp::now() + Duration::from_secs(2)).to_string();
    for token in [
        bootstrap_token("aaaaaa", json!({})),
        bootstrap_token("bbbbbb", json!({"usage-bootstrap-signing": "false"})),
        bootstrap_token("cccccc", json!({"expiration": soon})),
        bootstrap_token("dddddd", json!({"expiration": "2020-01-01T00:00:00Z"})),
        bootstrap_token("eeeeee", json!({"expiration": "2120-01-01T00:00:00Z"})),
    ] {
        cluster.create(&SECRETS, "kube-system", token).await;
    }
    cluster.until_gone(&SECRETS, "kube-system", "bootstrap-token-dddddd").await;
    let map = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "apiVersion: v1\n"}});
    cluster.create(&CONFIG_MAPS, "kube-public", map).await;
    let signature = |id: &str| detached_signature("apiVersion: v1\n", id, "0123456789abcdef");
    let signed = |ids: &'static [&'static str]| {
        move |map: &Value| {
            let data = map["data"].as_object().unwrap();
            data.len() == ids.len() + 1
                && ids
                    .iter()
                    .all(|id| data.get(&format!("jws-kubeconfig-{id}")) == Some(&json!(signature(id))))
        }
    };
    // The one that ends is gone, and so is its signature.
    cluster.until_gone(&SECRETS, "kube-system", "bootstrap-token-cccccc").await;
    cluster.until_is(&CONFIG_MAPS, "kube-public", "cluster-info", signed(&["aaaaaa", "eeeeee"])).await;
    let allow = json!({"stringData": {"usage-bootstrap-signing": "true"}});
    cluster.merge(&SECRETS, "kube-system", "bootstrap-token-bbbbbb", allow).await;
    cluster.delete(&SECRETS, "kube-system", "bootstrap-token-aaaaaa", Propagation::Background).await;
    cluster.until_is(&CONFIG_MAPS, "kube-public", "cluster-info", signed(&["bbbbbb", "eeeeee"])).await;
    // Signatures that somebody spoils come back.
    let spoil = json!({"data": {"jws-kubeconfig-bbbbbb": "x", "jws-kubeconfig-zzzzzz": "y"}});
    cluster.merge(&CONFIG_MAPS, "kube-public", "cluster-info", spoil).await;
    cluster.until_is(&CONFIG_MAPS, "kube-public", "cluster-info", signed(&["bbbbbb", "eeeeee"])).await;
    assert!(cluster.find(&SECRETS, "kube-system", "bootstrap-token-eeeeee").await.is_some());
    cluster.stop().await;
}

fn token_secret(name: &str, account: &str) -> Value {
    json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
        "type": "kubernetes.io/service-account-token"})
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_service_accounts_are_filled_and_go_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, config) = config(&dir, Duration::ZERO);
    let signer = config.token_signer.clone().unwrap();
    let cluster = Cluster::secure(config, |_| {}).await;
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "team"}})).await;
    let account = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "one"}, {"name": "later"}]});
    let account = cluster.create(&SERVICE_ACCOUNTS, "team", account).await;
    for name in ["one", "two"] {
        cluster.create(&SECRETS, "team", token_secret(name, "robot")).await;
    }
    let full = |s: &Value| s["data"]["token"].is_string();
    for name in ["one", "two"] {
        let secret = cluster.until_is(&SECRETS, "team", name, full).await;
        let text = |key: &str| {
            String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
        };
        assert_eq!((text("ca.crt"), text("namespace")), (pki.cluster.certificate.clone(), "team".into()));
        let verified = signer.verify(&text("token"), &[], 0).unwrap();
        let claims = verified.legacy.as_ref().unwrap();
        assert_eq!((&*claims.secret, &*claims.uid), (name, account.uid()));
        assert_eq!(verified.user.name, "system:serviceaccount:team:robot");
        assert_eq!(secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"], account.uid());
    }
    // What is taken out comes back; the authority is kept true.
    let token = |s: &Value| s["data"]["token"].clone();
    let before = token(&cluster.find(&SECRETS, "team", "one").await.unwrap());
    let spoil = json!({"data": {"ca.crt": "eA==", "namespace": null, "token": null}});
    cluster.merge(&SECRETS, "team", "one", spoil).await;
    let again = cluster.until_is(&SECRETS, "team", "one", full).await;
    assert_eq!(again["data"]["ca.crt"], STANDARD.encode(&pki.cluster.certificate));
    assert_ne!(token(&again), before, "another token");
    // A reference to a Secret that is deleted goes, one to a Secret that never was stays.
    cluster.delete(&SECRETS, "team", "one", Propagation::Background).await;
    cluster
        .until_is(&SERVICE_ACCOUNTS, "team", "robot", |a| a["secrets"] == json!([{"name": "later"}]))
        .await;
    // A Secret of another account of that name, of one that never was, and of one that goes.
    let mut other = token_secret("other", "robot");
    other["metadata"]["annotations"]["kubernetes.io/service-account.uid"] = "another".into();
    cluster.create(&SECRETS, "team", other).await;
    cluster.create(&SECRETS, "team", token_secret("nobody", "nobody")).await;
    cluster.until_gone(&SECRETS, "team", "other").await;
    cluster.until_gone(&SECRETS, "team", "nobody").await;
    assert!(cluster.find(&SECRETS, "team", "two").await.is_some());
    cluster.delete(&SERVICE_ACCOUNTS, "team", "robot", Propagation::Background).await;
    cluster.until_gone(&SECRETS, "team", "two").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_tokens_are_marked_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, config) = config(&dir, Duration::from_secs(400 * 24 * 3600));
    let signer = config.token_signer.clone();
    let cluster = Cluster::secure(config, |server| server.auth = yare_apiserver::Auth::new(signer)).await;
    let made = ["marked", "removed", "used", "mounted"];
    let references: Vec<Value> = made.iter().map(|name| json!({"name": name})).collect();
    cluster
        .create(&SERVICE_ACCOUNTS, "default", json!({"metadata": {"name": "old"}, "secrets": references}))
        .await;
    let pod = json!({"metadata": {"name": "p", "labels": {"fate": "waits"}}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}]}});
    cluster.create(&PODS, "default", pod).await;
    cluster.until("the pod to be known", || async { cluster.find(&PODS, "default", "p").await }).await;
    for name in ["used", "by-hand", "removed", "marked", "mounted"] {
        let mut secret = token_secret(name, "old");
        secret["metadata"]["labels"] = match name {
            "removed" => json!({"kubernetes.io/legacy-token-invalid-since": "2020-01-01"}),
            "used" => json!({"kubernetes.io/legacy-token-last-used": "2100-01-01"}),
            _ => json!({}),
        };
        cluster.create(&SECRETS, "default", secret).await;
    }
    cluster.until_gone(&SECRETS, "default", "removed").await;
    let mark = "kubernetes.io/legacy-token-invalid-since";
    let marked = |s: &Value| s["metadata"]["labels"][mark].is_string();
    cluster.until_is(&SECRETS, "default", "marked", marked).await;
    for name in ["used", "mounted", "by-hand"] {
        let secret = cluster.find(&SECRETS, "default", name).await.unwrap();
        assert!(!marked(&secret), "{secret}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_published_as_a_trust_bundle() {
    for version in ["v1beta1", "v1alpha1"] {
        let dir = tempfile::tempdir().unwrap();
        let (pki, config) = config(&dir, Duration::ZERO);
        let gates = Gates::parse("ClusterTrustBundle=true").unwrap();
        let config = Config { gates: gates.clone(), ..config };
        let wanted = format!("certificates.k8s.io/{version}/clustertrustbundles=true");
        let cluster = Cluster::secure(config, |server| {
            server.gates = gates;
            server.runtime_config = RuntimeConfig::parse(&wanted).unwrap();
        })
        .await;
        let bundles = Resource::fixed(
            "certificates.k8s.io",
            version,
            "clustertrustbundles",
            "ClusterTrustBundle",
            false,
        );
        let signer = "kubernetes.io/kube-apiserver-serving";
        let published = |list: &[Value]| {
            list.len() == 1
                && list[0]["spec"] == json!({"signerName": signer, "trustBundle": pki.cluster.certificate})
        };
        let found = cluster.until_list(&bundles, "", published).await;
        let name = found[0]["metadata"]["name"].as_str().unwrap().to_owned();
        let digest = name.strip_prefix("kubernetes.io:kube-apiserver-serving:").unwrap();
        assert_eq!(digest.len(), 24);
        // It comes back, right; the signer's others go, and others' stay.
        let front = pki.front_proxy.certificate.clone();
        let spoil = json!({"spec": {"trustBundle": front}});
        cluster.merge(&bundles, "", &name, spoil).await;
        let stray = json!({"metadata": {"name": "kubernetes.io:kube-apiserver-serving:x"},
            "spec": {"signerName": signer, "trustBundle": front}});
        cluster.create(&bundles, "", stray).await;
        cluster.until_list(&bundles, "", published).await;
        let other = json!({"metadata": {"name": "own"}, "spec": {"trustBundle": front}});
        cluster.create(&bundles, "", other).await;
        cluster.delete(&bundles, "", &name, Propagation::Background).await;
        cluster.get(&bundles, "", &name).await;
        assert!(cluster.find(&bundles, "", "own").await.is_some());
        cluster.stop().await;
    }
}
