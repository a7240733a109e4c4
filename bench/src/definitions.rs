//! Rows about many CustomResourceDefinitions: how long until the last one is served, and what each costs.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::{Scale, client::Connection, load, server::Server, table::Table};

const CLIENTS: usize = 32;
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// As large as those of operators that people run.
const DEFINITION_BYTES: usize = 28 << 10;
/// So many definitions share a group.
const PER_GROUP: usize = 20;
/// How often a resource is asked for that is not served yet.
const TRY_EVERY: Duration = Duration::from_millis(1);
const SERVED_TIMEOUT: Duration = Duration::from_secs(120);
/// Statuses are written and buffers given back by then.
const SETTLE: Duration = Duration::from_secs(5);

/// Installs many definitions at once on an empty control plane.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let mut server = Server::start(binary, false)?;
    let (_, _) = server.ready().await?;
    sleep(SETTLE).await;
    let process = server.process()?;
    let clients = server.access()?.connect_all(CLIENTS).await?;
    let (memory_mib, cpu_s) = (process.anonymous_mib()?, process.cpu_s()?);
    let start = Instant::now();
    install(&clients, scale.definitions).await.with_context(|| server.log_tail())?;
    let posted = start.elapsed();
    await_all(&clients, scale.definitions).await.with_context(|| server.log_tail())?;
    let served = start.elapsed();
    drop(clients);
    sleep(SETTLE).await;
    let count = scale.definitions as f64;
    let each_kib = (process.anonymous_mib()? - memory_mib) * 1024.0 / count;
    let what = format!("{count} definitions of 28 KiB");
    table.note(format!("{what}, 32 clients: all accepted"), posted.as_secs_f64(), "s");
    table.note(format!("{what}: the last is served"), served.as_secs_f64(), "s");
    table.note("  CPU for each", (process.cpu_s()? - cpu_s) * 1e3 / count, "ms");
    table.at_most("  memory for each, its text included", each_kib, 100.0, "KiB");
    Ok(())
}

async fn install(clients: &[Connection], count: usize) -> anyhow::Result<()> {
    let post = |mut connection: Connection, number| async move {
        connection.post(DEFINITIONS, definition(number).to_string()).await
    };
    load::share(clients, count, post).await.map(drop)
}

async fn await_all(clients: &[Connection], count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + SERVED_TIMEOUT;
    let ask = move |mut connection: Connection, number| async move {
        let path = format!("/apis/{}/v1/{}", group(number), plural(number));
        loop {
            let (status, _) = connection.send(Method::GET, &path, "", "").await?;
            if status == StatusCode::OK {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "{path} is not served: {status}");
            sleep(TRY_EVERY).await;
        }
    };
    load::share(clients, count, ask).await.map(drop)
}

fn group(number: usize) -> String {
    format!("group{}.example.com", number / PER_GROUP)
}

fn plural(number: usize) -> String {
    format!("things{number}")
}

/// A definition whose schema has described fields, objects and lists until its text is long enough.
fn definition(number: usize) -> Value {
    let (group, plural) = (group(number), plural(number));
    let mut properties = Map::new();
    let mut bytes = 0;
    for field in 0.. {
        let schema = match field % 4 {
            0 => json!({"type": "string", "maxLength": 253, "pattern": "^[a-z0-9.-]*$"}),
            1 => json!({"type": "integer", "format": "int32", "minimum": 0, "default": field}),
            2 => json!({"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"}, "value": {"type": "string"}}, "required": ["name"]}}),
            _ => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        };
        let mut schema = schema;
        schema["description"] = format!(
            "Field {field} says what controllers should do about part {field} of the thing, and what follows from leaving it out."
        )
        .into();
        bytes += schema.to_string().len() + 16;
        properties.insert(format!("field{field}"), schema);
        if bytes > DEFINITION_BYTES {
            break;
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Cluster",
            "names": {"plural": plural, "singular": format!("thing{number}"), "kind": format!("Thing{number}"),
                "listKind": format!("Thing{number}List"), "shortNames": [format!("t{number}")]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": properties},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_as_large_as_the_row_says() {
        let bytes = definition(7).to_string().len();
        assert!((DEFINITION_BYTES..DEFINITION_BYTES + 2048).contains(&bytes), "{bytes}");
    }
}
