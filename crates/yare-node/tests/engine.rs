//! The node agent on the embedded runtime: real containers from real pods, seen through a real API server.
//!
//! This program is also the runtime's shim (`engine shim`), which must start before any thread exists; hence a
//! `main` of its own. Skipped where the machine does not allow containers.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use common::Cluster;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use yare_runtime::{Engine, EngineConfig, PodNetwork, PodNetworkRequest, Runtime};

const IMAGE: &str = "yare.test/node-busybox:1";

/// Addresses without a network: what is tested here does not talk.
struct Addresses;

#[async_trait]
impl PodNetwork for Addresses {
    async fn attach(&self, _: PodNetworkRequest) -> Result<Vec<IpAddr>, String> {
        Ok(vec!["10.42.0.9".parse().unwrap()])
    }

    async fn close_ports(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn detach(&self, _: &str, _: Option<&Path>) -> Result<(), String> {
        Ok(())
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "shim" {
        yare_runtime::shim::main(args);
    }
    // What test runners ask of a program before they run it.
    if std::env::args().any(|a| a == "--list") {
        if !std::env::args().any(|a| a == "--ignored") {
            println!("pods_run_in_real_containers: test");
        }
        return;
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: needs root and a static busybox");
        return;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(run());
    println!("test pods_run_in_real_containers ... ok");
}

/// A docker archive with busybox and a few of its commands.
fn archive(path: &Path) {
    let file = |tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut layer = tar::Builder::new(Vec::new());
    file(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    for name in ["sh", "cat", "sleep", "echo", "id", "ls"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let hex: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut out = tar::Builder::new(Vec::new());
    file(&mut out, "layer.tar", 0o644, &layer);
    file(&mut out, "config.json", 0o644, config.to_string().as_bytes());
    file(&mut out, "manifest.json", 0o644, manifest.to_string().as_bytes());
    std::fs::write(path, out.into_inner().unwrap()).unwrap();
}

fn shell(script: &str) -> Value {
    json!({"name": "main", "image": IMAGE, "command": ["sh", "-c", script]})
}

async fn run() {
    let mut cluster = Cluster::without_node().await;
    let short = tempfile::Builder::new().prefix("yn").tempdir().unwrap();
    let mut config = EngineConfig::new(short.path().join("data"), short.path().join("run"));
    config.shim_command = vec![std::env::current_exe().unwrap().into(), "shim".into()];
    let own = format!("yn-{}", std::process::id());
    let shims = format!("{own}/shims");
    config.shim_cgroup.clone_from(&shims);
    config.network = Some(Arc::new(Addresses));
    let engine = match Engine::open(config).await {
        Ok(engine) => engine,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let tar = short.path().join("image.tar");
    archive(&tar);
    engine.images().import(&tar, None).unwrap();
    cluster.start_node(|config| config.runtime = Arc::new(engine.clone())).await;

    cluster
        .post(
            "/api/v1/namespaces/default/secrets",
            &json!({"metadata": {"name": "key"}, "stringData": {"k": "hidden"}}),
        )
        .await;
    let began = std::time::Instant::now();
    let mut main =
        shell("echo $GREETING; cat /secret/k; echo; cat /sub/f; echo done > /dev/termination-log; exit 4");
    main["env"] = json!([{"name": "GREETING", "value": "hello"}]);
    main["volumeMounts"] = json!([{"name": "key", "mountPath": "/secret"}, {"name": "scratch", "mountPath": "/sub", "subPath": "a/b"}]);
    let mut init = shell("/bin/busybox mkdir -p /all/a/b; echo from-init > /all/a/b/f");
    init["name"] = json!("init");
    init["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/all"}]);
    let spec = json!({
        "restartPolicy": "Never", "initContainers": [init], "containers": [main],
        "volumes": [{"name": "key", "secret": {"secretName": "key"}}, {"name": "scratch", "emptyDir": {"medium": "Memory"}}],
    });
    let uid = cluster.pod("once", spec).await;
    let pod = cluster.wait_phase("once", "Failed").await;
    println!("pod ended after {:?}", began.elapsed());
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    let log = cluster.dir.path().join(format!("log/pods/default_once_{uid}/main/0.log"));
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(
        (ended["exitCode"].as_i64(), ended["message"].as_str()),
        (Some(4), Some("done\n")),
        "{pod:#}\n{log}"
    );
    for line in ["hello", "hidden", "from-init"] {
        assert!(log.contains(&format!(" stdout F {line}\n")), "{line}: {log}");
    }
    cluster.delete_pod("once", 0).await;

    // A pod goes on while its agent restarts, and ends when it is deleted.
    cluster
        .pod("stays", json!({"containers": [shell("trap 'exit 0' TERM; while true; do sleep 0.1; done")]}))
        .await;
    let before = cluster.wait_ready("stays").await;
    cluster.stop_node().await;
    cluster.start_node(|config| config.runtime = Arc::new(engine.clone())).await;
    let began = std::time::Instant::now();
    let after = cluster.wait_ready("stays").await;
    assert_eq!(before["status"]["containerStatuses"][0], after["status"]["containerStatuses"][0]);
    cluster.delete_pod("stays", 5).await;
    cluster.wait_gone("stays").await;
    println!("taken over and deleted after {:?}", began.elapsed());

    for _ in 0..500 {
        let left = std::fs::read_dir(cluster.data().join("pods")).unwrap().count();
        if left == 0 && engine.sandboxes().await.unwrap().is_empty() {
            cluster.stop_node().await;
            engine.close().await;
            // Those of other nodes on this machine stay.
            let cgroups = [&yare_node::CGROUPS[..], &[&*shims, &*own]].concat();
            yare_runtime::remove_empty_cgroups(&cgroups, std::time::Duration::from_secs(2)).await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    for sandbox in engine.sandboxes().await.unwrap() {
        engine.remove_sandbox(&sandbox.id).await.unwrap();
    }
    panic!("pods left something behind");
}
