//! Admission, row by row, over the API.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::Server;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use yare_apiserver::{
    Auth, Config, User,
    admission::{
        event_rate_limit::LimitBy,
        settings::{EventLimit, LimitedResource},
    },
    runtime_config::RuntimeConfig,
};
use yare_schema::features::Gates;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A mirror pod of node `n1`, with an owner that says more.
fn mirror(name: &str, owner: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "annotations": {"kubernetes.io/config.mirror": "x"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    for (k, v) in owner.as_object().unwrap() {
        pod["metadata"]["ownerReferences"][0][k] = v.clone();
    }
    pod
}

/// Sends a request as somebody.
async fn as_user(server: &Server, user: &User, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .body(Full::<bytes::Bytes>::from(body.to_string()))
        .unwrap();
    request.extensions_mut().insert(user.clone());
    let response = server.api.service(User::admin()).oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap())
}

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn limit_ranger() {
    let server = Server::start().await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{
        "type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
        "min": {"cpu": "50m"}, "max": {"cpu": "1"},
    }]}});
    server.post("/api/v1/namespaces/default/limitranges", &range).await.expect(201);
    let made = server.post(PODS, &pod("a", json!({}))).await.expect(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    for (name, resources, part) in [
        (
            "big",
            json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}),
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            "small",
            json!({"limits": {"cpu": "100m"}, "requests": {"cpu": "10m"}}),
            "minimum cpu usage per Container is 50m, but request is 10m",
        ),
    ] {
        let message = server.post(PODS, &pod(name, resources)).await.expect_reason(403, "Forbidden");
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn priorities() {
    let server = Server::start().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    server.post(classes, &json!({"metadata": {"name": "high"}, "value": 1000})).await.expect(201);
    server
        .post(classes, &json!({"metadata": {"name": "usual"}, "value": 10, "globalDefault": true}))
        .await
        .expect(201);
    server
        .post(classes, &json!({"metadata": {"name": "second"}, "value": 11, "globalDefault": true}))
        .await
        .expect_reason(403, "Forbidden");
    let with = |name: &str, class: Value| {
        let mut p = pod(name, json!({}));
        p["spec"]["priorityClassName"] = class;
        p
    };
    for (name, class, priority) in [
        ("a", json!("high"), 1000),
        ("b", Value::Null, 10),
        ("c", json!("system-node-critical"), 2_000_001_000),
    ] {
        let made = server.post(PODS, &with(name, class)).await.expect(201);
        assert_eq!(made["spec"]["priority"], priority, "{name}");
        assert_eq!(made["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    }
    let message = server.post(PODS, &with("d", json!("none"))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("no PriorityClass with name none was found"), "{message}");
    let message =
        server.delete(&format!("{classes}/system-node-critical")).await.expect_reason(403, "Forbidden");
    assert_eq!(
        message,
        "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority class and cannot be deleted"
    );
    server.delete(&format!("{classes}/high")).await.expect(200);
}

/// Groups of pods are ranked as pods are (KEP-5710), where that is switched on.
#[tokio::test]
async fn priorities_of_groups() {
    let groups = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/podgroups";
    let group = |name: &str, class: Value, priority: Value| {
        json!({"metadata": {"name": name}, "spec": {"priorityClassName": class, "priority": priority,
            "schedulingPolicy": {"basic": {}}}})
    };
    for (preempts, with_class, without) in [(true, json!(1000), json!(10)), (false, Value::Null, Value::Null)]
    {
        let gates =
            format!("GenericWorkload=true,GangScheduling={preempts},WorkloadAwarePreemption={preempts}");
        let gates = Gates::parse(&gates).expect("good gates");
        let served = RuntimeConfig::parse("scheduling.k8s.io/v1alpha2=true").expect("a good configuration");
        let server = Server::with(|config| (config.gates, config.runtime_config) = (gates, served)).await;
        let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
        for class in [
            json!({"metadata": {"name": "high"}, "value": 1000}),
            json!({"metadata": {"name": "usual"}, "value": 10, "globalDefault": true}),
        ] {
            server.post(classes, &class).await.expect(201);
        }
        let made = server.post(groups, &group("a", json!("high"), Value::Null)).await.expect(201);
        assert_eq!(made["spec"]["priority"], with_class);
        let made = server.post(groups, &group("b", Value::Null, Value::Null)).await.expect(201);
        assert_eq!(made["spec"]["priority"], without);
        if !preempts {
            continue;
        }
        assert_eq!(made["spec"]["priorityClassName"], "usual");
        for (class, priority, why) in [
            (json!("none"), Value::Null, "no PriorityClass with name none was found"),
            (
                json!("high"),
                json!(7),
                "priority set in the pod group (7) must match the priority computed (1000) based on the priority class set in the spec",
            ),
        ] {
            let refused = server.post(groups, &group("c", class, priority)).await;
            assert_eq!(
                refused.expect_reason(403, "Forbidden"),
                format!("podgroups.scheduling.k8s.io \"c\" is forbidden: {why}")
            );
        }
    }
}

#[tokio::test]
async fn default_classes() {
    let server = Server::start().await;
    let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/p"});
    server.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, more: Value| {
        let mut c = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        if !more.is_null() {
            c["spec"]["storageClassName"] = more;
        }
        c
    };
    for (name, given, want) in
        [("a", Value::Null, json!("fast")), ("b", json!(""), json!("")), ("c", json!("slow"), json!("slow"))]
    {
        let made = server.post(claims, &claim(name, given)).await.expect(201);
        assert_eq!(made["spec"]["storageClassName"], want, "{name}");
    }
}

#[tokio::test]
async fn service_accounts() {
    let server = Server::start().await;
    let mut p = pod("a", json!({}));
    p["spec"]["serviceAccountName"] = "ghost".into();
    let message = server.post(PODS, &p).await.expect_reason(403, "Forbidden");
    assert!(message.contains("error looking up service account default/ghost"), "{message}");
    let account = json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "s"}]});
    server.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    p["spec"]["serviceAccountName"] = "quiet".into();
    let made = server.post(PODS, &p).await.expect(201);
    assert!(made["spec"].get("volumes").is_none(), "{made}");
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
}

