//! Clients that are not `kubectl`: kube-rs with its watchers and controllers, and Python's `kubernetes`.

use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use kube_runtime::{Controller, WatchStreamExt as _, controller::Action, watcher};
use serde_json::json;
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
/// How long a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "default";

/// Runs `work` with a client of the cluster, inside the cluster's network.
fn with_client<F: Future<Output = anyhow::Result<()>>>(
    cluster: &Cluster,
    work: impl FnOnce(Client) -> F + Send,
) -> anyhow::Result<()> {
    let path = cluster.kubeconfig();
    cluster.namespace().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let config =
                Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default())
                    .await?;
            work(Client::try_from(config)?).await
        })
    })?
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn config_map(name: &str, labels: &[(&str, &str)], data: &[(&str, &str)]) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(map(labels)),
            ..ObjectMeta::default()
        },
        data: Some(map(data)),
        ..ConfigMap::default()
    }
}

/// The refusal of a request that must not succeed.
fn refused<T: std::fmt::Debug>(result: kube::Result<T>) -> anyhow::Result<Box<Status>> {
    match result {
        Err(kube::Error::Api(status)) => Ok(status),
        other => bail!("not refused: {other:?}"),
    }
}

/// The next item that comes in time.
async fn next<T, E: std::error::Error + Send + Sync + 'static>(
    stream: &mut (impl Stream<Item = Result<T, E>> + Unpin),
) -> anyhow::Result<T> {
    let item = tokio::time::timeout(PATIENCE, stream.try_next()).await.context("nothing comes")??;
    item.context("the stream ends")
}

#[test]
fn kube_rs_lists_watches_patches_and_applies() {
    Cluster::test(YARE, Options::control_plane(), |cluster| {
        with_client(cluster, async |client| {
            let version = client.apiserver_version().await?;
            ensure!(version.minor == "36", "{version:?}");
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let labels = ListParams::default().labels("by=kube-rs");
            let start = maps.list(&labels).await?.metadata.resource_version.context("a revision")?;
            let watch = maps.watch(&WatchParams::default().labels("by=kube-rs"), &start).await?;
            let mut events = std::pin::pin!(watch);

            let made = maps
                .create(&PostParams::default(), &config_map("one", &[("by", "kube-rs")], &[("a", "1")]))
                .await?;
            let status = refused(maps.create(&PostParams::default(), &config_map("one", &[], &[])).await)?;
            ensure!(status.is_already_exists(), "{status:?}");
            let merge = Patch::Merge(json!({"data": {"b": "2"}}));
            maps.patch("one", &PatchParams::default(), &merge).await?;
            let strategic = Patch::Strategic(json!({"data": {"a": null, "c": "3"}}));
            maps.patch("one", &PatchParams::default(), &strategic).await?;
            let status = refused(maps.replace("one", &PostParams::default(), &made).await)?;
            ensure!(status.is_conflict(), "{status:?}");
            maps.delete("one", &DeleteParams::default()).await?;
            ensure!(maps.get_opt("one").await?.is_none());

            let mut seen = Vec::new();
            while seen.len() < 4 {
                let (kind, object) = match next(&mut events).await? {
                    WatchEvent::Added(object) => ("added", object),
                    WatchEvent::Modified(object) => ("modified", object),
                    WatchEvent::Deleted(object) => ("deleted", object),
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(status) => bail!("{status:?}"),
                };
                ensure!(object.uid() == made.uid());
                seen.push((kind, object.data.unwrap_or_default()));
            }
            let want = [
                ("added", map(&[("a", "1")])),
                ("modified", map(&[("a", "1"), ("b", "2")])),
                ("modified", map(&[("b", "2"), ("c", "3")])),
                ("deleted", map(&[("b", "2"), ("c", "3")])),
            ];
            ensure!(seen == want, "{seen:?}");

            // Typed server-side apply with two managers.
            let deployments: Api<Deployment> = Api::namespaced(client, NAMESPACE);
            let wanted = |replicas: i32| {
                let labels = json!({"app": "web"});
                Patch::Apply(json!({
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": "web"},
                    "spec": {
                        "replicas": replicas,
                        "selector": {"matchLabels": labels},
                        "template": {
                            "metadata": {"labels": labels},
                            "spec": {"containers": [{"name": "web", "image": "yare.local/hello"}]},
                        },
                    },
                }))
            };
            deployments.patch("web", &PatchParams::apply("first"), &wanted(0)).await?;
            let status = refused(deployments.patch("web", &PatchParams::apply("second"), &wanted(1)).await)?;
            ensure!(status.is_conflict(), "{status:?}");
            ensure!(
                status.message.contains(r#"conflict with "first": .spec.replicas"#),
                "{}",
                status.message
            );
            let forced = PatchParams::apply("second").force();
            let made = deployments.patch("web", &forced, &wanted(1)).await?;
            ensure!(made.spec.and_then(|s| s.replicas) == Some(1));
            let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
            let scale = deployments.patch_scale("web", &PatchParams::default(), &scale).await?;
            // None at all is how a scale says it.
            ensure!(scale.spec.is_some_and(|s| s.replicas.is_none()));
            let status = deployments.get_status("web").await?;
            ensure!(status.spec.and_then(|s| s.replicas) == Some(0));
            Ok(())
        })
    });
}

#[test]
fn kube_rs_watchers_start_from_a_list_and_from_a_stream() {
    Cluster::test(YARE, Options::control_plane(), |cluster| {
        with_client(cluster, async |client| {
            let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
            for streaming in [false, true] {
                for number in 0..3 {
                    let object = config_map(&format!("map-{number}"), &[("by", "watcher")], &[]);
                    maps.create(&PostParams::default(), &object).await?;
                }
                // Pages of two where it lists; `sendInitialEvents` where it streams.
                let config = watcher::Config::default().labels("by=watcher");
                let config = if streaming { config.streaming_lists() } else { config.page_size(2) };
                let mut events = watcher(maps.clone(), config).boxed();
                let mut initial = Vec::new();
                loop {
                    match next(&mut events).await? {
                        watcher::Event::Init => {}
                        watcher::Event::InitApply(object) => initial.push(object.name_any()),
                        watcher::Event::InitDone => break,
                        event => bail!("{event:?} before the initial events are done"),
                    }
                }
                initial.sort();
                ensure!(initial == ["map-0", "map-1", "map-2"], "streaming {streaming}: {initial:?}");

                let patch = Patch::Merge(json!({"data": {"a": "b"}}));
                maps.patch("map-1", &PatchParams::default(), &patch).await?;
                match next(&mut events).await? {
                    watcher::Event::Apply(object) => {
                        ensure!(object.data == Some(map(&[("a", "b")])), "{object:?}")
                    }
                    event => bail!("{event:?}"),
                }
                maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("by=watcher"))
                    .await?;
                let mut gone = Vec::new();
                while gone.len() < 3 {
                    match next(&mut events).await? {
                        watcher::Event::Delete(object) => gone.push(object.name_any()),
                        event => bail!("{event:?}"),
                    }
                }
                gone.sort();
                ensure!(gone == initial, "{gone:?}");
            }
            Ok(())
        })
    });
}

