//! What the store costs on this machine: `cargo run --release -p yare-store --example store_bench [OBJECTS]`.
//! Prints one line per figure; CPU seconds are the steadier ones.
#![allow(clippy::print_stdout, reason = "its answer goes to the terminal")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use yare_store::{Attrs, Draft, Expect, Indexer, Op, Options, Store, Write};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Reads labels and two fields, as the API server's does.
struct PodIndexer;

#[derive(Deserialize)]
struct Pod<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    name: &'a str,
    #[serde(borrow, default)]
    labels: std::collections::BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize, Default)]
struct Spec<'a> {
    #[serde(rename = "nodeName", default)]
    node_name: &'a str,
}

impl Indexer for PodIndexer {
    fn attrs(&self, _kind: &str, json: &[u8]) -> Attrs {
        let Ok(pod) = serde_json::from_slice::<Pod>(json) else { return Attrs::default() };
        Attrs {
            labels: pod.metadata.labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            fields: [("metadata.name", pod.metadata.name), ("spec.nodeName", pod.spec.node_name)]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
        }
    }
}

fn put(i: usize, bytes: usize) -> Write {
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"pod-{i:07}","namespace":"ns-{:02}","resourceVersion":"","labels":{{"app":"web","pod-template-hash":"5d59d67564","tier":"front"}}}},"spec":{{"nodeName":"node-{:04}","containers":["#,
        i % 50,
        i % 5000
    );
    let rv_at = head.find(r#""resourceVersion":"""#).map_or(0, |at| at + r#""resourceVersion":""#.len());
    let mut json = head;
    while json.len() + 80 < bytes {
        json.push_str(r#"{"name":"c","image":"registry.example/web:1.0","args":["serve"]},"#);
    }
    json.push_str(r#"{"name":"last"}]}}"#);
    let draft = Draft { json: json.into_bytes(), rv_at, attrs: None };
    let key = format!("ns-{:02}/pod-{i:07}", i % 50);
    Write { kind: "pods".into(), key, expect: Expect::Anything, op: Op::Put(draft) }
}

/// CPU time of this process in seconds, in steps of 10 ms.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() * 1024.0
}

async fn open(dir: &Path, checkpoints: bool) -> Result<Store, Error> {
    let mut options = Options::new(dir);
    if !checkpoints {
        options.checkpoint_bytes = u64::MAX;
    }
    Ok(Store::open(options, Arc::new(PodIndexer)).await?)
}

async fn writes(dir: &Path, writers: usize, count: usize) -> Result<(), Error> {
    let store = open(dir, true).await?;
    let (start, cpu) = (Instant::now(), cpu_s());
    let each = count / writers;
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut slowest = Vec::with_capacity(each);
                for i in 0..each {
                    let write = put(writer * 1000 + i % 1000, 2048);
                    let start = Instant::now();
                    store.commit(vec![write]).await?;
                    slowest.push(start.elapsed());
                }
                Ok::<_, yare_store::CommitError>(slowest)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_s() - cpu);
    latencies.sort_unstable();
    let (p50, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
    let rate = latencies.len() as f64 / elapsed;
    let micros = cpu * 1e6 / latencies.len() as f64;
    println!(
        "writes of 2 KB, {writers:2} writers: {rate:8.0}/s, p50 {p50:.2?}, p99 {p99:.2?}, CPU {cpu:.2} s ({micros:.1} µs each)"
    );
    store.close().await;
    Ok(())
}

async fn restart(dir: &Path, objects: usize, checkpoints: bool) -> Result<(), Error> {
    let memory = resident_bytes();
    let store = open(dir, checkpoints).await?;
    let all: Vec<usize> = (0..objects).collect();
    for chunk in all.chunks(200) {
        store.commit(chunk.iter().map(|i| put(*i, 3300)).collect()).await?;
    }
    let each = (resident_bytes() - memory) / objects as f64;
    store.close().await;
    let (start, cpu) = (Instant::now(), cpu_s());
    let store = open(dir, checkpoints).await?;
    let (elapsed, cpu) = (start.elapsed(), cpu_s() - cpu);
    let from = if checkpoints { "checkpoints and log" } else { "log alone" };
    let count = store.snapshot("pods").len();
    println!("restart with {count} objects of 3.3 KB from {from}: {elapsed:.2?}, CPU {cpu:.2} s");
    if checkpoints {
        println!("memory per object of 3.3 KB, just created: {each:.0} bytes");
    }
    store.close().await;
    Ok(())
}

async fn fan_out(dir: &Path, watchers: usize, updates: usize) -> Result<(), Error> {
    let store = open(dir, true).await?;
    let from = store.revision();
    let tasks = (0..watchers).map(|_| {
        let mut watcher = store.watch("pods", from)?;
        Ok(tokio::spawn(async move {
            let mut seen = 0;
            while seen < updates {
                seen += watcher.next().await?.len();
            }
            Ok::<_, yare_store::Lagged>(())
        }))
    });
    let tasks = tasks.collect::<Result<Vec<_>, yare_store::SnapshotError>>()?;
    let (start, cpu) = (Instant::now(), cpu_s());
    for i in 0..updates {
        store.commit(vec![put(i % 100, 2048)]).await?;
    }
    for task in tasks {
        task.await??;
    }
    let (elapsed, cpu) = (start.elapsed(), cpu_s() - cpu);
    let events = (watchers * updates) as f64;
    let (rate, micros) = (events / elapsed.as_secs_f64(), cpu * 1e6 / events);
    println!(
        "{updates} updates to {watchers} watchers: {elapsed:.2?}, {rate:.0} events/s, CPU {cpu:.2} s ({micros:.2} µs per event)"
    );
    store.close().await;
    Ok(())
}

fn main() -> Result<(), Error> {
    let objects = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    let dir = std::env::temp_dir().join(format!("yare-store-bench-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        // First, while nothing else has used the memory.
        restart(&dir.join("checkpoints"), objects, true).await?;
        restart(&dir.join("log"), objects, false).await?;
        writes(&dir.join("one"), 1, objects / 25 + 1).await?;
        writes(&dir.join("many"), 32, objects + 32).await?;
        fan_out(&dir.join("watch"), 100, objects / 100 + 1).await?;
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&dir);
    result
}