#[tokio::test]
async fn a_node_says_of_its_own_volumes_what_became_of_their_files() {
    let server = Server::start().await;
    let volumes = "/api/v1/persistentvolumes";
    let volume = |name: &str, node: &str, by: &str| {
        json!({
            "metadata": {
                "name": name,
                "labels": {"local-path.yare.io/node": node},
                "annotations": {"pv.kubernetes.io/provisioned-by": by, "local-path.yare.io/pending": ""},
                "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"],
            },
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "local": {"path": format!("/x/{name}_n_c")},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
            },
        })
    };
    for (name, node, by) in [
        ("own", "n1", "yare.io/local-path"),
        ("other", "n2", "yare.io/local-path"),
        ("made", "n1", "a-human"),
    ] {
        server.post(volumes, &volume(name, node, by)).await.expect(201);
    }
    let kubelet = User::new("system:node:n1", &["system:nodes"]);
    let patch = async |name: &str, body: Value| {
        as_user(&server, &kubelet, "PATCH", &format!("{volumes}/{name}"), &body).await
    };
    let there = json!({"metadata": {"annotations": {"local-path.yare.io/pending": null}}});
    let gone = json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}});
    for (name, body) in [
        ("other", there.clone()),
        ("made", there.clone()),
        // Not while it is not being deleted.
        ("own", gone.clone()),
        ("own", json!({"metadata": {"finalizers": null}})),
        ("own", json!({"metadata": {"labels": {"local-path.yare.io/node": "n2"}}})),
        ("own", json!({"metadata": {"annotations": {"a": "b"}}})),
        ("own", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})),
    ] {
        let (code, answer) = patch(name, body.clone()).await;
        assert_eq!(code, 403, "{name} {body}: {answer}");
    }
    assert_eq!(patch("own", there.clone()).await.0, 200);
    assert_eq!(patch("own", there).await.0, 200);
    server.delete(&format!("{volumes}/own")).await.expect(200);
    let (code, answer) = patch("own", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 403, "{answer}");
    let (code, answer) = patch("own", gone).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
}

