//! Storage versions and their migrations against the real API server.

mod common;

use common::Cluster;
use serde_json::{Value, json};
use yare_client::{
    CUSTOM_RESOURCE_DEFINITIONS, LEASES, ObjectKey, Resource, STORAGE_VERSION_MIGRATIONS, STORAGE_VERSIONS,
};
use yare_controllers::{
    Config,
    api::{Deletion, Patch},
};
use yare_schema::features::Gates;

fn things(version: &'static str) -> Resource {
    Resource {
        group: "x.io".into(),
        version: version.into(),
        plural: "things".into(),
        kind: "Thing".into(),
        namespaced: true,
    }
}

fn definition(storage: &str) -> Value {
    let version = |name: &str| {
        json!({"name": name, "served": true, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    json!({"metadata": {"name": "things.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [version("v1"), version("v2")]}})
}

fn has(object: &Value, condition: &str, status: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|c| c["type"] == condition && c["status"] == status))
}

fn migration(name: &str, group: &str, resource: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"resource": {"group": group, "resource": resource}}})
}

#[tokio::test]
async fn objects_come_to_rest_in_the_storage_version() {
    let gates = Gates::parse("StorageVersionMigrator=true").unwrap();
    let cluster = Cluster::with(Config { gates, ..Config::default() }).await;
    cluster.create(&CUSTOM_RESOURCE_DEFINITIONS, "", definition("v1")).await;
    cluster
        .until_is(&CUSTOM_RESOURCE_DEFINITIONS, "", "things.x.io", |crd| has(crd, "Established", "True"))
        .await;
    for name in ["a", "b"] {
        cluster.create(&things("v1"), "default", json!({"metadata": {"name": name}, "kept": true})).await;
    }
    let before = cluster.get(&things("v1"), "default", "a").await;

    // The storage version changes: both are stored.
    let versions = definition("v2")["spec"].clone();
    cluster.merge(&CUSTOM_RESOURCE_DEFINITIONS, "", "things.x.io", json!({"spec": versions})).await;
    let stored = |crd: &Value| crd["status"]["storedVersions"].clone();
    let crd = cluster
        .until_is(&CUSTOM_RESOURCE_DEFINITIONS, "", "things.x.io", |crd| stored(crd) == json!(["v1", "v2"]))
        .await;
    let generation = crd["metadata"]["generation"].clone();

    // Two at once: one after the other.
    for name in ["first", "second"] {
        cluster.create(&STORAGE_VERSION_MIGRATIONS, "", migration(name, "x.io", "things")).await;
    }
    for name in ["first", "second"] {
        let done = cluster
            .until_is(&STORAGE_VERSION_MIGRATIONS, "", name, |m| {
                has(m, "Succeeded", "True") && has(m, "Running", "False")
            })
            .await;
        assert!(done["status"]["resourceVersion"].as_str().is_some_and(|v| v != "0"), "{done}");
    }
    let crd = cluster
        .until_is(&CUSTOM_RESOURCE_DEFINITIONS, "", "things.x.io", |crd| {
            stored(crd) == json!(["v2"]) && has(crd, "StorageMigrating", "False")
        })
        .await;
    let condition =
        crd["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "StorageMigrating");
    assert_eq!(condition.unwrap()["reason"], "MigrationSucceeded");
    assert_eq!(crd["metadata"]["generation"], generation);
    // Written anew, by nobody in particular.
    let after = cluster.get(&things("v1"), "default", "a").await;
    assert_ne!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    assert_eq!(after["metadata"]["managedFields"], before["metadata"]["managedFields"]);
    assert_eq!((&after["kept"], &after["metadata"]["uid"]), (&json!(true), &before["metadata"]["uid"]));
    // Once more there is nothing to write.
    cluster.create(&STORAGE_VERSION_MIGRATIONS, "", migration("third", "x.io", "things")).await;
    cluster.until_is(&STORAGE_VERSION_MIGRATIONS, "", "third", |m| has(m, "Succeeded", "True")).await;
    let still = cluster.get(&things("v1"), "default", "a").await;
    assert_eq!(still["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    // Kubernetes' own resources have nothing to migrate, and some cannot be.
    cluster.create(&STORAGE_VERSION_MIGRATIONS, "", migration("own", "", "serviceaccounts")).await;
    cluster.until_is(&STORAGE_VERSION_MIGRATIONS, "", "own", |m| has(m, "Succeeded", "True")).await;
    let reviews = migration("reviews", "authentication.k8s.io", "tokenreviews");
    cluster.create(&STORAGE_VERSION_MIGRATIONS, "", reviews).await;
    let failed = cluster
        .until_is(&STORAGE_VERSION_MIGRATIONS, "", "reviews", |m| {
            has(m, "Failed", "True") && has(m, "Running", "False")
        })
        .await;
    let message = &failed["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Failed")
        .unwrap()["message"];
    assert_eq!(
        message,
        "resource \"authentication.k8s.io/v1, Resource=tokenreviews\" does not support discovery operations: [update patch list]"
    );
    // What is over stays so.
    let key = ObjectKey::cluster("first");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    cluster.api.patch(&STORAGE_VERSION_MIGRATIONS, &key, "", Patch::Merge, &label).await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn versions_of_servers_that_are_gone_are_forgotten() {
    let gates = Gates::parse("StorageVersionAPI=true").unwrap();
    let cluster = Cluster::secure(Config { gates, ..Config::default() }, |server| {
        let served = "internal.apiserver.k8s.io/v1alpha1=true";
        server.runtime_config = yare_apiserver::runtime_config::RuntimeConfig::parse(served).unwrap();
        server.identity = Some(yare_apiserver::identity::Timing::default());
    })
    .await;
    let own = yare_apiserver::identity::id();
    let lease = json!({"metadata": {"name": "other", "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver"}},
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 3600, "renewTime": "2099-01-01T00:00:00.000000Z"}});
    cluster.create(&LEASES, "kube-system", lease).await;
    let entry = |id: &str, version: &str| json!({"apiServerID": id, "encodingVersion": version, "decodableVersions": [version], "servedVersions": [version]});
    let record = async |name: &str, servers: Value, common: Value| {
        cluster.create(&STORAGE_VERSIONS, "", json!({"metadata": {"name": name}, "spec": {}})).await;
        let mut status = json!({"storageVersions": servers});
        if !common.is_null() {
            status["commonEncodingVersion"] = common;
        }
        let made = cluster.api.get(&STORAGE_VERSIONS, &ObjectKey::cluster(name)).await.unwrap().unwrap();
        cluster.api.update_status(&STORAGE_VERSIONS, &made, &status).await.unwrap();
    };
    // Two that are there, and disagree.
    record("x.things", json!([entry(own, "x/v1"), entry("other", "x/v2")]), Value::Null).await;
    // One that nobody knows.
    record("x.strays", json!([entry("nobody", "x/v1")]), json!("x/v1")).await;
    cluster.until_gone(&STORAGE_VERSIONS, "", "x.strays").await;
    let version = cluster.get(&STORAGE_VERSIONS, "", "x.things").await;
    assert_eq!(version["status"]["storageVersions"].as_array().unwrap().len(), 2);

    cluster.api.delete(&LEASES, &ObjectKey::new("kube-system", "other"), Deletion::default()).await.unwrap();
    let version = cluster
        .until_is(&STORAGE_VERSIONS, "", "x.things", |v| v["status"]["commonEncodingVersion"] == "x/v1")
        .await;
    assert_eq!(version["status"]["storageVersions"], json!([entry(own, "x/v1")]));
    assert!(has(&version, "AllEncodingVersionsEqual", "True"), "{version}");
    // What the server itself said stays.
    cluster.get(&STORAGE_VERSIONS, "", "core.pods").await;
    cluster.stop().await;
}
