//! Encryption at rest with keys from a file: what lies on disk, rotation, restarts, what cannot be decrypted.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/rest.rs"]
mod rest;
#[path = "common/secure.rs"]
mod secure;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::Server;
use rest::{Disk, Setup};
use serde_json::json;

const SECRET: &str = "/api/v1/namespaces/default/secrets/a";
/// In no other object; its base64 form is searched for, too.
const MARK: &str = "opensesame-5d9a8c";

fn key(name: &str, len: usize) -> String {
    let seed = name.bytes().map(usize::from).sum::<usize>();
    let bytes: Vec<u8> = (0..len).map(|i| (seed + i) as u8).collect();
    format!("{{name: {name}, secret: {}}}", STANDARD.encode(bytes))
}

fn of(resources: &str, providers: &str) -> String {
    format!("{{resources: {resources}, providers: [{providers}]}}")
}

fn cbc(names: &[&str]) -> String {
    let keys: Vec<String> = names.iter().map(|name| key(name, 32)).collect();
    format!("{{aescbc: {{keys: [{}]}}}}", keys.join(", "))
}

fn secrets(providers: &str) -> String {
    format!("[{}]", of("[secrets]", providers))
}

async fn assert_hidden(server: &Server) {
    for text in [MARK.to_owned(), STANDARD.encode(MARK)] {
        assert_eq!(server.count_at_rest(&text).await, 0, "{text} lies on disk");
    }
}

#[tokio::test]
async fn plaintext_never_lies_on_disk() {
    for (provider, prefix) in [
        (cbc(&["k1"]), "k8s:enc:aescbc:v1:k1:"),
        (format!("{{aesgcm: {{keys: [{}]}}}}", key("k1", 16)), "k8s:enc:aesgcm:v1:k1:"),
        (format!("{{aesgcm: {{keys: [{}]}}}}", key("k1", 24)), "k8s:enc:aesgcm:v1:k1:"),
        (format!("{{aesgcm: {{keys: [{}]}}}}", key("k1", 32)), "k8s:enc:aesgcm:v1:k1:"),
        (format!("{{secretbox: {{keys: [{}]}}}}", key("k1", 32)), "k8s:enc:secretbox:v1:k1:"),
    ] {
        let server = Disk::new().start_with(&secrets(&provider)).await;
        server.secret("a", MARK).await;
        server.secret("b", MARK).await;
        let merge = json!({ "stringData": { "more": MARK }, "metadata": { "labels": { "more": MARK } } });
        server.patch("merge", SECRET, &merge).await.expect(200);
        server.delete("/api/v1/namespaces/default/secrets/b").await.expect(200);
        let other = json!({ "metadata": { "name": "plain" }, "data": { "says": "not-a-secret" } });
        server.post("/api/v1/namespaces/default/configmaps", &other).await.expect(201);
        assert_hidden(&server).await;
        assert!(server.count_at_rest(prefix).await > 0, "{prefix}");
        assert!(server.count_at_rest("not-a-secret").await > 0);
        let before = server.get(SECRET).await.expect(200);
        let from = server.version("/api/v1/namespaces/kube-system").await;

        let server = server.stop().await.start(&Setup::default()).await;
        assert_eq!(server.get(SECRET).await.expect(200), before, "{prefix}");
        for (query, found) in [
            (format!("labelSelector=says%3D{MARK}"), 1),
            ("labelSelector=says%3Dnothing".to_owned(), 0),
            ("fieldSelector=type%3DOpaque".to_owned(), 1),
            ("fieldSelector=metadata.name%3Db".to_owned(), 0),
        ] {
            let list = server.get(&format!("/api/v1/secrets?{query}")).await.expect(200);
            assert_eq!(list["items"].as_array().unwrap().len(), found, "{query}");
        }
        // History before the restart was read, too.
        let mut events =
            server.watch(&format!("/api/v1/namespaces/default/secrets?watch=1&resourceVersion={from}")).await;
        for expected in ["ADDED a", "ADDED b", "MODIFIED a", "DELETED b"] {
            assert_eq!(events.brief().await, expected);
        }
        assert_hidden(&server).await;
    }
}

