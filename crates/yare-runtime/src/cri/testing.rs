//! A runtime behind a socket that never was: what [`CriRuntime`] makes of its answers, without containers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use yare_grpc::{Server, Status};

use super::*;

/// Containers and their states; all are in the sandbox `s`.
type Containers = Arc<Mutex<BTreeMap<String, cri::ContainerState>>>;

/// Serves until the sender is dropped. It has no events and knows no cgroup driver, as runtimes of old.
fn serve(socket: &Path, containers: &Containers) -> oneshot::Sender<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let (stop, stopped) = oneshot::channel();
    let (listed, known, made) = (containers.clone(), containers.clone(), containers.clone());
    let server = Server::new()
        .unary(method!(runtime "Version"), async |_: cri::VersionRequest| {
            Ok(cri::VersionResponse {
                runtime_name: "fake".into(),
                runtime_version: "1".into(),
                runtime_api_version: "v1".into(),
                ..cri::VersionResponse::default()
            })
        })
        .unary(method!(runtime "ListPodSandbox"), async |_: cri::ListSandboxesRequest| {
            Ok(cri::ListSandboxesResponse::default())
        })
        .unary(method!(runtime "ListContainers"), move |_: cri::ListContainersRequest| {
            let one = |(id, state): (&String, &cri::ContainerState)| cri::Container {
                id: id.clone(),
                sandbox_id: "s".into(),
                metadata: Some(cri::ContainerMetadata { name: id.clone(), attempt: 0 }),
                state: (*state).into(),
                ..cri::Container::default()
            };
            let containers = listed.lock().iter().map(one).collect();
            async move { Ok(cri::ListContainersResponse { containers }) }
        })
        .unary(method!(runtime "ContainerStatus"), move |asked: cri::ContainerId| {
            let state = known.lock().get(&asked.id).copied();
            async move {
                let state = state.ok_or_else(|| Status::not_found("no such container"))?;
                let status = cri::ContainerStatus {
                    id: asked.id,
                    state: state.into(),
                    exit_code: 7,
                    ..cri::ContainerStatus::default()
                };
                Ok(cri::ContainerStatusResponse { status: Some(status) })
            }
        })
        .unary(method!(runtime "PodSandboxStatus"), async |asked: cri::SandboxId| {
            let told = map::sandbox::config(&SandboxConfig::default(), CgroupDriver::Cgroupfs);
            let status = match asked.id.as_str() {
                "s" => {
                    cri::SandboxStatus { id: asked.id, annotations: told.annotations, ..Default::default() }
                }
                "foreign" => cri::SandboxStatus { id: asked.id, ..Default::default() },
                _ => return Err(Status::not_found("no such sandbox")),
            };
            Ok(cri::SandboxStatusResponse { status: Some(status) })
        })
        .unary(method!(runtime "CreateContainer"), move |asked: cri::CreateContainerRequest| {
            let id = asked.config.unwrap_or_default().metadata.unwrap_or_default().name;
            made.lock().insert(id.clone(), cri::ContainerState::Created);
            async move { Ok(cri::ContainerId { id }) }
        })
        .unary(method!(runtime "ExecSync"), async |asked: cri::ExecSyncRequest| {
            match asked.cmd[0].as_str() {
                "slow" => Err(Status::unknown(
                    "failed to exec in container: timeout 1s exceeded: context deadline exceeded",
                )),
                _ => {
                    Ok(cri::ExecSyncResponse { stdout: b"out".to_vec(), exit_code: 3, ..Default::default() })
                }
            }
        });
    tokio::spawn(server.serve(listener, async {
        let _ = stopped.await;
    }));
    stop
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_of_old_is_looked_at_and_may_restart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let containers = Containers::default();
    containers.lock().insert("a".into(), cri::ContainerState::Running);
    let stop = serve(&socket, &containers);
    let mut config = CriConfig::new(&socket);
    config.relist_period = Duration::from_millis(10);
    let runtime = CriRuntime::connect(config).await.unwrap();
    assert_eq!(runtime.version().await.unwrap().name, "fake");
    let mut events = runtime.events();
    let status = runtime.container("a").await.unwrap();
    assert_eq!((status.sandbox_id.as_str(), status.state), ("s", ContainerState::Running));
    // It is looked at twice before it ends, so that its end is news.
    tokio::time::sleep(Duration::from_millis(200)).await;
    containers.lock().insert("a".into(), cri::ContainerState::Exited);
    let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    assert_eq!(event, RuntimeEvent::ContainerExited { id: "a".into(), sandbox: "s".into(), exit_code: 7 });

    drop(stop);
    let down = async {
        loop {
            match runtime.version().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return error,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), down).await.unwrap();
    assert_eq!(error.code(), "Unavailable", "{error}");
    let _stop = serve(&socket, &containers);
    assert_eq!(runtime.version().await.unwrap().name, "fake");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_answered_and_what_is_gone_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let _stop = serve(&socket, &Containers::default());
    let runtime = CriRuntime::connect(CriConfig::new(&socket)).await.unwrap();
    let named = |name: &str| ContainerConfig { name: name.into(), ..ContainerConfig::default() };
    assert_eq!(runtime.create_container("s", named("a")).await.unwrap(), "a");
    assert_eq!(runtime.create_container("s", named("a")).await.unwrap(), "a");
    let error = runtime.create_container("foreign", named("a")).await.unwrap_err();
    assert_eq!(error.code(), "FailedPrecondition", "{error}");
    assert!(runtime.create_container("none", named("a")).await.unwrap_err().is_not_found());
    assert!(runtime.container("none").await.unwrap_err().is_not_found());
    runtime.remove_sandbox("none").await.unwrap();
    let words = |word: &str| vec![word.to_owned()];
    let ran = runtime.exec_sync("a", words("quick"), None).await.unwrap();
    assert_eq!((ran.stdout.as_slice(), ran.exit_code), (b"out".as_slice(), 3));
    let error = runtime.exec_sync("a", words("slow"), Some(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(error.code(), "DeadlineExceeded", "{error}");
    // It has no such call.
    assert_eq!(runtime.reopen_log("a").await.unwrap_err().code(), "Unknown");
}