#[tokio::test]
async fn nodes_keep_to_themselves() {
    let server = Server::start().await;
    let kubelet = User::new("system:node:n1", &["system:nodes"]);
    let as_node =
        async |method: &str, path: &str, body: Value| as_user(&server, &kubelet, method, path, &body).await;
    let (code, node) = as_node(
        "POST",
        "/api/v1/nodes",
        json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}}),
    )
    .await;
    assert_eq!(code, 201, "{node}");
    assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    for (method, path, body) in [
        ("POST", "/api/v1/nodes", json!({"metadata": {"name": "n2"}})),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}}),
        ),
        ("PATCH", "/api/v1/nodes/n1", json!({"spec": {"taints": null}})),
        ("POST", PODS, pod("a", json!({}))),
        ("POST", PODS, mirror("a", json!({"uid": "other"}))),
        ("POST", PODS, mirror("a", json!({"uid": node["metadata"]["uid"], "blockOwnerDeletion": true}))),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
        ),
        (
            "POST",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            json!({"metadata": {"name": "n2"}}),
        ),
    ] {
        let (code, answer) = as_node(method, path, body).await;
        assert_eq!(code, 403, "{method} {path}: {answer}");
    }
    let (code, _) = as_node(
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        json!({"metadata": {"name": "n1"}}),
    )
    .await;
    assert_eq!(code, 201);
    let (code, answer) = as_node("POST", PODS, mirror("m", json!({"uid": node["metadata"]["uid"]}))).await;
    assert_eq!(code, 201, "{answer}");
    // A token for a pod of another node is none of its business.
    server.post(PODS, &pod("elsewhere", json!({}))).await.expect(201);
    let other = server.get(&format!("{PODS}/elsewhere")).await.expect(200);
    for (bound, part) in [
        (json!(null), "not bound to a pod"),
        (json!({"apiVersion": "v1", "kind": "Pod", "name": "elsewhere"}), "without a uid"),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "name": "elsewhere", "uid": "x"}),
            "does not match the UID in record",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "name": "elsewhere", "uid": other["metadata"]["uid"]}),
            "scheduled on a different node",
        ),
    ] {
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let (code, answer) =
            as_node("POST", path, json!({"spec": {"audiences": [], "boundObjectRef": bound}})).await;
        assert_eq!(code, 403, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
}

#[tokio::test]
async fn collections_are_deleted() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        server.post(path, &json!({"metadata": {"name": name, "labels": {"l": label}}})).await.expect(201);
    }
    server.delete(&format!("{path}?labelSelector=l%3Dx")).await.expect(200);
    let left = server.get(path).await.expect(200);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
    // Propagation leaves its mark for the garbage collector.
    let marked = server.delete(&format!("{path}/c?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn resource_quota() {
    let server = Server::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "1"});
    server.post(quotas, &json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.expect(201);
    // While the controller has not counted all of it, nobody knows.
    let status = json!({"status": {"hard": hard, "used": {"pods": "0"}}});
    server.patch("merge", &format!("{quotas}/q/status"), &status).await.expect(200);
    let message =
        server.post(PODS, &pod("a", json!({"requests": {"cpu": "1"}}))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("status unknown for quota: q, resources: pods,requests.cpu"), "{message}");
    let status = json!({"status": {"hard": hard, "used": {"pods": "0", "requests.cpu": "0", "count/configmaps": "0"}}});
    server.patch("merge", &format!("{quotas}/q/status"), &status).await.expect(200);
    let message = server.post(PODS, &pod("a", json!({}))).await.expect_reason(403, "Forbidden");
    assert!(message.contains("failed quota: q: must specify requests.cpu for: c"), "{message}");
    server.post(PODS, &pod("a", json!({"requests": {"cpu": "600m"}}))).await.expect(201);
    let message = server
        .post(PODS, &pod("b", json!({"requests": {"cpu": "600m"}})))
        .await
        .expect_reason(403, "Forbidden");
    assert!(message.contains("exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"), "{message}");
    let quota = server.get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(
        quota["status"]["used"],
        json!({"pods": "1", "requests.cpu": "600m", "count/configmaps": "0"})
    );
    // Two at once, room for one.
    let maps = "/api/v1/namespaces/default/configmaps";
    let (a, b) = (json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}}));
    let (x, y) = tokio::join!(server.post(maps, &a), server.post(maps, &b));
    let mut codes = [x.code, y.code];
    codes.sort_unstable();
    assert_eq!(codes, [201, 403]);
}

