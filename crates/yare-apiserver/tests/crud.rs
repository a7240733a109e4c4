//! The verbs over the in-process service and the real store.

mod common;

use common::Server;
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn create_get_update_delete() {
    let server = Server::start().await;
    let made =
        server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.expect(201);
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(made["metadata"][field].as_str().is_some_and(|s| !s.is_empty()), "{made}");
    }
    assert_eq!(made["metadata"]["namespace"], "default");
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(server.get(&path).await.expect(200), made);
    let message = server
        .post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}}))
        .await
        .expect_reason(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"a\" already exists");

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let updated = server.put(&path, &changed).await.expect(200);
    assert_eq!(updated["data"]["k"], "w");
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let message = server.put(&path, &changed).await.expect_reason(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // The same once more changes nothing, not even the revision.
    assert_eq!(server.put(&path, &updated).await.expect(200), updated);

    let gone = server.delete(&path).await.expect(200);
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    let message = server.get(&path).await.expect_reason(404, "NotFound");
    assert_eq!(message, "configmaps \"a\" not found");
    server.delete(&path).await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn patches() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"x": "1"}})).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    for (kind, patch, want) in [
        ("merge", json!({"data": {"y": "2"}}), json!({"x": "1", "y": "2"})),
        ("json", json!([{"op": "remove", "path": "/data/x"}]), json!({"y": "2"})),
        ("strategic", json!({"data": {"z": "3", "y": null}}), json!({"z": "3"})),
    ] {
        assert_eq!(server.patch(kind, &path, &patch).await.expect(200)["data"], want, "{kind}");
    }
    server
        .patch("json", &path, &json!([{"op": "remove", "path": "/data/none"}]))
        .await
        .expect_reason(422, "Invalid");
    server.patch("text/plain", &path, &json!({})).await.expect_reason(415, "UnsupportedMediaType");
    server
        .patch("merge", &path, &json!({"metadata": {"resourceVersion": "1"}}))
        .await
        .expect_reason(409, "Conflict");
    server.patch("merge", &path, &json!({"metadata": {"name": "b"}})).await.expect_reason(400, "BadRequest");
    server.patch("merge", &path, &json!({"data": 7})).await.expect_reason(422, "Invalid");
    server.patch("merge", &format!("{CONFIG_MAPS}/none"), &json!({})).await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn lists_and_pages() {
    let server = Server::start().await;
    for i in 0..10 {
        let labels = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }});
        server
            .post(CONFIG_MAPS, &json!({"metadata": {"name": format!("c{i}"), "labels": labels}}))
            .await
            .expect(201);
    }
    let all = server.get(CONFIG_MAPS).await.expect(200);
    assert_eq!((&all["kind"], all["items"].as_array().map(Vec::len)), (&json!("ConfigMapList"), Some(10)));
    let odd = server.get(&format!("{CONFIG_MAPS}?labelSelector=parity%3Dodd")).await.expect(200);
    assert_eq!(odd["items"].as_array().map(Vec::len), Some(5));
    let one = server.get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dc3")).await.expect(200);
    assert_eq!(one["items"][0]["metadata"]["name"], "c3");
    let everywhere = server.get("/api/v1/configmaps").await.expect(200);
    assert!(everywhere["items"].as_array().is_some_and(|i| i.len() >= 10));

    // Pages show the revision of the first one, whatever happens in between.
    let mut path = format!("{CONFIG_MAPS}?limit=4");
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let page = server.get(&path).await.expect(200);
        names.extend(page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()));
        pages += 1;
        if pages == 1 {
            assert_eq!(page["metadata"]["remainingItemCount"], 6);
            server.delete(&format!("{CONFIG_MAPS}/c9")).await.expect(200);
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) => path = format!("{CONFIG_MAPS}?limit=4&continue={token}"),
            None => break,
        }
    }
    assert_eq!((pages, names.len()), (3, 10));
    server.get(&format!("{CONFIG_MAPS}?continue=abc")).await.expect_reason(400, "BadRequest");
    server.get(&format!("{CONFIG_MAPS}?labelSelector=a%3D%3D%3Db")).await.expect_reason(400, "BadRequest");
    server.get(&format!("{CONFIG_MAPS}?fieldSelector=spec.x%3Db")).await.expect_reason(400, "BadRequest");
    server.get(&format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.expect_reason(422, "Invalid");
}

