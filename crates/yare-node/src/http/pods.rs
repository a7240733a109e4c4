//! `/pods` and `/runningpods`: what the kubelet has been told to run, and what runs.

use std::cmp::Reverse;
use std::collections::HashMap;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use yare_runtime::{ContainerState, ContainerStatus, SandboxState, SandboxStatus};

use super::{Body, respond};
use crate::kubelet::Kubelet;
use crate::manifests::mirror;

/// A `PodList` made of the cached bytes.
pub(super) fn list(kubelet: &Kubelet) -> Response<Body> {
    let mut out = Vec::from(&br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#[..]);
    let mut first = true;
    // A static pod is shown as it runs, not as its mirror.
    let own = kubelet.pods.list().into_iter().filter(|pod| mirror::digest(pod).is_none());
    for pod in kubelet.statics.list().into_iter().chain(own) {
        if !std::mem::replace(&mut first, false) {
            out.push(b',');
        }
        out.extend_from_slice(pod.bytes());
    }
    out.extend_from_slice(b"]}");
    respond(StatusCode::OK, "application/json", Bytes::from(out))
}

/// A `PodList` of what the runtime runs, whether or not the API server still knows it: so little of each pod as the
/// runtime knows.
pub(super) async fn running(kubelet: &Kubelet) -> Response<Body> {
    let runtime = &kubelet.runtime;
    match tokio::try_join!(runtime.sandboxes(), runtime.containers()) {
        Ok((sandboxes, containers)) => {
            let items = items(&sandboxes, &containers);
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
            respond(StatusCode::OK, "application/json", Bytes::from(list.to_string()))
        }
        Err(error) => {
            respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Bytes::from(error.to_string()))
        }
    }
}

/// Pods with a sandbox that is ready or a container that runs, the newest first, and so their containers.
fn items(sandboxes: &[SandboxStatus], containers: &[ContainerStatus]) -> Vec<Value> {
    let by_id: HashMap<&str, &SandboxStatus> = sandboxes.iter().map(|s| (s.id.as_str(), s)).collect();
    let mut running: Vec<&ContainerStatus> =
        containers.iter().filter(|c| c.state == ContainerState::Running).collect();
    running.sort_by_key(|c| (Reverse(c.created_at_ns), &c.id));
    let mut pods: HashMap<&str, (&SandboxStatus, Vec<Value>)> = HashMap::new();
    for sandbox in sandboxes.iter().filter(|s| s.state == SandboxState::Ready) {
        pods.entry(&sandbox.uid).or_insert_with(|| (sandbox, Vec::new()));
    }
    for container in running {
        // What runs outlives the sandbox that died under it.
        let Some(sandbox) = by_id.get(container.sandbox_id.as_str()) else { continue };
        let (_, shown) = pods.entry(&sandbox.uid).or_insert_with(|| (sandbox, Vec::new()));
        shown.push(json!({"name": container.name, "image": container.image, "resources": {}}));
    }
    let mut pods: Vec<_> = pods.into_values().collect();
    pods.sort_by_key(|(sandbox, _)| (Reverse(sandbox.created_at_ns), &sandbox.uid));
    let item = |(sandbox, shown): (&SandboxStatus, Vec<Value>)| {
        json!({
            "metadata": {"name": sandbox.name, "namespace": sandbox.namespace, "uid": sandbox.uid},
            "spec": {"containers": (!shown.is_empty()).then_some(shown)},
            "status": {},
        })
    };
    pods.into_iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(uid: &str, state: &str, created_at_ns: i64) -> SandboxStatus {
        serde_json::from_value(json!({
            "id": format!("s-{uid}"), "name": uid, "namespace": "n", "uid": uid, "attempt": 0, "state": state,
            "created_at_ns": created_at_ns, "ips": [], "netns": null, "shim_pid": 0, "labels": {},
            "annotations": {}, "namespaces": yare_runtime::NamespaceModes::default(), "cgroup_parent": "",
            "runtime_handler": "",
        }))
        .unwrap()
    }

    fn container(uid: &str, name: &str, state: ContainerState, created_at_ns: i64) -> ContainerStatus {
        ContainerStatus {
            id: format!("c-{name}"),
            sandbox_id: format!("s-{uid}"),
            name: name.to_owned(),
            attempt: 0,
            state,
            created_at_ns,
            started_at_ns: 0,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: format!("{name}:1"),
            image_id: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: Default::default(),
            pid: 0,
            mounts: Vec::new(),
            resources: Default::default(),
            user: None,
        }
    }

    #[test]
    fn a_pod_runs_while_anything_of_it_does() {
        use ContainerState::{Exited, Running};
        let sandboxes = [
            sandbox("old", "Ready", 1),
            sandbox("ended", "NotReady", 2),
            sandbox("orphaned", "NotReady", 3),
            sandbox("new", "Ready", 4),
        ];
        let containers = [
            container("old", "first", Running, 10),
            container("old", "second", Running, 11),
            container("old", "init", Exited, 9),
            container("ended", "gone", Exited, 12),
            container("orphaned", "lasting", Running, 13),
            container("unknown", "lost", Running, 14),
        ];
        let shown: Vec<String> = items(&sandboxes, &containers)
            .iter()
            .map(|pod| {
                let names = pod["spec"]["containers"].as_array().map(|all| {
                    all.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
                });
                format!(
                    "{}: {}",
                    pod["metadata"]["uid"].as_str().unwrap(),
                    names.as_deref().unwrap_or("null")
                )
            })
            .collect();
        assert_eq!(shown, ["new: null", "orphaned: lasting", "old: second first"]);
    }
}
