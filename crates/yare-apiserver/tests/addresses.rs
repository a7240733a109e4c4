//! Addresses of services as objects: IPAddresses say whose each is, ServiceCIDRs where they come from.

mod common;

use std::time::Duration;

use common::{Server, open};
use serde_json::{Value, json};
use yare_apiserver::{ApiServer, Config};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["ports"] = json!([{"port": 80}]);
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn each_address_of_a_service_has_an_object() {
    let server = Server::start().await;
    // The API server's own service, too.
    let own = server.until_is(&format!("{ADDRESSES}/10.43.0.1"), "its own", |code, _| code == 200).await;
    assert_eq!(own["spec"]["parentRef"]["name"], "kubernetes");

    let made = server.post(SERVICES, &service("a", json!({}))).await.expect(201);
    let ip = made["spec"]["clusterIP"].as_str().unwrap();
    let path = format!("{ADDRESSES}/{ip}");
    // It comes with the service.
    let object = server.get(&path).await.expect(200);
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(object["metadata"]["labels"], labels);
    let parent = json!({"resource": "services", "namespace": "default", "name": "a"});
    assert_eq!(object["spec"]["parentRef"], parent);

    // It comes back while the service is there, and goes with it.
    server.delete(&path).await.expect(200);
    server
        .until_is(&path, "made anew", |code, now| {
            code == 200 && now["metadata"]["uid"] != object["metadata"]["uid"]
        })
        .await;
    // And goes with it.
    server.delete(&format!("{SERVICES}/a")).await.expect(200);
    server.get(&path).await.expect(404);
    // Services without an address have none; dry runs leave none.
    server.post(SERVICES, &service("headless", json!({"clusterIP": "None"}))).await.expect(201);
    let dry = format!("{SERVICES}?dryRun=All");
    server.post(&dry, &service("dry", json!({}))).await.expect(201);
    // Nor do they ask who has an address, which may be the service itself.
    let taken = service("taken", json!({"clusterIP": "10.43.0.77"}));
    for _ in 0..2 {
        server.post(&dry, &taken).await.expect(201);
    }
    server.post(SERVICES, &taken).await.expect(201);
    server.post(&dry, &taken).await.expect_reason(409, "AlreadyExists");
    server.delete(&format!("{SERVICES}/taken")).await.expect(200);
    server
        .post(&dry, &service("other", json!({"clusterIP": "10.44.0.1"})))
        .await
        .expect_reason(422, "Invalid");
    // A policy that says nothing is not one that is left out.
    let message =
        server.post(&dry, &service("odd", json!({"ipFamilyPolicy": ""}))).await.expect_reason(422, "Invalid");
    assert!(message.contains("spec.ipFamilyPolicy: Unsupported value: \"\""), "{message}");
    // An address that is given back by a change of type.
    let made = server.post(SERVICES, &service("b", json!({}))).await.expect(201);
    let path = format!("{ADDRESSES}/{}", made["spec"]["clusterIP"].as_str().unwrap());
    let named = json!({"spec": {"type": "ExternalName", "externalName": "x.example.com", "clusterIP": null, "clusterIPs": null}});
    server.patch("merge", &format!("{SERVICES}/b"), &named).await.expect(200);
    server.get(&path).await.expect(404);
    let all = server.get(ADDRESSES).await.expect(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
}

#[tokio::test]
async fn addresses_that_others_have_are_not_given_out() {
    let server = Server::start().await;
    let address = json!({"metadata": {"name": "10.43.0.77"}, "spec": {"parentRef": {"resource": "things", "name": "mine"}}});
    server.post(ADDRESSES, &address).await.expect(201);
    let wanted = service("a", json!({"clusterIP": "10.43.0.77"}));
    let message = server.post(SERVICES, &wanted).await.expect_reason(422, "Invalid");
    assert!(
        message.contains("failed to allocate IP 10.43.0.77: provided IP is already allocated"),
        "{message}"
    );
    server.delete(&format!("{ADDRESSES}/10.43.0.77")).await.expect(200);
    server.post(SERVICES, &wanted).await.expect(201);
    let object = server.get(&format!("{ADDRESSES}/10.43.0.77")).await.expect(200);
    assert_eq!(object["spec"]["parentRef"]["name"], "a");
}

#[tokio::test]
async fn ranges_that_are_ready_give_addresses() {
    let server = Server::start().await;
    let outside = |name: &str| service(name, json!({"clusterIP": "10.99.0.5"}));
    let mismatch = "the provided network does not match the current range";
    let message = server.post(SERVICES, &outside("a")).await.expect_reason(422, "Invalid");
    assert!(message.contains(mismatch), "{message}");
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/29"]}});
    let mut range = server.post(RANGES, &range).await.expect(201);
    server.post(SERVICES, &outside("a")).await.expect_reason(422, "Invalid");
    range["status"] = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "ready",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    server.put(&format!("{RANGES}/more/status"), &range).await.expect(200);
    server.post(SERVICES, &outside("a")).await.expect(201);
    server.get(&format!("{ADDRESSES}/10.99.0.5")).await.expect(200);
    let edge = service("edge", json!({"clusterIP": "10.99.0.7"}));
    let message = server.post(SERVICES, &edge).await.expect_reason(422, "Invalid");
    assert!(message.contains(mismatch), "{message}");
}

#[tokio::test]
async fn a_restart_sets_right_what_was_missed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server {
        api: ApiServer::start(Config::new(open(&dir.path().join("store")).await)).await.unwrap(),
        dir,
    };
    server
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let made = server.post(SERVICES, &service("a", json!({}))).await.expect(201);
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let object = server.get(&format!("{ADDRESSES}/{ip}")).await.expect(200);
    let store = server.api.core().store().clone();
    server.api.shutdown().await;
    // As if the server had been killed before it came to either.
    let change = |key: &str, op| yare_store::Write {
        kind: "networking.k8s.io/ipaddresses".into(),
        key: key.into(),
        expect: yare_store::Expect::Anything,
        op,
    };
    let mut stale = object.clone();
    stale["metadata"]["name"] = "10.43.9.9".into();
    stale["metadata"]["resourceVersion"] = "".into();
    let text = stale.to_string();
    let rv_at = text.find("\"resourceVersion\":\"").unwrap() + "\"resourceVersion\":\"".len();
    let draft = yare_store::Draft { json: text.into_bytes(), rv_at, attrs: None };
    let writes = vec![change("10.43.9.9", yare_store::Op::Put(draft)), change(&ip, yare_store::Op::Delete)];
    store.commit(writes).await.unwrap();
    let server = Server { api: ApiServer::start(Config::new(store)).await.unwrap(), dir: server.dir };
    server.until_is(&format!("{ADDRESSES}/{ip}"), "made anew", |code, _| code == 200).await;
    server.until_is(&format!("{ADDRESSES}/10.43.9.9"), "stale", |code, _| code == 404).await;
}

