//! Builders for unit tests of this crate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use yare_runtime::{ContainerState, ContainerStatus, NamespaceModes, Resources, SandboxState, SandboxStatus};

pub(crate) fn sandbox_status(id: &str, attempt: u32, ready: bool) -> SandboxStatus {
    SandboxStatus {
        id: id.into(),
        name: "p".into(),
        namespace: "n".into(),
        uid: "u".into(),
        attempt,
        state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
        created_at_ns: i64::from(attempt) + 1,
        ips: vec!["10.42.0.5".parse().unwrap()],
        netns: None,
        shim_pid: 1,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        namespaces: NamespaceModes::default(),
        cgroup_parent: String::new(),
        runtime_handler: String::new(),
    }
}

/// `age` counts backwards: 0 is the newest.
pub(crate) fn container_status(
    name: &str,
    age: i64,
    state: ContainerState,
    exit_code: i32,
) -> ContainerStatus {
    let created = 1_000_000_000_000 - age * 1_000_000_000;
    ContainerStatus {
        id: format!("{name}-{age}"),
        sandbox_id: "s".into(),
        name: name.into(),
        attempt: 0,
        state,
        created_at_ns: created,
        started_at_ns: if state == ContainerState::Created { 0 } else { created },
        finished_at_ns: if state == ContainerState::Exited { created + 1 } else { 0 },
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "img".into(),
        image_id: "sha256:1".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: PathBuf::new(),
        pid: 0,
        mounts: Vec::new(),
        resources: Resources::default(),
        user: None,
    }
}