/// Writes a Secret with what the ConfigMap has, owned by it.
async fn mirror(source: Arc<ConfigMap>, client: Arc<Client>) -> kube::Result<Action> {
    let secrets: Api<Secret> = Api::namespaced(client.as_ref().clone(), NAMESPACE);
    let copy = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": source.name_any(), "ownerReferences": [source.controller_owner_ref(&())]},
        "stringData": source.data,
    });
    secrets.patch(&source.name_any(), &PatchParams::apply("mirror").force(), &Patch::Apply(copy)).await?;
    Ok(Action::await_change())
}

#[test]
fn a_kube_rs_controller_reconciles() {
    Cluster::test(YARE, Options::control_plane(), |cluster| {
        with_client(cluster, async |client| {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
            let mirrored = watcher::Config::default().labels("mirror=yes");
            let controller = Controller::new(maps.clone(), mirrored)
                .owns(secrets.clone(), watcher::Config::default())
                .run(mirror, |_, _, _| Action::requeue(Duration::from_millis(100)), Arc::new(client.clone()))
                .for_each(|_| std::future::ready(()));
            let test = async {
                // Waits until the Secret is what the test wants, seen by a watcher of its own.
                let mut copies =
                    watcher(secrets.clone(), watcher::Config::default()).applied_objects().boxed();
                let mut becomes = async |value: &str| -> anyhow::Result<Secret> {
                    loop {
                        let secret = next(&mut copies).await?;
                        let data = secret.data.as_ref().and_then(|d| d.get("a"));
                        if secret.name_any() == "one" && data.is_some_and(|d| d.0 == value.as_bytes()) {
                            return Ok(secret);
                        }
                    }
                };
                maps.create(&PostParams::default(), &config_map("other", &[], &[("a", "1")])).await?;
                let source = config_map("one", &[("mirror", "yes")], &[("a", "1")]);
                let source = maps.create(&PostParams::default(), &source).await?;
                let first = becomes("1").await?;
                ensure!(first.owner_references()[0].uid == source.uid().context("a uid")?);
                let patch = Patch::Merge(json!({"data": {"a": "2"}}));
                maps.patch("one", &PatchParams::default(), &patch).await?;
                becomes("2").await?;
                // What is taken away comes back, as another object.
                secrets.delete("one", &DeleteParams::default()).await?;
                let again = becomes("2").await?;
                ensure!(again.uid() != first.uid());
                ensure!(secrets.get_opt("other").await?.is_none());
                // It goes with its owner, by the garbage collector.
                maps.delete("one", &DeleteParams::background()).await?;
                let deadline = tokio::time::Instant::now() + PATIENCE;
                while secrets.get_opt("one").await?.is_some() {
                    ensure!(tokio::time::Instant::now() < deadline, "the Secret outlives its owner");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            };
            futures::select_biased! {
                result = test.boxed_local().fuse() => result,
                () = controller.boxed_local().fuse() => bail!("the controller ends"),
            }
        })
    });
}

/// An interpreter with the `kubernetes` package.
fn python() -> anyhow::Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/python-client");
    let output = Command::new(&script).output().with_context(|| script.display().to_string())?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn python_lists_watches_patches_and_applies() {
    let python = python().expect("scripts/python-client");
    Cluster::test(YARE, Options::control_plane(), |cluster| {
        let mut command = cluster.command(&python);
        command.args(["-c", include_str!("clients.py")]);
        let output = cluster.run(&mut command)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && out.trim() == "done", "{out}{err}");
        Ok(())
    });
}
