//! What proves who a pod is and whom it may trust: certificates and trust bundles in projected volumes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Cluster, condition};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use yare_apiserver::runtime_config::RuntimeConfig;
use yare_schema::features::Gates;

const SIGNER: &str = "example.com/signer";

async fn cluster(clock: &Arc<AtomicI64>) -> Cluster {
    let mut cluster = Cluster::with_api(|config| {
        config.gates = Gates::parse(
            "ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true",
        )
        .unwrap();
        config.runtime_config = RuntimeConfig::parse("certificates.k8s.io/v1beta1=true").unwrap();
    })
    .await;
    let ahead = clock.clone();
    cluster
        .start_node(move |config| {
            common::open(config);
            config.seams.now =
                Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)));
            config.seams.random = Arc::new(|| 0.0);
        })
        .await;
    cluster
}

fn container() -> Value {
    json!([{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}])
}

fn volume(cluster: &Cluster, uid: &str) -> PathBuf {
    cluster.data().join("pods").join(uid).join("volumes/kubernetes.io~projected/v")
}

/// A certificate authority's certificate, as bundles hold it.
fn authority(name: &str) -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let text = params.self_signed(&key).unwrap().pem();
    (rcgen::Issuer::new(params, key), text)
}

/// The base64 between the lines of PEM, without line ends, for texts that wrap it elsewhere.
fn bodies(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n");
    let parts = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    let mut all: Vec<String> = parts.map(|p| p.split("-----END").next().unwrap().replace('\n', "")).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_bundles_are_merged_and_followed() {
    let cluster = cluster(&Arc::default()).await;
    let (one, two, three) = (authority("one").1, authority("two").1, authority("three").1);
    let bundle = |name: &str, labels: Value, text: &str| {
        json!({
            "apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": labels},
            "spec": {"signerName": if name.contains(':') { SIGNER } else { "" }, "trustBundle": text},
        })
    };
    let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    cluster.post(path, &bundle("named", json!({}), &format!("{one}{two}"))).await;
    cluster.post(path, &bundle("example.com:signer:a", json!({"live": "yes"}), &two)).await;
    cluster
        .post(path, &bundle("example.com:signer:b", json!({"live": "yes"}), &format!("{two}{three}")))
        .await;
    cluster.post(path, &bundle("example.com:signer:c", json!({"live": "no"}), &one)).await;
    let sources = json!([
        {"clusterTrustBundle": {"name": "named", "path": "named.pem"}},
        {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": {"matchLabels": {"live": "yes"}}, "path": "live.pem"}},
        {"clusterTrustBundle": {"signerName": SIGNER, "labelSelector": {}, "path": "all.pem"}},
        {"clusterTrustBundle": {"signerName": "example.com/nobody", "labelSelector": {}, "optional": true, "path": "none.pem"}},
    ]);
    let spec =
        json!({"containers": container(), "volumes": [{"name": "v", "projected": {"sources": sources}}]});
    let uid = cluster.pod("p", spec).await;
    cluster.wait_ready("p").await;
    let dir = volume(&cluster, &uid);
    let read = |name: &str| bodies(&std::fs::read_to_string(dir.join(name)).unwrap());
    let sorted = |texts: &[&str]| {
        let mut all: Vec<String> = texts.iter().flat_map(|t| bodies(t)).collect();
        all.sort();
        all
    };
    assert_eq!(read("named.pem"), sorted(&[&one, &two]));
    assert_eq!(read("live.pem"), sorted(&[&two, &three]));
    assert_eq!(read("all.pem"), sorted(&[&one, &two, &three]));
    assert_eq!(std::fs::read(dir.join("none.pem")).unwrap(), b"");

    cluster.patch(&format!("{path}/named"), &json!({"spec": {"trustBundle": three}})).await;
    for _ in 0..500 {
        if read("named.pem") == sorted(&[&three]) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(read("named.pem"), sorted(&[&three]));

    // What must be there and is not.
    let sources = json!([{"clusterTrustBundle": {"name": "absent", "path": "x.pem"}}]);
    let spec =
        json!({"containers": container(), "volumes": [{"name": "v", "projected": {"sources": sources}}]});
    cluster.pod("q", spec).await;
    let event = cluster.wait_event("q", "FailedMount").await;
    assert_eq!(
        event["message"],
        "MountVolume.SetUp failed for volume \"v\" : while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"absent\" not found"
    );
    cluster.post(path, &bundle("absent", json!({}), &one)).await;
    cluster.wait_ready("q").await;
}

const REQUESTS: &str = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests";

/// The pod's request that nobody has answered.
async fn unanswered(cluster: &Cluster, pod: &str) -> Value {
    let open = |r: &&Value| r["spec"]["podName"] == pod && condition(r, "Issued").is_empty();
    let all = cluster
        .wait(REQUESTS, "a request", |l| l["items"].as_array().is_some_and(|i| i.iter().any(|r| open(&r))))
        .await;
    all["items"].as_array().unwrap().iter().find(open).unwrap().clone()
}

/// Answers a request as a signer does; the certificate that came of it.
async fn sign(cluster: &Cluster, request: &Value, issuer: &rcgen::Issuer<'static, rcgen::KeyPair>) -> String {
    let der = STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().unwrap()).unwrap();
    let mut asked = rcgen::CertificateSigningRequestParams::from_der(&der.as_slice().into()).unwrap();
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let end = now + SignedDuration::from_hours(2);
    let day = |at: Timestamp| {
        let at = at.to_zoned(jiff::tz::TimeZone::UTC);
        let midnight = rcgen::date_time_ymd(i32::from(at.year()), at.month() as u8, at.day() as u8);
        let seconds = i64::from(at.hour()) * 3600 + i64::from(at.minute()) * 60 + i64::from(at.second());
        midnight + std::time::Duration::from_secs(seconds as u64)
    };
    asked.params.not_before = day(now);
    asked.params.not_after = day(end);
    let chain = asked.signed_by(issuer).unwrap().pem();
    let status = json!({
        "conditions": [{
            "type": "Issued", "status": "True", "reason": "Signed", "message": "signed",
            "lastTransitionTime": now.to_string(),
        }],
        "certificateChain": format!("about it\n{chain}"),
        "notBefore": now.to_string(),
        "beginRefreshAt": (now + SignedDuration::from_hours(1)).to_string(),
        "notAfter": end.to_string(),
    });
    let name = request["metadata"]["name"].as_str().unwrap();
    cluster.patch(&format!("{REQUESTS}/{name}/status"), &json!({ "status": status })).await;
    chain
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_asked_for_and_renewed() {
    let clock = Arc::new(AtomicI64::new(0));
    let cluster = cluster(&clock).await;
    let issuer = authority("signer").0;
    let spec = |kind: &str| {
        let source = json!({"podCertificate": {
            "signerName": SIGNER, "keyType": kind, "credentialBundlePath": "bundle.pem", "keyPath": "key.pem",
            "certificateChainPath": "chain.pem", "maxExpirationSeconds": 7200,
            "userAnnotations": {"example.com/zone": "z"},
        }});
        json!({"containers": container(), "volumes": [{"name": "v", "projected": {"sources": [source]}}]})
    };
    let uid = cluster.pod("p", spec("ECDSAP384")).await;
    let request = unanswered(&cluster, "p").await;
    let standing = async |state: &str, count: u32| {
        let labels = format!("signer_name=\"{SIGNER}\",state=\"{state}\"");
        cluster.wait_metric(&format!("kubelet_podcertificate_states{{{labels}}} {count}")).await;
    };
    standing("not_yet_issued", 1).await;
    let asked = &request["spec"];
    assert_eq!(asked["podUID"], uid);
    assert_eq!(asked["serviceAccountName"], "default");
    assert_eq!(asked["maxExpirationSeconds"], 7200);
    assert_eq!(asked["unverifiedUserAnnotations"], json!({"example.com/zone": "z"}));
    let node = cluster.get("/api/v1/nodes/node-1").await;
    assert_eq!(asked["nodeUID"], node["metadata"]["uid"]);
    assert_eq!(request["metadata"]["ownerReferences"][0]["uid"], uid);
    let chain = sign(&cluster, &request, &issuer).await;
    cluster.wait_ready("p").await;
    let dir = volume(&cluster, &uid);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (key, first) = (read("key.pem"), read("chain.pem"));
    assert_eq!(bodies(&first), bodies(&chain));
    assert!(!first.contains("about it"));
    assert_eq!(read("bundle.pem"), format!("{key}{first}"));
    // The key is the certificate's.
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let der = STANDARD.decode(&bodies(&first)[0]).unwrap();
    let public = rcgen::PublicKeyData::subject_public_key_info(&key);
    assert!(der.windows(public.len()).any(|w| w == public));

    standing("fresh", 1).await;

    // An hour and more later the next one is asked for, with another key; until it is there the first serves.
    clock.store(3700, Ordering::Relaxed);
    cluster
        .patch("/api/v1/namespaces/default/pods/p", &json!({"metadata": {"annotations": {"look": "now"}}}))
        .await;
    let request = unanswered(&cluster, "p").await;
    assert_eq!(read("chain.pem"), first);
    let chain = sign(&cluster, &request, &issuer).await;
    for _ in 0..500 {
        if read("chain.pem") != first {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(bodies(&read("chain.pem")), bodies(&chain));

    // Other kinds of keys are taken by the API server, too; a refusal is for good.
    for kind in ["ECDSAP256", "ED25519", "ECDSAP521"] {
        let name = kind.to_lowercase();
        cluster.pod(&name, spec(kind)).await;
        let request = unanswered(&cluster, &name).await;
        let status = json!({"conditions": [{
            "type": "Denied", "status": "True", "reason": "NotMine", "message": "not mine",
            "lastTransitionTime": Timestamp::from_second(Timestamp::now().as_second()).unwrap().to_string(),
        }]});
        let request = request["metadata"]["name"].as_str().unwrap();
        cluster.patch(&format!("{REQUESTS}/{request}/status"), &json!({ "status": status })).await;
        let event = cluster.wait_event(&name, "Denied").await;
        let text = format!(
            "PodCertificateRequest default/{request} was denied, reason=\"NotMine\", message=\"not mine\""
        );
        assert_eq!(event["message"], text);
        let event = cluster.wait_event(&name, "FailedMount").await;
        let text = "MountVolume.SetUp failed for volume \"v\" : PodCertificateRequest was permanently denied: reason=\"NotMine\" message=\"not mine\"";
        assert_eq!(event["message"], text);
    }
    standing("denied", 3).await;
    standing("fresh", 1).await;
    cluster.delete_pod("ed25519", 0).await;
    standing("denied", 2).await;
}
