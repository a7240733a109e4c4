//! What is served, and what objects keep, under feature gates and `--runtime-config`.

mod common;

use common::Server;
use serde_json::{Value, json};
use yare_apiserver::runtime_config::{Forward, RuntimeConfig};
use yare_schema::{features::Gates, release::Emulation};

const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const VAC: &str = "/apis/storage.k8s.io/v1beta1/volumeattributesclasses";

async fn server(gates: &str, runtime_config: &str) -> Server {
    let gates = Gates::parse(gates).expect("good gates");
    let runtime_config = RuntimeConfig::parse(runtime_config).expect("a good configuration");
    Server::with(|config| {
        config.gates = gates;
        config.runtime_config = runtime_config;
    })
    .await
}

#[tokio::test]
async fn versions_are_served_where_asked_for() {
    let plain = server("", "").await;
    plain.get(VAC).await.expect_reason(404, "NotFound");
    plain.get(BUNDLES).await.expect_reason(404, "NotFound");

    let beta = server("", "api/beta=true,apps/v1/replicasets=false").await;
    beta.get(VAC).await.expect(200);
    // Its gate is off, so nothing asks for it successfully.
    beta.get(BUNDLES).await.expect_reason(404, "NotFound");
    beta.get("/apis/apps/v1/replicasets").await.expect_reason(404, "NotFound");
    let apps = beta.get("/apis/apps/v1").await.expect(200);
    let names: Vec<&str> =
        apps["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(names.contains(&"deployments") && !names.contains(&"replicasets"), "{names:?}");
    let groups = beta.get("/apis").await.expect(200);
    let storage = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "storage.k8s.io");
    assert_eq!(storage.unwrap()["preferredVersion"]["version"], "v1");

    let gated = server("ClusterTrustBundle=true", "certificates.k8s.io/v1beta1").await;
    gated.get(BUNDLES).await.expect(200);
    let bad = json!({"metadata": {"name": "a"}, "spec": {"trustBundle": "x"}});
    let message = gated.post(BUNDLES, &bad).await.expect_reason(422, "Invalid");
    assert!(message.contains("at least one trust anchor must be provided"), "{message}");
}

/// A server that behaves as the release before.
#[tokio::test]
async fn releases_are_emulated() {
    let emulating = async |minor: &str, runtime_config: &str, better: bool| {
        let emulation = Emulation::parse(&[format!("1.{minor}")], &[]).unwrap();
        let forward = Forward { better, asked: false };
        let gates = Gates::emulating(emulation, "").unwrap();
        let runtime_config = RuntimeConfig::parse(runtime_config).unwrap();
        let runtime_config = runtime_config.emulating(emulation, forward).unwrap();
        Server::with(|config| {
            config.gates = gates;
            config.runtime_config = runtime_config;
        })
        .await
    };
    let at =
        |version: &str| format!("/apis/admissionregistration.k8s.io/{version}/mutatingadmissionpolicies");
    let before = emulating("35", "admissionregistration.k8s.io/v1beta1=true", false).await;
    before.get(&at("v1")).await.expect_reason(404, "NotFound");
    before.get(&at("v1beta1")).await.expect(200);
    let version = before.get("/version").await.expect(200);
    for (field, expect) in [
        ("minor", "36"),
        ("emulationMinor", "35"),
        ("minCompatibilityMajor", "1"),
        ("minCompatibilityMinor", "34"),
    ] {
        assert_eq!(version[field], expect, "{field}");
    }
    let metrics = before.get("/metrics").await.text();
    for line in [
        "kubernetes_feature_enabled{name=\"DRAConsumableCapacity\",stage=\"ALPHA\"} 0",
        "kubernetes_feature_enabled{name=\"ConstrainedImpersonation\",stage=\"ALPHA\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    assert!(!metrics.contains("name=\"AtomicFIFO\""), "a gate of 1.36");
    let with_better = emulating("35", "admissionregistration.k8s.io/v1beta1=true", true).await;
    with_better.get(&at("v1")).await.expect(200);
    // What came with 1.34 is not for expressions that servers of 1.33 are to understand.
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods"]}]},
        "validations": [{"expression": "lists.range(3).size() == 3"}],
    }});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-validations": [{"rule": "lists.range(3).size() == 3"}]}}}]},
    });
    let older = emulating("34", "", false).await;
    for (path, object) in [
        ("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", policy),
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition),
    ] {
        let message = older.post(path, &object).await.expect_reason(422, "Invalid");
        assert!(message.contains("undeclared reference to 'lists'"), "{message}");
        before.post(path, &object).await.expect(201);
    }
}

#[tokio::test]
async fn every_version_there_is_can_be_served() {
    let all = server("AllAlpha=true,AllBeta=true", "api/all=true").await;
    for row in
        yare_kinds::table::RESOURCES.iter().filter(|r| !r.is_virtual() && r.plural != "componentstatuses")
    {
        for version in row.versions {
            let path = match row.group {
                "" => format!("/api/{}/{}", version.name, row.plural),
                group => format!("/apis/{group}/{}/{}", version.name, row.plural),
            };
            let list = all.get(&path).await.expect(200);
            assert_eq!(list["kind"], format!("{}List", row.kind), "{path}");
        }
    }
}

#[tokio::test]
async fn users_of_what_goes_are_told() {
    let server = server("", "api/all=true").await;
    for (path, expect) in [
        (
            VAC,
            Some(
                "storage.k8s.io/v1beta1 VolumeAttributesClass is deprecated in v1.34+, unavailable in v1.37+; use storage.k8s.io/v1 VolumeAttributesClass",
            ),
        ),
        (
            "/api/v1/endpoints",
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ),
        ("/api/v1/pods", None),
    ] {
        let answer = server.get(path).await;
        let warning = answer.headers.get("warning").map(|v| v.to_str().unwrap().to_owned());
        let expect = expect.map(|text| format!("299 - \"{text}\""));
        assert_eq!(warning, expect, "{path}");
    }
}

#[tokio::test]
async fn fields_of_features_that_are_off_are_dropped() {
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "hostnameOverride": "h", "schedulingGroup": {"podGroupName": "g"},
    }});
    let pods = "/api/v1/namespaces/default/pods";
    let made = |answer: Value| {
        (answer["spec"]["hostnameOverride"].clone(), answer["spec"]["schedulingGroup"].clone())
    };
    let plain = server("", "").await;
    let (override_, group) = made(plain.post(pods, &pod).await.expect(201));
    assert_eq!((override_, group), (json!("h"), Value::Null));
    let other = server("HostnameOverride=false,GenericWorkload=true", "").await;
    let (override_, group) = made(other.post(pods, &pod).await.expect(201));
    assert_eq!((override_, group), (Value::Null, json!({"podGroupName": "g"})));
}

#[tokio::test]
async fn metrics_list_features() {
    let server = server("HPAScaleToZero=true", "").await;
    let text = server.get("/metrics").await.text();
    for line in [
        "kubernetes_feature_enabled{name=\"HPAScaleToZero\",stage=\"ALPHA\"} 1",
        "kubernetes_feature_enabled{name=\"AllAlpha\",stage=\"ALPHA\"} 0",
        "kubernetes_feature_enabled{name=\"DynamicResourceAllocation\",stage=\"\"} 1",
    ] {
        assert!(text.contains(line), "{line}");
    }
}
