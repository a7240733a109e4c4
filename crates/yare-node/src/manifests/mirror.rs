//! Mirror pods: what the API server sees of static pods.
//!
//! Level-triggered: for each static pod there should be one pod of its name that carries its digest; every other
//! mirror of this node is deleted. A mirror that somebody deletes comes back, and the static pod never notices.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use yare_client::{Cached, Informer, ObjectKey};

use crate::kubelet::Kubelet;
use crate::view::Pod;

/// The annotation of mirrors: their static pod's digest.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Between attempts while the API server refuses or is away, doubling.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Whether a pod of the API server is the mirror of a static one, and of which digest.
pub(crate) fn digest(pod: &Cached) -> Option<String> {
    // Only these are owned by nodes: other pods are not even decoded for the question.
    if pod.owners().iter().all(|owner| &*owner.kind != "Node") {
        return None;
    }
    #[derive(Deserialize)]
    struct View {
        metadata: crate::view::Metadata,
    }
    let view: View = pod.view().ok()?;
    view.metadata.annotations.get(MIRROR).cloned()
}

/// Keeps mirrors until the node stops. `node` is the node's own object.
pub(crate) async fn keep(kubelet: Arc<Kubelet>, node: Informer) {
    kubelet.pods.synced().await;
    let (mut pods, mut nodes) = (kubelet.pods.subscribe(), node.subscribe());
    let mut wait = RETRY_MIN;
    loop {
        let outcome = reconcile(&kubelet, &node).await;
        match &outcome {
            Ok(()) => wait = RETRY_MIN,
            Err(error) => tracing::debug!(error, "mirror pods, will retry"),
        }
        let retry_at = outcome.is_err().then(|| tokio::time::Instant::now() + wait);
        loop {
            tokio::select! {
                () = kubelet.statics.changed.notified() => break,
                change = pods.recv() => match change {
                    Some(change) => {
                        let one = change.new.as_ref().or(change.old.as_ref());
                        let about = |pod: &Cached| digest(pod).is_some() || kubelet.statics.is_known(pod.key());
                        if one.is_some_and(about) {
                            break;
                        }
                    }
                    None => return,
                },
                change = nodes.recv() => match change {
                    // Without its node a mirror cannot be made.
                    Some(change) if change.old.is_none() => break,
                    Some(_) => {}
                    None => return,
                },
                () = at(retry_at) => {
                    wait = (wait * 2).min(RETRY_MAX);
                    break;
                }
            }
        }
    }
}

async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn reconcile(kubelet: &Kubelet, node: &Informer) -> Result<(), String> {
    let mut failed = None;
    for pod in kubelet.statics.list() {
        if let Err(error) = mirror(kubelet, node, &pod).await {
            failed = Some(error);
        }
    }
    // A mirror whose pod's source has not spoken yet may be as good as new.
    let pods = if kubelet.statics.is_complete() { kubelet.pods.list() } else { Vec::new() };
    for pod in pods {
        if digest(&pod).is_some()
            && !kubelet.statics.is_known(pod.key())
            && let Err(error) = delete(kubelet, &pod).await
        {
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn mirror(kubelet: &Kubelet, node: &Informer, pod: &Cached) -> Result<(), String> {
    let found = kubelet.pods.get(pod.key());
    if let Some(found) = found {
        match digest(&found) {
            Some(digest) if digest == pod.uid() && found.deletion_timestamp().is_none() => {
                let view: Pod = found.view().map_err(|e| e.to_string())?;
                kubelet.writer.mirrored(pod.uid(), &view);
                return Ok(());
            }
            Some(_) => delete(kubelet, &found).await?,
            None => return Err(format!("{:?} is the name of a pod that is not a mirror", pod.key())),
        }
    }
    let Some(node) = node.get(&ObjectKey::cluster(&kubelet.node_name)) else {
        // It will be told of.
        return Ok(());
    };
    if node.deletion_timestamp().is_some() {
        return Ok(());
    }
    let object = object(pod, &kubelet.node_name, node.uid())?;
    let path = format!("/api/v1/namespaces/{}/pods", pod.namespace());
    match kubelet.api.create::<IgnoredAny>(&path, &object).await {
        Ok(_) => Ok(()),
        // The watch will show which it is.
        Err(error) if error.status_code() == Some(409) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The mirror of a static pod.
fn object(pod: &Cached, node: &str, node_uid: &str) -> Result<Value, String> {
    let mut object: Value = serde_json::from_slice(pod.bytes()).map_err(|e| e.to_string())?;
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    let metadata = &mut object["metadata"];
    if let Some(map) = metadata.as_object_mut() {
        map.remove("uid");
    }
    metadata["annotations"][MIRROR] = json!(pod.uid());
    metadata["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true }]);
    Ok(object)
}

async fn delete(kubelet: &Kubelet, pod: &Cached) -> Result<(), String> {
    match kubelet.api.delete_pod(pod.namespace(), pod.name(), pod.uid()).await {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.status_code(), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
