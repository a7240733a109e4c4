//! Server-side apply over the API.

mod common;

use common::Server;
use serde_json::json;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn owners_and_conflicts() {
    let server = Server::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let config = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let made = server.apply(&path, "one", &config(json!({"x": "1", "y": "1"}))).await.expect(201);
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Apply");
    // The same once more changes nothing.
    let again = server.apply(&path, "one", &config(json!({"x": "1", "y": "1"}))).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    let answer = server.apply(&path, "two", &config(json!({"x": "2"}))).await;
    assert_eq!(answer.code, 409);
    let status = answer.json();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["reason"]),
        (&json!("Conflict"), &json!("FieldManagerConflict"))
    );
    assert_eq!(status["details"]["causes"][0]["field"], ".data.x");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("Apply failed with 1 conflict: conflict with \"one\""),
        "{status}"
    );
    let forced =
        server.apply(&format!("{path}?force=true"), "two", &config(json!({"x": "2"}))).await.expect(200);
    assert_eq!(forced["data"], json!({"x": "2", "y": "1"}));
    // What a manager no longer applies goes, unless somebody else owns it.
    let less = server.apply(&path, "one", &config(json!({}))).await.expect(200);
    assert_eq!(less["data"], json!({"x": "2"}));

    // An update is recorded too.
    server
        .patch("merge", &format!("{path}?fieldManager=editor"), &json!({"data": {"z": "3"}}))
        .await
        .expect(200);
    let now = server.get(&path).await.expect(200);
    let entries = now["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.iter().any(|e| e["manager"] == "editor" && e["operation"] == "Update"), "{now}");

    for (query, code, reason) in
        [("", 422, "Invalid"), ("?fieldManager=x&force=true&dryRun=Nope", 422, "Invalid")]
    {
        server
            .send(
                "PATCH",
                &format!("{path}{query}"),
                &[("content-type", "application/apply-patch+yaml")],
                config(json!({})).to_string(),
            )
            .await
            .expect_reason(code, reason);
    }
    let wrong = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
    server.apply(&path, "x", &wrong).await.expect_reason(400, "BadRequest");
    let named = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}});
    server.apply(&path, "x", &named).await.expect_reason(400, "BadRequest");
}

#[tokio::test]
async fn status_is_not_the_main_resources_to_own() {
    let server = Server::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        "status": {"replicas": 7},
    });
    let made = server.apply(path, "me", &deployment).await.expect(201);
    assert_ne!(made["status"]["replicas"], 7);
    let fields = &made["metadata"]["managedFields"][0]["fieldsV1"];
    assert!(fields.get("f:status").is_none(), "{fields}");
    assert!(fields["f:spec"].get("f:replicas").is_some(), "{fields}");
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "status": {"replicas": 2}});
    let written = server.apply(&format!("{path}/status"), "controller", &status).await.expect(200);
    assert_eq!((&written["status"]["replicas"], &written["spec"]["replicas"]), (&json!(2), &json!(1)));
    let entry = written["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == "controller")
        .cloned()
        .unwrap();
    assert_eq!(entry["subresource"], "status");
    let scaled =
        server.patch("merge", &format!("{path}/scale"), &json!({"spec": {"replicas": 4}})).await.expect(200);
    assert_eq!(
        (&scaled["kind"], &scaled["spec"]["replicas"], &scaled["status"]["selector"]),
        (&json!("Scale"), &json!(4), &json!("a=b"))
    );
    let now = server.get(path).await.expect(200);
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(4), &json!(2)));
}