#[tokio::test]
async fn watches() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a", "labels": {"on": "yes"}}})).await.expect(201);
    let list = server.get(CONFIG_MAPS).await.expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut plain = server.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}")).await;
    let mut selected = server
        .watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=on%3Dyes&resourceVersion={revision}"))
        .await;
    let mut state = server
        .watch(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"))
        .await;
    assert_eq!(state.brief().await, "ADDED a");
    let end = state.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "b"}})).await.expect(201);
    server
        .patch("merge", &format!("{CONFIG_MAPS}/b"), &json!({"metadata": {"labels": {"on": "yes"}}}))
        .await
        .expect(200);
    let changed = server
        .patch("merge", &format!("{CONFIG_MAPS}/a"), &json!({"metadata": {"labels": null}}))
        .await
        .expect(200);
    server.delete(&format!("{CONFIG_MAPS}/b")).await.expect(200);
    for want in ["ADDED b", "MODIFIED b", "MODIFIED a", "DELETED b"] {
        assert_eq!(plain.brief().await, want);
    }
    assert_eq!(selected.brief().await, "ADDED b");
    let left = selected.next().await.unwrap();
    assert_eq!(left["type"], "DELETED");
    assert_eq!(left["object"]["metadata"]["labels"]["on"], "yes", "the last matching state");
    assert_eq!(left["object"]["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"]);
    assert_eq!(selected.brief().await, "DELETED b");
    for want in ["ADDED b", "MODIFIED b", "MODIFIED a", "DELETED b", "BOOKMARK "] {
        assert_eq!(state.brief().await, want);
    }
    assert!(state.next().await.is_none(), "the timeout ends it");
}

#[tokio::test]
async fn tables_and_other_forms() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.expect(201);
    let table = server
        .send(
            "GET",
            CONFIG_MAPS,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")],
            "",
        )
        .await
        .expect(200);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = server
        .send(
            "GET",
            CONFIG_MAPS,
            &[("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")],
            "",
        )
        .await
        .expect(200);
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0].get("data").is_none());
    let yaml = server.send("GET", &format!("{CONFIG_MAPS}/a"), &[("accept", "application/yaml")], "").await;
    assert!(yaml.text().contains("data:\n  k: v\n"), "{}", yaml.text());
    let proto = server
        .send("GET", &format!("{CONFIG_MAPS}/a"), &[("accept", "application/vnd.kubernetes.protobuf")], "")
        .await;
    assert!(proto.bytes.starts_with(b"k8s\0"));
    let sent = proto.bytes.clone();
    server.delete(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    // What was read as protobuf can be sent as protobuf (once its revision is gone).
    let again = server
        .send(
            "PUT",
            &format!("{CONFIG_MAPS}/a"),
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            sent,
        )
        .await;
    again.expect_reason(404, "NotFound");
    server.send("GET", CONFIG_MAPS, &[("accept", "text/html")], "").await.expect_reason(406, "NotAcceptable");
}

