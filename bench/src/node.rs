//! Rows about pods that really run: from the request to Running, from deletion to gone, what a shim costs.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    Scale,
    api::prepare,
    client::{Connection, Watch},
    process::{Process, shims},
    server::Server,
    table::{Table, median, ms, quantile},
};

const NAMESPACE: &str = "bench";
const PODS: &str = "/api/v1/namespaces/bench/pods";
/// Far more than a pod needs.
const POD_TIMEOUT: Duration = Duration::from_secs(60);

/// What is still going on right after pods start is over by then.
const SETTLE: Duration = Duration::from_secs(5);

/// How long a program takes from its start to its signal handlers, amply.
const PROGRAM_START: Duration = Duration::from_millis(100);

/// Runs pods of the demonstration's image on one node.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let mut server = Server::start(binary, true)?;
    let (mut connection, _) = server.ready().await?;
    server.node_ready(&mut connection, "").await?;
    prepare(&mut connection, NAMESPACE).await?;
    let mut watcher = server.access()?.connect().await?;
    let watch = watcher.watch(&format!("{PODS}?watch=true&timeoutSeconds=580")).await?;
    let mut bench = Bench { connection, watch, process: server.process()?, idle_s: scale.idle_s };
    // The first one also unpacks the image.
    bench.up_and_down("warm-up").await.with_context(|| server.log_tail())?;
    bench.one_by_one(scale.pods, table).await.with_context(|| server.log_tail())?;
    bench.at_once(scale.pods, server.binary(), table).await.with_context(|| server.log_tail())
}

struct Bench {
    connection: Connection,
    watch: Watch,
    process: Process,
    idle_s: u64,
}

impl Bench {
    /// Reads events until `enough` says so of a pod's name, phase and (if it is gone) end.
    async fn until(&mut self, mut enough: impl FnMut(&str, &str, bool) -> bool) -> anyhow::Result<Instant> {
        let work = async {
            loop {
                let event = self.watch.event().await?;
                let pod = &event["object"];
                let name = pod["metadata"]["name"].as_str().context("an event without a pod")?;
                let phase = pod["status"]["phase"].as_str().unwrap_or_default();
                if enough(name, phase, event["type"] == "DELETED") {
                    return anyhow::Ok(Instant::now());
                }
            }
        };
        timeout(POD_TIMEOUT, work).await.with_context(|| format!("pods took longer than {POD_TIMEOUT:?}"))?
    }

    /// Milliseconds from the request to Running, and from the deletion to gone.
    async fn up_and_down(&mut self, name: &str) -> anyhow::Result<(f64, f64)> {
        let start = Instant::now();
        self.connection.post(PODS, pod(name)).await?;
        let running = self.until(|n, phase, _| n == name && phase == "Running").await?;
        // The program in it must have come so far as to listen for SIGTERM.
        sleep(PROGRAM_START).await;
        let deletion = Instant::now();
        self.connection.delete(&format!("{PODS}/{name}")).await?;
        let gone = self.until(|n, _, deleted| n == name && deleted).await?;
        Ok((ms(running - start), ms(gone - deletion)))
    }

    async fn one_by_one(&mut self, count: usize, table: &mut Table) -> anyhow::Result<()> {
        let (mut starts, mut stops, cpu) = (Vec::new(), Vec::new(), self.process.cpu_s()?);
        for number in 0..count {
            let (start, stop) = self.up_and_down(&format!("single-{number}")).await?;
            starts.push(start);
            stops.push(stop);
        }
        let cpu_ms = (self.process.cpu_s()? - cpu) * 1e3 / count as f64;
        let (start, stop) = (median(&mut starts), median(&mut stops));
        table.at_most(format!("pod: apply to Running, {count} in turn: p50"), start, 30.0, "ms");
        table.at_most("pod: apply to Running: p99", quantile(&starts, 0.99), 90.0, "ms");
        table.at_most("pod: deletion to gone, with its own end: p50", stop, 30.0, "ms");
        table.note("pod: deletion to gone: p99", quantile(&stops, 0.99), "ms");
        table.note("pod: CPU of the server for one life", cpu_ms, "ms");
        Ok(())
    }

    /// What the server costs while its pods run and nothing happens.
    async fn idle(&self, count: usize, table: &mut Table) -> anyhow::Result<()> {
        sleep(SETTLE).await;
        let (cpu, sleeps) = (self.process.cpu_s()?, self.process.sleeps()?);
        sleep(Duration::from_secs(self.idle_s)).await;
        let seconds = self.idle_s as f64;
        let (cpu, wakeups) = (self.process.cpu_s()? - cpu, self.process.wakeups_since(&sleeps)?);
        table.at_most(format!("CPU idle, with {count} pods"), cpu * 1e3 / seconds, 2.0, "ms/s");
        table.note(format!("  wake-ups of threads, with {count} pods"), wakeups / seconds, "/s");
        table.note(format!("resident memory, with {count} pods"), self.process.rss_mib()?, "MiB");
        Ok(())
    }

    async fn at_once(&mut self, count: usize, binary: &Path, table: &mut Table) -> anyhow::Result<()> {
        let names: BTreeSet<String> = (0..count).map(|number| format!("many-{number}")).collect();
        let mut waiting = names.clone();
        let start = Instant::now();
        let mut requests = Vec::new();
        for name in &names {
            let (mut connection, body) = (self.connection.clone(), pod(name));
            requests.push(tokio::spawn(async move { connection.post(PODS, body).await }));
        }
        for request in requests {
            request.await??;
        }
        let end = self
            .until(|name, phase, _| {
                if phase == "Running" {
                    waiting.remove(name);
                }
                waiting.is_empty()
            })
            .await?;
        let seconds = (end - start).as_secs_f64();
        table.note(format!("pods: {count} at once, started"), count as f64 / seconds, "/s");

        let shims = shims(binary, self.process)?;
        anyhow::ensure!(shims.len() >= count, "{} shims for {count} pods", shims.len());
        let mut dirty = Vec::new();
        for shim in shims {
            dirty.push(shim.rollup_kib("Private_Dirty")?);
        }
        table.at_most("shim: private memory: p50", median(&mut dirty), 1024.0, "KiB");
        table.note("shim: private memory: most", quantile(&dirty, 1.0), "KiB");
        self.idle(count, table).await?;

        let mut left = names.clone();
        let start = Instant::now();
        for name in &names {
            self.connection.delete(&format!("{PODS}/{name}")).await?;
        }
        let end = self
            .until(|name, _, deleted| {
                if deleted {
                    left.remove(name);
                }
                left.is_empty()
            })
            .await?;
        table.note(format!("pods: {count} at once, ended"), count as f64 / (end - start).as_secs_f64(), "/s");
        Ok(())
    }
}

/// A pod whose image is there and that ends as soon as it is told to.
pub fn pod(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"containers": [{
            "name": "hello", "image": "yare.local/hello", "imagePullPolicy": "IfNotPresent",
            "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
        }]},
    })
    .to_string()
}