#[tokio::test]
async fn keys_rotate() {
    let server = Disk::new().start_with(&secrets(&cbc(&["k1"]))).await;
    server.secret("a", MARK).await;
    let first = server.version(SECRET).await;
    assert_eq!(server.touch(SECRET).await, first, "what is not stale is not written anew");

    // Both keys: the new one writes.
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&cbc(&["k2", "k1"]))).await;
    assert_eq!(server.version(SECRET).await, first);
    let second = server.touch(SECRET).await;
    assert_ne!(second, first, "what is stale is written anew, also when it stays the same");
    assert_eq!(server.touch(SECRET).await, second);
    assert!(server.count_at_rest("k8s:enc:aescbc:v1:k2:").await > 0);

    // The old key goes. Its history is gone with it, its objects are not.
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&cbc(&["k2"]))).await;
    assert_eq!(server.version(SECRET).await, second);
    let mut events = server.watch(&format!("/api/v1/secrets?watch=1&resourceVersion={first}")).await;
    assert_eq!(events.next().await.unwrap()["object"]["code"], 410);

    // Another provider, with the same key's name in between.
    let gcm = format!("{{aesgcm: {{keys: [{}]}}}}", key("k2", 32));
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&format!("{gcm}, {}, {{identity: {{}}}}", cbc(&["k2"])))).await;
    let third = server.touch(SECRET).await;
    assert_ne!(third, second);

    // Decrypt everything again: the identity writes.
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&format!("{{identity: {{}}}}, {gcm}"))).await;
    assert_ne!(server.touch(SECRET).await, third);
    assert!(server.count_at_rest(&STANDARD.encode(MARK)).await > 0);
    let fourth = server.version(SECRET).await;
    assert_eq!(server.touch(SECRET).await, fourth);

    // And encrypt again what rested as it is.
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&format!("{gcm}, {{identity: {{}}}}"))).await;
    assert_ne!(server.touch(SECRET).await, fourth);
}

#[tokio::test]
async fn keys_of_one_name_in_two_providers_are_both_tried() {
    let old = format!("{{aescbc: {{keys: [{}]}}}}", key("k", 16));
    let new = format!("{{aescbc: {{keys: [{}]}}}}", key("k", 32));
    let server = Disk::new().start_with(&secrets(&old)).await;
    for name in ["a", "b", "c", "d"] {
        server.secret(name, MARK).await;
    }
    let server = server.stop().await.start_with(&secrets(&format!("{new}, {old}"))).await;
    let list = server.get("/api/v1/namespaces/default/secrets").await.expect(200);
    for secret in list["items"].as_array().unwrap() {
        assert_eq!(secret["data"]["says"], STANDARD.encode(MARK));
    }
}

#[tokio::test]
async fn wildcards_go_by_group_and_earlier_entries_go_first() {
    let entries = [
        of("[events]", "{identity: {}}"),
        of("['*.apps']", &cbc(&["apps"])),
        of("['*.']", &cbc(&["core"])),
        of("['*.*']", &cbc(&["all"])),
    ];
    let server = Disk::new().start_with(&format!("[{}]", entries.join(", "))).await;
    server.secret("a", MARK).await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "pandas.bears.example" },
        "spec": {
            "group": "bears.example", "scope": "Namespaced",
            "names": { "plural": "pandas", "kind": "Panda" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    });
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    server.until("/apis/bears.example/v1/pandas", 200).await;
    let panda = json!({ "apiVersion": "bears.example/v1", "kind": "Panda", "metadata": { "name": "p" }, "says": MARK });
    server.post("/apis/bears.example/v1/namespaces/default/pandas", &panda).await.expect(201);
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": { "name": "r" }, "revision": 1,
        "data": { "says": MARK },
    });
    server.post("/apis/apps/v1/namespaces/default/controllerrevisions", &revision).await.expect(201);
    assert_hidden(&server).await;
    for name in ["apps", "core", "all"] {
        assert!(server.count_at_rest(&format!("k8s:enc:aescbc:v1:{name}:")).await > 0, "{name}");
    }
    let event = json!({
        "metadata": { "name": "e", "namespace": "default" }, "reason": "R", "message": MARK, "type": "Normal",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "x" },
    });
    server.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    assert!(server.count_at_rest(MARK).await > 0, "events rest as they are");

    // All of it is read again, what the server itself needs included.
    let server = server.stop().await.start(&Setup::default()).await;
    server.get(SECRET).await.expect(200);
    let panda = server.until("/apis/bears.example/v1/namespaces/default/pandas/p", 200).await.json();
    assert_eq!(panda["says"], MARK);
    server.get("/apis/apps/v1/namespaces/default/controllerrevisions/r").await.expect(200);
    server.get("/api/v1/namespaces/default/events/e").await.expect(200);
}

