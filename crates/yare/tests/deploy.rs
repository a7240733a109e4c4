//! The demonstration: a Deployment behind a Service, changed while a client calls it all the time.

use anyhow::ensure;
use yare_testkit::{Calls, Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const HELLO: &str = include_str!("../../../examples/hello.yaml");

/// Commands that change the Deployment, each rolled out to its end, and what the Deployment then has.
const CHANGES: &[(&[&str], &str, &str)] = &[
    (&["scale", "deployment/hello", "--replicas=4"], ".spec.replicas", "4"),
    (
        &["set", "env", "deployment/hello", "COLOR=blue"],
        ".spec.template.spec.containers[0].env[-1:].value",
        "blue",
    ),
    (
        &["set", "image", "deployment/hello", "hello=yare.local/hello:latest"],
        ".spec.template.spec.containers[0].image",
        "yare.local/hello:latest",
    ),
    (&["rollout", "undo", "deployment/hello"], ".spec.template.spec.containers[0].image", "yare.local/hello"),
    (&["rollout", "restart", "deployment/hello"], ".status.observedGeneration", "6"),
    (
        &["rollout", "undo", "deployment/hello", "--to-revision=1"],
        ".spec.template.spec.containers[0].env[-1:].name",
        "NODE_NAME",
    ),
    (&["scale", "deployment/hello", "--replicas=2"], ".spec.replicas", "2"),
];

#[test]
fn no_request_fails_while_a_deployment_changes() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.apply(HELLO)?;
        let rolled = cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        ensure!(rolled.contains("successfully rolled out"), "{rolled}");
        let address = cluster.service("hello", 80)?;
        cluster.soon(|| cluster.http(address, "/"))?;

        let calls = Calls::start(cluster, address, "/")?;
        for (command, field, want) in CHANGES {
            cluster.kubectl(command)?;
            cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
            let got = cluster.field("deployment/hello", field)?;
            ensure!(got == *want, "after {command:?} {field} is {got:?}, not {want:?}");
        }
        let report = calls.all_succeeded()?;
        // Each of the rollouts brought pods that had their share.
        ensure!(report.answers.len() >= 8, "{:?}", report.answers);

        let history = cluster.kubectl(&["rollout", "history", "deployment/hello"])?;
        ensure!(history.lines().filter(|l| l.starts_with(char::is_numeric)).count() == 4, "{history}");
        Ok(())
    });
}

#[test]
fn deletion_waits_for_pods_and_takes_dependents_along() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.apply(HELLO)?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        let pod = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;

        // The pod sleeps a second before it is told to end, so it is seen while it ends.
        cluster.kubectl(&["delete", "pod", &pod, "--grace-period=10", "--wait=false"])?;
        ensure!(cluster.field(&format!("pod/{pod}"), ".metadata.deletionGracePeriodSeconds")? == "10");
        cluster.kubectl(&["wait", "--for=delete", &format!("pod/{pod}"), "--timeout=15s"])?;
        cluster.becomes("deployment/hello", ".status.readyReplicas", "3")?;

        cluster.kubectl(&["delete", "deployment/hello", "--cascade=foreground"])?;
        let left = cluster.kubectl(&["get", "replicasets,pods", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");

        cluster.apply(HELLO)?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        cluster.kubectl(&["delete", "deployment/hello", "--cascade=orphan"])?;
        let left = cluster.kubectl(&[
            "get",
            "replicasets",
            "-o",
            "jsonpath={.items[*].metadata.ownerReferences}",
        ])?;
        ensure!(left.is_empty(), "{left}");
        cluster.kubectl(&["delete", "replicasets,pods,services", "-l", "app=hello", "--now"])?;
        cluster.soon(|| {
            let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
    });
}

#[test]
fn a_rollout_that_cannot_go_on_says_so_and_is_undone() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.apply(&HELLO.replace("replicas: 3", "replicas: 2"))?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        let address = cluster.service("hello", 80)?;
        cluster.soon(|| cluster.http(address, "/"))?;
        let calls = Calls::start(cluster, address, "/")?;

        // Paused, nothing rolls.
        cluster.kubectl(&["rollout", "pause", "deployment/hello"])?;
        cluster.kubectl(&[
            "patch",
            "deployment/hello",
            "-p",
            r#"{"spec": {"progressDeadlineSeconds": 3}}"#,
        ])?;
        cluster.kubectl(&["set", "image", "deployment/hello", "hello=127.0.0.1:1/no/such:image"])?;
        cluster.becomes(
            "deployment/hello",
            ".status.conditions[?(@.type=='Progressing')].reason",
            "DeploymentPaused",
        )?;
        ensure!(cluster.kubectl(&["get", "replicasets", "-o", "name"])?.lines().count() == 1);
        cluster.kubectl(&["rollout", "resume", "deployment/hello"])?;

        let error = cluster.kubectl_fails(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        ensure!(error.contains("exceeded its progress deadline"), "{error}");
        cluster.kubectl(&["rollout", "undo", "deployment/hello"])?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        calls.all_succeeded().map(drop)
    });
}