#[tokio::test]
async fn quota_scopes_and_updates() {
    let server = Server::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let make = async |name: &str, spec: Value| {
        let hard = spec["hard"].clone();
        let used: serde_json::Map<String, Value> =
            hard.as_object().unwrap().keys().map(|k| (k.clone(), json!("0"))).collect();
        server.post(quotas, &json!({"metadata": {"name": name}, "spec": spec})).await.expect(201);
        let status = json!({"status": {"hard": hard, "used": used}});
        server.patch("merge", &format!("{quotas}/{name}/status"), &status).await.expect(200);
    };
    let used = async |name: &str, resource: &str| {
        server.get(&format!("{quotas}/{name}")).await.expect(200)["status"]["used"][resource].clone()
    };
    make("ending", json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]})).await;
    make("ports", json!({"hard": {"services.nodeports": "1"}})).await;
    make("deployments", json!({"hard": {"count/deployments.apps": "0"}})).await;
    // A pod moves into a scope by an update.
    server.post(PODS, &pod("a", json!({}))).await.expect(201);
    server.post(PODS, &pod("b", json!({}))).await.expect(201);
    assert_eq!(used("ending", "pods").await, "0");
    let end = json!({"spec": {"activeDeadlineSeconds": 5}});
    server.patch("merge", &format!("{PODS}/a"), &end).await.expect(200);
    assert_eq!(used("ending", "pods").await, "1");
    let message = server.patch("merge", &format!("{PODS}/b"), &end).await.expect_reason(403, "Forbidden");
    assert!(
        message.contains("exceeded quota: ending, requested: pods=1, used: pods=1, limited: pods=1"),
        "{message}"
    );
    // A service grows.
    let services = "/api/v1/namespaces/default/services";
    let ports = |n: i32| json!({"type": "NodePort", "selector": {"a": "b"}, "ports": (0..n).map(|i| json!({"name": format!("p{i}"), "port": 80 + i})).collect::<Vec<_>>()});
    server.post(services, &json!({"metadata": {"name": "s"}, "spec": ports(1)})).await.expect(201);
    assert_eq!(used("ports", "services.nodeports").await, "1");
    let message = server
        .patch("merge", &format!("{services}/s"), &json!({"spec": ports(2)}))
        .await
        .expect_reason(403, "Forbidden");
    assert!(message.contains("exceeded quota: ports, requested: services.nodeports=1"), "{message}");
    // Objects of any resource are counted.
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let message = server
        .post("/apis/apps/v1/namespaces/default/deployments", &deployment)
        .await
        .expect_reason(403, "Forbidden");
    assert!(message.contains("exceeded quota: deployments, requested: count/deployments.apps=1, used: count/deployments.apps=0, limited: count/deployments.apps=0"), "{message}");
    server
        .post("/apis/apps/v1/namespaces/default/deployments?dryRun=All", &deployment)
        .await
        .expect_reason(403, "Forbidden");
}

#[tokio::test]
async fn many_writers_share_a_quota() {
    let server = Server::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"count/configmaps": "40"});
    server.post(quotas, &json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.expect(201);
    let status = json!({"status": {"hard": hard, "used": {"count/configmaps": "0"}}});
    server.patch("merge", &format!("{quotas}/q/status"), &status).await.expect(200);
    let maps = "/api/v1/namespaces/default/configmaps";
    let bodies: Vec<Value> = (0..50).map(|i| json!({"metadata": {"name": format!("m{i}")}})).collect();
    let answers = futures::future::join_all(bodies.iter().map(|body| server.post(maps, body))).await;
    let made = answers.iter().filter(|a| a.code == 201).count();
    let refused = answers.iter().filter(|a| a.code == 403).count();
    assert_eq!((made, refused), (40, 10));
    let quota = server.get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(quota["status"]["used"], json!({"count/configmaps": "40"}));
}

