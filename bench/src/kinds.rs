//! Rows about every built-in kind that is served by default (`kinds.yaml`): create, update and patch through TLS
//! from 32 clients, in JSON and protobuf. The CPU is that of the whole control plane, its controllers included.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use yare_schema::decode::yaml_to_json;

use crate::{
    Scale, api, client::Connection, encoding::Encoding, load, process::Process, server::Server, table::Table,
};

const CLIENTS: usize = 32;
const NAMESPACE: &str = "bench-kinds";

/// A kind: the object that is written, and where it goes.
struct Kind {
    name: String,
    template: String,
    collection: String,
    /// Its objects can be deleted together.
    deletable: bool,
}

/// Writes objects of each kind.
pub async fn measure(binary: &Path, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let mut server = Server::start(binary, false)?;
    let (mut connection, _) = server.ready().await?;
    let process = server.process()?;
    api::prepare(&mut connection, NAMESPACE).await?;
    let clients = server.access()?.connect_all(CLIENTS).await?;
    for template in templates()? {
        let kind = Kind::find(&mut connection, template).await?;
        let rows = kind.rows(&process, &clients, scale, table).await;
        rows.with_context(|| format!("{}\n{}", kind.name, server.log_tail()))?;
    }
    Ok(())
}

/// The documents of `kinds.yaml`, as JSON.
fn templates() -> anyhow::Result<Vec<Value>> {
    include_str!("kinds.yaml")
        .split("\n---\n")
        .map(|document| {
            let (json, _) =
                yaml_to_json(document.as_bytes()).map_err(|e| anyhow::anyhow!("{e}: {document}"))?;
            Ok(serde_json::from_slice(&json)?)
        })
        .collect()
}

impl Kind {
    /// Asks discovery where the kind is.
    async fn find(client: &mut Connection, template: Value) -> anyhow::Result<Self> {
        let name = template["kind"].as_str().unwrap_or_default().to_owned();
        let api_version = template["apiVersion"].as_str().unwrap_or_default();
        let root = if api_version.contains('/') { "/apis" } else { "/api" };
        let found = client.get_value(&format!("{root}/{api_version}")).await?;
        let resources = found["resources"].as_array().map_or(&[][..], Vec::as_slice);
        let is_it = |r: &&Value| r["kind"] == *name && r["name"].as_str().is_some_and(|n| !n.contains('/'));
        let resource = resources.iter().find(is_it).with_context(|| format!("{name} is not served"))?;
        let plural = resource["name"].as_str().unwrap_or_default();
        let namespace =
            if resource["namespaced"] == true { format!("namespaces/{NAMESPACE}/") } else { String::new() };
        let deletable = resource["verbs"].as_array().is_some_and(|v| v.contains(&json!("deletecollection")));
        let collection = format!("{root}/{api_version}/{namespace}{plural}");
        Ok(Self { name, template: template.to_string(), collection, deletable })
    }

    fn object(&self, number: usize) -> anyhow::Result<Value> {
        let mut text = self.template.replace("{n}", &number.to_string());
        text = text.replace("{hi}", &(number / 250).to_string()).replace("{lo}", &(number % 250).to_string());
        let mut object: Value = serde_json::from_str(&text)?;
        object["metadata"]["labels"]["bench"] = "kinds".into();
        Ok(object)
    }

    async fn rows(
        &self,
        process: &Process,
        clients: &[Connection],
        scale: Scale,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let count = scale.per_kind;
        for (round, encoding) in Encoding::ALL.into_iter().enumerate() {
            let media = encoding.media_type();
            let bodies: anyhow::Result<Vec<_>> =
                (0..count).map(|n| encoding.encode(&self.object(round * count + n)?)).collect();
            let bodies = Arc::new(bodies?);
            let answers = Arc::new(Mutex::new(vec![bytes::Bytes::new(); count]));
            let collection: Arc<str> = self.collection.clone().into();
            let create = {
                let (answers, collection) = (answers.clone(), collection.clone());
                move |mut client: Connection, n: usize| {
                    let (body, answers, collection) =
                        (bodies[n].clone(), answers.clone(), collection.clone());
                    async move {
                        answers.lock()[n] =
                            client.exchange(Method::POST, &collection, media, media, body).await?;
                        Ok(())
                    }
                }
            };
            let created = load::run(process, clients, count, create).await.context("create")?;
            let mut paths = Vec::with_capacity(count);
            for answer in answers.lock().iter() {
                let object = encoding.decode(answer)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                paths.push(format!("{collection}/{name}"));
            }
            let paths = Arc::new(paths);
            let patch = {
                let paths = paths.clone();
                move |mut client: Connection, n: usize| {
                    let paths = paths.clone();
                    async move {
                        let patch = json!({"metadata": {"labels": {"patched": "yes"}}}).to_string();
                        let kind = "application/merge-patch+json";
                        client.exchange(Method::PATCH, &paths[n], kind, media, patch).await.map(drop)
                    }
                }
            };
            let patched = load::run(process, clients, count, patch).await.context("patch")?;
            let update = move |mut client: Connection, n: usize| {
                let paths = paths.clone();
                async move { update(&mut client, &paths[n], encoding).await }
            };
            let updated = load::run(process, clients, count, update).await.context("update")?;
            table.several(
                format!("{} in {}: create, read and update, patch: CPU", self.name, encoding.name()),
                &[created.cpu_ms_each, updated.cpu_ms_each, patched.cpu_ms_each].map(|ms| (ms, "ms")),
            );
        }
        if self.deletable {
            let mut client = clients[0].clone();
            client.delete(&format!("{}?labelSelector=bench%3Dkinds", self.collection)).await?;
        }
        Ok(())
    }
}

/// Updates an object to which controllers may be writing at the same time: read, change, write.
async fn update(client: &mut Connection, path: &str, encoding: Encoding) -> anyhow::Result<()> {
    let media = encoding.media_type();
    for _ in 0..10 {
        let mut object = encoding.decode(&client.exchange(Method::GET, path, media, media, "").await?)?;
        object["metadata"]["labels"]["changed"] = "yes".into();
        let body = encoding.encode(&object)?;
        let (status, answer) = client.answer(Method::PUT, path, media, media, body).await?;
        if status.is_success() {
            return Ok(());
        }
        anyhow::ensure!(
            status == http::StatusCode::CONFLICT,
            "PUT {path}: {status}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    anyhow::bail!("PUT {path}: a conflict each time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_a_form_in_each_encoding() {
        let templates = templates().unwrap();
        assert!(templates.len() > 50);
        for template in templates {
            let name = template["kind"].as_str().unwrap().to_owned();
            let kind =
                Kind { name, template: template.to_string(), collection: String::new(), deletable: true };
            let object = kind.object(257).unwrap();
            assert!(!object.to_string().contains("{n}"), "{object}");
            for encoding in Encoding::ALL {
                let bytes = encoding.encode(&object).unwrap();
                assert_eq!(encoding.decode(&bytes).unwrap()["metadata"], object["metadata"], "{object}");
            }
        }
    }
}
