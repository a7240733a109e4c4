//! Pod Security over the API: labels, levels, versions, exemptions, warnings.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Answer, Server};
use serde_json::{Value, json};
use yare_kinds::podsecurity::parse_level;

const NAMESPACES: &str = "/api/v1/namespaces";

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    change(&mut pod["spec"]);
    pod
}

fn privileged(spec: &mut Value) {
    spec["containers"][0]["securityContext"] = json!({"privileged": true});
}

fn warnings(answer: &Answer) -> Vec<String> {
    answer.headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect()
}

async fn namespace(server: &Server, name: &str, labels: Value) -> Answer {
    let labels: serde_json::Map<String, Value> = labels
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (format!("pod-security.kubernetes.io/{k}"), v.clone()))
        .collect();
    let answer = server.post(NAMESPACES, &json!({"metadata": {"name": name, "labels": labels}})).await;
    if answer.code == 201 {
        let accounts = format!("{NAMESPACES}/{name}/serviceaccounts");
        server.post(&accounts, &json!({"metadata": {"name": "default"}})).await.expect(201);
    }
    answer
}

#[tokio::test]
async fn levels_are_enforced() {
    let server = Server::start().await;
    for (name, labels) in [
        ("free", json!({})),
        ("base", json!({"enforce": "baseline"})),
        ("strict", json!({"enforce": "restricted", "enforce-version": "v1.24"})),
    ] {
        namespace(&server, name, labels).await.expect(201);
    }
    let pods = |ns: &str| format!("{NAMESPACES}/{ns}/pods");
    server.post(&pods("free"), &pod("a", privileged)).await.expect(201);
    server.post(&pods("base"), &pod("a", |_| {})).await.expect(201);
    // Whoever is refused is told what else there is to say, too.
    let mut old = pod("b", privileged);
    old["metadata"]["annotations"] =
        json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"});
    let refused = server.post(&pods("base"), &old).await;
    assert_eq!((refused.code, warnings(&refused).len()), (403, 1));
    let message = server.post(&pods("base"), &pod("b", privileged)).await.expect_reason(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"b\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"
    );
    let message = server.post(&pods("strict"), &pod("a", |_| {})).await.expect_reason(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"a\" is forbidden: violates PodSecurity \"restricted:v1.24\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    // Dry runs are told as well.
    server
        .post(&format!("{}?dryRun=All", pods("base")), &pod("b", privileged))
        .await
        .expect_reason(403, "Forbidden");
    // Ephemeral containers are containers.
    let ephemeral = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "securityContext": {"privileged": true}}]}});
    let path = format!("{}/a/ephemeralcontainers", pods("base"));
    let message = server.patch("strategic", &path, &ephemeral).await.expect_reason(403, "Forbidden");
    assert!(message.contains("container \"e\" must not set securityContext.privileged=true"), "{message}");
}

#[tokio::test]
async fn updates_count_when_they_bring_something() {
    let server = Server::start().await;
    namespace(&server, "n", json!({})).await.expect(201);
    let pods = format!("{NAMESPACES}/n/pods");
    server.post(&pods, &pod("a", privileged)).await.expect(201);
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    server.patch("merge", &format!("{NAMESPACES}/n"), &label).await.expect(200);
    // What the pod may do has not changed.
    let path = format!("{pods}/a");
    server.patch("merge", &path, &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    let image = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    server.patch("strategic", &path, &image).await.expect_reason(403, "Forbidden");
}

#[tokio::test]
async fn templates_are_warned_of() {
    let server = Server::start().await;
    namespace(&server, "n", json!({"enforce": "baseline", "warn": "restricted", "warn-version": "v1.20"}))
        .await
        .expect(201);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}});
    let mut deployment = template.clone();
    deployment["spec"]["restartPolicy"] = "Always".into();
    for (path, body) in [
        (
            "apis/apps/v1",
            json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": deployment}}),
        ),
        (
            "apis/batch/v1",
            json!({"metadata": {"name": "x"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}}),
        ),
    ] {
        let plural = if path.ends_with("apps/v1") { "deployments" } else { "cronjobs" };
        let answer = server.post(&format!("/{path}/namespaces/n/{plural}"), &body).await;
        let warned = warnings(&answer);
        answer.expect(201);
        assert!(
            warned.iter().any(|w| w.starts_with(
                "299 - \"would violate PodSecurity \\\"restricted:v1.20\\\": privileged (container \\\"c\\\""
            )),
            "{warned:?}"
        );
    }
    // A pod that passes is warned of, too; one that does not is only refused.
    let pods = format!("{NAMESPACES}/n/pods");
    let answer = server.post(&pods, &pod("a", |_| {})).await;
    assert!(warnings(&answer)[0].contains("runAsNonRoot != true"), "{:?}", warnings(&answer));
    answer.expect(201);
    let answer = server.post(&pods, &pod("b", privileged)).await;
    assert!(warnings(&answer).is_empty());
    answer.expect_reason(403, "Forbidden");
}

