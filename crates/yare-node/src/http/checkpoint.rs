//! `POST /checkpoint/{namespace}/{pod}/{container}`: the runtime writes the state of a running container into a
//! file on the node.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::json;
use yare_runtime::ContainerState;

use super::{Body, query, text};
use crate::clock;
use crate::kubelet::Kubelet;

pub(super) async fn serve(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    raw: &str,
) -> Response<Body> {
    let Some(state) = kubelet.find_pod(namespace, pod, None) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    if state.pod.container(container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    }
    // Of several the last one counts.
    let timeout_s = match query(raw, "timeout").pop().map(|text| text.parse::<i64>()) {
        None => 0,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter"),
    };
    let failed = |why: String| {
        let message = format!("checkpointing of {namespace}/{pod}/{container} failed ({why})");
        text(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    let running = state.containers.iter().filter(|c| c.name == container);
    let Some(chosen) = running.max_by_key(|c| (c.state == ContainerState::Running, c.attempt)) else {
        return failed(format!("container {container} not found"));
    };
    let directory = kubelet.data_dir.join("checkpoints");
    // What a process had in memory is nobody's business.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    if let Err(error) = made {
        return failed(format!("make {}: {error}", directory.display()));
    }
    let now = clock::rfc3339(kubelet.seams.now());
    let location = directory.join(format!("checkpoint-{pod}_{namespace}-{container}-{now}.tar"));
    match kubelet.runtime.checkpoint_container(&chosen.id, &location, timeout_s).await {
        Ok(()) => super::json(&json!({ "items": [location] })),
        Err(error) => failed(error.to_string()),
    }
}
