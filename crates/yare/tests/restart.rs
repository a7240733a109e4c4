//! The server ends and comes back: containers do not notice, and what happened meanwhile is seen.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use yare_testkit::{Calls, Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const HELLO: &str = include_str!("../../../examples/hello.yaml");
const IMAGE: &str = "yare.local/busybox:1";

/// Two pods that end when a file appears, one of which is restarted then.
const ENDERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "while [ ! -e /host/end ]; do sleep 0.05; done; echo ended; exit 3"]
    volumeMounts: [{name: host, mountPath: /host}]
  volumes:
  - {name: host, hostPath: {path: DIRECTORY/files}}
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "while [ ! -e /host/end ]; do sleep 0.05; done; rm /host/end; exit 1"]
    volumeMounts: [{name: host, mountPath: /host}]
  volumes:
  - {name: host, hostPath: {path: DIRECTORY/others}}
---
apiVersion: v1
kind: Pod
metadata: {name: leaves}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec sleep 1000"]
"#;

const STATE: &str = "{range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount} {.state.running.startedAt}{\"\\n\"}{end}";

/// What the API says about the containers of the demonstration.
fn containers(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.kubectl(&["get", "pods", "-l", "app=hello", "-o", &format!("jsonpath={STATE}")])
}

fn hello(cluster: &Cluster) -> anyhow::Result<SocketAddr> {
    cluster.apply(HELLO)?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let address = cluster.service("hello", 80)?;
    cluster.soon(|| cluster.http(address, "/"))?;
    Ok(address)
}

#[test]
fn containers_do_not_notice() {
    Cluster::test(YARE, Options::default(), |cluster| {
        let address = hello(cluster)?;
        let (before, inside) = (containers(cluster)?, cluster.pod_processes());
        // A server and its shim for each pod.
        ensure!(inside.len() >= 3, "{inside:?}");
        let calls = Calls::start(cluster, address, "/")?;
        for round in 0..4 {
            // Written right before the end, and acknowledged.
            cluster.kubectl(&["create", "configmap", &format!("round-{round}")])?;
            if round % 2 == 0 {
                cluster.kill()?
            } else {
                cluster.stop()?
            }
            std::thread::sleep(Duration::from_millis(300));
            ensure!(cluster.pod_processes() == inside, "round {round}, without a server");
            cluster.launch()?;
            ensure!(containers(cluster)? == before, "round {round}: {} was {before}", containers(cluster)?);
            ensure!(cluster.pod_processes() == inside, "round {round}");
        }
        for round in 0..4 {
            cluster.kubectl(&["get", "configmap", &format!("round-{round}")])?;
        }
        // Taken over: what needs the containers works, and so do changes.
        let pod = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        ensure!(cluster.kubectl(&["logs", &pod])?.contains(&format!("hello from {pod}")));
        ensure!(cluster.kubectl(&["exec", &pod, "--", "/yare", "--version"])?.starts_with("yare "));
        cluster.kubectl(&["scale", "deployment/hello", "--replicas=4"])?;
        cluster.kubectl(&["set", "env", "deployment/hello", "A=b"])?;
        cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
        calls.all_succeeded()?;
        cluster.kubectl(&["delete", "deployment", "hello", "--cascade=foreground"])?;
        cluster.soon(|| {
            ensure!(cluster.pod_processes().is_empty(), "{:?}", cluster.pod_processes());
            Ok(())
        })
    });
}

#[test]
fn what_happened_meanwhile_is_seen() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        for directory in ["files", "others"] {
            std::fs::create_dir(cluster.path(directory))?;
        }
        let directory = cluster.path("").display().to_string();
        cluster.apply(&ENDERS.replace("DIRECTORY", directory.trim_end_matches('/')))?;
        cluster.ready(&["ends", "again", "leaves"])?;

        // Deleted at the last moment: the node learns of it afterwards.
        cluster.kubectl(&["delete", "pod", "leaves", "--wait=false", "--grace-period=2"])?;
        cluster.kill()?;
        for directory in ["files", "others"] {
            std::fs::write(cluster.path(directory).join("end"), "")?;
        }
        std::thread::sleep(Duration::from_millis(500));
        cluster.launch()?;

        cluster.becomes("pod/ends", ".status.phase", "Failed")?;
        cluster.becomes("pod/ends", ".status.containerStatuses[0].state.terminated.exitCode", "3")?;
        ensure!(cluster.kubectl(&["logs", "ends"])?.contains("ended"));
        cluster.becomes("pod/again", ".status.containerStatuses[0].restartCount", "1")?;
        cluster.becomes("pod/again", ".status.containerStatuses[0].lastState.terminated.exitCode", "1")?;
        cluster.ready(&["again"])?;
        cluster.kubectl(&["wait", "--for=delete", "pod/leaves", "--timeout=40s"]).map(drop)
    });
}
