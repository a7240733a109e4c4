//! Encryption at rest with a KMS plugin: envelopes, changes of its key, a plugin that is down at the start, in
//! the middle, and back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/rest.rs"]
mod rest;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::Server;
use rest::{Disk, Setup};
use serde_json::json;
use yare_apiserver::encryption::Timings;
use yare_testkit::Kms;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const SECRET: &str = "/api/v1/namespaces/default/secrets/a";
const MARK: &str = "opensesame-5d9a8c";

/// Everything happens soon.
fn quick() -> Setup {
    let ms = Duration::from_millis;
    let timings = Timings {
        well_interval: ms(100),
        ill_interval: ms(50),
        well_ttl: ms(50),
        ill_ttl: ms(50),
        write_ttl: Duration::from_secs(2),
    };
    Setup { timings, ..Setup::default() }
}

/// A directory and a plugin in it; the configuration names it.
fn prepare(kms: impl FnOnce(&std::path::Path) -> Kms) -> (Disk, Kms) {
    let disk = Disk::new();
    let kms = kms(&disk.0.path().join("kms.sock"));
    disk.write(&config(&kms));
    (disk, kms)
}

fn config(kms: &Kms) -> String {
    let endpoint = kms.endpoint();
    format!(
        "[{{resources: [secrets], providers: [{{kms: {{apiVersion: v2, name: plugin, endpoint: '{endpoint}', timeout: 500ms}}}}, {{identity: {{}}}}]}}]"
    )
}

fn count(kms: &Kms, method: &str) -> usize {
    kms.calls().iter().filter(|call| *call == method).count()
}

async fn write(server: &Server, name: &str) -> u16 {
    let secret = json!({ "metadata": { "name": name }, "stringData": { "says": MARK } });
    server.post(SECRETS, &secret).await.code
}