#[tokio::test]
async fn discovery() {
    let server = Server::start().await;
    assert_eq!(server.get("/api").await.expect(200)["versions"][0], "v1");
    let groups = server.get("/apis").await.expect(200);
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "apps"));
    let core = server.get("/api/v1").await.expect(200);
    let names: Vec<&str> =
        core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    for name in ["pods", "pods/log", "pods/status", "namespaces/finalize", "nodes/proxy", "services"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let all = server
        .send(
            "GET",
            "/apis",
            &[(
                "accept",
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
            )],
            "",
        )
        .await
        .expect(200);
    assert_eq!(all["kind"], "APIGroupDiscoveryList");
    assert_eq!(server.get("/version").await.expect(200)["minor"], "36");
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        assert_eq!(server.get(path).await.text(), "ok", "{path}");
    }
    assert!(server.get("/metrics").await.text().contains("apiserver_request_total"));
    server.get("/apis/none.example.com/v1").await.expect_no_such_path();
    server.get("/api/v1/nothings").await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn dry_run_and_generated_names() {
    let server = Server::start().await;
    let dry = server
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &json!({"metadata": {"name": "dry"}}))
        .await
        .expect(201);
    assert!(dry["metadata"].get("resourceVersion").is_none(), "{dry}");
    server.get(&format!("{CONFIG_MAPS}/dry")).await.expect_reason(404, "NotFound");
    let made = server.post(CONFIG_MAPS, &json!({"metadata": {"generateName": "gen-"}})).await.expect(201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
    let both = json!({"metadata": {"name": name, "generateName": "gen-"}});
    let status = server.post(CONFIG_MAPS, &both).await.expect(409);
    assert_eq!(status["details"]["retryAfterSeconds"], 1, "{status}");
    let owner = json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u"});
    let owned = json!({"metadata": {"name": "owned", "ownerReferences": [owner, owner]}});
    let owned = server.post(&format!("{CONFIG_MAPS}?dryRun=All"), &owned).await.expect(201);
    assert_eq!(owned["metadata"]["ownerReferences"], json!([owner]));
    server
        .post(&format!("{CONFIG_MAPS}?dryRun=Some"), &json!({"metadata": {"name": "x"}}))
        .await
        .expect_reason(422, "Invalid");
}

