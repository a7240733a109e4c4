//! A node on Debian's containerd: what is particular to a runtime behind a socket. What must be as on the embedded one
//! is in the other tests.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use yare_testkit::{Cluster, Options, Runtime};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";
const SOON: Duration = Duration::from_secs(30);

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "mkdir /www; echo hello from web >/www/index.html; httpd -p 8080 -h /www; while ! [ -e /die ]; do sleep 0.1; done; exit 7"]
    ports: [{containerPort: 8080, hostPort: 8081}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  hostUsers: false
  containers: [{name: main, image: "yare.local/busybox:1", command: [sleep, "1000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: deep}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sleep, "1000"]
    volumeMounts: [{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: IfPossible}]
  - name: must
    image: yare.local/busybox:1
    command: [sleep, "1000"]
    volumeMounts: [{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: Enabled}]
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[test]
fn a_node_on_containerd() {
    Cluster::test(YARE, Options::on(Runtime::Containerd), |cluster| {
        let version = cluster.field("node/node-1", ".status.nodeInfo.containerRuntimeVersion")?;
        ensure!(version.starts_with("containerd://1."), "{version}");
        cluster.import_busybox(IMAGE)?;
        let images = cluster.yare(&["image", "ls"])?;
        ensure!(images.contains(IMAGE), "{images}");
        let error = cluster.yare(&["image", "import", "/no/such.tar"]).expect_err("CRI imports nothing");
        ensure!(format!("{error:#}").contains("ctr -n k8s.io images import"), "{error:#}");
        cluster.apply(PODS)?;
        cluster.ready(&["web"])?;
        // This version does not say that it can make mounts read-only to the bottom.
        let deep = ".status.containerStatuses[?(@.name==\"main\")].volumeMounts[0].recursiveReadOnly";
        cluster.becomes("pod/deep", deep, "Disabled")?;
        let must = "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
        cluster.event("deep", "Failed", must)?;
        let uses = cluster.yare(&["image", "rm", IMAGE]).expect_err("the image is in use");
        ensure!(format!("{uses:#}").contains("in use by container"), "{uses:#}");

        // The pod network is ours: an address of the node's range, the service's way, a port on the node.
        let ip = cluster.field("pod/web", ".status.podIP")?;
        ensure!(ip.starts_with("10.42.0."), "{ip}");
        let id = cluster.field("pod/web", ".status.containerStatuses[0].containerID")?;
        ensure!(id.starts_with("containerd://"), "{id}");
        let service = cluster.service("web", 80)?;
        for address in [service, ([127, 0, 0, 1], 8081).into(), format!("{ip}:8080").parse()?] {
            let answer = cluster.eventually(SOON, || cluster.http(address, "/index.html"))?;
            ensure!(answer.body.contains("hello from web"), "{address}: {}", answer.body);
        }
        // This containerd knows no user namespaces, and a pod that wants one must not run without.
        cluster.event("mapped", "FailedCreatePodSandBox", "user namespaces")?;

        // Neither the agent's end nor the runtime's is noticed by what runs.
        let before = cluster.pod_processes();
        let runs = |after: BTreeSet<u32>| {
            let lost: Vec<_> = before.difference(&after).collect();
            // The server and containerd themselves are others now.
            ensure!(lost.len() <= 2, "ended: {lost:?}");
            Ok(())
        };
        cluster.kill()?;
        cluster.launch()?;
        cluster.ready(&["web"])?;
        runs(cluster.pod_processes())?;
        ensure!(
            cluster.field("pod/web", ".status.containerStatuses[0].containerID")? == id,
            "another container"
        );
        cluster.restart_containerd()?;
        let exec = cluster.eventually(SOON, || cluster.kubectl(&["exec", "web", "--", "echo", "again"]))?;
        ensure!(exec == "again\n", "{exec}");
        ensure!(cluster.field("pod/web", ".status.podIP")? == ip, "another address");
        runs(cluster.pod_processes())?;

        // A death is seen, and the container starts again.
        cluster.shell("web", "touch /die")?;
        cluster.becomes("pod/web", ".status.containerStatuses[0].restartCount", "1")?;
        let code = ".status.containerStatuses[0].lastState.terminated.exitCode";
        ensure!(cluster.field("pod/web", code)? == "7", "not the container's exit code");
        cluster.kubectl(&["delete", "pod", "web", "mapped"])?;
        Ok(())
    });
}
