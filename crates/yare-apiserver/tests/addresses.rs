//! Addresses of services as objects: IPAddresses say whose each is, ServiceCIDRs where they come from.

mod common;

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
    let object = server.until_is(&path, "made", |code, _| code == 200).await;
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
    server.delete(&format!("{SERVICES}/a")).await.expect(200);
    server.until_is(&path, "gone", |code, _| code == 404).await;
    // Services without an address have none; dry runs leave none.
    server.post(SERVICES, &service("headless", json!({"clusterIP": "None"}))).await.expect(201);
    server.post(&format!("{SERVICES}?dryRun=All"), &service("dry", json!({}))).await.expect(201);
    // An address that is given back by a change of type.
    let made = server.post(SERVICES, &service("b", json!({}))).await.expect(201);
    let path = format!("{ADDRESSES}/{}", made["spec"]["clusterIP"].as_str().unwrap());
    server.until_is(&path, "made", |code, _| code == 200).await;
    let named = json!({"spec": {"type": "ExternalName", "externalName": "x.example.com", "clusterIP": null, "clusterIPs": null}});
    server.patch("merge", &format!("{SERVICES}/b"), &named).await.expect(200);
    server.until_is(&path, "given back", |code, _| code == 404).await;
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
    let object = server.until_is(&format!("{ADDRESSES}/10.43.0.77"), "made", |code, _| code == 200).await;
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
    server.until_is(&format!("{ADDRESSES}/10.99.0.5"), "made", |code, _| code == 200).await;
    let edge = service("edge", json!({"clusterIP": "10.99.0.7"}));
    let message = server.post(SERVICES, &edge).await.expect_reason(422, "Invalid");
    assert!(message.contains("The range of valid IPs is 10.99.0.0/29"), "{message}");
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
    let object = server.until_is(&format!("{ADDRESSES}/{ip}"), "made", |code, _| code == 200).await;
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
    let draft = yare_store::Draft { json: text.into_bytes(), rv_at };
    let writes = vec![change("10.43.9.9", yare_store::Op::Put(draft)), change(&ip, yare_store::Op::Delete)];
    store.commit(writes).await.unwrap();
    let server = Server { api: ApiServer::start(Config::new(store)).await.unwrap(), dir: server.dir };
    server.until_is(&format!("{ADDRESSES}/{ip}"), "made anew", |code, _| code == 200).await;
    server.until_is(&format!("{ADDRESSES}/10.43.9.9"), "stale", |code, _| code == 404).await;
}
