//! What the kubelet's API tells monitoring of a node: metrics of containers, pods, probes and volumes, the summary,
//! flags and state; and what it answers that concerns the node's logs and checkpoints.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use yare_testkit::{Cluster, Options, Runtime, TraceCollector, on_both};

const YARE: &str = env!("CARGO_BIN_EXE_yare");

const PODS: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, persistentVolumeClaim: {claimName: claim}}]
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "while true; do sleep 0.2; done"]
    resources: {limits: {cpu: 500m, memory: 64Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
"#;

const ENDS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "yare.local/busybox:1", command: [sh, -c, exit 139]}]
"#;

/// It does not start.
const USERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: users}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "yare.local/busybox:1", command: [bogus]}]
"#;

on_both! { a_node_is_measured a_node_is_traced }

/// The samples of a page: name, labels, value.
struct Page(Vec<(String, BTreeMap<String, String>, f64)>);

impl Page {
    fn read(cluster: &Cluster, path: &str) -> anyhow::Result<Self> {
        let text = get(cluster, path)?;
        let mut samples = Vec::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let (series, rest) = match line.split_once('}') {
                Some((series, rest)) => (series, rest),
                None => line.split_once(' ').context("no value")?,
            };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels
                .split("\",")
                .filter_map(|pair| pair.split_once("=\""))
                .map(|(k, v)| (k.to_owned(), v.trim_end_matches('"').to_owned()))
                .collect();
            let value = rest.split_whitespace().next().with_context(|| line.to_owned())?;
            samples.push((name.to_owned(), labels, value.parse()?));
        }
        Ok(Page(samples))
    }

    /// The one sample of this name with these labels.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let fits = |all: &BTreeMap<String, String>| {
            labels.iter().all(|(k, v)| all.get(*k).is_some_and(|value| value == v))
        };
        let found: Vec<_> = self.0.iter().filter(|(n, l, _)| n == name && fits(l)).collect();
        ensure!(found.len() == 1, "{} samples of {name} {labels:?}: {found:?}", found.len());
        Ok(found[0].2)
    }
}

fn get(cluster: &Cluster, path: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-1/proxy/{path}")])
}

fn a_node_is_measured(runtime: Runtime) {
    let options =
        Options { args: vec!["--kubelet-arg=enableSystemLogQuery: true".into()], ..Options::on(runtime) };
    Cluster::test(YARE, options, |cluster| {
        // What only who may do everything with nodes may ask.
        let to = ["--clusterrole=cluster-admin", "--user=kube-apiserver-kubelet-client"];
        cluster.kubectl(&["create", "clusterrolebinding", "monitoring", to[0], to[1]])?;
        cluster.import_busybox("yare.local/busybox:1")?;
        cluster.apply(PODS)?;
        cluster.ready(&["busy"])?;

        let page = Page::read(cluster, "metrics/cadvisor")?;
        let main = [("container", "main"), ("pod", "busy"), ("namespace", "default")];
        let with = |extra: (&'static str, &'static str)| [main[0], main[1], main[2], extra];
        page.get("container_memory_working_set_bytes", &main)?;
        page.get("container_cpu_usage_seconds_total", &with(("cpu", "total")))?;
        ensure!(page.get("container_spec_memory_limit_bytes", &main)? == f64::from(64 << 20));
        ensure!(page.get("container_spec_cpu_quota", &main)? == 50_000.0);
        ensure!(page.get("container_processes", &main)? >= 1.0);
        ensure!(page.get("container_start_time_seconds", &main)? > 1e9);
        let image = page
            .0
            .iter()
            .find(|(n, l, _)| n == "container_memory_rss" && l.get("container").is_some_and(|c| c == "main"));
        let image = image.and_then(|(_, l, _)| l.get("image")).context("no image")?;
        ensure!(image == "yare.local/busybox:1", "{image}");
        let network = [("pod", "busy"), ("interface", "eth0")];
        page.get("container_network_receive_bytes_total", &network)?;
        let machine = [("id", "/"), ("cpu", "total")];
        ensure!(page.get("container_cpu_usage_seconds_total", &machine)? > 0.0);
        page.get("container_memory_working_set_bytes", &[("id", "/kubepods")])?;
        ensure!(page.get("machine_cpu_cores", &[])? >= 1.0);
        ensure!(page.get("container_scrape_error", &[])? == 0.0);

        let page = Page::read(cluster, "metrics/probes")?;
        let probe =
            [("pod", "busy"), ("container", "main"), ("probe_type", "Readiness"), ("result", "successful")];
        ensure!(page.get("prober_probe_total", &probe)? >= 1.0);
        page.get("prober_probe_duration_seconds_count", &probe[..3])?;

        let page = Page::read(cluster, "metrics/resource")?;
        page.get("container_cpu_usage_seconds_total", &main)?;
        page.get("pod_memory_working_set_bytes", &main[1..])?;
        ensure!(page.get("node_cpu_usage_seconds_total", &[])? > 0.0);
        ensure!(page.get("resource_scrape_error", &[])? == 0.0);

        let page = Page::read(cluster, "metrics")?;
        ensure!(page.get("kubelet_running_pods", &[])? == 1.0);
        ensure!(page.get("kubelet_running_containers", &[("container_state", "running")])? == 1.0);
        ensure!(page.get("kubelet_desired_pods", &[("static", "")])? == 1.0);
        ensure!(page.get("kubelet_pod_start_duration_seconds_count", &[])? == 1.0);
        ensure!(page.get("kubelet_started_containers_total", &[("container_type", "container")])? >= 1.0);
        let started = [("operation_type", "start_container")];
        ensure!(page.get("kubelet_runtime_operations_total", &started)? >= 1.0);
        let claim = [("namespace", "default"), ("persistentvolumeclaim", "claim")];
        ensure!(page.get("kubelet_volume_stats_capacity_bytes", &claim)? > 0.0);
        page.get("kubernetes_feature_enabled", &[("name", "NodeLogQuery")])?;

        let summary: Value = serde_json::from_str(&get(cluster, "stats/summary")?)?;
        let node = &summary["node"];
        let pod = &summary["pods"][0];
        ensure!(
            node["memory"]["workingSetBytes"].as_u64() > Some(0) && node["rlimit"]["maxpid"].is_u64(),
            "{node}"
        );
        ensure!(node["runtime"]["containerFs"]["capacityBytes"].as_u64() > Some(0), "{node}");
        ensure!(
            node["systemContainers"].as_array().is_some_and(|all| all.iter().any(|c| c["name"] == "pods")),
            "{node}"
        );
        ensure!(pod["podRef"]["name"] == "busy" && pod["containers"][0]["name"] == "main", "{pod}");
        ensure!(pod["network"]["name"] == "eth0" && pod["network"]["rxBytes"].is_u64(), "{pod}");
        ensure!(pod["ephemeral-storage"]["usedBytes"].is_u64() && pod["swap"].is_object(), "{pod}");
        ensure!(pod["memory"]["availableBytes"].is_u64(), "{pod}");
        let brief: Value = serde_json::from_str(&get(cluster, "stats/summary?only_cpu_and_memory=true")?)?;
        let pod = &brief["pods"][0];
        ensure!(pod["cpu"]["usageCoreNanoSeconds"].is_u64() && pod["network"].is_null(), "{pod}");

        let page = get(cluster, "statusz")?;
        ensure!(
            page.contains("kubelet statusz") && page.contains("Binary version") && page.contains(" 1.36\n"),
            "{page}"
        );
        let page = get(cluster, "flagz")?;
        ensure!(
            page.contains("kubelet flagz")
                && page.lines().any(|l| l.starts_with("max-pods") && l.ends_with("110")),
            "{page}"
        );
        // Neither runtime of these tests can write a container down.
        let path = "/api/v1/nodes/node-1/proxy/checkpoint/default/busy/main";
        let refused = cluster.kubectl_fails(&["create", "--raw", path, "-f", "/dev/null"])?;
        ensure!(refused.contains("(rpc error: code = Unimplemented desc = "), "{refused}");
        ensure!(refused.contains("CheckpointContainer"), "{refused}");
        let log = get(cluster, "logs/?query=no-such-service-of-yare")?;
        ensure!(log.contains("log not found for no-such-service-of-yare"), "{log}");

        cluster.apply(ENDS)?;
        let end = [("container_type", "container"), ("exit_code", "139"), ("reason", "Error")];
        cluster.eventually(Duration::from_secs(60), || {
            Page::read(cluster, "metrics")?.get("kubelet_terminated_containers_total", &end)
        })?;
        // The containerd of these tests knows no pods with users of their own.
        if runtime == Runtime::Embedded {
            cluster.apply(USERS)?;
            cluster.eventually(Duration::from_secs(60), || {
                let page = Page::read(cluster, "metrics")?;
                page.get("kubelet_started_user_namespaced_pods_total", &[])?;
                page.get("kubelet_started_user_namespaced_pods_errors_total", &[])
            })?;
        }
        Ok(())
    });
}

