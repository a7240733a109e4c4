//! The smallest programs that the crate's tests start: a shim spawner (`shim`), and engines to be killed:
//! `engine DATA RUN CGROUP` runs one pod with the node's network and then says which; `churn DATA RUN CGROUP` says
//! `ready`, and starts and ends pods with networks of their own until it is killed.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use yare_runtime::{
    ContainerConfig, Engine, EngineConfig, NamespaceMode, NamespaceModes, PodNetwork, PodNetworkRequest,
    Runtime, SandboxConfig,
};

fn main() {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    if command.as_deref() == Some("shim") {
        yare_runtime::shim::main(args);
    }
    let args: Vec<String> = args.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(|e| e.to_string()).and_then(|r| match command.as_deref() {
        Some("engine") => r.block_on(engine(&args)),
        Some("churn") => r.block_on(churn(&args)),
        _ => Err("shim, engine or churn".into()),
    });
    if let Err(e) = result {
        say(&format!("error {e}"));
    }
    std::process::exit(2);
}

/// The test reads it.
fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes());
}

/// Addresses for nobody.
struct NoNetwork;

#[async_trait::async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(&self, _: PodNetworkRequest) -> Result<Vec<IpAddr>, String> {
        Ok(Vec::new())
    }

    async fn close_ports(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn detach(&self, _: &str, _: Option<&Path>) -> Result<(), String> {
        Ok(())
    }
}

/// Starts and ends pods, two at a time, so that a kill finds them in every state.
async fn churn(args: &[String]) -> Result<(), String> {
    let [data, run, cgroup] = args else { return Err("churn DATA RUN CGROUP".into()) };
    let mut config = EngineConfig::new(data, run);
    config.shim_cgroup = format!("{cgroup}/shims");
    config.network = Some(Arc::new(NoNetwork));
    let engine = Engine::open(config).await.map_err(|e| e.to_string())?;
    say("ready");
    let lane = async |lane: u32| -> Result<(), String> {
        for number in 0.. {
            let name = format!("c{lane}-{}-{number}", std::process::id());
            let pod = SandboxConfig {
                uid: name.clone(),
                cgroup_parent: format!("{cgroup}/{name}"),
                name,
                ..SandboxConfig::default()
            };
            let sandbox = engine.run_sandbox(pod).await.map_err(|e| e.to_string())?;
            let id = engine.create_container(&sandbox, sleeper()).await.map_err(|e| e.to_string())?;
            engine.start_container(&id).await.map_err(|e| e.to_string())?;
            // Some stay.
            if number % 3 != 0 {
                engine.stop_sandbox(&sandbox).await.map_err(|e| e.to_string())?;
                engine.remove_sandbox(&sandbox).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    };
    let (a, b) = tokio::join!(lane(1), lane(2));
    a.and(b)
}

fn sleeper() -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image: "yare.test/busybox".into(),
        command: ["sleep", "1000"].map(String::from).into(),
        ..ContainerConfig::default()
    }
}

async fn engine(args: &[String]) -> Result<(), String> {
    let [data, run, cgroup] = args else { return Err("engine DATA RUN CGROUP".into()) };
    let mut config = EngineConfig::new(data, run);
    config.shim_cgroup = format!("{cgroup}/shims");
    let engine = Engine::open(config).await.map_err(|e| e.to_string())?;
    let pod = SandboxConfig {
        name: "killed".into(),
        uid: "killed".into(),
        cgroup_parent: format!("{cgroup}/pod"),
        namespaces: NamespaceModes { network: NamespaceMode::Node, ..NamespaceModes::default() },
        ..SandboxConfig::default()
    };
    let sandbox = engine.run_sandbox(pod).await.map_err(|e| e.to_string())?;
    let container = ContainerConfig {
        name: "main".into(),
        image: "yare.test/busybox".into(),
        command: ["sh", "-c", "while ! test -e /go; do sleep 0.02; done; exit 8"].map(String::from).into(),
        ..ContainerConfig::default()
    };
    let id = engine.create_container(&sandbox, container).await.map_err(|e| e.to_string())?;
    engine.start_container(&id).await.map_err(|e| e.to_string())?;
    say(&format!("{sandbox} {id}"));
    std::future::pending().await
}