#[tokio::test]
async fn values_rest_in_envelopes() {
    let (disk, kms) = prepare(|socket| Kms::started(socket).unwrap());
    let server = disk.start(&Setup::default()).await;
    for name in ["a", "b", "c"] {
        server.secret(name, MARK).await;
    }
    assert_eq!(count(&kms, "Encrypt"), 1, "one seed for all");
    for text in [MARK.to_owned(), STANDARD.encode(MARK)] {
        assert_eq!(server.count_at_rest(&text).await, 0);
    }
    assert!(server.count_at_rest("k8s:enc:kms:v2:plugin:").await > 0);
    let version = server.version(SECRET).await;
    assert_eq!(server.touch(SECRET).await, version);
    assert_eq!(count(&kms, "Decrypt"), 0, "what was encrypted here is known");

    assert_eq!(server.get("/healthz/kms-providers").await.text(), "ok");
    assert_eq!(server.get("/readyz/kms-providers").await.text(), "ok");
    server.get("/livez/kms-providers").await.expect_no_such_path();
    let ready = server.get("/readyz?verbose").await.text();
    assert!(ready.contains("[+]kms-providers ok") && !ready.contains("automatic-reload"), "{ready}");
    assert!(!server.get("/livez?verbose").await.text().contains("kms"));

    let server = server.stop().await.start(&Setup::default()).await;
    let secret = server.get(SECRET).await.expect(200);
    assert_eq!(secret["data"]["says"], STANDARD.encode(MARK));
    assert_eq!(count(&kms, "Decrypt"), 1, "one seed for all");
    assert_eq!(count(&kms, "Encrypt"), 2, "a server has its own seed");
    // Another seed of the same key is not stale.
    assert_eq!(server.touch(SECRET).await, version);
    let metrics = server.get("/metrics").await.text();
    for line in [
        "apiserver_envelope_encryption_kms_operations_latency_seconds_count{grpc_status_code=\"OK\",method_name=\"/v2.KeyManagementService/Decrypt\",provider_name=\"plugin\"} 1",
        "apiserver_storage_envelope_transformation_cache_misses_total 1",
        "apiserver_envelope_encryption_dek_source_cache_size{provider_name=\"plugin\"} 1",
        "apiserver_storage_data_key_generation_duration_seconds_count 1",
        "provider_name=\"plugin\",transformation_type=\"from_storage\"} ",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    // sha256 of "1", the key's ID.
    let hash = "key_id_hash=\"sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b\"";
    assert!(metrics.contains(hash), "{metrics}");
}

#[tokio::test]
async fn another_key_of_the_plugin_makes_values_stale() {
    let (disk, kms) = prepare(|socket| Kms::started(socket).unwrap());
    let server = disk.start(&quick()).await;
    server.secret("a", MARK).await;
    let first = server.version(SECRET).await;
    assert_eq!(server.touch(SECRET).await, first);
    kms.rotate("2");
    for _ in 0..100 {
        if count(&kms, "Encrypt") == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The seed is in place a moment after the plugin encrypted it.
    server.until("/healthz/kms-providers", 200).await;
    let second = server.touch(SECRET).await;
    assert_ne!(second, first);
    assert_eq!(server.touch(SECRET).await, second);
    // The first key is not needed any more.
    kms.change(|b| {
        b.known.remove("1");
    });
    let server = server.stop().await.start(&quick()).await;
    server.get(SECRET).await.expect(200);
}

#[tokio::test]
async fn a_plugin_that_is_down_at_the_start_comes_up_later() {
    let (disk, mut kms) = prepare(|socket| Kms::started(socket).unwrap());
    let server = disk.start(&quick()).await;
    server.secret("a", MARK).await;
    let disk = server.stop().await;
    kms.stop();

    let server = disk.start(&quick()).await;
    let message = server.get(SECRET).await.expect_reason(500, "InternalError");
    assert_eq!(message, "Internal error occurred: got unexpected nil transformer");
    server.get(SECRETS).await.expect_reason(500, "InternalError");
    server.get("/api/v1/secrets?watch=1").await.expect_reason(500, "InternalError");
    assert_eq!(write(&server, "b").await, 500);
    server.get("/api/v1/configmaps").await.expect(200);
    assert_eq!(server.get("/readyz/kms-providers").await.code, 500);
    server.until("/livez", 200).await;
    let ready = server.get("/readyz?verbose").await.text();
    assert!(ready.contains("[-]kms-providers failed: reason withheld"), "{ready}");

    kms.start().unwrap();
    server.until(SECRET, 200).await;
    server.get(SECRETS).await.expect(200);
    assert_eq!(write(&server, "b").await, 201);
    server.until("/readyz/kms-providers", 200).await;
    // Selectors work on what was unlocked.
    let found = server.get(&format!("/api/v1/secrets?labelSelector=says%3D{MARK}")).await.expect(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_plugin_that_goes_away_lets_writes_go_on_for_a_while() {
    let (disk, mut kms) = prepare(|socket| Kms::started(socket).unwrap());
    let server = disk.start(&quick()).await;
    server.secret("a", MARK).await;
    kms.stop();
    assert_eq!(write(&server, "b").await, 201, "the seed is still good");
    let mut message = String::new();
    for n in 0..100 {
        let secret = json!({ "metadata": { "name": format!("n{n}") } });
        let answer = server.post(SECRETS, &secret).await;
        if answer.code != 201 {
            message = answer.expect_reason(500, "InternalError");
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        message.contains("encryptedDEKSource with keyID hash \"sha256:") && message.contains("expired at"),
        "{message}"
    );
    server.get(SECRET).await.expect(200);
    server.get(SECRETS).await.expect(200);
    server.until("/readyz/kms-providers", 500).await;

    kms.start().unwrap();
    server.until("/readyz/kms-providers", 200).await;
    assert_eq!(write(&server, "c").await, 201);
    assert_eq!(count(&kms, "Encrypt"), 1, "the key is the same, and so is the seed");
}

#[tokio::test]
async fn a_plugin_that_hangs_or_lies_is_an_error_in_time() {
    let (disk, kms) = prepare(|socket| Kms::started(socket).unwrap());
    let server = disk.start(&quick()).await;
    server.secret("a", MARK).await;
    kms.change(|b| b.hangs = true);
    server.until("/readyz/kms-providers", 500).await;
    server.get(SECRET).await.expect(200);
    let disk = server.stop().await;

    let server = disk.start(&quick()).await;
    server.get(SECRET).await.expect_reason(500, "InternalError");
    let metrics = server.get("/metrics").await.text();
    assert!(
        metrics.contains(
            "grpc_status_code=\"DeadlineExceeded\",method_name=\"/v2.KeyManagementService/Status\""
        ),
        "{metrics}"
    );
    // It answers, and is not well; nor does it decrypt.
    for change in [
        (|b| b.healthz = "out of order".into()) as fn(&mut yare_testkit::Behaviour),
        |b| b.version = "v1beta1".into(),
        |b| b.key_id = String::new(),
        |b| {
            b.key_id = "3".into();
            b.claims = Some("another".into());
        },
    ] {
        kms.change(|b| {
            *b = yare_testkit::Behaviour::default();
            b.key_id = "2".into();
            b.known.clear();
            change(b);
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.get("/readyz/kms-providers").await.code, 500);
        server.get(SECRET).await.expect_reason(500, "InternalError");
    }
    kms.change(|b| {
        *b = yare_testkit::Behaviour::default();
        b.known.clear();
    });
    server.until("/readyz/kms-providers", 200).await;
    let message = server.get(SECRET).await.expect_reason(500, "InternalError");
    assert_eq!(
        message,
        "Internal error occurred: failed to decrypt DEK, error: rpc error: code = NotFound desc = no such key"
    );
    kms.change(|b| *b = yare_testkit::Behaviour::default());
    server.until(SECRET, 200).await;
    server.until("/readyz/kms-providers", 200).await;
}

#[tokio::test]
async fn a_new_plugin_must_be_well_to_take_over() {
    let (disk, kms) = prepare(|socket| Kms::started(socket).unwrap());
    let setup = Setup { reload: true, ..quick() };
    let server = disk.start(&setup).await;
    server.secret("a", MARK).await;
    let first = server.version(SECRET).await;
    let mut other = Kms::new(&server.dir.path().join("other.sock"));
    let endpoint = other.endpoint();
    let provider = |name: &str, endpoint: &str| {
        format!("{{kms: {{apiVersion: v2, name: {name}, endpoint: '{endpoint}', timeout: 500ms}}}}")
    };
    let both = format!(
        "[{{resources: [secrets], providers: [{}, {}]}}]",
        provider("other", &endpoint),
        provider("plugin", &kms.endpoint())
    );
    let disk = Disk(server.dir);
    disk.write(&both);
    let server = Server { api: server.api, dir: disk.0 };
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.touch(SECRET).await, first, "the old configuration stays");
    other.start().unwrap();
    for _ in 0..200 {
        if server.count_at_rest("k8s:enc:kms:v2:other:").await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.touch(SECRET).await;
    }
    assert!(server.count_at_rest("k8s:enc:kms:v2:other:").await > 0);
    let server = server.stop().await.start(&setup).await;
    server.get(SECRET).await.expect(200);
}
