//! The commands that people use on a Deployment: they show what there is, and change it.

use anyhow::{Context as _, ensure};
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const HELLO: &str = include_str!("../../../examples/hello.yaml");

/// Commands, and what they print.
const SHOWN: &[(&str, &[&str])] = &[
    ("get deployments -o wide", &["CONTAINERS", "IMAGES", "yare.local/hello", "app=hello", "3/3"]),
    ("get pods -o wide", &["NOMINATED NODE", "READINESS GATES", "node-1", "Running"]),
    ("get deployment hello -o yaml", &["apiVersion: apps/v1", "replicas: 3"]),
    ("get deployment hello -o json", &["\"kind\": \"Deployment\""]),
    ("get deployment hello -o name", &["deployment.apps/hello\n"]),
    ("get deployment hello -o jsonpath={.spec.replicas}", &["3"]),
    ("get deployments -o custom-columns=A:.metadata.name,B:.spec.replicas", &["A       B\nhello   3\n"]),
    ("get pods --field-selector status.phase=Running -o name", &["pod/hello-"]),
    ("get all", &["deployment.apps/hello", "replicaset.apps/hello-", "service/hello"]),
    ("explain deployment.spec.strategy", &["KIND:       Deployment", "FIELD: strategy", "rollingUpdate"]),
    ("explain pod.spec.containers.livenessProbe --recursive", &["httpGet", "failureThreshold"]),
    (
        "describe deployment hello",
        &["StrategyType:           RollingUpdate", "ScalingReplicaSet", "3 desired"],
    ),
    ("describe service hello", &["Endpoints:", "TargetPort:               http/TCP"]),
    ("describe node node-1", &["Allocatable:", "Non-terminated Pods:          (3 in total)"]),
    ("auth can-i create deployments", &["yes"]),
    ("auth whoami", &["kubernetes-admin", "system:masters"]),
    ("api-resources", &["deployments", "endpointslices", "customresourcedefinitions"]),
    ("api-versions", &["apps/v1", "networking.k8s.io/v1"]),
    ("cluster-info", &["Kubernetes control plane"]),
    ("version", &["Server Version: v1.36"]),
    ("wait --for=condition=Available deployment/hello --timeout=10s", &["condition met"]),
    ("wait --for=jsonpath={.status.readyReplicas}=3 deployment/hello --timeout=10s", &["condition met"]),
];

/// Commands that change the Deployment; then a field and its value.
const CHANGED: &[(&[&str], &str, &str)] = &[
    (&["label", "deployment/hello", "tier=front"], ".metadata.labels.tier", "front"),
    (&["label", "deployment/hello", "tier-"], ".metadata.labels.tier", ""),
    (&["annotate", "deployment/hello", "note=a b"], ".metadata.annotations.note", "a b"),
    (
        &["patch", "deployment/hello", "-p", r#"{"spec": {"minReadySeconds": 1}}"#],
        ".spec.minReadySeconds",
        "1",
    ),
    (
        &["patch", "deployment/hello", "--type=merge", "-p", r#"{"spec": {"minReadySeconds": 2}}"#],
        ".spec.minReadySeconds",
        "2",
    ),
    (
        &[
            "patch",
            "deployment/hello",
            "--type=json",
            "-p",
            r#"[{"op": "replace", "path": "/spec/minReadySeconds", "value": 3}]"#,
        ],
        ".spec.minReadySeconds",
        "3",
    ),
    (&["autoscale", "deployment/hello", "--min=2", "--max=5"], ".metadata.name", "hello"),
    (
        &["set", "resources", "deployment/hello", "--limits=memory=70Mi"],
        ".spec.template.spec.containers[0].resources.limits.memory",
        "70Mi",
    ),
    (&["expose", "deployment/hello", "--name=other", "--port=81"], ".metadata.name", "hello"),
];

/// Whether processes of this machine may have limits raised (`CAP_SYS_RESOURCE`).
fn may_raise_limits() -> anyhow::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let have = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
    Ok(u64::from_str_radix(have.trim(), 16)? & 1 << 24 != 0)
}

#[test]
fn shows_and_changes() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.apply(HELLO)?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        let mut wrong = Vec::new();
        for (command, parts) in SHOWN {
            let args: Vec<&str> = command.split(' ').collect();
            match cluster.kubectl(&args) {
                Ok(text) => {
                    let missing = parts.iter().filter(|part| !text.contains(**part));
                    wrong.extend(missing.map(|part| format!("{command}: no {part:?} in\n{text}")));
                }
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        // What this machine does not let containers have stands where people look.
        let described = cluster.kubectl(&["describe", "node", "node-1"])?;
        ensure!(described.contains("ClampedLimits") != may_raise_limits()?, "{described}");
        let (status, diff, error) =
            cluster.kubectl_with(&["diff", "-f", "-"], &HELLO.replace("replicas: 3", "replicas: 5"))?;
        ensure!(status.code() == Some(1), "{status}: {diff}{error}");
        ensure!(diff.contains("-  replicas: 3") && diff.contains("+  replicas: 5"), "{diff}");
        let (status, diff, error) = cluster.kubectl_with(&["diff", "-f", "-"], HELLO)?;
        ensure!(status.success() && diff.is_empty(), "{status}: {diff}{error}");

        for (command, field, want) in CHANGED {
            match cluster.kubectl(command).and_then(|_| cluster.field("deployment/hello", field)) {
                Ok(got) if got == *want => {}
                Ok(got) => wrong.push(format!("after {command:?} {field} is {got:?}, not {want:?}")),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        // With an editor that is a program.
        let editor = cluster.path("editor");
        std::fs::write(&editor, "#!/bin/sh\nsed -i 's/minReadySeconds: 3/minReadySeconds: 4/' \"$1\"\n")?;
        std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let shell = format!("KUBE_EDITOR={} $0 edit deployment/hello", editor.display());
        let output = cluster.run(cluster.command("sh").args(["-c", &shell]).arg(cluster.kubectl_path()))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(cluster.field("deployment/hello", ".spec.minReadySeconds")? == "4");

        // Server-side apply: a conflict names the other manager, and force takes the field.
        let applied =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: hello}\nspec: {minReadySeconds: 7}\n";
        let command = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
        let (status, _, error) = cluster.kubectl_with(&command, applied)?;
        ensure!(!status.success() && error.contains(".spec.minReadySeconds"), "{status}: {error}");
        let forced = ["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"];
        let (status, out, error) = cluster.kubectl_with(&forced, applied)?;
        ensure!(status.success() && out.contains("serverside-applied"), "{status}: {error}");
        ensure!(cluster.field("deployment/hello", ".spec.minReadySeconds")? == "7");

        let (status, _, error) =
            cluster.kubectl_with(&["create", "-f", "-"], &HELLO.replace("replicas: 3", "replicsa: 3"))?;
        ensure!(!status.success() && error.contains(r#"unknown field "spec.replicsa""#), "{status}: {error}");
        let error = cluster.kubectl_fails(&["top", "pods"])?;
        ensure!(error.contains("Metrics API not available"), "{error}");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}