#[tokio::test]
async fn what_configuration_limits_needs_a_quota() {
    let server = Server::with(|config| {
        config.admission.limited_resources = vec![LimitedResource {
            resource: "persistentvolumeclaims".into(),
            match_contains: vec!["gold.storageclass.storage.k8s.io/requests.storage".into()],
            ..LimitedResource::default()
        }];
    })
    .await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |class: &str| json!({"metadata": {"name": class}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    server.post(claims, &claim("silver")).await.expect(201);
    let message = server.post(claims, &claim("gold")).await.expect_reason(403, "Forbidden");
    assert!(
        message.contains("insufficient quota to consume: gold.storageclass.storage.k8s.io/requests.storage"),
        "{message}"
    );
}

#[tokio::test]
async fn volumes_are_protected_and_grow() {
    let server = Server::start().await;
    for (name, may) in [("grows", true), ("fixed", false)] {
        let class =
            json!({"metadata": {"name": name}, "provisioner": "example.com/p", "allowVolumeExpansion": may});
        server.post("/apis/storage.k8s.io/v1/storageclasses", &class).await.expect(201);
    }
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    for (class, phase, code, part) in [
        ("grows", "Bound", 200, ""),
        (
            "fixed",
            "Bound",
            403,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ),
        // Validation comes first.
        ("grows", "Pending", 422, "spec is immutable after creation except resources.requests"),
    ] {
        let name = format!("{class}-{}", phase.to_lowercase());
        let claim = json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "volumeName": "v", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let made = server.post(claims, &claim).await.expect(201);
        assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        let path = format!("{claims}/{name}");
        let status = json!({"status": {"phase": phase, "capacity": {"storage": "1Gi"}}});
        server.patch("merge", &format!("{path}/status"), &status).await.expect(200);
        let grow = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let answer = server.patch("merge", &path, &grow).await;
        assert_eq!(answer.code, code, "{}", answer.text());
        assert!(answer.text().contains(part), "{}", answer.text());
    }
}

#[tokio::test]
async fn zones_come_to_pods() {
    let server = Server::start().await;
    let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "x": "y"}}});
    server.post("/api/v1/nodes", &node).await.expect(201);
    server.post(PODS, &pod("a", json!({}))).await.expect(201);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}});
    server.post(&format!("{PODS}/a/binding"), &binding).await.expect(201);
    let mut placed = pod("b", json!({}));
    placed["spec"]["nodeName"] = "n".into();
    server.post(PODS, &placed).await.expect(201);
    for name in ["a", "b"] {
        let pod = server.get(&format!("{PODS}/{name}")).await.expect(200);
        assert_eq!(
            pod["metadata"]["labels"],
            json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"})
        );
    }
}

#[tokio::test]
async fn pods_do_not_outgrow_their_node() {
    let server = Server::start().await;
    server.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.expect(201);
    let status = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi"}, "capacity": {"cpu": "2", "memory": "1Gi"}}});
    server.patch("merge", "/api/v1/nodes/n/status", &status).await.expect(200);
    let mut placed = pod("a", json!({"requests": {"cpu": "1"}}));
    placed["spec"]["nodeName"] = "n".into();
    server.post(PODS, &placed).await.expect(201);
    let size =
        |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    let path = format!("{PODS}/a/resize");
    let status = server.patch("strategic", &path, &size("3")).await.expect(403);
    assert_eq!(
        status["message"],
        "pods \"a\" is forbidden: node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000"
    );
    assert_eq!(status["details"]["causes"], json!([{"reason": "NodeCapacity"}]));
    server.patch("strategic", &path, &size("1500m")).await.expect(200);
}

#[tokio::test]
async fn signers_are_guarded() {
    let server = Server::with(|config| config.auth = Auth::new(None)).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "requests"}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"], "verbs": ["*"]}]});
    let signer = |verb: &str, name: &str| {
        json!({"metadata": {"name": verb}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [name], "verbs": [verb]}]})
    };
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    for role in [role, signer("approve", "example.com/*"), signer("sign", "example.com/s")] {
        server.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    }
    for (name, role, user) in
        [("a", "requests", "eve"), ("b", "requests", "bob"), ("c", "approve", "bob"), ("d", "sign", "bob")]
    {
        let binding = json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]});
        server.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    }
    let (eve, bob) = (User::new("eve", &[]), User::new("bob", &[]));
    const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = |signer: &str, groups: &[&str]| json!({"metadata": {"name": "r"}, "spec": {"signerName": signer, "usages": ["client auth"], "request": csr("someone", groups)}});
    server.post(REQUESTS, &request("example.com/s", &["system:masters"])).await.expect(201);
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let path = format!("{REQUESTS}/r/approval");
    // Rules reach the authorizers after the writes that made them.
    let mut code = 0;
    for _ in 0..200 {
        code = as_user(&server, &eve, "PATCH", &path, &approve).await.0;
        let message = as_user(&server, &eve, "PATCH", &path, &approve).await.1["message"].clone();
        if message.as_str().is_some_and(|m| {
            m.contains("user not permitted to approve requests with signerName \"example.com/s\"")
        }) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(code, 403);
    let (code, answer) = as_user(&server, &bob, "PATCH", &path, &approve).await;
    assert_eq!(code, 200, "{answer}");
    let fail = json!({"status": {"conditions": [approve["status"]["conditions"][0], {"type": "Failed", "status": "True", "reason": "r"}]}});
    let path = format!("{REQUESTS}/r/status");
    let (code, answer) = as_user(&server, &eve, "PATCH", &path, &fail).await;
    assert_eq!(code, 403, "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("user not permitted to sign requests with signerName"),
        "{answer}"
    );
    let (code, answer) = as_user(&server, &bob, "PATCH", &path, &fail).await;
    assert_eq!(code, 200, "{answer}");
    // Nobody asks to become an administrator.
    let mut masters = request("kubernetes.io/kube-apiserver-client", &["system:masters"]);
    masters["metadata"]["name"] = "m".into();
    let message = server.post(REQUESTS, &masters).await.expect_reason(403, "Forbidden");
    assert!(
        message.contains(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        ),
        "{message}"
    );
}

