//! Rows about how requests fare with one client, 32 and 200: create, get, update, patch, list and watch of
//! ConfigMaps through TLS, each client on a connection of its own, in JSON and protobuf.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::Context as _;
use http::Method;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    Scale, api,
    client::{ANSWER_TIMEOUT, Access, Connection},
    encoding::Encoding,
    load::{self, Took},
    process::Process,
    server::Server,
    table::Table,
};

const NAMESPACE: &str = "bench-clients";
const COLLECTION: &str = "/api/v1/namespaces/bench-clients/configmaps";
const COUNTS: [usize; 3] = [1, 32, 200];
/// Objects in each list.
const LISTED: usize = 200;

/// Loads one control plane, encoding by encoding and number by number.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let mut server = Server::start(binary, false)?;
    let (mut connection, _) = server.ready().await?;
    let access = server.access()?;
    let process = server.process()?;
    api::prepare(&mut connection, NAMESPACE).await?;
    for number in 0..LISTED {
        let object = map(&format!("listed-{number}"), "listed");
        connection.post(COLLECTION, object.to_string()).await?;
    }
    for encoding in Encoding::ALL {
        for clients in COUNTS {
            let round = Round { process: &process, access: &access, encoding, clients };
            round.rows(scale, table).await.with_context(|| server.log_tail())?;
        }
    }
    Ok(())
}

fn map(name: &str, label: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench", "bench": label}},
        "data": {"key": "value", "payload": "x".repeat(256)},
    })
}

struct Round<'a> {
    process: &'a Process,
    access: &'a Access,
    encoding: Encoding,
    clients: usize,
}

impl Round<'_> {
    fn row(&self, table: &mut Table, what: &str, took: &Took) {
        let clients = if self.clients == 1 { "1 client".into() } else { format!("{} clients", self.clients) };
        table.several(
            format!("{what}, {clients}, {}: CPU, rate, p99", self.encoding.name()),
            &[(took.cpu_ms_each, "ms"), (took.per_s, "/s"), (took.p99_ms, "ms")],
        );
    }

    async fn rows(&self, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
        let (encoding, media) = (self.encoding, self.encoding.media_type());
        let prefix: Arc<str> = format!("{}-{}", encoding.name().to_ascii_lowercase(), self.clients).into();
        let connections = self.access.connect_all(self.clients).await?;
        for connection in &connections {
            connection.clone().get("/version").await?;
        }
        let count = if self.clients == 1 { scale.sequential } else { scale.concurrent / 4 };
        let write = |method: Method, label: &'static str| {
            let prefix = prefix.clone();
            move |mut client: Connection, n: usize| {
                let (prefix, method) = (prefix.clone(), method.clone());
                async move {
                    let name = format!("{prefix}-{n}");
                    let path = match method {
                        Method::POST => COLLECTION.to_owned(),
                        _ => format!("{COLLECTION}/{name}"),
                    };
                    let body = encoding.encode(&map(&name, label))?;
                    client.exchange(method, &path, media, media, body).await.map(drop)
                }
            }
        };
        let took = load::run(self.process, &connections, count, write(Method::POST, "made")).await?;
        self.row(table, "create", &took);
        let took = load::run(self.process, &connections, count, write(Method::PUT, "changed")).await?;
        self.row(table, "update", &took);
        let patch = {
            let prefix = prefix.clone();
            move |mut client: Connection, n: usize| {
                let path = format!("{COLLECTION}/{prefix}-{n}");
                async move {
                    let patch = json!({"data": {"key": "patched"}}).to_string();
                    let kind = "application/merge-patch+json";
                    client.exchange(Method::PATCH, &path, kind, media, patch).await.map(drop)
                }
            }
        };
        let took = load::run(self.process, &connections, count, patch).await?;
        self.row(table, "patch", &took);
        let get = move |mut client: Connection, n: usize| {
            let path = format!("{COLLECTION}/{prefix}-{n}");
            async move { client.exchange(Method::GET, &path, "", media, "").await.map(drop) }
        };
        let took = load::run(self.process, &connections, count, get).await?;
        self.row(table, "get", &took);
        let list = move |mut client: Connection, _| async move {
            let path = format!("{COLLECTION}?labelSelector=bench%3Dlisted");
            client.exchange(Method::GET, &path, "", media, "").await.map(drop)
        };
        let took = load::run(self.process, &connections, count.div_ceil(10), list).await?;
        self.row(table, &format!("list of {LISTED}"), &took);
        self.watch(&connections, scale, table).await
    }

    /// Every client watches while one of them writes.
    async fn watch(&self, connections: &[Connection], scale: Scale, table: &mut Table) -> anyhow::Result<()> {
        let updates = (scale.updates * scale.watchers / self.clients).clamp(10, scale.updates);
        let mut writer = connections[0].clone();
        let list = writer.get_value(&format!("{COLLECTION}?limit=1")).await?;
        let revision = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
        let path = format!(
            "{COLLECTION}?watch=true&labelSelector=bench%3Dlisted&timeoutSeconds=280&resourceVersion={revision}"
        );
        // The last event is known by a word that is in no other.
        let last = format!("last-{}-{}", self.encoding.name(), self.clients);
        let mut watchers = Vec::with_capacity(self.clients);
        for connection in connections {
            let mut watch = connection.clone().watch_in(&path, self.encoding.media_type()).await?;
            let last = last.clone();
            watchers.push(tokio::spawn(async move { watch.until(last.as_bytes()).await }));
        }
        let (start, cpu) = (Instant::now(), self.process.cpu_s()?);
        for number in 0..updates {
            let value = if number + 1 == updates { last.clone() } else { number.to_string() };
            let path = format!("{COLLECTION}/listed-{}", number % LISTED);
            writer.merge(&path, json!({"data": {"key": value}}).to_string()).await?;
        }
        for watcher in watchers {
            timeout(ANSWER_TIMEOUT, watcher).await.context("events are missing")???;
        }
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), self.process.cpu_s()? - cpu);
        let events = (self.clients * updates) as f64;
        table.several(
            format!(
                "watch, {} clients, {}: CPU per event with its write, rate",
                self.clients,
                self.encoding.name()
            ),
            &[(cpu * 1e6 / events, "µs"), (events / elapsed, "/s")],
        );
        Ok(())
    }
}