/// A server that has a secret `a` under a key it does not know, and `b` under one that it does.
async fn with_a_lost_key(setup: &Setup) -> Server {
    let server = Disk::new().start_with(&secrets(&cbc(&["k1"]))).await;
    server.secret("a", MARK).await;
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&cbc(&["k2", "k1"]))).await;
    server.secret("b", MARK).await;
    let disk = server.stop().await;
    disk.write(&secrets(&cbc(&["k2"])));
    disk.start(setup).await
}

const LOST: &str = "no matching key was found for the provided AES transformer";

#[tokio::test]
async fn what_cannot_be_decrypted_is_an_error_of_its_own() {
    let server = with_a_lost_key(&Setup::default()).await;
    let message = format!("Internal error occurred: {LOST}");
    assert_eq!(server.get(SECRET).await.expect_reason(500, "InternalError"), message);
    let body = json!({ "metadata": { "name": "a" } });
    assert_eq!(server.put(SECRET, &body).await.expect_reason(500, "InternalError"), message);
    assert_eq!(server.patch("merge", SECRET, &body).await.expect_reason(500, "InternalError"), message);
    assert_eq!(server.delete(SECRET).await.expect_reason(500, "InternalError"), message);
    // The option says nothing while its feature is off.
    let unsafe_path = format!("{SECRET}?ignoreStoreReadErrorWithClusterBreakingPotential=true");
    assert_eq!(server.delete(&unsafe_path).await.expect_reason(500, "InternalError"), message);
    let list =
        format!("Internal error occurred: unable to transform key \"/registry/secrets/default/a\": {LOST}");
    for path in ["/api/v1/secrets", "/api/v1/namespaces/default/secrets", "/api/v1/secrets?watch=1"] {
        assert_eq!(server.get(path).await.expect_reason(500, "InternalError"), list, "{path}");
    }
    let all = server.delete("/api/v1/namespaces/default/secrets").await;
    assert_eq!(all.expect_reason(500, "InternalError"), list);
    let again = server.post("/api/v1/namespaces/default/secrets", &body).await;
    again.expect_reason(409, "AlreadyExists");

    // All else goes on.
    server.get("/api/v1/namespaces/default/secrets/b").await.expect(200);
    server.get("/api/v1/namespaces/kube-system/secrets").await.expect(200);
    server.get("/api/v1/configmaps").await.expect(200);
    server.secret("c", "x").await;
    let metrics = server.get("/metrics").await.text();
    let line = "apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"unknown-non-grpc\",transformation_type=\"from_storage\",transformer_prefix=\"k8s:enc:aescbc:v1:\"}";
    assert!(metrics.contains(line), "{metrics}");

    // A restart changes nothing, and the key brings it back.
    let server = server.stop().await.start(&Setup::default()).await;
    server.get(SECRET).await.expect(500);
    let disk = server.stop().await;
    let server = disk.start_with(&secrets(&cbc(&["k2", "k1"]))).await;
    server.get(SECRET).await.expect(200);
    server.get("/api/v1/secrets").await.expect(200);
}