fn csr(name: &str, groups: &[&str]) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

#[tokio::test]
async fn plugins_can_be_switched() {
    let server = Server::with(|config| {
        config.admission.enable = [
            "AlwaysPullImages",
            "DenyServiceExternalIPs",
            "EventRateLimit",
            "ExtendedResourceToleration",
            "LimitPodHardAntiAffinityTopology",
            "NamespaceAutoProvision",
            "PodNodeSelector",
        ]
        .map(str::to_owned)
        .to_vec();
        config.admission.disable = vec!["DefaultTolerationSeconds".into()];
        config.admission.event_limits =
            vec![EventLimit { by: LimitBy::Namespace, qps: 1, burst: 1, cache_size: 10 }];
        config.admission.node_selectors =
            [("clusterDefaultNodeSelector".to_owned(), "disk=ssd".to_owned())].into();
    })
    .await;
    let mut given =
        pod("a", json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}}));
    given["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    let made = server.post(PODS, &given).await.expect(201);
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(
        made["spec"]["tolerations"],
        json!([{"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
    );
    assert_eq!(made["spec"]["nodeSelector"], json!({"disk": "ssd"}));
    given = pod("b", json!({}));
    given["spec"]["nodeSelector"] = json!({"disk": "hdd"});
    let message = server.post(PODS, &given).await.expect_reason(403, "Forbidden");
    assert!(
        message.contains("pod node label selector conflicts with its namespace node label selector"),
        "{message}"
    );
    given = pod("c", json!({}));
    given["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}, "topologyKey": "zone"}]}});
    let message = server.post(PODS, &given).await.expect_reason(403, "Forbidden");
    assert!(
        message.contains("has TopologyKey zone but only key kubernetes.io/hostname is allowed"),
        "{message}"
    );
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}});
    server.post("/api/v1/namespaces/default/services", &service).await.expect_reason(403, "Forbidden");
    // A namespace appears with its first object.
    server.post("/api/v1/namespaces/new/configmaps", &json!({"metadata": {"name": "a"}})).await.expect(201);
    server.get("/api/v1/namespaces/new").await.expect(200);
    let event = |name: &str| json!({"metadata": {"name": name}, "involvedObject": {"namespace": "default"}});
    server.post("/api/v1/namespaces/default/events", &event("a")).await.expect(201);
    let message = server
        .post("/api/v1/namespaces/default/events", &event("b"))
        .await
        .expect_reason(429, "TooManyRequests");
    assert_eq!(message, "limit reached on type Namespace for key default");
}

#[tokio::test]
async fn nothing_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(common::open(dir.path()).await);
    config.admission.enable = vec!["AlwaysDeny".into()];
    // Not even the objects that every cluster has.
    let error = yare_apiserver::ApiServer::start(config).await.err().unwrap();
    assert!(error.to_string().contains("admission control is denying all modifications"), "{error}");
}

#[tokio::test]
async fn runtime_classes() {
    let server = Server::start().await;
    let mut p = pod("a", json!({}));
    p["spec"]["runtimeClassName"] = "vm".into();
    let message = server.post(PODS, &p).await.expect_reason(403, "Forbidden");
    assert!(message.contains("pod rejected: RuntimeClass \"vm\" not found"), "{message}");
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    server.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await.expect(201);
    let made = server.post(PODS, &p).await.expect(201);
    assert_eq!(
        (&made["spec"]["overhead"]["memory"], &made["spec"]["nodeSelector"]["vm"]),
        (&json!("64Mi"), &json!("yes"))
    );
}
