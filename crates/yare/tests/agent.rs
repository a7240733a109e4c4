//! Machines join with a token, run pods, and keep their certificates fresh.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Machine, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";

/// A pod on a node, which says where it is.
fn pod(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: on-{node}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {IMAGE}
    command: [sh, -c, "echo here $NODE; exec sleep 1000"]
    env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
"#
    )
}

fn joined(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(Machine, String)> {
    let token = cluster.yare(&["token", "create"])?.trim().to_owned();
    let mut machine = cluster.machine("node-2")?;
    machine.launch(&[&["--token", &token], args].concat())?;
    machine.wait_ready(cluster)?;
    machine.import_busybox(IMAGE)?;
    Ok((machine, token))
}

/// Logs and commands of a pod, through the API server.
fn reached(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let pod = format!("on-{node}");
    let logs = cluster.soon(|| {
        let logs = cluster.kubectl(&["logs", &pod])?;
        ensure!(!logs.is_empty(), "no logs yet");
        Ok(logs)
    })?;
    ensure!(logs == format!("here {node}\n"), "{logs}");
    let said = cluster.kubectl(&["exec", &pod, "--", "hostname"])?;
    ensure!(said.trim() == pod, "{said}");
    Ok(())
}

#[test]
fn a_machine_joins_and_comes_back_without_its_token() {
    Cluster::test(YARE, Options::joinable(&[]), |cluster| {
        cluster.import_busybox(IMAGE)?;
        let (mut machine, token) = joined(cluster, &[])?;
        ensure!(token.starts_with("K10") && token.contains("::"), "{token}");
        let id = token.split("::").nth(1).and_then(|t| t.split('.').next()).context("the token's id")?;
        for node in ["node-1", "node-2"] {
            cluster.apply(&pod(node))?;
        }
        for node in ["node-1", "node-2"] {
            cluster.kubectl(&[
                "wait",
                "--for=condition=Ready",
                &format!("pod/on-{node}"),
                "--timeout=60s",
            ])?;
            reached(cluster, node)?;
        }
        // Services and DNS are the node's own.
        cluster.soon(|| {
            cluster.kubectl(&["exec", "on-node-2", "--", "nslookup", "kubernetes.default.svc.cluster.local"])
        })?;
        let holder = "jsonpath={.spec.holderIdentity}";
        let holder = cluster.kubectl(&["get", "-n=kube-node-lease", "lease/node-2", "-o", holder])?;
        ensure!(holder == "node-2", "{holder}");
        let user = "jsonpath={.items[*].spec.username}";
        let asked = cluster.kubectl(&["get", "csr", "-o", user])?;
        ensure!(asked == format!("system:bootstrap:{id}"), "{asked}");

        // The token is gone, and with it every way in but the node's own certificate.
        cluster.yare(&["token", "rm", &token])?;
        ensure!(!cluster.yare(&["token", "ls"])?.contains(id));
        // Such commands find the administrator's kubeconfig, though people want theirs elsewhere.
        let kept = cluster.path("data/kubeconfig");
        ensure!(fs::read(&kept)? == fs::read(cluster.kubeconfig())?);
        ensure!(fs::metadata(&kept)?.permissions().mode() & 0o777 == 0o600);
        let container = cluster.field("pod/on-node-2", ".status.containerStatuses[0].containerID")?;
        machine.kill()?;
        machine.launch(&[])?;
        machine.wait_ready(cluster)?;
        reached(cluster, "node-2")?;
        let now = cluster.field("pod/on-node-2", ".status.containerStatuses[0].containerID")?;
        ensure!(now == container, "{now} was {container}");

        // Drained as any node.
        cluster.kubectl(&["drain", "node-2", "--force", "--ignore-daemonsets", "--timeout=60s"])?;
        ensure!(cluster.kubectl(&["get", "pods", "-o", "name"])?.trim() == "pod/on-node-1");
        cluster.apply(&pod("node-2"))?;
        cluster.soon(|| {
            let reason = cluster.field("pod/on-node-2", ".status.conditions[0].reason")?;
            ensure!(reason == "Unschedulable", "{reason}");
            Ok(())
        })?;
        cluster.kubectl(&["uncordon", "node-2"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/on-node-2", "--timeout=60s"])?;

        // Another cluster's authority, or somebody in between.
        let other = format!("K10{}::{}", "0".repeat(64), token.split("::").nth(1).unwrap_or_default());
        let data = machine.path("elsewhere");
        let data = data.to_string_lossy();
        let said = machine.refused(&["--data-dir", &data, "--token", &other])?;
        ensure!(said.contains("is not the one that the token names"), "{said}");
        let said = machine.refused(&["--data-dir", &data])?;
        ensure!(said.contains("has not joined yet, and needs --token"), "{said}");
        Ok(())
    });
}

/// What the link to the node's certificate leads to.
fn current(machine: &Machine, name: &str) -> anyhow::Result<PathBuf> {
    let link = machine.path(&format!("data/agent/pki/{name}-current.pem"));
    std::fs::read_link(&link).with_context(|| link.display().to_string())
}

#[test]
fn a_node_renews_its_certificate() {
    // So short that each is due for another within seconds.
    let options = Options::joinable(&["--cluster-signing-duration=40s"]);
    Cluster::test(YARE, options, |cluster| {
        let (machine, _) = joined(cluster, &[])?;
        cluster.apply(&pod("node-2"))?;
        let mut seen = BTreeSet::new();
        cluster.eventually(Duration::from_secs(60), || {
            seen.insert(current(&machine, "kubelet-client")?);
            ensure!(seen.len() > 2, "{seen:?}");
            Ok(())
        })?;
        // Under certificates that it got for itself.
        let asked = cluster.kubectl(&["get", "csr", "-o", "jsonpath={.items[*].spec.username}"])?;
        ensure!(asked.contains("system:node:node-2"), "{asked}");
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/on-node-2", "--timeout=60s"])?;
        reached(cluster, "node-2")
    });
}

#[test]
fn a_serving_certificate_is_approved_by_hand() {
    let options = Options::joinable(&["--kubelet-certificate-authority=DIRECTORY/data/tls/ca.crt"]);
    Cluster::test(YARE, options, |cluster| {
        let (machine, _) = joined(cluster, &["--kubelet-arg=serverTLSBootstrap: true"])?;
        cluster.apply(&pod("node-2"))?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/on-node-2", "--timeout=60s"])?;
        // Nobody has said yet that this is the node.
        let error = cluster.kubectl_fails(&["logs", "on-node-2"])?;
        ensure!(error.contains("error trying to reach"), "{error}");
        ensure!(current(&machine, "kubelet-server").is_err());
        let serving = "jsonpath={range .items[?(@.spec.signerName==\"kubernetes.io/kubelet-serving\")]}{.metadata.name} {.spec.username} {.status.conditions}{\"\\n\"}{end}";
        let asked = cluster.soon(|| {
            let asked = cluster.kubectl(&["get", "csr", "-o", serving])?;
            ensure!(!asked.is_empty(), "no request");
            Ok(asked)
        })?;
        let words: Vec<&str> = asked.split_whitespace().collect();
        ensure!(words[1..] == ["system:node:node-2"], "{asked}");
        cluster.kubectl(&["certificate", "approve", words[0]])?;
        cluster.soon(|| cluster.kubectl(&["logs", "on-node-2"]))?;
        reached(cluster, "node-2")?;
        current(&machine, "kubelet-server").map(drop)
    });
}

#[test]
fn parts_of_a_joined_node_say_which_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = directory.path().join("policy.yaml");
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, verbs: [watch]}]\n";
    fs::write(&policy, text).expect("the policy");
    let policy = format!("--audit-policy-file={}", policy.display());
    let options = Options::joinable(&[&policy, "--audit-log-path=DIRECTORY/audit.log"]);
    Cluster::test(YARE, options, |cluster| {
        let _joined = joined(cluster, &[])?;
        cluster.soon(|| {
            let text = fs::read_to_string(cluster.path("audit.log"))?;
            let mut seen = BTreeSet::new();
            for line in text.lines() {
                let event: serde_json::Value = serde_json::from_str(line)?;
                if event["user"]["username"] == "system:node:node-2" {
                    let agent = event["userAgent"].as_str().and_then(|a| a.split('/').next());
                    let of = event["objectRef"]["resource"].as_str();
                    seen.insert(format!("{} {}", agent.unwrap_or_default(), of.unwrap_or_default()));
                }
            }
            let want = ["kubelet pods", "kube-proxy endpointslices", "yare endpointslices"];
            ensure!(want.iter().all(|w| seen.contains(*w)), "{seen:?}");
            ensure!(!seen.contains("kubelet endpointslices"), "{seen:?}");
            Ok(())
        })
    });
}