#[tokio::test]
async fn labels_of_namespaces() {
    let server = Server::start().await;
    let message = namespace(&server, "n", json!({"enforce": "strong", "warn-version": "1.2"}))
        .await
        .expect_reason(422, "Invalid");
    assert_eq!(
        message,
        "Namespace \"n\" is invalid: [metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strong\": must be one of privileged, baseline, restricted, metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1.2\": must be \"latest\" or \"v1.x\"]"
    );
    namespace(&server, "n", json!({})).await.expect(201);
    for name in ["b", "a", "c"] {
        server.post(&format!("{NAMESPACES}/n/pods"), &pod(name, privileged)).await.expect(201);
    }
    server
        .post(&format!("{NAMESPACES}/n/pods"), &pod("host", |s| s["hostNetwork"] = true.into()))
        .await
        .expect(201);
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let answer = server.patch("merge", &format!("{NAMESPACES}/n?dryRun=All"), &label("baseline")).await;
    assert_eq!(
        warnings(&answer),
        [
            "299 - \"existing pods in namespace \\\"n\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"a (and 2 other pods): privileged\"",
            "299 - \"host: host namespaces\"",
        ]
    );
    answer.expect(200);
    server.patch("merge", &format!("{NAMESPACES}/n"), &label("strong")).await.expect_reason(422, "Invalid");
    // A milder level brings no warnings.
    server.patch("merge", &format!("{NAMESPACES}/n"), &label("restricted")).await.expect(200);
    let answer = server.patch("merge", &format!("{NAMESPACES}/n"), &label("baseline")).await;
    assert!(warnings(&answer).is_empty());
    answer.expect(200);
}

#[tokio::test]
async fn defaults_and_exemptions() {
    let server = Server::with(|config| {
        let admission = &mut config.admission;
        admission.pod_security.enforce.level = parse_level("baseline").unwrap();
        admission.exemptions.namespaces = vec!["exempt".into()];
        admission.exemptions.runtime_classes = vec!["vm".into()];
    })
    .await;
    namespace(&server, "held", json!({})).await.expect(201);
    let answer = namespace(&server, "exempt", json!({"warn": "restricted"})).await;
    assert_eq!(
        warnings(&answer),
        [
            "299 - \"namespace \\\"exempt\\\" is exempt from Pod Security, and the policy (warn=restricted:latest) will be ignored\""
        ]
    );
    answer.expect(201);
    server
        .post(&format!("{NAMESPACES}/held/pods"), &pod("a", privileged))
        .await
        .expect_reason(403, "Forbidden");
    server.post(&format!("{NAMESPACES}/exempt/pods"), &pod("a", privileged)).await.expect(201);
    server
        .post("/apis/node.k8s.io/v1/runtimeclasses", &json!({"metadata": {"name": "vm"}, "handler": "vm"}))
        .await
        .expect(201);
    let vm = pod("b", |spec| {
        privileged(spec);
        spec["runtimeClassName"] = "vm".into();
    });
    server.post(&format!("{NAMESPACES}/held/pods"), &vm).await.expect(201);
    let metrics = server.get("/metrics").await.text();
    for line in [
        "pod_security_evaluations_total{decision=\"deny\",policy_level=\"baseline\",policy_version=\"latest\",mode=\"enforce\",request_operation=\"create\",resource=\"pod\",subresource=\"\"} 1",
        "pod_security_exemptions_total{request_operation=\"create\",resource=\"pod\",subresource=\"\"} 2",
        "apiserver_admission_controller_admission_duration_seconds_count{name=\"PodSecurity\",type=\"validate\",operation=\"CREATE\",rejected=\"true\"} 1",
    ] {
        assert!(
            metrics.lines().any(|l| l == line),
            "{line}\n{}",
            metrics.lines().filter(|l| l.contains("pod_security")).collect::<Vec<_>>().join("\n")
        );
    }
}