#[tokio::test]
async fn finalizers_and_grace() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    server
        .post(CONFIG_MAPS, &json!({"metadata": {"name": "a", "finalizers": ["example.com/wait"]}}))
        .await
        .expect(201);
    let marked = server.delete(&path).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    server
        .patch("merge", &path, &json!({"metadata": {"finalizers": ["example.com/wait", "example.com/more"]}}))
        .await
        .expect_reason(422, "Invalid");
    let message = server
        .post(CONFIG_MAPS, &json!({"metadata": {"name": "a"}}))
        .await
        .expect_reason(409, "AlreadyExists");
    assert_eq!(message, "object is being deleted: configmaps \"a\" already exists");
    server.patch("merge", &path, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    server.get(&path).await.expect_reason(404, "NotFound");
    // Of some kinds upstream does not look at what finalizers are called.
    let held = json!({"metadata": {"name": "a", "finalizers": ["wait"]}});
    server.post(CONFIG_MAPS, &held).await.expect_reason(422, "Invalid");
    server.post("/apis/coordination.k8s.io/v1/namespaces/default/leases", &held).await.expect(201);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "A_b", "finalizers": ["wait"]}, "spec": {"selector": {"matchLabels": {"a": "b"}}}});
    server.post(budgets, &budget).await.expect(201);

    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let made = server.post(pods, &pod).await.expect(201);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert!(made["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    let going = server.delete(&format!("{pods}/p")).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    server.get(&format!("{pods}/p")).await.expect(200);
    server.delete(&format!("{pods}/p?gracePeriodSeconds=0")).await.expect(200);
    server.get(&format!("{pods}/p")).await.expect_reason(404, "NotFound");
    let pod = json!({"metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    server.post(pods, &pod).await.expect(201);
    server.delete(&format!("{pods}/q")).await.expect(200);
    server.get(&format!("{pods}/q")).await.expect_reason(404, "NotFound");
}

#[tokio::test]
async fn namespaces() {
    let server = Server::start().await;
    let made = server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(201);
    assert_eq!(made["spec"]["finalizers"][0], "kubernetes");
    assert_eq!(made["status"]["phase"], "Active");
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    server.delete("/api/v1/namespaces/default").await.expect_reason(403, "Forbidden");
    let going = server.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    assert!(!going["metadata"].as_object().unwrap().contains_key("deletionGracePeriodSeconds"), "{going}");
    let message = server
        .post("/api/v1/namespaces/x/configmaps", &json!({"metadata": {"name": "a"}}))
        .await
        .expect_reason(403, "Forbidden");
    assert!(message.contains("because it is being terminated"), "{message}");
    server
        .post("/api/v1/namespaces/none/configmaps", &json!({"metadata": {"name": "a"}}))
        .await
        .expect_reason(404, "NotFound");
}

#[tokio::test]
async fn service_addresses() {
    let server = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let kubernetes = server.get(&format!("{services}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let service = |name: &str, more: serde_json::Value| {
        let mut s =
            json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
        for (k, v) in more.as_object().unwrap() {
            s["spec"][k] = v.clone();
        }
        s
    };
    let a = server.post(services, &service("a", json!({}))).await.expect(201);
    assert!(a["spec"]["clusterIP"].as_str().unwrap().starts_with("10.43."), "{a}");
    assert_eq!(a["spec"]["clusterIPs"][0], a["spec"]["clusterIP"]);
    assert_eq!(a["spec"]["ipFamilies"], json!(["IPv4"]));
    let taken = service("b", json!({"clusterIP": a["spec"]["clusterIP"]}));
    let message = server.post(services, &taken).await.expect_reason(422, "Invalid");
    assert!(message.contains("provided IP is already allocated"), "{message}");
    let node = server.post(services, &service("n", json!({"type": "NodePort"}))).await.expect(201);
    let port = node["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let headless = server.post(services, &service("h", json!({"clusterIP": "None"}))).await.expect(201);
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    // A service takes its endpoints along.
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let behind = json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.9"}]}]});
    server.post(endpoints, &behind).await.expect(201);
    server.delete(&format!("{services}/a")).await.expect(200);
    server.get(&format!("{endpoints}/a")).await.expect_reason(404, "NotFound");
    server.post(services, &taken).await.expect(201);
    // One number over two protocols is reached at one port of the nodes.
    let both = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let dns =
        server.post(services, &service("d", json!({"type": "NodePort", "ports": both}))).await.expect(201);
    assert_eq!(dns["spec"]["ports"][0]["nodePort"], dns["spec"]["ports"][1]["nodePort"], "{dns}");
    let far = service("f", json!({"clusterIP": "1.2.3.4"}));
    let message = server.post(services, &far).await.expect_reason(422, "Invalid");
    let why = "failed to allocate IP 1.2.3.4: the provided network does not match the current range";
    assert!(message.contains(why), "{message}");
    let named =
        service("x", json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.43.0.7"}));
    let message = server.post(services, &named).await.expect_reason(422, "Invalid");
    assert!(message.contains("may not be set for ExternalName services"), "{message}");
    let changed =
        service("n", json!({"type": "NodePort", "clusterIP": "10.43.0.77", "clusterIPs": ["10.43.0.77"]}));
    let message = server.put(&format!("{services}/n"), &changed).await.expect_reason(422, "Invalid");
    assert!(
        message.contains("spec.clusterIPs[0]: Invalid value: [\"10.43.0.77\"]: may not change once set"),
        "{message}"
    );
}

/// Leases and a few other kinds are made by an update where they are not there.
#[tokio::test]
async fn an_update_may_create() {
    let server = Server::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = |name: &str, metadata: Value| {
        let mut lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
        lease["metadata"]["name"] = name.into();
        lease
    };
    let put = async |name: &str, query: &str, metadata: Value| {
        server.put(&format!("{leases}/{name}{query}"), &lease(name, metadata)).await
    };
    put("a", "", json!({})).await.expect(201);
    // The version is that of an object that has gone meanwhile.
    let made = put("b", "", json!({"resourceVersion": "5"})).await.expect(201);
    assert_ne!(made["metadata"]["resourceVersion"], "5");
    // A UID means that very object, and no other of the same name.
    let why = |name: &str, root: &str, have: &str| {
        format!(
            "Operation cannot be fulfilled on leases.coordination.k8s.io \"{name}\": StorageError: invalid object, Code: 4, Key: {root}/leases/default/{name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: x, UID in object meta: {have}"
        )
    };
    let uid = made["metadata"]["uid"].as_str().unwrap();
    for (name, query, root, have) in
        [("c", "", "/registry", ""), ("c", "?dryRun=All", "", ""), ("b", "", "/registry", uid)]
    {
        let message = put(name, query, json!({"uid": "x"})).await.expect_reason(409, "Conflict");
        assert_eq!(message, why(name, root, have));
    }
    server.get(&format!("{leases}/c")).await.expect(404);
    // A created object has no version of its own yet; an applied one may have been seen before.
    let message = server.post(leases, &lease("d", json!({"resourceVersion": "5"}))).await;
    assert_eq!(message.expect(500)["message"], "resourceVersion should not be set on objects to be created");
    server.apply(&format!("{leases}/e"), "m", &lease("e", json!({"resourceVersion": "5"}))).await.expect(201);
}

/// Who sends what was sent before changes nothing, whatever the server fills in or puts back.
#[tokio::test]
async fn what_is_left_out_is_no_change() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "iscsi": {"targetPortal": "10.0.0.1", "iqn": "iqn.2026-01.com.example:a"}}],
    }});
    let made = server.post(pods, &pod).await.expect(201);
    assert_eq!(made["spec"]["volumes"][0]["iscsi"]["lun"], 0);
    let mut sent = pod.clone();
    // Those are not put back, and cannot be left out.
    for field in ["serviceAccountName", "serviceAccount", "volumes"] {
        sent["spec"][field] = made["spec"][field].clone();
    }
    sent["spec"]["containers"][0]["volumeMounts"] = made["spec"]["containers"][0]["volumeMounts"].clone();
    sent["spec"]["volumes"][0]["iscsi"].as_object_mut().unwrap().remove("lun");
    let same = server.put(&format!("{pods}/p"), &sent).await.expect(200);
    assert_eq!((&same["metadata"]["generation"], &same["spec"]), (&json!(1), &made["spec"]));

    let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let policy = json!({"metadata": {"name": "n"}, "spec": {"policyTypes": ["Ingress"]}});
    let made = server.post(policies, &policy).await.expect(201);
    assert_eq!(made["spec"]["podSelector"], json!({}));
    let same = server.put(&format!("{policies}/n"), &policy).await.expect(200);
    assert_eq!(same["metadata"]["generation"], 1);
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
}

/// A list without anything in it is not one that is left out, where that makes a difference.
#[tokio::test]
async fn no_way_to_scale_is_none() {
    let server = Server::start().await;
    let scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let scaler = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"policies": []}},
        "scaleTargetRef": {"kind": "Deployment", "name": "a", "apiVersion": "apps/v1"}}});
    let message = server.post(scalers, &scaler).await.expect_reason(422, "Invalid");
    assert!(
        message.ends_with("spec.behavior.scaleUp.policies: Required value: must specify at least one Policy"),
        "{message}"
    );
}

/// Upstream's objects rest as protobuf, which knows no empty lists.
#[tokio::test]
async fn lists_that_are_empty_rest_as_nothing() {
    let server = Server::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let made = server.post(roles, &json!({"metadata": {"name": "a"}, "rules": []})).await.expect(201);
    assert_eq!(made["rules"], Value::Null);
    assert!(made.as_object().unwrap().contains_key("rules"), "{made}");
    let config = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "a"}, "rules": []});
    let message = server.apply(&format!("{roles}/a"), "other", &config).await.expect_reason(409, "Conflict");
    assert!(
        message.ends_with("conflict with \"unknown\" using rbac.authorization.k8s.io/v1: .rules"),
        "{message}"
    );
}
