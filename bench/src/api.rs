//! Rows about the API server: durable writes, reads, lists, watches, memory. The control plane runs alone.
//!
//! The targets are a tenth of what kube-apiserver 1.36 with etcd 3.6 takes on two cores (ARCHITECTURE.md).

use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    Scale,
    client::{ANSWER_TIMEOUT, Access, Connection},
    load::{self, Took},
    process::Process,
    server::Server,
    table::{Table, quantile},
};

const CLIENTS: usize = 32;
const NAMESPACE: &str = "bench";
const CONFIG_MAPS: &str = "/api/v1/namespaces/bench/configmaps";
const PODS: &str = "/api/v1/namespaces/bench/pods";
/// Objects that are updated under the watchers.
const WATCHED: usize = 16;

/// Loads one control plane, phase after phase.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let mut server = Server::start(binary, false)?;
    let (mut connection, _) = server.ready().await?;
    let access = server.access()?;
    let process = server.process()?;
    prepare(&mut connection, NAMESPACE).await?;
    let clients = access.connect_all(CLIENTS).await?;
    for client in &clients {
        client.clone().get("/version").await?;
    }
    let bench = Bench { scale, process, access, clients };
    bench.pods(table).await.with_context(|| server.log_tail())?;
    bench.config_maps(table).await.with_context(|| server.log_tail())?;
    bench.policies(table).await.with_context(|| server.log_tail())?;
    bench.watches(table).await.with_context(|| server.log_tail())
}