/// A pod's start, what the runtime did for it, and a request to the kubelet's API are traces.
fn a_node_is_traced(runtime: Runtime) {
    let directory = tempfile::tempdir().expect("a directory");
    let collector = TraceCollector::started(&directory.path().join("collector.sock")).expect("a collector");
    let config = directory.path().join("kubelet.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         tracing: {{endpoint: \"{}\", samplingRatePerMillion: 1000000}}\n",
        collector.endpoint()
    );
    std::fs::write(&config, text).expect("a configuration");
    let argument = format!("--kubelet-arg=config={}", config.display());
    let operation = match runtime {
        Runtime::Embedded => ("run_podsandbox", 1),
        Runtime::Containerd => ("runtime.v1.RuntimeService/RunPodSandbox", 3),
    };
    Cluster::test(YARE, Options { runtime, ..Options::with(&[&argument]) }, |cluster| {
        cluster.import_busybox("yare.local/busybox:1")?;
        cluster.apply(&PODS.replace("name: busy", "name: traced"))?;
        cluster.ready(&["traced"])?;
        cluster.kubectl(&["exec", "traced", "--", "true"])?;
        let made = collector.until(|span| (span.name.as_str(), span.kind) == operation)?;
        let sync = collector.until(|span| span.id == made.parent && span.name == "syncPod")?;
        ensure!(sync.trace == made.trace && sync.parent.is_empty(), "{sync:?} {made:?}");
        ensure!(
            sync.resource["service.name"] == "kubelet" && sync.resource["host.name"] == "node-1",
            "{sync:?}"
        );
        ensure!(sync.attributes["k8s.pod"] == "default/traced", "{sync:?}");
        if operation.1 == 3 {
            ensure!(made.attributes["rpc.response.status_code"] == "OK", "{made:?}");
        }
        let path = "/exec/{podNamespace}/{podID}/{containerName}";
        let request = collector.until(|span| span.name == path)?;
        ensure!(request.kind == 2 && request.attributes["http.response.status_code"] == "101", "{request:?}");
        // What the container runs belongs to it.
        collector.until(|span| {
            span.parent == request.id && ["exec", "runtime.v1.RuntimeService/Exec"].contains(&&*span.name)
        })?;
        cluster.kubectl(&["delete", "pod", "traced"])?;
        collector.until(|span| span.name == "syncTerminatingPod")?;
        Ok(())
    });
}