#[tokio::test]
async fn without_a_configuration_nothing_encrypted_is_read() {
    let server = Disk::new().start_with(&secrets(&cbc(&["k1"]))).await;
    server.secret("a", MARK).await;
    let disk = server.stop().await;
    std::fs::remove_file(disk.config()).unwrap();
    let server = disk.start(&Setup::default()).await;
    let message = server.get(SECRET).await.expect_reason(500, "InternalError");
    assert_eq!(message, "Internal error occurred: identity transformer tried to read encrypted data");
}

#[tokio::test]
async fn without_the_identity_nothing_plain_is_read() {
    let server = Disk::new().start(&Setup::default()).await;
    server.secret("a", MARK).await;
    let before = server.get(SECRET).await.expect(200);
    let server = server.stop().await.start_with(&secrets(&cbc(&["k1"]))).await;
    let message = server.get(SECRET).await.expect_reason(500, "InternalError");
    assert_eq!(message, "Internal error occurred: no matching prefix found");
    let both = secrets(&format!("{}, {{identity: {{}}}}", cbc(&["k1"])));
    let server = server.stop().await.start_with(&both).await;
    assert_eq!(server.get(SECRET).await.expect(200), before);
}

#[tokio::test]
async fn what_cannot_be_read_can_be_deleted_by_whoever_insists() {
    let setup = Setup { gates: "AllowUnsafeMalformedObjectDeletion=true", ..Setup::default() };
    let server = with_a_lost_key(&setup).await;
    let corrupt = format!(
        "StorageError: corrupt object, Code: 7, Key: /registry/secrets/default/a, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: {LOST}"
    );
    let message = server.get(SECRET).await.expect_reason(500, "InternalError");
    assert_eq!(message, format!("Internal error occurred: {corrupt}"));
    let list = server.get("/api/v1/secrets").await.expect(500);
    assert_eq!(list["reason"], "StorageReadError");
    assert_eq!(list["message"], "failed to read one or more secrets from the storage");
    assert_eq!(
        list["details"],
        json!({
            "kind": "secrets", "name": "list",
            "causes": [{ "reason": "UnexpectedServerResponse", "field": "/registry/secrets/default/a", "message": corrupt }],
        })
    );

    let option = "ignoreStoreReadErrorWithClusterBreakingPotential";
    let collection = server.delete(&format!("/api/v1/namespaces/default/secrets?{option}=true")).await;
    let message = collection.expect_reason(422, "Invalid");
    assert!(
        message.ends_with("is not allowed with DELETECOLLECTION, try again after removing the option"),
        "{message}"
    );
    let beside = server.delete(&format!("{SECRET}?{option}=true&gracePeriodSeconds=0&dryRun=All")).await;
    let message = beside.expect_reason(422, "Invalid");
    for name in ["gracePeriodSeconds", "dryRun"] {
        assert!(
            message.contains(&format!("{option}: Invalid value: true: cannot be set together with .{name}")),
            "{message}"
        );
    }
    for readable in ["b", "not-there"] {
        let path = format!("/api/v1/namespaces/default/secrets/{readable}?{option}=true");
        let message = server.delete(&path).await.expect_reason(422, "Invalid");
        assert!(
            message.ends_with(
                "is exclusively used to delete corrupt object(s), try again by removing this option"
            ),
            "{message}"
        );
    }
    // Without the option it stays.
    server.delete(SECRET).await.expect_reason(500, "InternalError");

    let from = server.version("/api/v1/namespaces/default/secrets/b").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", option: true }).to_string();
    let deleted =
        server.send("DELETE", SECRET, &[("content-type", "application/json")], body).await.expect(200);
    assert_eq!(deleted["status"], "Success");
    assert_eq!(deleted["details"], json!({ "name": "a", "kind": "Secret" }));
    server.get(SECRET).await.expect_reason(404, "NotFound");

    // Watchers from before hear that something went that could not be read; whoever lists sees it gone.
    let mut events = server.watch(&format!("{secrets}?watch=1&resourceVersion={from}")).await;
    let event = events.next().await.unwrap();
    let gone = event["object"]["code"] == 410 || event["object"]["reason"] == "StorageReadError";
    assert!(event["type"] == "ERROR" && gone, "{event}");
    let list = server.get(secrets).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    // It is gone for good.
    let server = server.stop().await.start(&setup).await;
    server.get(SECRET).await.expect_reason(404, "NotFound");
    server.get("/api/v1/secrets").await.expect(200);
    server.secret("a", MARK).await;
}