#[tokio::test]
async fn a_service_and_its_object_are_one_transaction() {
    let server = Server::start().await;
    let mut objects = server.watch(&format!("{ADDRESSES}?watch=1")).await;
    assert_eq!(objects.brief().await, "ADDED 10.43.0.1");
    // An object that is left over is taken over, with its service.
    let made = server.post(SERVICES, &service("a", json!({"clusterIP": "10.43.0.9"}))).await.expect(201);
    let added = objects.next().await.unwrap();
    let revision = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(
        (&added["type"], &added["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("10.43.0.9"))
    );
    assert_eq!(revision(&added["object"]), revision(&made), "both have the revision of one commit");
    let managers = added["object"]["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers[0]["manager"], "kube-apiserver");
    // A service that is refused leaves neither object nor address.
    let taken = service("b", json!({"clusterIP": "10.43.0.9"}));
    server.post(SERVICES, &taken).await.expect_reason(422, "Invalid");
    let twice = service("a", json!({"clusterIP": "10.43.0.10"}));
    server.post(SERVICES, &twice).await.expect_reason(409, "AlreadyExists");
    server.get(&format!("{ADDRESSES}/10.43.0.10")).await.expect(404);
    server.post(SERVICES, &service("c", json!({"clusterIP": "10.43.0.10"}))).await.expect(201);
    // So does a change that is refused, of what it would have given.
    server
        .post(
            SERVICES,
            &json!({"metadata": {"name": "d"}, "spec": {"type": "ExternalName", "externalName": "x.test"}}),
        )
        .await
        .expect(201);
    let change = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.0.11", "externalName": null, "ports": [{"port": 80, "targetPort": -1}]}});
    server.patch("merge", &format!("{SERVICES}/d"), &change).await.expect_reason(422, "Invalid");
    server.post(SERVICES, &service("e", json!({"clusterIP": "10.43.0.11"}))).await.expect(201);
    // The same address goes from one service to the next without a gap.
    for _ in 0..200 {
        server.delete(&format!("{SERVICES}/e")).await.expect(200);
        server.post(SERVICES, &service("e", json!({"clusterIP": "10.43.0.11"}))).await.expect(201);
        server.get(&format!("{ADDRESSES}/10.43.0.11")).await.expect(200);
    }
    // What somebody holds goes when they let it go, and no sooner.
    let held = format!("{ADDRESSES}/10.43.0.11");
    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    server.patch("merge", &held, &hold).await.expect(200);
    server.delete(&format!("{SERVICES}/e")).await.expect(200);
    let is_ending = async {
        while server.get(&held).await.expect(200)["metadata"]["deletionTimestamp"].is_null() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_ending).await.unwrap();
    server.patch("merge", &held, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    server.get(&held).await.expect(404);
}

#[tokio::test]
async fn what_is_given_and_refused_is_counted() {
    let server = Server::with(|config| {
        config.service_cidrs = vec!["10.43.0.0/29".into()];
        config.node_ports = (30000, 30001);
    })
    .await;
    for name in ["a", "b"] {
        server.post(SERVICES, &service(name, json!({"type": "NodePort"}))).await.expect(201);
    }
    server.post(&format!("{SERVICES}?dryRun=All"), &service("dry", json!({}))).await.expect(201);
    server.post(SERVICES, &service("c", json!({"clusterIP": "10.43.0.1"}))).await.expect(422);
    server.post(SERVICES, &service("d", json!({"type": "NodePort"}))).await.expect(500);
    for name in ["e", "f", "g"] {
        server.post(SERVICES, &service(name, json!({}))).await.expect(201);
    }
    server.post(SERVICES, &service("h", json!({}))).await.expect(500);
    let text = server.get("/metrics").await.text();
    let address = "kube_apiserver_clusterip_allocator_";
    let port = "kube_apiserver_nodeport_allocator_";
    for line in [
        format!(
            "# HELP {address}allocated_ips [ALPHA] Gauge measuring the number of allocated IPs for Services"
        ),
        format!("{address}allocated_ips{{cidr=\"10.43.0.0/29\"}} 6"),
        format!("{address}available_ips{{cidr=\"10.43.0.0/29\"}} 0"),
        // Its own; of what has no ports an address was given for a moment.
        format!("{address}allocation_total{{cidr=\"10.43.0.0/29\",scope=\"static\"}} 1"),
        format!("{address}allocation_total{{cidr=\"10.43.0.0/29\",scope=\"dynamic\"}} 6"),
        format!("{address}allocation_errors_total{{cidr=\"10.43.0.0/29\",scope=\"static\"}} 1"),
        format!("{address}allocation_errors_total{{cidr=\"10.43.0.0/29\",scope=\"dynamic\"}} 1"),
        format!("{address}allocation_duration_seconds_count{{cidr=\"10.43.0.0/29\"}} 7"),
        format!("{port}allocated_ports 2"),
        format!("{port}available_ports 0"),
        format!("{port}allocation_total{{scope=\"dynamic\"}} 2"),
        format!("{port}allocation_errors_total{{scope=\"dynamic\"}} 1"),
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}

#[tokio::test]
async fn two_ranges_give_two_families() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |ranges: &[&str]| {
        let mut config = Config::new(open(&dir.path().join("store")).await);
        config.service_cidrs = ranges.iter().map(|r| (*r).to_owned()).collect();
        config.advertise = Some(("192.0.2.1".parse().unwrap(), 6443));
        Server { api: Box::pin(ApiServer::start(config)).await.unwrap(), dir: tempfile::tempdir().unwrap() }
    };
    let stop = async |server: Server| {
        server.api.shutdown().await;
        server.api.core().store().clone().close().await;
    };
    let server = start(&["10.43.0.0/16"]).await;
    let wants_two = service("two", json!({"ipFamilyPolicy": "RequireDualStack"}));
    let message = server.post(SERVICES, &wants_two).await.expect_reason(422, "Invalid");
    assert!(message.contains("this cluster is not configured for dual-stack services"), "{message}");
    let prefers = service("later", json!({"ipFamilyPolicy": "PreferDualStack"}));
    let later = server.post(SERVICES, &prefers).await.expect(201);
    assert_eq!(later["spec"]["ipFamilies"], json!(["IPv4"]));
    stop(server).await;

    // A second range comes: the object says both.
    let server = start(&["10.43.0.0/16", "fd00:43::/112"]).await;
    let range = server.get(&format!("{RANGES}/kubernetes")).await.expect(200);
    assert_eq!(range["spec"]["cidrs"], json!(["10.43.0.0/16", "fd00:43::/112"]));
    let own = server.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["ipFamilies"], json!(["IPv4"]));
    for (name, spec, families) in [
        ("plain", json!({}), json!(["IPv4"])),
        ("six", json!({"ipFamilies": ["IPv6"]}), json!(["IPv6"])),
        ("prefer", json!({"ipFamilyPolicy": "PreferDualStack"}), json!(["IPv4", "IPv6"])),
        ("two", json!({"ipFamilyPolicy": "RequireDualStack"}), json!(["IPv4", "IPv6"])),
        (
            "turned",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}),
            json!(["IPv6", "IPv4"]),
        ),
        (
            "told",
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "fd00:43::77"}),
            json!(["IPv6", "IPv4"]),
        ),
    ] {
        let made = server.post(SERVICES, &service(name, spec)).await.expect(201);
        assert_eq!(made["spec"]["ipFamilies"], families, "{name}");
        let ips: Vec<&str> =
            made["spec"]["clusterIPs"].as_array().unwrap().iter().map(|ip| ip.as_str().unwrap()).collect();
        assert_eq!(made["spec"]["clusterIP"], ips[0], "{name}");
        assert_eq!(ips.len(), families.as_array().unwrap().len(), "{name}");
        for (ip, family) in ips.iter().zip(families.as_array().unwrap()) {
            let object = server.get(&format!("{ADDRESSES}/{ip}")).await.expect(200);
            assert_eq!(object["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"], *family, "{name}");
            assert_eq!(object["spec"]["parentRef"]["name"], name);
        }
    }
    // Up and down again by a change of the policy.
    let up = server
        .patch(
            "merge",
            &format!("{SERVICES}/plain"),
            &json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}}),
        )
        .await
        .expect(200);
    let second = format!("{ADDRESSES}/{}", up["spec"]["clusterIPs"][1].as_str().unwrap());
    server.get(&second).await.expect(200);
    let down = server
        .patch("merge", &format!("{SERVICES}/plain"), &json!({"spec": {"ipFamilyPolicy": "SingleStack"}}))
        .await
        .expect(200);
    assert_eq!(down["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
    server.get(&second).await.expect(404);
    stop(server).await;
}
