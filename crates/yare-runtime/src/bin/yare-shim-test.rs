//! The smallest programs that the crate's tests start: a shim spawner (`shim`), and an engine to be killed
//! (`engine DATA RUN CGROUP`), which runs one pod with the node's network and then says which.

use yare_runtime::{
    ContainerConfig, Engine, EngineConfig, NamespaceMode, NamespaceModes, Runtime, SandboxConfig,
};

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("shim") => yare_runtime::shim::main(args),
        Some("engine") => {
            let args: Vec<String> = args.collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = runtime.map_err(|e| e.to_string()).and_then(|r| r.block_on(engine(&args)));
            if let Err(e) = result {
                // The test reads it.
                let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("error {e}\n").as_bytes());
            }
        }
        _ => {}
    }
    std::process::exit(2);
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
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{sandbox} {id}\n").as_bytes());
    std::future::pending().await
}