/// Makes a namespace and waits until pods can be created in it.
pub async fn prepare(connection: &mut Connection, namespace: &str) -> anyhow::Result<()> {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    connection.post("/api/v1/namespaces", body.to_string()).await?;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    for _ in 0..500 {
        if connection.send(http::Method::GET, &path, "", "").await?.0 == StatusCode::OK {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("no default ServiceAccount in namespace {namespace}")
}

/// Seconds that validating policies have taken of creates so far, and of how many.
async fn policy_time(client: &mut Connection) -> anyhow::Result<(f64, f64)> {
    let metrics = client.get("/metrics").await?;
    let metrics = String::from_utf8_lossy(&metrics);
    let value = |of: &str| -> f64 {
        let name = format!(
            "apiserver_admission_controller_admission_duration_seconds_{of}{{name=\"ValidatingAdmissionPolicy\",type=\"validate\",operation=\"CREATE\",rejected=\"false\"}} "
        );
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0.0)
    };
    Ok((value("sum"), value("count")))
}

struct Bench {
    scale: Scale,
    process: Process,
    access: Access,
    clients: Vec<Connection>,
}

impl Bench {
    /// Makes `count` requests, shared out among `clients`.
    async fn run<F, Fut>(&self, clients: usize, count: usize, request: F) -> anyhow::Result<Took>
    where
        F: Fn(Connection, usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send,
    {
        load::run(&self.process, &self.clients[..clients], count, request).await
    }

    async fn config_maps(&self, table: &mut Table) -> anyhow::Result<()> {
        let (sequential, concurrent) = (self.scale.sequential, self.scale.concurrent);
        for (clients, count) in [(1, sequential), (CLIENTS, concurrent)] {
            let create = move |mut client: Connection, number: usize| async move {
                client.post(CONFIG_MAPS, config_map(&format!("c{clients}-{number}"), "none")).await
            };
            let took = self.run(clients, count, create).await?;
            let what = format!("create a ConfigMap, durable, {clients} clients");
            table.at_most(format!("{what}: CPU"), took.cpu_ms_each, 0.1, "ms");
            if clients == 1 {
                table.note(format!("{what}: p50"), took.p50_ms, "ms");
            } else {
                table.at_least(what.clone(), took.per_s, 11_700.0, "/s");
            }
            table.note(format!("{what}: p99"), took.p99_ms, "ms");
        }
        for (clients, count) in [(1, sequential), (CLIENTS, concurrent)] {
            let path = format!("{CONFIG_MAPS}/c1-0");
            let get = move |mut client: Connection, _| {
                let path = path.clone();
                async move { client.get(&path).await.map(drop) }
            };
            let took = self.run(clients, count, get).await?;
            let what = format!("GET a ConfigMap, {clients} clients");
            table.at_most(format!("{what}: CPU"), took.cpu_ms_each, 0.05, "ms");
            if clients == 1 {
                table.note(format!("{what}: p50"), took.p50_ms, "ms");
            } else {
                table.at_least(what, took.per_s, 26_700.0, "/s");
            }
        }
        Ok(())
    }

    /// A policy with a variable, a condition and two validations, on every write.
    async fn policies(&self, table: &mut Table) -> anyhow::Result<()> {
        const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
        let mut client = self.clients[0].clone();
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "bench"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["configmaps", "pods"]}]},
            "matchConditions": [{"name": "who", "expression": "!request.userInfo.username.startsWith('system:node:')"}],
            "variables": [{"name": "labels", "expression": "has(object.metadata.labels) ? object.metadata.labels : {}"}],
            "validations": [
                {"expression": "variables.labels.all(key, !key.startsWith('reserved.'))"},
                {"expression": "!has(object.spec) || object.spec.containers.all(c, c.image != '' && !c.image.endsWith(':latest'))"},
            ]}});
        let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "bench"}, "spec": {"policyName": "bench", "validationActions": ["Deny"]}});
        client.post(&format!("{GROUP}/validatingadmissionpolicies"), policy.to_string()).await?;
        client.post(&format!("{GROUP}/validatingadmissionpolicybindings"), binding.to_string()).await?;
        let mut before = policy_time(&mut client).await?;
        let count = self.scale.stored_pods.min(2000);
        for (what, prefix) in [("ConfigMap", CONFIG_MAPS), ("Pod", PODS)] {
            let create = move |mut client: Connection, number: usize| async move {
                let name = format!("policed-{number}");
                let body = if prefix == PODS { stored_pod(&name) } else { config_map(&name, "none") };
                client.post(prefix, body).await
            };
            // One by one: what an evaluation costs, not how long it waited for a core.
            self.run(1, count, create).await?;
            let after = policy_time(&mut client).await?;
            let each_us = (after.0 - before.0) * 1e6 / (after.1 - before.1).max(1.0);
            table.at_most(format!("a CEL policy on the create of a {what}"), each_us, 20.0, "µs");
            before = after;
        }
        for path in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            client.delete(&format!("{GROUP}/{path}/bench")).await?;
        }
        Ok(())
    }

    async fn pods(&self, table: &mut Table) -> anyhow::Result<()> {
        let count = self.scale.stored_pods;
        sleep(Duration::from_secs(2)).await;
        let before_mib = self.process.rss_mib()?;
        let create = |mut client: Connection, number: usize| async move {
            client.post(PODS, stored_pod(&format!("pod-{number}"))).await
        };
        let took = self.run(CLIENTS, count, create).await?;
        table.note(format!("create a Pod, {CLIENTS} clients: CPU"), took.cpu_ms_each, "ms");
        sleep(Duration::from_secs(5)).await;
        let rss_mib = self.process.rss_mib()?;
        let each_kib = (rss_mib - before_mib) * 1024.0 / count as f64;

        let mut client = self.access.connect().await?;
        let first = client.get_value(PODS).await?;
        let listed = first["items"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(listed == count, "{listed} of {count} pods in the list");
        drop(first);
        self.process.reset_peak()?;
        let resting_mib = self.process.rss_mib()?;
        let (mut took_ms, mut bytes, cpu) = (Vec::new(), 0, self.process.cpu_s()?);
        for _ in 0..self.scale.lists {
            let start = Instant::now();
            bytes = client.get_bytes(PODS).await?;
            took_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let cpu_ms = (self.process.cpu_s()? - cpu) * 1e3 / self.scale.lists as f64;
        let peak_mib = self.process.peak_mib()? - resting_mib;
        took_ms.sort_by(f64::total_cmp);
        let of = |part: f64| part * count as f64 / 5000.0;
        table.at_most(
            format!("memory per stored pod of {:.1} KB JSON", bytes as f64 / 1e3 / count as f64),
            each_kib * 1.024,
            8.0,
            "KB",
        );
        table.at_most(format!("LIST {count} pods: CPU"), cpu_ms, of(37.0), "ms");
        table.at_most(format!("LIST {count} pods: p50"), quantile(&took_ms, 0.5), of(35.0), "ms");
        table.at_most(format!("LIST {count} pods: extra memory at its peak"), peak_mib, 16.0, "MiB");
        Ok(())
    }

    async fn watches(&self, table: &mut Table) -> anyhow::Result<()> {
        let (watchers, updates) = (self.scale.watchers, self.scale.updates);
        let mut client = self.clients[0].clone();
        for number in 0..WATCHED {
            client.post(CONFIG_MAPS, config_map(&format!("w-{number}"), "watched")).await?;
        }
        let list = client.get_value(&format!("{CONFIG_MAPS}?labelSelector=bench%3Dwatched")).await?;
        let revision = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
        let path = format!(
            "{CONFIG_MAPS}?watch=true&labelSelector=bench%3Dwatched&timeoutSeconds=280&resourceVersion={revision}"
        );
        let mut tasks = Vec::new();
        for _ in 0..watchers {
            // Each watcher has a connection of its own, as separate programs have.
            let mut watch = self.access.connect().await?.watch(&path).await?;
            tasks.push(tokio::spawn(async move {
                let mut seen = 0;
                while seen < updates {
                    let piece = watch.piece().await?.context("a watch ended early")?;
                    seen += piece.iter().filter(|b| **b == b'\n').count();
                }
                anyhow::Ok(())
            }));
        }
        let (start, cpu) = (Instant::now(), self.process.cpu_s()?);
        for number in 0..updates {
            let path = format!("{CONFIG_MAPS}/w-{}", number % WATCHED);
            client.merge(&path, json!({"data": {"key": number.to_string()}}).to_string()).await?;
        }
        for task in tasks {
            timeout(ANSWER_TIMEOUT, task).await.context("events are missing")???;
        }
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), self.process.cpu_s()? - cpu);
        let events = (watchers * updates) as f64;
        let what = format!("{updates} updates to {watchers} watchers");
        table.at_most(format!("{what}: CPU per event"), cpu * 1e6 / events, 4.0, "µs");
        table.at_least(format!("{what}: events"), events / elapsed, 296_000.0, "/s");
        Ok(())
    }
}

fn config_map(name: &str, label: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench", "bench": label}},
        "data": {"key": "value", "payload": "x".repeat(256)},
    })
    .to_string()
}

/// A pod that nobody schedules; about 3 KB once it has its defaults.
fn stored_pod(name: &str) -> String {
    let variable = |name: &str, path: &str| -> Value {
        json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    };
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 5});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": "bench", "tier": "web", "pod-template-hash": "5d59d67564"},
            "annotations": {"bench/purpose": "a pod as they are in real clusters"},
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "main", "image": "registry.example/web:1.0", "args": ["serve", "--port=8080"],
                "ports": [{"containerPort": 8080}],
                "env": [
                    {"name": "A", "value": "1"}, variable("POD", "metadata.name"),
                    variable("NAMESPACE", "metadata.namespace"),
                ],
                "resources": {
                    "requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"},
                },
                "readinessProbe": probe("/ready"), "livenessProbe": probe("/live"),
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    })
    .to_string()
}