#[tokio::test]
async fn deleting_what_cannot_be_read_takes_its_own_permission() {
    let setup = Setup { gates: "AllowUnsafeMalformedObjectDeletion=true", ..Setup::default() };
    let server = with_a_lost_key(&setup).await;
    let disk = server.stop().await;
    let encryption = disk.open(&setup).await.unwrap();
    let mut options = yare_store::Options::new(disk.0.path().join("store"));
    options.sealer = encryption.clone();
    let store = yare_store::Store::open(options, yare_apiserver::indexer()).await.unwrap();
    let cluster = secure::cluster_with(|config, _| {
        config.gates = yare_schema::features::Gates::parse(setup.gates).unwrap();
        config.store = store;
        config.encryption = Some(encryption);
    })
    .await;
    let who = |name: &str, groups: &[&str]| {
        secure::issue(&cluster.pki.cluster, yare_auth::pki::Usage::Client, name, groups)
    };
    let (admin, bob) = (who("admin", &["system:masters"]), who("bob", &[]));
    let allow = async |verbs: &[&str]| {
        let name = verbs.join("-");
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        let role = json!({
            "metadata": { "name": name },
            "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": verbs }],
        });
        let binding = json!({
            "metadata": { "name": name },
            "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "bob" }],
            "roleRef": { "kind": "Role", "apiGroup": "rbac.authorization.k8s.io", "name": name },
        });
        let headers = [("content-type", "application/json")];
        for (plural, body) in [("roles", role), ("rolebindings", binding)] {
            let path = format!("{rbac}/{plural}");
            let made = cluster.json(Some(&admin), http::Method::POST, &path, &headers, &body).await;
            assert_eq!(made.0, 201, "{}", made.1);
        }
    };
    let path = format!("{SECRET}?ignoreStoreReadErrorWithClusterBreakingPotential=true");
    // Until the authorizers have heard of the role: a moment.
    let until = async |code: u16| {
        let mut last = (0, serde_json::Value::Null);
        for _ in 0..200 {
            last = cluster.json(Some(&bob), http::Method::DELETE, &path, &[], &json!(null)).await;
            if last.0 == code && (code != 403 || last.1["message"].as_str().unwrap().contains("unsafe")) {
                return last.1;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{last:?}");
    };
    allow(&["delete"]).await;
    let refused = until(403).await;
    let message = refused["message"].as_str().unwrap();
    let expected =
        "secrets \"a\" is forbidden: not permitted to do \"unsafe-delete-ignore-read-errors\", reason: ";
    assert!(message.starts_with(expected), "{message}");
    allow(&["unsafe-delete-ignore-read-errors"]).await;
    until(200).await;
    cluster.api.shutdown().await;
}

#[tokio::test]
async fn changes_of_the_file_take_effect() {
    let setup = Setup { reload: true, ..Setup::default() };
    let disk = Disk::new();
    disk.write(&secrets(&cbc(&["k1"])));
    let server = disk.start(&setup).await;
    server.secret("a", MARK).await;
    let first = server.version(SECRET).await;
    let verbose = server.get("/readyz?verbose").await.text();
    for check in ["kms-providers", "poststarthook/start-encryption-provider-config-automatic-reload"] {
        assert!(verbose.contains(&format!("[+]{check} ok")), "{verbose}");
    }

    let disk = Disk(server.dir);
    disk.write(&secrets(&cbc(&["k2", "k1"])));
    let server = Server { api: server.api, dir: disk.0 };
    let reloads = |status: &str, count: u32| {
        let server = &server;
        let line = "automatic_reloads_total{apiserver_id_hash=\"sha256:";
        let end = format!("status=\"{status}\"}} {count}");
        async move {
            for _ in 0..200 {
                let metrics = server.get("/metrics").await.text();
                if metrics.lines().any(|l| l.contains(line) && l.ends_with(&end)) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("no {end}: {}", server.get("/metrics").await.text());
        }
    };
    reloads("success", 1).await;
    let second = server.touch(SECRET).await;
    assert_ne!(second, first);
    assert!(server.count_at_rest("k8s:enc:aescbc:v1:k2:").await > 0);

    // What is wrong changes nothing.
    std::fs::write(server.dir.path().join("encryption.yaml"), "kind: nothing").unwrap();
    reloads("failure", 1).await;
    server.secret("b", MARK).await;
    assert_eq!(server.touch(SECRET).await, second);

    // A key that comes later unlocks what it encrypted.
    let disk = server.stop().await;
    disk.write(&secrets(&cbc(&["k3"])));
    let server = disk.start(&setup).await;
    server.get(SECRET).await.expect(500);
    let disk = Disk(server.dir);
    disk.write(&secrets(&cbc(&["k3", "k2"])));
    let server = Server { api: server.api, dir: disk.0 };
    server.until(SECRET, 200).await;
    let third = server.touch(SECRET).await;
    assert_ne!(third, second);

    // A key that goes takes what it encrypted along, as a restart would, and brings it back.
    let disk = Disk(server.dir);
    disk.write(&secrets(&cbc(&["k4"])));
    let server = Server { api: server.api, dir: disk.0 };
    server.until(SECRET, 500).await;
    let gone = server.get(SECRET).await.expect(500);
    server.get("/api/v1/secrets").await.expect(500);
    let disk = server.stop().await;
    let server = disk.start(&setup).await;
    assert_eq!(server.get(SECRET).await.expect(500), gone);
    let disk = Disk(server.dir);
    disk.write(&secrets(&cbc(&["k4", "k3"])));
    let server = Server { api: server.api, dir: disk.0 };
    server.until(SECRET, 200).await;
    assert_eq!(server.version(SECRET).await, third);
}

#[tokio::test]
async fn a_wrong_file_is_refused_in_upstreams_words() {
    let disk = Disk::new();
    let setup = Setup::default();
    let path = disk.config().display().to_string();
    let refused = |expected: String| {
        let (disk, setup) = (&disk, &setup);
        async move {
            let error = disk.open(setup).await.err().expect("an error");
            assert!(error.contains(&expected), "{error}\n{expected}");
        }
    };
    refused(format!("error while parsing file: error while loading file: error reading encryption provider configuration file \"{path}\": open {path}: no such file or directory")).await;
    std::fs::write(disk.config(), "").unwrap();
    refused(format!("encryption provider configuration file \"{path}\" is empty")).await;
    std::fs::write(disk.config(), "{").unwrap();
    refused(format!("error decoding encryption provider configuration file \"{path}\"")).await;
    disk.write("[]");
    refused("error while parsing file: resources: Required value: at least one resources is required".into())
        .await;
    for (first, second, message) in [
        ("'*.'", "secrets", "resource \"secrets\" is masked by earlier rule \"*.\""),
        ("'*.*'", "deployments.apps", "resource \"deployments.apps\" is masked by earlier rule \"*.*\""),
        ("'*.apps'", "'*.apps'", "resource \"*.apps\" is masked by earlier rule \"*.apps\""),
    ] {
        let entry = |resource: &str| of(&format!("[{resource}]"), "{identity: {}}");
        disk.write(&format!("[{}, {}]", entry(first), entry(second)));
        refused(format!("error while building transformers: {message}")).await;
    }
    disk.write(&secrets("{kms: {name: a, endpoint: 'unix:///x'}}"));
    refused("KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.".into()).await;
}
