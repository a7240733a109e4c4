//! Rows about a node with as many pods as a large one has: how quickly they all run, what they cost the server while
//! nothing happens, and how long a command in one of them takes.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::time::{sleep, timeout};

use crate::{
    Scale,
    api::prepare,
    client::{Access, Connection, Watch},
    node,
    process::Process,
    server::Server,
    table::{Table, median, ms, quantile},
};

const NAMESPACE: &str = "crowd";
const PODS: &str = "/api/v1/namespaces/crowd/pods";
/// Far more than all of them need.
const ALL_TIMEOUT: Duration = Duration::from_secs(240);
/// What is still going on right after pods start is over by then.
const SETTLE: Duration = Duration::from_secs(10);

/// Runs the pods on one node.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    // Room for all of them: places and addresses.
    let mut server =
        Server::start_with(binary, true, &["--kubelet-arg=max-pods=1000", "--node-cidr-mask-size=22"])?;
    let (mut connection, _) = server.ready().await?;
    server.node_ready(&mut connection, "").await?;
    prepare(&mut connection, NAMESPACE).await?;
    let access = server.access()?;
    let mut watcher = access.connect().await?;
    let watch = watcher.watch(&format!("{PODS}?watch=true&timeoutSeconds=580")).await?;
    let crowd = Crowd { connection, access, watch, process: server.process()? };
    crowd.measure(scale, table).await.with_context(|| server.log_tail())
}

struct Crowd {
    connection: Connection,
    access: Access,
    watch: Watch,
    process: Process,
}

impl Crowd {
    async fn measure(mut self, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
        // The first one also unpacks the image.
        self.start(["warm-up".to_owned()].into()).await?;
        let before = self.process.rss_mib()?;
        let count = scale.crowd;
        let names: BTreeSet<String> = (0..count).map(|number| format!("one-of-many-{number}")).collect();
        let took = self.start(names.clone()).await?;
        table.at_least(
            format!("pods: {count} at once, started"),
            count as f64 / took.as_secs_f64(),
            20.0,
            "/s",
        );
        sleep(SETTLE).await;
        let cpu = self.process.cpu_s()?;
        sleep(Duration::from_secs(scale.idle_s)).await;
        let idle = (self.process.cpu_s()? - cpu) * 1e3 / scale.idle_s as f64;
        table.at_most(format!("CPU idle, with {count} pods"), idle, 20.0, "ms/s");
        let after = self.process.rss_mib()?;
        table.at_most(format!("resident memory that {count} pods cost"), after - before, 100.0, "MiB");
        table.note(format!("resident memory, all in one, with {count} pods"), after, "MiB");
        self.exec(scale.execs, table).await?;
        let start = Instant::now();
        for name in &names {
            self.connection.delete(&format!("{PODS}/{name}")).await?;
        }
        let mut left = names;
        self.until(|name, _, deleted| {
            if deleted {
                left.remove(name);
            }
            left.is_empty()
        })
        .await?;
        table.note(
            format!("pods: {count} at once, ended"),
            count as f64 / start.elapsed().as_secs_f64(),
            "/s",
        );
        Ok(())
    }

    /// Reads events until `enough` says so of a pod's name, phase and (if it is gone) end.
    async fn until(&mut self, mut enough: impl FnMut(&str, &str, bool) -> bool) -> anyhow::Result<()> {
        let work = async {
            loop {
                let event = self.watch.event().await?;
                let pod = &event["object"];
                let name = pod["metadata"]["name"].as_str().context("an event without a pod")?;
                let phase = pod["status"]["phase"].as_str().unwrap_or_default();
                if enough(name, phase, event["type"] == "DELETED") {
                    return anyhow::Ok(());
                }
            }
        };
        timeout(ALL_TIMEOUT, work).await.with_context(|| format!("pods took longer than {ALL_TIMEOUT:?}"))?
    }

    /// From the first request to the last pod that runs.
    async fn start(&mut self, names: BTreeSet<String>) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut requests = Vec::new();
        for name in &names {
            let (mut connection, body) = (self.connection.clone(), node::pod(name));
            requests.push(tokio::spawn(async move { connection.post(PODS, body).await }));
        }
        for request in requests {
            request.await??;
        }
        let mut waiting = names;
        self.until(|name, phase, _| {
            if phase == "Running" {
                waiting.remove(name);
            }
            waiting.is_empty()
        })
        .await?;
        Ok(start.elapsed())
    }

    /// A command in a container, from the connection to its end.
    async fn exec(&self, count: usize, table: &mut Table) -> anyhow::Result<()> {
        let path = format!("{PODS}/warm-up/exec?command=/yare&command=--version&stdout=true&stderr=true");
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            let output = self.access.exec(&path).await?;
            times.push(ms(start.elapsed()));
            ensure!(output.starts_with(b"yare "), "exec wrote {:?}", String::from_utf8_lossy(&output));
        }
        table.at_most("exec: round trip, connection included: p50", median(&mut times), 10.0, "ms");
        table.note("exec: round trip: p99", quantile(&times, 0.99), "ms");
        Ok(())
    }
}
